"""The list of revoked certificates that the broker reads at its start: which serial numbers are on it.

What a certificate may do is decided by its client at the broker (`iiot.broker`), which is removed at the same moment: that alone ends its connection
and leaves it no topic. The list refuses it at the handshake, too, from the broker's next start on. A running Mosquitto 2.0 is not told to read it: at
SIGHUP it disconnects certificates with a lasting session that are not there a second time, and crashes when such a session ends (upstream issue 3418).
Serial numbers of devices that are gone stay on the list.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

import structlog
from cryptography import x509
from sqlalchemy import select
from sqlalchemy.orm import Session

from iiot import clock, config
from iiot.models import Device, DeviceCertificate, Tenant
from iiot.services import authority

log = structlog.get_logger(__name__)

# No certificate is valid longer (IIOT_CERTIFICATE_DAYS), so nobody needs an entry of before.
LONGEST = timedelta(days=3650)
# The list is written anew when it has less than this: brokers take none that has ended.
LEFT = timedelta(days=60)


def amend(add: Collection[int] = (), drop: Collection[int] = ()) -> None:
    """Put serial numbers on the list, and take others off."""
    pki = _ready()
    with pki.locked():
        before, _ = _read()
        entries = {serial: at for serial, at in before.items() if serial not in drop}
        entries |= {serial: clock.now() for serial in add if serial not in entries}
        _publish(pki, entries)


def reconcile(db: Session) -> bool:
    """Compare the list with the database and mend it; True when it was written. `db`: scope "provision"."""
    pki = _ready()
    rows = db.execute(
        select(
            DeviceCertificate.serial,
            DeviceCertificate.revoked_at,
            DeviceCertificate.expires_at,
            Device.enabled,
            Tenant.status,
        )
        .join(Device, (Device.tenant_id == DeviceCertificate.tenant_id) & (Device.id == DeviceCertificate.device_id))
        .join(Tenant, Tenant.id == Device.tenant_id)
    ).all()
    now = clock.now()
    # One that has ended needs no entry: it is known and may stand off the list.
    known = {
        int(serial, 16): (None if ends <= now else at, ends <= now or (enabled and status != "deleting"))
        for serial, at, ends, enabled, status in rows
    }
    with pki.locked():
        before, until = _read()
        oldest = clock.now() - LONGEST
        entries = {serial: at for serial, at in before.items() if serial not in known and at > oldest}
        for serial, (revoked_at, may) in known.items():
            if revoked_at is not None or not may:
                entries[serial] = revoked_at or before.get(serial) or clock.now()
        if entries.keys() == before.keys() and until is not None and until > clock.now() + LEFT:
            return False
        _publish(pki, entries)
    log.info("the list of revoked certificates was written anew", entries=len(entries))
    return True


def _ready() -> authority.Pki:
    """Our authorities, of which the one for devices exists: making it takes the lock, too."""
    pki = authority.ours()
    pki.authority("device")
    return pki


def _read() -> tuple[dict[int, datetime], datetime | None]:
    """What is on the list, and how long it holds; nothing when there is none that can be read."""
    path = config.load().crl_path
    try:
        found = x509.load_pem_x509_crl(path.read_bytes())
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError) as error:
        log.error("the list of revoked certificates cannot be read; it is made anew", error=str(error)[:200])
        return {}, None
    return {each.serial_number: each.revocation_date_utc for each in found}, found.next_update_utc


def _publish(pki: authority.Pki, entries: Mapping[int, datetime]) -> None:
    settings = config.load()
    settings.crl_path.parent.mkdir(parents=True, exist_ok=True)
    authority.write(settings.crl_path, pki.revocation_list(entries), 0o644)
