"""OSCORE security contexts (RFC 8613) of devices: issued once, found by the device's key id, never used twice with one nonce.

The master secret is stored encrypted (AES-256-GCM under a derived key, bound to its row). The portal's own sequence numbers are stored ahead, in steps,
before one of them is used (appendix B.1.1), and follow the clock: a step begins where the clock is, if the number stored is behind it, and is refused when
the number stored is more than a minute ahead. So a database restored from a backup of any age goes on beyond every number that was used before, as long as
the clock of the machine was not turned back.
"""

import os
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from iiot import auth, cache, clock, config, ids, tenancy
from iiot.errors import Conflict, NotFound
from iiot.models import Device, OscoreContext, Tenant
from iiot.services import audit
from iiot.services.names import check_name

MOST = 5
# RFC 8613 section 3.3: at most 7 bytes with AES-CCM-16-64-128.
ID_BYTES = 7
SECRET_BYTES = 16
SALT_BYTES = 8
NONCE_BYTES = 12
ALGORITHM = "AES-CCM-16-64-128"
HASH = "sha256"
WINDOW = 32
# Numbers stored ahead at once; how many the clock allows a second, for 136 years; how far they may be ahead of it.
STEP = 64
PER_SECOND = 256
AHEAD = 60 * PER_SECOND
LAST = 2**40 - 1
TOUCH_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class Issued:
    """A new context with its secret, which is known only here."""

    context: OscoreContext
    secret: bytes

    def settings(self) -> dict[str, Any]:
        """The device's side in the form of aiocoap's `secret.json`."""
        row = self.context
        return {
            "algorithm": ALGORITHM,
            "kdf-hashfun": HASH,
            "sender-id_hex": row.kid.hex(),
            "recipient-id_hex": row.own_id.hex(),
            "secret_hex": self.secret.hex(),
            "salt_hex": row.salt.hex(),
        }

    def configuration(self) -> str:
        """The device's side in the form of libcoap's OSCORE configuration file."""
        row = self.context
        return (
            f'master_secret,hex,"{self.secret.hex()}"\n'
            f'master_salt,hex,"{row.salt.hex()}"\n'
            f'sender_id,hex,"{row.kid.hex()}"\n'
            f'recipient_id,hex,"{row.own_id.hex()}"\n'
            f'aead_alg,text,"{ALGORITHM}"\n'
            'hkdf_alg,text,"direct+HKDF-SHA-256"\n'
            f"replay_window,integer,{WINDOW}\n"
        )


@dataclass(frozen=True)
class Found:
    """A context as the CoAP adapter needs it. `refused`: code and text, when the device or its tenant is shut out."""

    kid: bytes
    own_id: bytes
    secret: bytes
    salt: bytes
    principal: auth.Principal
    refused: tuple[str, str] | None


def list_all(db: Session, device: Device) -> list[OscoreContext]:
    """The contexts of a device that were not revoked, the oldest first."""
    statement = select(OscoreContext).where(OscoreContext.device_id == device.id, OscoreContext.revoked_at.is_(None))
    return list(db.scalars(statement.order_by(OscoreContext.id)))


def issue(db: Session, device: Device, name: str = "") -> Issued:
    """A new context beside the others; raises Conflict when there are five, Invalid for the name. `device` is locked."""
    if name:
        check_name(name)
    if len(list_all(db, device)) >= MOST:
        raise Conflict(f"A device has at most {MOST} OSCORE keys. Revoke one first.", "too-many-credentials")
    uid, secret = ids.new_uid(), secrets.token_bytes(SECRET_BYTES)
    kid, own_id = _two_ids()
    row = OscoreContext(
        uid=uid,
        device_id=device.id,
        name=name.strip(),
        kid=kid,
        own_id=own_id,
        secret=_seal(secret, uid),
        salt=secrets.token_bytes(SALT_BYTES),
        created_at=clock.now(),
    )
    db.add(row)
    db.flush()
    audit.record(db, "oscore.create", ("device", device.uid), after=_noted(row))
    return Issued(row, secret)


def _two_ids() -> tuple[bytes, bytes]:
    """Key ids of both sides; they must differ."""
    kid, own = secrets.token_bytes(ID_BYTES), secrets.token_bytes(ID_BYTES)
    return (kid, own) if kid != own else _two_ids()


def revoke(db: Session, device: Device, uid: str) -> None:
    """Make a context stop working at once; raises NotFound. `device` is locked."""
    found = [row for row in list_all(db, device) if row.uid == uid]
    if not found:
        raise NotFound("oscore context")
    found[0].revoked_at = clock.now()
    db.flush()
    audit.record(db, "oscore.revoke", ("device", device.uid), before=_noted(found[0]))
    tenancy.after_commit(db, cache.forget_everywhere)


