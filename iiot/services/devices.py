"""Devices and their tokens: created, listed, changed, removed, proved. The broker is told after the commit; a reconciler mends what it missed."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import Row, Select, bindparam, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from iiot import auth, broker, cache, clock, ids, metrics, tenancy
from iiot.errors import Conflict, Forbidden, Invalid, NotFound, Problem, QuotaExceeded
from iiot.models import Credential, Device, Quota, Tenant
from iiot.services.listing import Found, Wanted, escape_like, find
from iiot.tenancy import ScopedSession

log = structlog.get_logger(__name__)

MAX_NAME = 200
MAX_TYPE = 64
MAX_TAGS = 32
MAX_TAG = 64
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)

# Holders of this lock create devices of one tenant one after the other, so that two of them cannot pass the quota together.
_LOCK_TENANT = tenancy.sql("SELECT pg_advisory_xact_lock(1145392, (SELECT iiot.tid()))")

_BY_UID = select(Device).where(Device.uid == bindparam("uid"))
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
)
_READ = (
    select(*(_TABLE.c[name] for name in _COLUMNS))
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


@dataclass(frozen=True)
class Filters:
    """Which devices a list shows; None means any. `q` is looked for in name, external id and id."""

    q: str | None = None
    type: str | None = None
    status: str | None = None
    tag: str | None = None
    is_gateway: bool | None = None
    enabled: bool | None = None


SORTS: dict[str, Any] = {
    "name": func.lower(Device.name),
    "type": Device.type,
    "status": Device.status,
    "created_at": Device.created_at,
    "last_seen_at": func.coalesce(Device.last_seen_at, _LONG_AGO),
}


def check_text(value: str, loc: str, longest: int) -> str:
    """A name as it is, stripped at the ends, when it is 1 to `longest` characters without control characters; raises Invalid.

    Anything else, markup and SQL and every script of the world, is only text: it is stored as it came and escaped where it is shown.
    """
    text = value.strip()
    message = None
    if not text:
        message = "must not be empty"
    elif len(text) > longest:
        message = f"at most {longest} characters"
    elif any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in text):
        message = "must not contain control characters or line breaks"
    if message:
        raise Invalid("The device is not valid.", [{"loc": ["body", loc], "msg": message}])
    return text


def check_tags(tags: tuple[str, ...] | list[str]) -> list[str]:
    """Tags without repetition, in the order given."""
    if len(tags) > MAX_TAGS:
        raise Invalid("The device is not valid.", [{"loc": ["body", "tags"], "msg": f"at most {MAX_TAGS} tags"}])
    return list(dict.fromkeys(check_text(tag, "tags", MAX_TAG) for tag in tags))


def create(db: Session, new: NewDevice) -> tuple[Device, str]:
    """A device and its token, which is known only here. Raises QuotaExceeded, Conflict (external id taken) or Invalid."""
    device = Device(
        uid=ids.new_uid(),
        name=check_text(new.name, "name", MAX_NAME),
        type=check_text(new.type, "type", MAX_TYPE),
        external_id=None if new.external_id is None else check_text(new.external_id, "external_id", MAX_NAME),
        is_gateway=new.is_gateway,
        tags=check_tags(new.tags),
    )
    _check_quota(db)
    _flush(db, device)
    token = _issue(db, device)
    _tell_broker(db, "add_device", device.uid, lambda: broker.add_device(device.uid, token))
    tenancy.after_commit(db, metrics.devices_created.inc)
    return device, token


def _check_quota(db: Session) -> None:
    db.execute(_LOCK_TENANT)
    limit = db.scalar(select(Quota.devices))
    used = db.scalar(select(func.count()).select_from(Device)) or 0
    if limit is not None and used >= limit:
        raise QuotaExceeded("devices", limit, used)


def _flush(db: Session, device: Device) -> None:
    try:
        with db.begin_nested():
            db.add(device)
    except IntegrityError as error:
        if "external_id" not in str(error.orig):
            raise
        raise Conflict("Another device of this tenant has this external_id.", "external-id-taken") from None


def _issue(db: Session, device: Device) -> str:
    """A new token; its keyed hash and the broker's verifier are stored."""
    token = ids.new_token()
    salt, verifier, iterations = broker.verifier(token)
    db.add(
        Credential(
            device_id=device.id,
            token_hash=auth.device_token_hash(token),
            mqtt_salt=salt,
            mqtt_hash=verifier,
            mqtt_iterations=iterations,
        )
    )
    db.flush()
    return token


def _tell_broker(db: Session, what: str, uid: str, call: Callable[[], None]) -> None:
    """After the commit. The broker being down does not undo what was decided: the reconciler repeats it."""

    def tell() -> None:
        try:
            call()
        except Exception as error:
            log.warning("the broker was not told", what=what, device=uid, error=str(error)[:200])

    tenancy.after_commit(db, tell)


def search(db: Session, filters: Filters, wanted: Wanted) -> Found[Device]:
    """A page of the session's tenant's devices."""
    return find(db, _filtered(filters), SORTS, Device.id, wanted)  # type: ignore[arg-type]


