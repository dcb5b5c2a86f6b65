"""The tailer that sends telemetry to people: rows of the log become events in the rooms that somebody listens to. Late data is not sent.

Who listens is asked after the rows have been read, and a client is told that it is subscribed only when its worker is in the room. So every row
that was not yet readable then is sent to it, and every older one is in the database: nothing falls between.
"""

import time

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from iiot import events
from iiot.services.batchlog import Readings
from iiot.services.directory import DeviceEntry, Directory, telemetry
from iiot.stream.log import Batch
from iiot.tenancy import sql

# While nothing is sent, clients still learn how far the log has come, so that a later resume need not search through old rows.
PROGRESS_SECONDS = 5.0

_TENANTS = sql("SELECT id, uid FROM iiot.tenant WHERE uid = ANY(:uids)")


class LiveEffect:
    """The handle of the tailer `live`. Raises redis.RedisError when Redis is down: the same rows come again."""

    def __init__(self) -> None:
        self._directory = Directory()
        self._tenant_ids: dict[str, int] = {}
        self._progress_due = 0.0

    def __call__(self, db: Session, batch: Batch) -> None:
        """Publish what somebody listens to. `cursor` in an event: everything up to there was sent before."""
        rooms = events.listened()
        tenants = self._tenants(db, {room.split(":", 2)[1] for room in rooms}) if rooms else set()
        if tenants.intersection(row.tenant_id for row in batch.rows if not row.late):
            self._publish(db, batch, rooms, tenants)
        now = time.monotonic()
        if now >= self._progress_due:
            events.publish_progress(str(batch.upto))
            self._progress_due = now + PROGRESS_SECONDS

    def _publish(self, db: Session, batch: Batch, rooms: set[str], tenants: set[int]) -> None:
        readings = batch.live_readings(tenants)
        device_ids = self._directory.device_ids(db, readings)
        heard = {
            int(id_): wanted for id_ in np.unique(device_ids) if id_ > 0 and (wanted := self._wanted(int(id_), rooms))
        }
        if not heard:
            return
        chosen = np.isin(device_ids, list(heard))
        cursor = str(batch.after)
        protocols = _protocols(readings, device_ids, chosen)
        events.publish_all(
            (
                room,
                "telemetry",
                told.event(cursor) | {"protocol": protocols[told.device.id]},
            )
            for told in telemetry(self._directory, readings, device_ids, chosen)
            for room in heard[told.device.id]
        )

    def _wanted(self, device_id: int, rooms: set[str]) -> list[str]:
        device: DeviceEntry = self._directory.devices[device_id]
        names = (events.tenant_room(device.tenant_uid), events.device_room(device.tenant_uid, device.uid))
        return [name for name in names if name in rooms]

    def _tenants(self, db: Session, uids: set[str]) -> set[int]:
        unknown = uids - self._tenant_ids.keys()
        if unknown:
            self._tenant_ids.update({uid: id_ for id_, uid in db.execute(_TENANTS, {"uids": list(unknown)})})
        return {self._tenant_ids[uid] for uid in uids if uid in self._tenant_ids}


def _protocols(
    readings: Readings, device_ids: npt.NDArray[np.int32], chosen: npt.NDArray[np.bool_]
) -> dict[int, str | None]:
    """Device id → the protocol over which its newest readings came."""
    pairs = np.unique(device_ids[chosen].astype(np.int64) << 32 | readings.row[chosen])
    return {int(pair >> 32): readings.rows[int(pair & 0xFFFFFFFF)].protocol for pair in pairs}
