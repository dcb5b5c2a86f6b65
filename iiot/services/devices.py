"""Devices: created, listed, changed, removed. What proves them is in `services.credentials`."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, Select, bindparam, func, or_, select
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Session, aliased, selectinload

from iiot import broker, cache, clock, ids, metrics, rabbitmq, tenancy
from iiot.errors import Conflict, Forbidden, Invalid, NotFound, Problem
from iiot.models import Device, Signal, Site
from iiot.services import audit, certificates, credentials, presence, quotas, roles, sites
from iiot.services.listing import Found, Wanted, escape_like, find
from iiot.services.names import check_name
from iiot.tenancy import ScopedSession

MAX_NAME = 200
MAX_TYPE = 64
MAX_TAGS = 32
MAX_TAG = 64
MOST_CHILDREN = 1000
# insufficient_privilege: what a row would become is not for a limited member to see.
NOT_YOURS = "42501"
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)

_BY_UID = (
    select(Device)
    .where(Device.uid == bindparam("uid"))
    .options(selectinload(Device.site), selectinload(Device.gateway))
)
# The hottest route reads columns, not an object: that is 0.2 ms of the 0.7 ms which the object costs. It bypasses the ORM's tenant filter, so it
# names the tenant itself; row-level security decides in any case.
_TABLE = Device.__table__
_COLUMNS = (
    "uid",
    "name",
    "type",
    "status",
    "is_gateway",
    "tags",
    "created_at",
    "last_seen_at",
    "enabled",
    "external_id",
    "version",
    "needs_approval",
    "child_name",
)
_SITES = Site.__table__
_SITE_UID = (
    select(_SITES.c.uid)
    .where(_SITES.c.tenant_id == _TABLE.c.tenant_id, _SITES.c.id == _TABLE.c.site_id)
    .scalar_subquery()
    .label("site_uid")
)
_GATEWAY = aliased(_TABLE)
_GATEWAY_UID = (
    select(_GATEWAY.c.uid)
    .where(_GATEWAY.c.tenant_id == _TABLE.c.tenant_id, _GATEWAY.c.id == _TABLE.c.gateway_id)
    .scalar_subquery()
    .label("gateway_uid")
)
_ID = (
    select(_TABLE.c.id)
    .where(_TABLE.c.uid == bindparam("uid"), _TABLE.c.tenant_id == bindparam("tenant"))
    .execution_options(reviewed=True)
)
_READ = (
    select(*[_TABLE.c[name] for name in _COLUMNS], _SITE_UID, _GATEWAY_UID)
    .where(_TABLE.c.uid == bindparam("uid"), _TABLE.c.tenant_id == bindparam("tenant"))
    .execution_options(reviewed=True)
)


@dataclass(frozen=True)
class NewDevice:
    """What a person says of a new device."""

    name: str
    type: str = "default"
    external_id: str | None = None
    is_gateway: bool = False
    tags: tuple[str, ...] = ()
    site: str | None = None


@dataclass(frozen=True)
class Filters:
    """Which devices a list shows; None means any. `q` is looked for in name, external id and id."""

    q: str | None = None
    type: str | None = None
    status: str | None = None
    tag: str | None = None
    is_gateway: bool | None = None
    enabled: bool | None = None
    site: str | None = None
    gateway: str | None = None


SORTS: dict[str, Any] = {
    "name": func.lower(Device.name),
    "type": Device.type,
    "status": Device.status,
    "created_at": Device.created_at,
    "last_seen_at": func.coalesce(Device.last_seen_at, _LONG_AGO),
}


def check_tags(tags: tuple[str, ...] | list[str]) -> list[str]:
    """Tags without repetition, in the order given."""
    if len(tags) > MAX_TAGS:
        raise Invalid("The device is not valid.", [{"loc": ["body", "tags"], "msg": f"at most {MAX_TAGS} tags"}])
    return list(dict.fromkeys(check_name(tag, "tags", MAX_TAG) for tag in tags))


def create(db: ScopedSession, new: NewDevice) -> tuple[Device, str]:
    """A device and its token, which is known only here. Raises QuotaExceeded, Conflict (external id taken), Invalid, or Forbidden (limited members)."""
    device = _add(db, new)
    token = credentials.first(db, device)
    return device, token


def create_child(db: ScopedSession, new: NewDevice, gateway_id: int, child_name: str) -> Device:
    """A device below a gateway, which sends for it under `child_name`; it has no token of its own. Raises as `create`. The gateway is locked."""
    return _add(db, new, gateway_id=gateway_id, child_name=child_name)


def _add(db: ScopedSession, new: NewDevice, **place: Any) -> Device:
    roles.check_unlimited(db.scope)
    device = Device(
        uid=ids.new_uid(),
        name=check_name(new.name, "name", MAX_NAME),
        type=check_name(new.type, "type", MAX_TYPE),
        external_id=None if new.external_id is None else check_name(new.external_id, "external_id", MAX_NAME),
        is_gateway=new.is_gateway,
        tags=check_tags(new.tags),
        site_id=sites.id_of(db, new.site),
        **place,
    )
    quotas.claim(db, "devices")
    _flush(db, device)
    audit.record(db, "device.create", ("device", device.uid), after=_noted(device))
    tenancy.after_commit(db, metrics.devices_created.inc)
    return device


def join(db: ScopedSession, uid: str, gateway_id: int, child_name: str) -> Device:
    """Let a gateway send for a device that exists. Raises NotFound, and Conflict when it is a gateway or another one sends for it."""
    roles.check_unlimited(db.scope)
    device = locked(db, uid)
    if device.is_gateway:
        raise Conflict("A gateway cannot be below another one.", "is-gateway")
    if device.gateway_id is not None:
        raise Conflict("A gateway sends for this device already, under another name.", "has-gateway")
    before = _noted(device)
    device.gateway_id, device.child_name = gateway_id, child_name
    device.version += 1
    device.updated_at = clock.now()
    db.flush()
    db.expire(device, ["gateway"])
    was, now = audit.changes(before, _noted(device))
    audit.record(db, "device.change", ("device", uid), before=was, after=now)
    return device


def children(db: Session, gateway_id: int) -> list[Device]:
    """The devices that a gateway sends for, by its names for them; the first thousand."""
    statement = select(Device).where(Device.gateway_id == gateway_id)
    return list(db.scalars(statement.order_by(Device.child_name).limit(MOST_CHILDREN)))


def _noted(device: Device) -> dict[str, Any]:
    """What the audit trail keeps of a device."""
    names = ("name", "type", "external_id", "is_gateway", "tags", "enabled", "needs_approval")
    noted = {name: getattr(device, name) for name in names} | {"site": device.site_uid}
    if device.gateway_id is not None:
        noted |= {"gateway": device.gateway_uid, "child_name": device.child_name}
    return noted


def _flush(db: Session, device: Device) -> None:
    try:
        with db.begin_nested():
            db.add(device)
    except IntegrityError as error:
        if "external_id" not in str(error.orig):
            raise
        raise Conflict("Another device of this tenant has this external_id.", "external-id-taken") from None
    except ProgrammingError as error:
        if getattr(error.orig, "pgcode", None) != NOT_YOURS:
            raise
        raise Forbidden(
            "With this change you would lose sight of the device: you are limited to some devices. Ask an admin of your tenant.",
            "limited-member",
        ) from None
    db.expire(device, ["site"])


def search(db: Session, filters: Filters, wanted: Wanted) -> Found[Device]:
    """A page of the session's tenant's devices."""
    return find(db, _filtered(filters), SORTS, Device.id, wanted)  # type: ignore[arg-type]


def _filtered(filters: Filters) -> Select[Any]:
    statement = select(Device).options(selectinload(Device.site), selectinload(Device.gateway))
    if filters.q:
        pattern = f"%{escape_like(filters.q)}%"
        statement = statement.where(
            or_(
                Device.name.ilike(pattern, escape="\\"),
                Device.external_id.ilike(pattern, escape="\\"),
                Device.uid == filters.q.lower(),
            )
        )
    for column in ("type", "status", "is_gateway", "enabled"):
        value = getattr(filters, column)
        if value is not None:
            statement = statement.where(getattr(Device, column) == value)
    if filters.site is not None:
        statement = statement.where(Device.site_id.in_(select(Site.id).where(Site.uid == filters.site)))
    if filters.gateway is not None:
        gateways = aliased(Device)
        statement = statement.where(Device.gateway_id.in_(select(gateways.id).where(gateways.uid == filters.gateway)))
    if filters.tag is not None:
        statement = statement.where(Device.tags.contains([filters.tag]))
    return statement


def get(db: Session, uid: str) -> Device:
    """A device of the session's tenant; raises NotFound for any other."""
    device = db.scalar(_BY_UID, {"uid": uid}) if ids.is_uid(uid) else None
    if device is None:
        raise NotFound("device")
    return device


