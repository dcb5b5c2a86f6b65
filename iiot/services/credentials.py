"""What proves a device: up to five tokens at once, each shown once, so that one can be replaced while the other still works.

A token has a name, perhaps an end, and a slot, which gives its user name at the MQTT broker (`iiot.broker`). The broker is told after the commit;
a reconciler mends what it missed and removes what has expired.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from iiot import auth, broker, cache, clock, events, ids, rabbitmq, tenancy
from iiot.errors import Conflict, Forbidden, Invalid, NotFound
from iiot.models import Credential, Device, Tenant
from iiot.services import audit, presence
from iiot.services.names import check_name

log = structlog.get_logger(__name__)

MOST = broker.MAX_SLOTS
# How exactly the last use is known.
TOUCH_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class Wanted:
    """What a person says of a new token. `expires_at`: it works until then; None: until it is revoked."""

    name: str = ""
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Issued:
    """A new token, known only here, with what is stored of it. `user_name` is what the device logs in with at the MQTT broker."""

    credential: Credential
    token: str
    user_name: str


@dataclass(frozen=True)
class Listed:
    """A token as lists show it: nothing of the token itself. `amqp_username` is None for one from before AMQP, which does not open it."""

    uid: str
    name: str
    slot: int
    mqtt_username: str
    amqp_username: str | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    is_expired: bool


def list_all(db: Session, device: Device) -> list[Listed]:
    """The tokens of a device that were not revoked, by slot; those that have expired are among them."""
    now = clock.now()
    return [
        Listed(
            row.uid,
            row.name,
            row.slot,
            broker.user_name(device.uid, row.slot),
            None if row.amqp_hash is None else broker.user_name(device.uid, row.slot),
            row.created_at,
            row.expires_at,
            row.last_used_at,
            _has_expired(row, now),
        )
        for row in _not_revoked(db, device)
    ]


def _not_revoked(db: Session, device: Device) -> list[Credential]:
    statement = select(Credential).where(Credential.device_id == device.id, Credential.revoked_at.is_(None))
    return list(db.scalars(statement.order_by(Credential.slot)))


def _has_expired(row: Credential, now: datetime) -> bool:
    return row.expires_at is not None and row.expires_at <= now


def first(db: Session, device: Device) -> str:
    """The token of a device just made."""
    return _issue(db, device, 1, Wanted(), is_first=True).token


def replace(db: Session, device: Device, wanted: Wanted) -> Issued:
    """A new token in the place of all others, which stop working at once. `device` is locked (`devices.locked`)."""
    _check(wanted)
    former = _not_revoked(db, device)
    for row in former:
        row.revoked_at = clock.now()
    db.flush()
    issued = _issue(db, device, 1, wanted)
    before = {"credentials": [row.uid for row in former]}
    audit.record(db, "credential.replace", ("device", device.uid), before=before, after=_noted(issued.credential))
    end_proofs(db, device.uid)
    if former:
        presence.shut_out(db, device, "token-replaced")
    for user in (broker.user_name(device.uid, row.slot) for row in former if row.slot != 1):
        _remove_login(db, device.uid, user)
    return issued


def add(db: Session, device: Device, wanted: Wanted) -> Issued:
    """A new token beside the others; raises Conflict when there are five. `device` is locked."""
    _check(wanted)
    now = clock.now()
    held = {row.slot: row for row in _not_revoked(db, device)}
    free = [slot for slot in range(1, MOST + 1) if slot not in held or _has_expired(held[slot], now)]
    if not free:
        raise Conflict(f"A device has at most {MOST} credentials. Revoke one first.", "too-many-credentials")
    if free[0] in held:
        held[free[0]].revoked_at = now
        db.flush()
    issued = _issue(db, device, free[0], wanted)
    audit.record(db, "credential.create", ("device", device.uid), after=_noted(issued.credential))
    return issued


def revoke(db: Session, device: Device, uid: str) -> None:
    """Make a token stop working at once, in every protocol; the others of the device stay. Raises NotFound. `device` is locked."""
    found = [row for row in _not_revoked(db, device) if row.uid == uid]
    if not found:
        raise NotFound("credential")
    [row] = found
    row.revoked_at = clock.now()
    db.flush()
    audit.record(db, "credential.revoke", ("device", device.uid), before=_noted(row))
    now = clock.now()
    if any(not _has_expired(other, now) for other in _not_revoked(db, device)):
        presence.note(db, device, "token-revoked")
    else:
        presence.shut_out(db, device, "token-revoked")
    end_proofs(db, device.uid)
    _remove_login(db, device.uid, broker.user_name(device.uid, row.slot))


def _check(wanted: Wanted) -> None:
    if wanted.name:
        check_name(wanted.name)
    if wanted.expires_at is not None and wanted.expires_at <= clock.now():
        raise Invalid(
            "The credential is not valid.",
            [{"loc": ["body", "expires_at"], "msg": "must be in the future, or left out"}],
        )


def _noted(row: Credential) -> dict[str, Any]:
    """What the audit trail keeps of a token."""
    return {"id": row.uid, "name": row.name, "slot": row.slot, "expires_at": row.expires_at}


def _issue(db: Session, device: Device, slot: int, wanted: Wanted, *, is_first: bool = False) -> Issued:
    """A new token; its keyed hash and the broker's verifier are stored. With no other valid one the device begins anew at the broker."""
    token, now = ids.new_token(), clock.now()
    begins_anew = not is_first and all(_has_expired(row, now) for row in _not_revoked(db, device))
    salt, verifier, iterations = broker.verifier(token)
    row = Credential(
        uid=ids.new_uid(),
        device_id=device.id,
        token_hash=auth.device_token_hash(token),
        mqtt_salt=salt,
        mqtt_hash=verifier,
        mqtt_iterations=iterations,
        amqp_hash=rabbitmq.password_hash(token),
        slot=slot,
        name=wanted.name.strip(),
        expires_at=wanted.expires_at,
    )
    db.add(row)
    db.flush()
    uid, enabled = device.uid, device.enabled
    tell_broker(db, "add_login", uid, lambda: broker.add_login(uid, token, slot))
    if begins_anew:
        tell_broker(db, "end_session", uid, lambda: broker.end_session(uid, token, slot))
    if not enabled:
        tell_broker(db, "set_enabled", uid, lambda: broker.set_enabled(uid, False))
    else:
        login = rabbitmq.Login(uid, slot, row.amqp_hash or b"")
        tell_broker(db, "add_login", uid, lambda: rabbitmq.add_logins([login]))
    return Issued(row, token, broker.user_name(uid, slot))


