"""Online and offline: what a device, its last will or its silence says about its connection, and the history of it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import case, func, insert, literal, select, update
from sqlalchemy.orm import Session

from iiot import events, tenancy
from iiot.clock import rfc3339
from iiot.errors import Conflict
from iiot.models import ConnectionEvent, Device, Tenant
from iiot.services import audit
from iiot.services.listing import Found, Wanted, find


@dataclass(slots=True)
class StatusEvent:
    """A device's word about itself. `uid` is proved by the edge; `reason` is for people (`status topic`, `last will`, …).

    `is_said`: it said so; else it was only heard, which changes no state of a device that says it.
    """

    uid: str
    online: bool
    reason: str
    protocol: str | None = None
    is_said: bool = True


def status(changes: Sequence[StatusEvent]) -> None:
    """Store a batch of status messages in one commit and tell the browsers; unknown devices are skipped.

    Several messages of one device in a batch: each makes a connection event, the last one is the state. Raises what the database raises.
    """
    with tenancy.work(tenancy.system("ingest")) as db:
        for change in changes:
            _apply(db, change)


def declare(db: Session, device: Device, online: bool, protocol: str) -> None:
    """A person's or program's word about a device, which is locked: it stands until the device, or somebody else, says otherwise.

    Raises Conflict for a disabled device.
    """
    if not device.enabled:
        raise Conflict("The device is disabled. Enable it before you set its status.", "device-disabled")
    before = device.status
    _apply(db, StatusEvent(device.uid, online, "declared", protocol))
    state = "online" if online else "offline"
    audit.record(db, "device.status", ("device", device.uid), before={"status": before}, after={"status": state})


def _apply(db: Session, change: StatusEvent) -> None:
    device = db.execute(
        select(
            Device.tenant_id,
            Device.id,
            Device.status,
            Device.enabled,
            Device.tells_status,
            Tenant.uid,
            Device.last_seen_at,
        )
        .join(Tenant, Tenant.id == Device.tenant_id)
        .where(Device.uid == change.uid)
    ).one_or_none()
    state = "online" if change.online else "offline"
    if device is None or not device.enabled:
        return
    values: dict[str, Any] = {"last_seen_at": func.now()} if change.online else {}
    if change.is_said:
        values |= {"tells_status": True, "status": state}
    elif device.tells_status:
        state = device.status
    else:
        values |= {"status": state}
    own = (Device.tenant_id == device.tenant_id, Device.id == device.id)
    db.execute(update(Device).where(*own).values(values).execution_options(synchronize_session=False))
    if device.status == state:
        return
    row = {
        "tenant_id": device.tenant_id,
        "device_id": device.id,
        "online": change.online,
        "reason": change.reason[:200],
        "protocol": change.protocol,
    }
    db.execute(insert(ConnectionEvent).inline(), [row])
    tenant, seen = (
        device.uid,
        db.scalar(select(func.now()).execution_options(reviewed=True)) if change.online else device.last_seen_at,
    )
    told = {"device_id": change.uid, "status": state, "last_seen_at": rfc3339(seen)}
    tenancy.after_commit(db, lambda: events.device(tenant, change.uid, told))


# What the reasons of the history mean, for people. "status" and "telemetry" say it of both states.
TEXTS = {
    ("online", "status"): "It said that it is online",
    ("online", "retained"): "It had said that it is online",
    ("online", "telemetry"): "It sent readings",
    ("online", "answer"): "It answered a command",
    ("offline", "status"): "It said goodbye, or the broker said it for it (last will) because the connection was lost",
    ("offline", "retained"): "It had said goodbye, or its last will had",
    ("online", "declared"): "Somebody set it online",
    ("offline", "declared"): "Somebody set it offline",
    ("offline", "silence"): "Nothing came from it",
    ("offline", "device-disabled"): "It was disabled",
    ("offline", "tenant-suspended"): "The organisation is suspended",
    ("offline", "tenant-deleting"): "The organisation is being deleted",
    ("offline", "token-replaced"): "Its token was replaced",
    ("offline", "token-revoked"): "Its last token was revoked",
    ("offline", "token-expired"): "Its last token has expired",
    ("note", "token-revoked"): "One of its tokens was revoked",
    ("note", "broker-lost"): "The portal had lost the broker; the device may have had to connect again",
    ("refused", "unauthorized"): "A wrong token was offered",
    ("refused", "device-disabled"): "It tried to connect and is disabled",
    ("refused", "tenant-suspended"): "It tried to connect and the organisation is suspended",
    ("refused", "tenant-deleting"): "It tried to connect and the organisation is being deleted",
}


def text(event: ConnectionEvent) -> str:
    """What happened, in words."""
    kind = ("online" if event.online else "offline") if event.kind == "state" else event.kind
    return TEXTS.get((kind, event.reason), event.reason)


def history(db: Session, device_id: int, wanted: Wanted) -> Found[ConnectionEvent]:
    """A page of a device's connection events; `wanted.sort` is `-id`, the newest first."""
    statement = select(ConnectionEvent).where(ConnectionEvent.device_id == device_id)
    return find(db, statement, {"id": ConnectionEvent.id}, ConnectionEvent.id, wanted)  # type: ignore[dict-item, arg-type]


def since(db: Session, uids: Collection[str]) -> dict[str, datetime]:
    """uid → when a device's state became what it is, for devices that the session sees and whose history still knows it."""
    changed = (
        select(ConnectionEvent.at)
        .where(
            ConnectionEvent.tenant_id == Device.tenant_id,
            ConnectionEvent.device_id == Device.id,
            ConnectionEvent.kind == "state",
        )
        .order_by(ConnectionEvent.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    moment = func.coalesce(changed, case((Device.status == "new", Device.created_at)))
    found = db.execute(select(Device.uid, moment).where(Device.uid.in_(uids)))
    return {uid: at for uid, at in found if at is not None}


def shut_out(db: Session, device: Device, reason: str) -> None:
    """A device was shut out: offline from now on. `db`: a session of its tenant; `device` is locked."""
    if device.status != "online":
        return
    device.status = "offline"
    db.add(ConnectionEvent(device_id=device.id, online=False, reason=reason))
    db.flush()
    tenant = db.scalar(select(Tenant.uid).where(Tenant.id == device.tenant_id)) or ""
    told = {"device_id": device.uid, "status": "offline", "last_seen_at": rfc3339(device.last_seen_at)}
    uid = device.uid
    tenancy.after_commit(db, lambda: events.device(tenant, uid, told))


def note(db: Session, device: Device, reason: str) -> None:
    """Something happened to a device's ways in that leaves its state as it is."""
    event = ConnectionEvent(device_id=device.id, online=device.status == "online", reason=reason, kind="note")
    db.add(event)
    db.flush()


def lost_broker(protocol: str, seconds: float) -> None:
    """The broker of a protocol was away for so long: note it for every device that is online there."""
    columns = (Device.tenant_id, Device.id, literal(True), literal("broker-lost"), literal("note"), literal(protocol))
    online = select(*columns, literal(f"for {seconds:.0f} s")).where(
        Device.status == "online", Device.command_protocol == protocol
    )
    names = ["tenant_id", "device_id", "online", "reason", "kind", "protocol", "detail"]
    with tenancy.work(tenancy.system("ingest")) as db:
        db.execute(insert(ConnectionEvent).inline().from_select(names, online))