def id_of(db: ScopedSession, uid: str) -> int:
    """The number of a device of the session's tenant; raises NotFound for any other."""
    values = {"uid": uid, "tenant": db.scope.tenant_id}
    found = db.execute(_ID, values).scalar_one_or_none() if ids.is_uid(uid) else None
    if found is None:
        raise NotFound("device")
    return int(found)


def read(db: ScopedSession, uid: str) -> Row[Any]:
    """The columns of a device of the session's tenant, for showing; raises NotFound for any other."""
    values = {"uid": uid, "tenant": db.scope.tenant_id}
    found: Any = db.execute(_READ, values).one_or_none() if ids.is_uid(uid) else None
    if found is None:
        raise NotFound("device")
    row: Row[Any] = found
    return row


def change(db: Session, uid: str, changes: dict[str, Any], expected_version: str | None = None) -> Device:
    """Change the given fields: name, type, external_id, is_gateway, tags, site, enabled, needs_approval.

    `expected_version`: raises 412 when it is another now.
    """
    device = locked(db, uid)
    if expected_version is not None and expected_version != str(device.version):
        raise Problem(
            412,
            "precondition-failed",
            "The device was changed since you read it. Read it again, then repeat your change.",
        )
    checked = dict(changes)
    for name, longest in (("name", MAX_NAME), ("type", MAX_TYPE)):
        if name in checked:
            checked[name] = check_name(checked[name], name, longest)
    if checked.get("external_id") is not None:
        checked["external_id"] = check_name(checked["external_id"], "external_id", MAX_NAME)
    if "tags" in checked:
        checked["tags"] = check_tags(checked["tags"])
    if "site" in checked:
        checked["site_id"] = sites.id_of(db, checked.pop("site"))
    before = _noted(device)
    for name, value in checked.items():
        setattr(device, name, value)
    device.version += 1
    device.updated_at = clock.now()
    _flush(db, device)
    was, now = audit.changes(before, _noted(device))
    if now:
        audit.record(db, "device.change", ("device", uid), before=was, after=now)
    if "enabled" in now:
        _announce_enabled(db, device)
    if "tags" in now or "site" in now:
        # Limited members may have lost sight of it: live subscriptions are looked at anew.
        tenancy.after_commit(db, cache.forget_everywhere)
    return device


