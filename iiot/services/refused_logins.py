"""Logins of devices that were refused, in the device's history: noted by a thread of their own, and so few that nobody can fill the table.

The caller does not wait: how long an answer takes must not tell whether a device exists.
"""

import os
import queue
import threading

import structlog
from sqlalchemy import insert, select

from iiot import ids, tenancy
from iiot.models import ConnectionEvent, Device
from iiot.services import metering

log = structlog.get_logger(__name__)

# Per device: so many at once, and then one in so many seconds, over all processes.
AT_ONCE = 5
SECONDS_EACH = 600
# What may wait to be noted; more is forgotten.
MOST_WAITING = 1_000

_Refused = tuple[str, str, str, str]


class _Notes:
    """The thread of one process."""

    def __init__(self) -> None:
        self.waiting: queue.Queue[_Refused] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self._run, name="refused-logins", daemon=True).start()

    def _run(self) -> None:
        while True:
            refused = self.waiting.get()
            try:
                _store(*refused)
            except Exception as error:
                log.warning("refused login not noted", error=f"{type(error).__name__}: {error}"[:200])


_notes: dict[int, _Notes] = {}


def note(uid: str, protocol: str, reason: str, source: str) -> None:
    """Note that a login as the device `uid` was refused. `source`: the address. Unknown devices, and what is too often, are passed over."""
    if not ids.is_uid(uid):
        return
    notes = _notes.get(os.getpid()) or _notes.setdefault(os.getpid(), _Notes())
    try:
        notes.waiting.put_nowait((uid, protocol, reason, source))
    except queue.Full:
        return


def _store(uid: str, protocol: str, reason: str, source: str) -> None:
    with tenancy.work(tenancy.system("ingest")) as db:
        device = db.execute(select(Device.tenant_id, Device.id).where(Device.uid == uid)).one_or_none()
        if device is None or metering.take(f"refused:{uid}", 1 / SECONDS_EACH, AT_ONCE):
            return
        row = {"tenant_id": device.tenant_id, "device_id": device.id, "online": False, "kind": "refused"}
        row |= {"reason": reason, "protocol": protocol, "detail": f"from {source[:64]}"}
        db.execute(insert(ConnectionEvent).inline(), [row])
