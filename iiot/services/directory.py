"""Which device and key a signal id stands for, and readings in the shape that people receive them.

The directory loads what it does not know in bulk and forgets everything after five minutes. In a tenant's session it knows that tenant alone.
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from iiot.payloads import QUALITIES
from iiot.services.batchlog import Readings
from iiot.tenancy import sql

MAX_AGE = 300.0
# An event holds at most this many readings; more are sent as several events.
MAX_EVENT = 5_000

_UNKNOWN, _MISSING = 0, -1
_LOAD = sql(
    "SELECT s.id, s.device_id, s.key, s.type, d.uid, d.tenant_id, t.uid AS tenant_uid "
    "FROM (SELECT * FROM unnest(CAST(:tenants AS integer[]), CAST(:ids AS integer[]))) AS wanted (tenant_id, id) "
    "JOIN iiot.signal s USING (tenant_id, id) "
    "JOIN iiot.device d ON d.tenant_id = s.tenant_id AND d.id = s.device_id JOIN iiot.tenant t ON t.id = s.tenant_id"
)


class DeviceEntry(NamedTuple):
    """A device as readers of the log need it."""

    id: int
    uid: str
    tenant_id: int
    tenant_uid: str


class Directory:
    """Signal ids → devices and keys. Not for several threads at once."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._born = time.monotonic()
        self._device_of = np.zeros(1024, np.int32)
        self.devices: dict[int, DeviceEntry] = {}
        self.signals: dict[int, tuple[str, str]] = {}

    def device_ids(self, db: Session, readings: Readings) -> npt.NDArray[np.int32]:
        """The device id of every reading; -1 where the signal no longer exists."""
        if time.monotonic() - self._born > MAX_AGE:
            self._clear()
        if not len(readings.signal_ids):
            return np.empty(0, np.int32)
        self._grow(int(readings.signal_ids.max()))
        found = self._device_of[readings.signal_ids]
        unknown = found == _UNKNOWN
        if unknown.any():
            self._load(db, readings.tenant_ids[unknown], readings.signal_ids[unknown])
            found = self._device_of[readings.signal_ids]
        return found

    def _grow(self, highest: int) -> None:
        if highest >= len(self._device_of):
            larger = np.zeros(max(highest + 1, 2 * len(self._device_of)), np.int32)
            larger[: len(self._device_of)] = self._device_of
            self._device_of = larger

    def _load(self, db: Session, tenants: npt.NDArray[np.int32], ids: npt.NDArray[np.int32]) -> None:
        ids, first = np.unique(ids, return_index=True)
        self._device_of[ids] = _MISSING
        rows = db.execute(_LOAD, {"tenants": tenants[first].tolist(), "ids": ids.tolist()})
        for id_, device_id, key, kind, uid, tenant_id, tenant_uid in rows:
            self._device_of[id_] = device_id
            self.signals[id_] = (key, kind)
            if device_id not in self.devices:
                self.devices[device_id] = DeviceEntry(device_id, uid, tenant_id, tenant_uid)


class Told(NamedTuple):
    """Readings of one device: `readings` are {key: [(ts, value), …]}, `quality` {key: {ts: word}} of those that are not good."""

    device: DeviceEntry
    readings: dict[str, list[Any]]
    quality: dict[str, dict[int, str]]
    size: int

    def event(self, cursor: str) -> dict[str, Any]:
        """What people are told; everything up to `cursor` was told before."""
        event = {"device_id": self.device.uid, "readings": self.readings, "cursor": cursor}
        return event | {"quality": self.quality} if self.quality else event


def telemetry(
    directory: Directory, readings: Readings, device_ids: npt.NDArray[np.int32], chosen: npt.NDArray[np.bool_]
) -> Iterator[Told]:
    """The chosen readings, device by device, each signal in the log's order; more than MAX_EVENT of a device in several parts.

    Values have the type of their signal; JSON values stay text in `msgspec.Raw`.
    """
    positions = np.flatnonzero(chosen)
    if not len(positions):
        return
    signals, devices = readings.signal_ids[positions], device_ids[positions]
    order = np.lexsort((signals, devices))
    positions, signals, devices = positions[order], signals[order], devices[order]
    cuts = np.flatnonzero(np.diff(signals)) + 1
    current, shape, marks, count = int(devices[0]), dict[str, list[Any]](), dict[str, dict[int, str]](), 0
    for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(positions)], strict=True):
        device_id = int(devices[begin])
        if device_id != current:
            if shape:
                yield Told(directory.devices[current], shape, marks, count)
            current, shape, marks, count = device_id, {}, {}, 0
        key, kind = directory.signals[int(signals[begin])]
        values = _values(readings, positions[begin:end], kind)
        marked = _marked(readings, positions[begin:end]) if readings.quality else {}
        if marked:
            marks[key] = marked
        while count + len(values) > MAX_EVENT:
            room = MAX_EVENT - count
            yield Told(directory.devices[current], shape | {key: values[:room]}, marks, MAX_EVENT)
            values, shape, marks, count = values[room:], {}, {key: marked} if marked else {}, 0
        if values:
            shape[key] = values
            count += len(values)
    if shape:
        yield Told(directory.devices[current], shape, marks, count)


def _marked(readings: Readings, positions: npt.NDArray[np.int64]) -> dict[int, str]:
    return {
        int(readings.ts[position]): QUALITIES[readings.quality[position]]
        for position in positions.tolist()
        if position in readings.quality
    }


def _values(readings: Readings, positions: npt.NDArray[np.int64], kind: str) -> list[tuple[int, Any]]:
    ts = readings.ts[positions].tolist()
    if kind == "number":
        return list(zip(ts, readings.num[positions].tolist(), strict=True))
    if kind == "boolean":
        return list(zip(ts, (readings.num[positions] != 0).tolist(), strict=True))
    texts = [readings.txt.get(position) for position in positions.tolist()]
    if kind == "json":
        return [(t, None if text is None else msgspec.Raw(text.encode())) for t, text in zip(ts, texts, strict=True)]
    return list(zip(ts, texts, strict=True))