def outline(db: Session) -> list[Row[tuple[str, str, str]]]:
    """uid, name and status of every device that the session sees, by name."""
    statement = select(Device.uid, Device.name, Device.status).order_by(func.lower(Device.name), Device.id)
    return list(db.execute(statement))


def stamp(db: Session) -> tuple[Any, ...]:
    """Changes when a device or a signal that the session sees was made, changed or removed."""
    signal = select(func.max(Signal.id)).scalar_subquery()
    return tuple(db.execute(select(func.count(Device.id), func.max(Device.updated_at), signal)).one())


def locked(db: Session, uid: str) -> Device:
    """A device of the session's tenant, locked until the end of the transaction; raises NotFound for any other."""
    device = db.scalar(select(Device).where(Device.uid == uid).with_for_update()) if ids.is_uid(uid) else None
    if device is None:
        raise NotFound("device")
    return device


def _announce_enabled(db: Session, device: Device) -> None:
    uid, enabled = device.uid, device.enabled
    if not enabled:
        presence.shut_out(db, device, "device-disabled")
    credentials.end_proofs(db, uid)
    credentials.tell_broker(db, "set_enabled", uid, lambda: broker.set_enabled(uid, enabled))
    (certificates.let_in if enabled else certificates.shut_out)(db, device)
    logins = credentials.amqp_logins(db, device) if enabled else []
    credentials.tell_broker(db, "set_enabled", uid, lambda: rabbitmq.set_enabled(uid, logins))


def set_enabled(db: Session, uid: str, enabled: bool) -> Device:
    """Let a device in, or shut it out at once in every protocol; its data stays."""
    return change(db, uid, {"enabled": enabled})


def remove(db: Session, uid: str) -> None:
    """Delete a device with its credentials and signals. Its uid is never used again; readings are dropped by retention."""
    device = locked(db, uid)
    before = _noted(device)
    certificates.shut_out(db, device)
    db.delete(device)
    db.flush()
    audit.record(db, "device.delete", ("device", uid), before=before)
    credentials.end_proofs(db, uid)
    credentials.tell_broker(db, "remove_device", uid, lambda: broker.remove_device(uid))
    credentials.tell_broker(db, "remove_device", uid, lambda: rabbitmq.remove_device(uid))
