"""The signals of a device and their newest values."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from iiot.models import Latest, Signal
from iiot.services import devices
from iiot.services.listing import Found, Wanted, find

SORTS: dict[str, Any] = {"key": Signal.key, "type": Signal.type}
MOST = 10_000


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


def list_signals(db: Session, uid: str) -> list[SignalView]:
    """All signals of a device by key; raises NotFound."""
    return search(db, uid, Wanted("key", MOST)).items


def search(db: Session, uid: str, wanted: Wanted) -> Found[SignalView]:
    """A page of a device's signals; raises NotFound, and Invalid for an unknown sort."""
    device = devices.get(db, uid)
    found = find(db, select(Signal).where(Signal.device_id == device.id), SORTS, Signal.id, wanted)  # type: ignore[arg-type]
    newest = _newest(db, [signal.id for signal in found.items])
    return Found([_view(signal, newest.get(signal.id)) for signal in found.items], found.next_position, found.total)


def latest(db: Session, uid: str) -> list[LatestView]:
    """The newest readings of a device by key, signals without one left out; raises NotFound."""
    return [
        LatestView(signal.key, signal.type, signal.unit, signal.last_ts, signal.last_value)
        for signal in list_signals(db, uid)
        if signal.last_ts is not None
    ]


def _newest(db: Session, signals: Sequence[int]) -> dict[int, Latest]:
    return {row.signal_id: row for row in db.scalars(select(Latest).where(Latest.signal_id.in_(signals)))}


def _view(signal: Signal, newest: Latest | None) -> SignalView:
    value = value_of(signal.type, newest.num, newest.txt) if newest else None
    ts = newest.ts if newest else None
    return SignalView(signal.key, signal.type, signal.unit, signal.minimum, signal.maximum, ts, value)