def _noted(row: OscoreContext) -> dict[str, Any]:
    return {"id": row.uid, "name": row.name, "kid": row.kid.hex()}


def _cipher() -> AESGCM:
    return AESGCM(config.load().derived_key("oscore"))


def _bound_to(uid: str) -> bytes:
    """What a secret is tied to, so that a row copied to another device opens nothing."""
    return f"oscore_context|{uid}".encode()


def _seal(secret: bytes, uid: str) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + _cipher().encrypt(nonce, secret, _bound_to(uid))


def _unseal(sealed: bytes, uid: str) -> bytes:
    return _cipher().decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound_to(uid))


# --- for the adapter ---------------------------------------------------------------------------------------------------------------------------


def find(db: Session, kid: bytes) -> Found | None:
    """The context that a device names by `kid`, None when there is none. `db`: scope "device-sign-in". The use is noted to the minute.

    Raises InvalidTag when the portal's secret key is not the one under which it was stored.
    """
    now = clock.now()
    statement = (
        select(OscoreContext, Device.uid, Device.enabled, Tenant.uid, Tenant.status)
        .join(Device, (Device.tenant_id == OscoreContext.tenant_id) & (Device.id == OscoreContext.device_id))
        .join(Tenant, Tenant.id == OscoreContext.tenant_id)
        .where(OscoreContext.kid == kid, OscoreContext.revoked_at.is_(None))
    )
    found = db.execute(statement).one_or_none()
    if found is None:
        return None
    row, device_uid, enabled, tenant_uid, status = found
    _touch(db, row, now)
    principal = auth.Principal(
        kind="device",
        tenant_id=row.tenant_id,
        tenant_uid=tenant_uid,
        device_id=row.device_id,
        device_uid=device_uid,
    )
    return Found(row.kid, row.own_id, _unseal(row.secret, row.uid), row.salt, principal, _shut_out(enabled, status))


def still_open(db: Session, kids: Collection[bytes]) -> set[bytes]:
    """Which of these keys still let their device in: one question for many that were used a moment ago. `db`: scope "device-sign-in"."""
    now = clock.now()
    statement = (
        select(OscoreContext.kid)
        .join(Device, (Device.tenant_id == OscoreContext.tenant_id) & (Device.id == OscoreContext.device_id))
        .join(Tenant, Tenant.id == OscoreContext.tenant_id)
        .where(OscoreContext.kid.in_(kids), OscoreContext.revoked_at.is_(None))
        .where(Device.enabled, Tenant.status == "active")
    )
    found = set(db.scalars(statement))
    db.execute(
        update(OscoreContext)
        .where(OscoreContext.kid.in_(found), OscoreContext.last_used_at <= now - TOUCH_EVERY)
        .values(last_used_at=now)
        .execution_options(synchronize_session=False)
    )
    return found


def _shut_out(enabled: bool, status: str) -> tuple[str, str] | None:
    if not enabled:
        return "device-disabled", "This device is disabled. Enable it in the portal."
    if status != "active":
        word = "suspended" if status == "suspended" else "being deleted"
        return f"tenant-{status}", f"The tenant of this device is {word}."
    return None


def _touch(db: Session, row: OscoreContext, now: datetime) -> None:
    if row.last_used_at is None or row.last_used_at <= now - TOUCH_EVERY:
        db.execute(
            update(OscoreContext)
            .where(OscoreContext.tenant_id == row.tenant_id, OscoreContext.id == row.id)
            .where(or_(OscoreContext.last_used_at.is_(None), OscoreContext.last_used_at <= now - TOUCH_EVERY))
            .values(last_used_at=now)
            .execution_options(synchronize_session=False)
        )


def reserve(db: Session, kid: bytes) -> range | None:
    """Sequence numbers that nobody has used, once the transaction is committed; None when the context is gone, exhausted or too far ahead.

    `db`: scope "device-sign-in".
    """
    by_clock = func.floor(func.extract("epoch", func.clock_timestamp() - OscoreContext.created_at) * PER_SECOND)
    statement = (
        update(OscoreContext)
        .where(OscoreContext.kid == kid, OscoreContext.revoked_at.is_(None))
        .where(OscoreContext.sequence <= by_clock + AHEAD, OscoreContext.sequence <= LAST - STEP)
        .values(sequence=func.greatest(OscoreContext.sequence, by_clock) + STEP)
        .returning(OscoreContext.sequence)
        .execution_options(synchronize_session=False)
    )
    end = db.scalar(statement)
    return None if end is None else range(int(end) - STEP, int(end))
