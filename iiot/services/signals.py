"""The signals of a device and their newest values."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from iiot.models import Latest, Signal
from iiot.services import devices
from iiot.services.listing import Found, Wanted, find
from iiot.tenancy import ScopedSession

SORTS: dict[str, Any] = {"key": Signal.key, "type": Signal.type}
MOST = 10_000

# Columns, not objects, and built once: pages that show a device ask this again and again.
_LATEST = (
    select(Signal.key, Signal.type, Signal.unit, Latest.ts, Latest.num, Latest.txt)
    .join(Latest, (Latest.tenant_id == Signal.tenant_id) & (Latest.signal_id == Signal.id))
    .where(Signal.device_id == bindparam("device"))
    .order_by(Signal.key)
)


@dataclass(frozen=True)
class SignalView:
    """A signal with its newest reading; `last_ts` and `last_value` are None before the first."""

    key: str
    type: str
    unit: str | None
    min: float | None
    max: float | None
    last_ts: datetime | None
    last_value: Any


@dataclass(frozen=True)
class LatestView:
    """The newest reading of a signal."""

    key: str
    type: str
    unit: str | None
    ts: datetime
    value: Any


def value_of(kind: str, num: float | None, txt: str | None) -> Any:
    """The value of a reading as it was sent, from the two columns it is stored in."""
    if kind == "json":
        return msgspec.json.decode(txt or "null")
    if kind == "string":
        return txt
    return bool(num) if kind == "boolean" else num


def list_signals(db: ScopedSession, uid: str) -> list[SignalView]:
    """All signals of a device by key; raises NotFound."""
    return search(db, uid, Wanted("key", MOST)).items


def search(db: ScopedSession, uid: str, wanted: Wanted) -> Found[SignalView]:
    """A page of a device's signals; raises NotFound, and Invalid for an unknown sort."""
    of_device = select(Signal).where(Signal.device_id == devices.id_of(db, uid))
    found = find(db, of_device, SORTS, Signal.id, wanted)  # type: ignore[arg-type]
    newest = _newest(db, [signal.id for signal in found.items])
    return Found([_view(signal, newest.get(signal.id)) for signal in found.items], found.next_position, found.total)


def latest(db: ScopedSession, uid: str) -> list[LatestView]:
    """The newest readings of a device by key, signals without one left out; raises NotFound."""
    rows = db.execute(_LATEST, {"device": devices.id_of(db, uid)}).all()
    return [LatestView(key, type_, unit, ts, value_of(type_, num, txt)) for key, type_, unit, ts, num, txt in rows]


def _newest(db: Session, signals: Sequence[int]) -> dict[int, Latest]:
    return {row.signal_id: row for row in db.scalars(select(Latest).where(Latest.signal_id.in_(signals)))}


def _view(signal: Signal, newest: Latest | None) -> SignalView:
    value = value_of(signal.type, newest.num, newest.txt) if newest else None
    ts = newest.ts if newest else None
    return SignalView(signal.key, signal.type, signal.unit, signal.minimum, signal.maximum, ts, value)