def _filtered(filters: Filters) -> Select[Any]:
    statement = select(Device)
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
    if filters.tag is not None:
        statement = statement.where(Device.tags.contains([filters.tag]))
    return statement


def get(db: Session, uid: str) -> Device:
    """A device of the session's tenant; raises NotFound for any other."""
    device = db.scalar(_BY_UID, {"uid": uid}) if ids.is_uid(uid) else None
    if device is None:
        raise NotFound("device")
    return device


def read(db: ScopedSession, uid: str) -> Row[Any]:
    """The columns of a device of the session's tenant, for showing; raises NotFound for any other."""
    found = db.execute(_READ, {"uid": uid, "tenant": db.scope.tenant_id}).one_or_none() if ids.is_uid(uid) else None
    if found is None:
        raise NotFound("device")
    return found


def change(db: Session, uid: str, changes: dict[str, Any], expected_version: str | None = None) -> Device:
    """Change the given fields (name, type, external_id, is_gateway, tags, enabled). `expected_version`: raises 412 when it is another now."""
    device = _locked(db, uid)
    if expected_version is not None and expected_version != str(device.version):
        raise Problem(
            412,
            "precondition-failed",
            "The device was changed since you read it. Read it again, then repeat your change.",
        )
    checked = dict(changes)
    for name, longest in (("name", MAX_NAME), ("type", MAX_TYPE)):
        if name in checked:
            checked[name] = check_text(checked[name], name, longest)
    if checked.get("external_id") is not None:
        checked["external_id"] = check_text(checked["external_id"], "external_id", MAX_NAME)
    if "tags" in checked:
        checked["tags"] = check_tags(checked["tags"])
    before = device.enabled
    for name, value in checked.items():
        setattr(device, name, value)
    device.version += 1
    device.updated_at = clock.now()
    _flush(db, device)
    if device.enabled != before:
        _announce_enabled(db, device)
    return device


def _locked(db: Session, uid: str) -> Device:
    device = db.scalar(select(Device).where(Device.uid == uid).with_for_update()) if ids.is_uid(uid) else None
    if device is None:
        raise NotFound("device")
    return device


def _announce_enabled(db: Session, device: Device) -> None:
    uid, enabled = device.uid, device.enabled
    tenancy.after_commit(db, cache.forget_everywhere)
    _tell_broker(db, "set_enabled", uid, lambda: broker.set_enabled(uid, enabled))


def set_enabled(db: Session, uid: str, enabled: bool) -> Device:
    """Let a device in, or shut it out at once in every protocol; its data stays."""
    return change(db, uid, {"enabled": enabled})


def remove(db: Session, uid: str) -> None:
    """Delete a device with its credentials and signals. Its uid is never used again; readings are dropped by retention."""
    device = _locked(db, uid)
    db.delete(device)
    db.flush()
    tenancy.after_commit(db, cache.forget_everywhere)
    _tell_broker(db, "remove_device", uid, lambda: broker.remove_device(uid))


def new_token(db: Session, uid: str) -> tuple[Device, str]:
    """A new token for a device; all earlier ones are refused from now on and open connections end."""
    device = _locked(db, uid)
    db.execute(
        update(Credential)
        .where(Credential.device_id == device.id, Credential.revoked_at.is_(None))
        .values(revoked_at=clock.now())
    )
    token = _issue(db, device)
    tenancy.after_commit(db, cache.forget_everywhere)
    _tell_broker(db, "add_device", uid, lambda: broker.add_device(uid, token))
    if not device.enabled:
        _tell_broker(db, "set_enabled", uid, lambda: broker.set_enabled(uid, False))
    return device, token


def authenticate(db: Session, uid: str, token: str) -> auth.Principal | None:
    """The device that `uid` and `token` prove, None when they prove nothing; raises Forbidden when it is disabled or its tenant suspended.

    `db`: scope "device-sign-in". An unknown uid costs the same comparison as a wrong token.
    """
    rows = db.execute(
        select(Device.id, Device.tenant_id, Device.enabled, Tenant.uid, Tenant.status, Credential.token_hash)
        .join(
            Credential,
            (Credential.tenant_id == Device.tenant_id)
            & (Credential.device_id == Device.id)
            & Credential.revoked_at.is_(None),
        )
        .join(Tenant, Tenant.id == Device.tenant_id)
        .where(Device.uid == uid)
    ).all()
    offered = auth.device_token_hash(token)
    match = None
    for row in rows:
        if auth.same_text(offered, row.token_hash):
            match = row
    if match is None:
        return None
    if not match.enabled:
        metrics.device_logins.labels("disabled").inc()
        raise Forbidden("This device is disabled. Enable it in the portal.", "device-disabled")
    if match.status != "active":
        raise Forbidden("The tenant of this device is suspended.", "tenant-suspended")
    return auth.Principal(
        kind="device", tenant_id=match.tenant_id, tenant_uid=match.uid, device_id=match.id, device_uid=uid
    )
