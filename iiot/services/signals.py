"""The signals of a device and their newest values."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import any_, bindparam, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session
from sqlalchemy.types import Text

from iiot import clock
from iiot.errors import Invalid, NotFound
from iiot.models import Device, Latest, Signal
from iiot.payloads import GOOD, QUALITIES
from iiot.services import audit, devices
from iiot.services.listing import Found, Wanted, find
from iiot.services.names import check_name
from iiot.tenancy import ScopedSession

SORTS: dict[str, Any] = {"key": Signal.key, "type": Signal.type}
MOST = 10_000
MAX_UNIT = 40

# Columns, not objects, and built once: pages that show a device ask this again and again.
_LATEST = (
    select(Signal.key, Signal.type, Signal.unit, Latest.ts, Latest.num, Latest.txt, Latest.quality)
    .join(Latest, (Latest.tenant_id == Signal.tenant_id) & (Latest.signal_id == Signal.id))
    .where(Signal.device_id == bindparam("device"))
    .order_by(Signal.key)
)


_COLUMNS = {"unit": "unit", "min": "minimum", "max": "maximum", "writable": "writable"}
_OF_DEVICES = (
    select(
        Device.uid, Signal.key, Signal.type, Signal.unit, Signal.minimum, Signal.maximum, Signal.writable,
        Latest.ts, Latest.num, Latest.txt, Latest.quality,
    )
    .join(Signal, (Signal.tenant_id == Device.tenant_id) & (Signal.device_id == Device.id))
    .outerjoin(Latest, (Latest.tenant_id == Signal.tenant_id) & (Latest.signal_id == Signal.id))
    .where(Device.uid == any_(bindparam("uids", type_=ARRAY(Text))))
    .order_by(Device.id, Signal.key)
)  # fmt: skip


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
    writable: bool = False
    last_quality: str | None = None


@dataclass(frozen=True)
class LatestView:
    """The newest reading of a signal."""

    key: str
    type: str
    unit: str | None
    ts: datetime
    value: Any
    quality: str


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
    return [
        LatestView(key, type_, unit, ts, value_of(type_, num, txt), QUALITIES[mark or GOOD])
        for key, type_, unit, ts, num, txt, mark in rows
    ]


def _newest(db: Session, signals: Sequence[int]) -> dict[int, Latest]:
    return {row.signal_id: row for row in db.scalars(select(Latest).where(Latest.signal_id.in_(signals)))}


def _view(signal: Signal, newest: Latest | None) -> SignalView:
    value = value_of(signal.type, newest.num, newest.txt) if newest else None
    ts = newest.ts if newest else None
    quality = QUALITIES[newest.quality or GOOD] if newest else None
    return SignalView(
        signal.key, signal.type, signal.unit, signal.minimum, signal.maximum, ts, value, signal.writable, quality
    )


def of_devices(db: ScopedSession, uids: Collection[str]) -> Iterator[tuple[str, SignalView]]:
    """(device uid, signal) of several devices, by key; unknown devices have none."""
    for uid, key, kind, unit, low, high, writable, ts, num, txt, mark in db.execute(_OF_DEVICES, {"uids": list(uids)}):
        value, quality = (None, None) if ts is None else (value_of(kind, num, txt), QUALITIES[mark or GOOD])
        yield uid, SignalView(key, kind, unit, low, high, ts, value, writable, quality)


def change(db: ScopedSession, uid: str, key: str, changes: Mapping[str, Any]) -> SignalView:
    """Change unit, min, max or whether it is writable; raises NotFound, and Invalid for what cannot be."""
    device = devices.locked(db, uid)
    signal = db.scalar(select(Signal).where(Signal.device_id == device.id, Signal.key == key))
    if signal is None:
        raise NotFound("signal")
    before = _noted(signal)
    for name, value in changes.items():
        setattr(signal, _COLUMNS[name], _checked(name, value))
    if signal.minimum is not None and signal.maximum is not None and signal.minimum >= signal.maximum:
        raise _invalid("max", "must be greater than min")
    device.updated_at = clock.now()
    db.flush()
    was, now = audit.changes(before, _noted(signal))
    if now:
        audit.record(db, "signal.change", ("device", uid), before={"key": key} | was, after={"key": key} | now)
    return _view(signal, _newest(db, [signal.id]).get(signal.id))


def _noted(signal: Signal) -> dict[str, Any]:
    return {name: getattr(signal, column) for name, column in _COLUMNS.items()}


def _checked(name: str, value: Any) -> Any:
    if name == "unit" and value is not None:
        return check_name(value, "unit", MAX_UNIT)
    if name in ("min", "max") and value is not None and not math.isfinite(value):
        raise _invalid(name, "must be a finite number")
    return value


def _invalid(name: str, message: str) -> Invalid:
    return Invalid("The signal is not valid.", [{"loc": ["body", name], "msg": message}])
