"""Online and offline: what a device, its last will or its silence says about its connection."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from iiot import events, tenancy
from iiot.clock import rfc3339
from iiot.errors import Conflict
from iiot.models import ConnectionEvent, Device, Tenant
from iiot.services import audit, devices
from iiot.tenancy import ScopedSession


@dataclass(slots=True)
class StatusEvent:
    """A device's word about itself. `uid` is proved by the edge; `reason` is for people (`status topic`, `last will`, …)."""

    uid: str
    online: bool
    reason: str


def status(changes: Sequence[StatusEvent]) -> None:
    """Store a batch of status messages in one commit and tell the browsers; unknown devices are skipped.

    Several messages of one device in a batch: each makes a connection event, the last one is the state. Raises what the database raises.
    """
    with tenancy.work(tenancy.system("ingest")) as db:
        for change in changes:
            _apply(db, change)


def declare(db: ScopedSession, uid: str, online: bool, reason: str) -> None:
    """A person's or program's word about a device of the session's tenant: stands until the device, or another one, says otherwise.

    Raises NotFound, and Conflict for a disabled device.
    """
    device = devices.locked(db, uid)
    if not device.enabled:
        raise Conflict("The device is disabled. Enable it before you set its status.", "device-disabled")
    before = device.status
    _apply(db, StatusEvent(uid, online, reason))
    state = "online" if online else "offline"
    audit.record(db, "device.status", ("device", uid), before={"status": before}, after={"status": state})


def _apply(db: Session, change: StatusEvent) -> None:
    device = db.execute(
        select(Device.tenant_id, Device.id, Device.status, Device.enabled, Tenant.uid, Device.last_seen_at)
        .join(Tenant, Tenant.id == Device.tenant_id)
        .where(Device.uid == change.uid)
    ).one_or_none()
    state = "online" if change.online else "offline"
    if device is None or not device.enabled:
        return
    values = {"tells_status": True, "status": state} | ({"last_seen_at": func.now()} if change.online else {})
    own = (Device.tenant_id == device.tenant_id, Device.id == device.id)
    db.execute(update(Device).where(*own).values(values).execution_options(synchronize_session=False))
    if device.status == state:
        return
    row = {
        "tenant_id": device.tenant_id,
        "device_id": device.id,
        "online": change.online,
        "reason": change.reason[:200],
    }
    db.execute(insert(ConnectionEvent).inline(), [row])
    tenant, seen = (
        device.uid,
        db.scalar(select(func.now()).execution_options(reviewed=True)) if change.online else device.last_seen_at,
    )
    told = {"device_id": change.uid, "status": state, "last_seen_at": rfc3339(seen)}
    tenancy.after_commit(db, lambda: events.device(tenant, change.uid, told))
