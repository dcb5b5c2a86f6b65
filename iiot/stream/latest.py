"""The tailer that keeps the newest reading of every signal, and when each device was last heard."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from iiot import clock, events, tenancy
from iiot.services import usage
from iiot.services.batchlog import Readings
from iiot.services.directory import Directory
from iiot.stream.log import Batch
from iiot.tenancy import sql

# A device's row is written at most this often while it keeps sending.
SEEN_SECONDS = 5.0
# The protocol of readings that people send again, see services.rejections.
REPLAY = "replay"

# Sorted, so that the rows of one page of the index are touched together. The strict comparison keeps the first of equal timestamps.
_UPSERT = sql(
    "INSERT INTO iiot.latest (tenant_id, signal_id, ts, num, txt, quality) "
    "SELECT u.tenant_id, u.signal_id, to_timestamp(u.ts / 1000e0), u.num, u.txt, u.quality FROM unnest(CAST(:tenants AS integer[]), "
    "CAST(:signals AS integer[]), CAST(:ts AS bigint[]), CAST(:num AS double precision[]), CAST(:txt AS text[]), CAST(:quality AS smallint[])) "
    "AS u (tenant_id, signal_id, ts, num, txt, quality) "
    "ON CONFLICT (tenant_id, signal_id) DO UPDATE SET ts = excluded.ts, num = excluded.num, txt = excluded.txt, quality = excluded.quality "
    "WHERE excluded.ts > latest.ts"
)
# A device that tells its state itself (status topic, last will) keeps it; any other is online because it sends.
_SEEN = sql(
    "WITH seen AS (SELECT * FROM unnest(CAST(:tenants AS integer[]), CAST(:ids AS integer[]), CAST(:at AS float8[])) "
    "AS u (tenant_id, id, at)), before AS (SELECT d.tenant_id, d.id, d.status FROM iiot.device d JOIN seen USING (tenant_id, id)) "
    "UPDATE iiot.device d SET last_seen_at = greatest(d.last_seen_at, to_timestamp(seen.at)), "
    "status = CASE WHEN d.tells_status THEN d.status ELSE 'online' END "
    "FROM seen JOIN before USING (tenant_id, id) WHERE d.tenant_id = seen.tenant_id AND d.id = seen.id "
    "RETURNING d.tenant_id, d.id, d.uid, d.status, before.status AS before, d.last_seen_at"
)
_EVENT = sql(
    "INSERT INTO iiot.connection_event (tenant_id, device_id, online, reason, protocol, detail) "
    "SELECT u.tenant_id, u.device_id, :online, :reason, u.protocol, :detail "
    "FROM unnest(CAST(:tenants AS integer[]), CAST(:ids AS integer[]), CAST(:protocols AS text[])) AS u (tenant_id, device_id, protocol)"
)


class LatestEffect:
    """The handle of the tailer `latest`."""

    def __init__(self) -> None:
        self._directory = Directory()
        self._seen: dict[int, float] = {}

    def __call__(self, db: Session, batch: Batch) -> None:
        """Write the newest values and who was heard; device events follow the commit."""
        readings = batch.readings()
        devices = self._directory.device_ids(db, readings)
        self._upsert(db, readings, devices)
        self._mark_seen(db, readings, devices)
        usage.count(db, readings.rows)

    @staticmethod
    def _upsert(db: Session, readings: Readings, devices: npt.NDArray[np.int32]) -> None:
        chosen = newest_per_signal(readings, devices > 0)
        if not len(chosen):
            return
        num = readings.num[chosen]
        numbers: list[Any] = num.tolist()
        texts: list[str | None] | None = None
        if readings.txt:
            texts = [readings.txt.get(position) for position in chosen.tolist()]
            numbers = [None if text is not None else number for number, text in zip(numbers, texts, strict=True)]
        db.execute(
            _UPSERT,
            {
                "tenants": literal(readings.tenant_ids[chosen].tolist()),
                "signals": literal(readings.signal_ids[chosen].tolist()),
                "ts": literal(readings.ts[chosen].tolist()),
                "num": numbers if texts else literal(numbers),
                "txt": texts,
                "quality": [readings.quality.get(each) for each in chosen.tolist()] if readings.quality else None,
            },
        )

    def _mark_seen(self, db: Session, readings: Readings, devices: npt.NDArray[np.int32]) -> None:
        """Coalesced: the newest arrival per device of this batch, and only for devices not written lately.

        What people send again for a device says nothing about its connection.
        """
        came = np.array([row.protocol != REPLAY for row in readings.rows])[readings.row]
        rows, devices = readings.row[came], devices[came]
        arrivals = np.array([row.created_at.timestamp() for row in readings.rows])[rows]
        order = np.lexsort((arrivals, devices))
        last = order[np.flatnonzero(np.append(np.diff(devices[order]) != 0, True))] if len(order) else order
        due = [
            (device_id, at)
            for device_id, at in zip(devices[last].tolist(), arrivals[last].tolist(), strict=True)
            if device_id > 0 and at - self._seen.get(device_id, 0.0) >= SEEN_SECONDS
        ]
        protocols = dict(zip(devices[last].tolist(), (readings.rows[row].protocol for row in rows[last]), strict=True))
        if not due:
            return
        entries = self._directory.devices
        parameters = {
            "tenants": literal([entries[device_id].tenant_id for device_id, _ in due]),
            "ids": literal([device_id for device_id, _ in due]),
            "at": literal([at for _, at in due]),
        }
        changed = [row for row in db.execute(_SEEN, parameters) if row.status != row.before]
        came_online = [(row.tenant_id, row.id, protocols[row.id]) for row in changed]
        record_transitions(db, came_online, online=True, reason="telemetry")
        tenants = {entries[row.id].tenant_id: entries[row.id].tenant_uid for row in changed}
        for row in changed:
            announce(db, tenants[row.tenant_id], row.uid, "online", row.last_seen_at)
        tenancy.after_commit(db, lambda: self._seen.update(due))


def newest_per_signal(readings: Readings, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Positions of the reading with the highest timestamp of each signal, the first in the log among equals; sorted by (tenant, signal)."""
    positions = np.flatnonzero(valid)
    tenants, signals, ts = readings.tenant_ids[positions], readings.signal_ids[positions], readings.ts[positions]
    order = np.lexsort((-positions, ts, signals, tenants))
    signals = signals[order]
    last = np.append(np.diff(signals) != 0, True) if len(order) else np.empty(0, bool)
    chosen: npt.NDArray[np.int64] = positions[order][last]
    return chosen


def literal(values: list[Any]) -> str:
    """A PostgreSQL array literal of numbers: a third of the time that the driver needs for a list."""
    return "{" + ",".join(map(str, values)) + "}"


def record_transitions(
    db: Session, devices: Sequence[tuple[int, int, str | None]], *, online: bool, reason: str, detail: str = ""
) -> None:
    """Note for (tenant id, device id, protocol) that they came online or went offline, and why."""
    if devices:
        tenants, ids, protocols = (list(column) for column in zip(*devices, strict=True))
        given = {"tenants": tenants, "ids": ids, "protocols": protocols}
        db.execute(_EVENT, given | {"online": online, "reason": reason, "detail": detail})


def announce(db: Session, tenant_uid: str, device_uid: str, status: str, last_seen_at: datetime | None) -> None:
    """Send the event `device` after the commit."""
    data = {"device_id": device_uid, "status": status, "last_seen_at": clock.rfc3339(last_seen_at)}

    def tell() -> None:
        events.device(tenant_uid, device_uid, data)

    tenancy.after_commit(db, tell)