def amqp_logins(db: Session, device: Device) -> list[rabbitmq.Login]:
    """What RabbitMQ is told of the tokens of a device that open something now; those from before AMQP are left out."""
    now = clock.now()
    return [
        rabbitmq.Login(device.uid, row.slot, row.amqp_hash)
        for row in _not_revoked(db, device)
        if row.amqp_hash is not None and not _has_expired(row, now)
    ]


def end_proofs(db: Session, uid: str) -> None:
    """After the commit: nothing remembered proves the device any more, and its questions that wait for a command are asked anew."""
    tenancy.after_commit(db, cache.forget_everywhere)
    tenancy.after_commit(db, lambda: events.publish_order(uid))


def _remove_login(db: Session, uid: str, user: str) -> None:
    tell_broker(db, "remove_login", uid, lambda: broker.remove_login(user))
    tell_broker(db, "remove_login", uid, lambda: rabbitmq.remove_login(user))


def tell_broker(db: Session, what: str, uid: str, call: Callable[[], None]) -> None:
    """After the commit. The broker being down does not undo what was decided: the reconciler repeats it."""

    def tell() -> None:
        try:
            call()
        except Exception as error:
            log.warning("the broker was not told", what=what, device=uid, error=str(error)[:200])

    tenancy.after_commit(db, tell)


# --- proving -----------------------------------------------------------------------------------------------------------------------------------


def authenticate(db: Session, uid: str, token: str, slot: int | None = None) -> auth.Proof | None:
    """The device that `uid` and `token` prove and until when, None when they prove nothing; raises Forbidden when it is disabled or its tenant
    is suspended or being deleted.

    `db`: scope "device-sign-in", or the device's own. `slot`: where the user name says which token it has to be. An unknown uid costs the same
    comparison as a wrong token. The use is noted, at most once a minute.
    """
    now = clock.now()
    rows = db.execute(
        select(Device.id, Device.tenant_id, Device.enabled, Tenant.uid, Tenant.status, Credential)
        .join(
            Credential,
            (Credential.tenant_id == Device.tenant_id)
            & (Credential.device_id == Device.id)
            & Credential.revoked_at.is_(None)
            & or_(Credential.expires_at.is_(None), Credential.expires_at > now),
        )
        .join(Tenant, Tenant.id == Device.tenant_id)
        .where(Device.uid == uid)
    ).all()
    offered = auth.device_token_hash(token)
    match = None
    for row in rows:
        if auth.same_text(offered, row.Credential.token_hash) and slot in (None, row.Credential.slot):
            match = row
    if match is None:
        return None
    _check_state(match.enabled, match.status)
    _touch(db, match.Credential, now)
    principal = auth.Principal(
        kind="device", tenant_id=match.tenant_id, tenant_uid=match.uid, device_id=match.id, device_uid=uid
    )
    return auth.Proof(principal, match.Credential.expires_at)


def still_open(db: Session, hashes: Collection[str]) -> set[str]:
    """Which of these tokens, by their keyed hashes, still let their device in: one question for many that proved themselves a moment ago.

    `db`: scope "device-sign-in". Their use is noted, at most once a minute.
    """
    now = clock.now()
    statement = (
        select(Credential.token_hash)
        .join(Device, (Device.tenant_id == Credential.tenant_id) & (Device.id == Credential.device_id))
        .join(Tenant, Tenant.id == Credential.tenant_id)
        .where(Credential.token_hash.in_(hashes), Credential.revoked_at.is_(None))
        .where(or_(Credential.expires_at.is_(None), Credential.expires_at > now))
        .where(Device.enabled, Tenant.status == "active")
    )
    found = set(db.scalars(statement))
    db.execute(
        update(Credential)
        .where(Credential.token_hash.in_(found), Credential.last_used_at <= now - TOUCH_EVERY)
        .values(last_used_at=now)
        .execution_options(synchronize_session=False)
    )
    return found


def _check_state(enabled: bool, tenant_status: str) -> None:
    if not enabled:
        raise Forbidden("This device is disabled. Enable it in the portal.", "device-disabled")
    if tenant_status != "active":
        word = "suspended" if tenant_status == "suspended" else "being deleted"
        raise Forbidden(f"The tenant of this device is {word}.", f"tenant-{tenant_status}")


def _touch(db: Session, row: Credential, now: datetime) -> None:
    if row.last_used_at is not None and row.last_used_at > now - TOUCH_EVERY:
        return
    db.execute(
        update(Credential)
        .where(
            Credential.tenant_id == row.tenant_id,
            Credential.id == row.id,
            or_(Credential.last_used_at.is_(None), Credential.last_used_at <= now - TOUCH_EVERY),
        )
        .values(last_used_at=now)
        .execution_options(synchronize_session=False)
    )
