"""Certificates of devices for the MQTT broker: signed here, listed, revoked. Several may be valid at once, so that one replaces another without a gap.

The portal signs the request of a device, or makes the key itself and shows it once. The subject is the portal's choice, whatever the request says.
The broker is told after the commit; the reconciler (`services.provisioning`, `services.revocations`) mends what it missed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from iiot import broker, clock, config, ids
from iiot.errors import Conflict, Invalid, NotFound
from iiot.models import Device, DeviceCertificate
from iiot.services import audit, authority, credentials, revocations
from iiot.services.names import check_name

MOST = 5
# So many of one device may be on the list of revoked ones, which all brokers' handshakes look through.
MOST_REVOKED = 100


@dataclass(frozen=True)
class Wanted:
    """What a person says of a new certificate. `csr`: a request in PEM; None: the portal makes the key. `days`: None for the operator's choice."""

    name: str = ""
    csr: str | None = None
    days: int | None = None


@dataclass(frozen=True)
class Issued:
    """A new certificate. `private_key` is known only here, None when the device has made its own. `broker_ca` proves the embedded broker."""

    certificate: DeviceCertificate
    private_key: str | None
    device_ca: str
    broker_ca: str | None


def list_all(db: Session, device: Device) -> list[DeviceCertificate]:
    """The certificates of a device that were not revoked, oldest first; those that have ended are among them."""
    statement = select(DeviceCertificate).where(
        DeviceCertificate.device_id == device.id, DeviceCertificate.revoked_at.is_(None)
    )
    return list(db.scalars(statement.order_by(DeviceCertificate.id)))


def has_ended(row: DeviceCertificate) -> bool:
    """Whether its time is over."""
    return row.expires_at <= clock.now()


def issue(db: Session, device: Device, wanted: Wanted) -> Issued:
    """Sign a certificate; raises Invalid, or Conflict when the device has five. `device` is locked (`devices.locked`)."""
    if wanted.name:
        check_name(wanted.name)
    most = config.load().certificate_days
    days = most if wanted.days is None else wanted.days
    if not 1 <= days <= most:
        raise Invalid("The certificate is not valid.", [{"loc": ["body", "days"], "msg": f"1 to {most} days"}])
    if sum(not has_ended(row) for row in list_all(db, device)) >= MOST:
        raise Conflict(f"A device has at most {MOST} certificates. Revoke one first.", "too-many-certificates")
    if _revoked(db, device) >= MOST_REVOKED:
        raise Conflict(
            f"{MOST_REVOKED} certificates of this device were revoked before their end. Wait until some have ended.",
            "too-many-certificates",
        )
    own = authority.new_key() if wanted.csr is None else None
    key = own.public_key() if own is not None else authority.read_request(wanted.csr or "")
    pki, uid = authority.ours(), ids.new_uid()
    expires_at = clock.now().replace(microsecond=0) + timedelta(days=days)
    signed = pki.issue(device.uid, uid, key, expires_at)
    row = DeviceCertificate(
        uid=uid,
        device_id=device.id,
        serial=f"{signed.serial_number:x}",
        name=wanted.name.strip(),
        pem=authority.pem(signed),
        expires_at=expires_at,
    )
    db.add(row)
    db.flush()
    audit.record(db, "certificate.issue", ("device", device.uid), after=_noted(row))
    if device.enabled:
        device_uid = device.uid
        credentials.tell_broker(db, "add_certificate", device_uid, lambda: broker.add_certificate(device_uid, uid))
    else:
        credentials.tell_broker(db, "revoke", device.uid, lambda: revocations.amend([signed.serial_number]))
    return Issued(row, authority.key_pem(own) if own else None, pki.authority("device").pem, broker_ca())


def broker_ca() -> str | None:
    """What the embedded broker's certificate is checked with, in PEM; None for an outside broker, which has one of its operator's."""
    file = authority.ours().path("server")
    return file.read_text() if file.exists() else None


def revoke(db: Session, device: Device, uid: str) -> None:
    """End a certificate at once; the device's others, and its tokens, stay. Raises NotFound. `device` is locked."""
    found = [row for row in list_all(db, device) if row.uid == uid]
    if not found:
        raise NotFound("certificate")
    [row] = found
    row.revoked_at = clock.now()
    db.flush()
    audit.record(db, "certificate.revoke", ("device", device.uid), before=_noted(row))
    _shut_out(db, device, [row])


def shut_out(db: Session, device: Device) -> None:
    """The device is disabled or removed: after the commit none of its certificates opens anything."""
    _shut_out(db, device, list_all(db, device))


def let_in(db: Session, device: Device) -> None:
    """The device is enabled again, and its certificates with it."""
    rows = [row for row in list_all(db, device) if not has_ended(row)]
    device_uid, uids, serials = device.uid, [row.uid for row in rows], _serials(rows)
    if not rows:
        return

    def tell() -> None:
        revocations.amend(drop=serials)
        for uid in uids:
            broker.add_certificate(device_uid, uid)

    credentials.tell_broker(db, "let_in", device_uid, tell)


def _shut_out(db: Session, device: Device, rows: list[DeviceCertificate]) -> None:
    if not rows:
        return
    users, serials = [broker.certificate_user(device.uid, row.uid) for row in rows], _serials(rows)
    # The list first: who is thrown out of a connection comes back at once.
    credentials.tell_broker(db, "revoke", device.uid, lambda: revocations.amend(serials))
    credentials.tell_broker(db, "remove_login", device.uid, lambda: _remove_logins(users))


def _remove_logins(users: Iterable[str]) -> None:
    for user in users:
        broker.remove_login(user)


def _revoked(db: Session, device: Device) -> int:
    """How many were revoked and would still be valid."""
    ours = (DeviceCertificate.device_id == device.id, DeviceCertificate.revoked_at.is_not(None))
    statement = select(func.count()).select_from(DeviceCertificate)
    return db.scalar(statement.where(*ours, DeviceCertificate.expires_at > clock.now())) or 0


def _serials(rows: Iterable[DeviceCertificate]) -> list[int]:
    return [int(row.serial, 16) for row in rows]


def _noted(row: DeviceCertificate) -> dict[str, Any]:
    """What the audit trail keeps of a certificate."""
    return {"id": row.uid, "name": row.name, "serial": row.serial, "expires_at": row.expires_at}
