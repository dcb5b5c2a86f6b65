"""What a tenant may have: claimed before it is made, under a lock, so that parallel requests cannot pass a limit together.

Counted things (devices, users, rules) are claimed here. Signals per device are kept by services.resolver under the device's lock, readings of a
day by services.ingest, requests of a day by services.metering, connections by live.guard.
"""

from collections.abc import Callable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from iiot import clock, tenancy
from iiot.errors import QuotaExceeded
from iiot.models import Device, Invitation, Membership, Quota
from iiot.tenancy import ScopedSession

# Every limit, in the order in which it is shown.
NAMES = (
    "devices",
    "users",
    "rules",
    "signals_per_device",
    "readings_per_day",
    "api_requests_per_day",
    "connections",
)


def _devices(db: Session) -> int:
    return db.scalar(select(func.count()).select_from(Device)) or 0


def _users(db: Session) -> int:
    return db.scalar(select(func.count()).select_from(Membership)) or 0


def _users_to_be(db: Session) -> int:
    waiting = select(func.count()).select_from(Invitation)
    waiting = waiting.where(
        Invitation.accepted_at.is_(None), Invitation.revoked_at.is_(None), Invitation.expires_at > clock.now()
    )
    return _users(db) + (db.scalar(waiting) or 0)


def _rules(_db: Session) -> int:
    return 0


# What can be claimed → (the limit it counts towards, its lock, how it is counted). An invitation is claimed when it is sent, the user when it is
# accepted: open invitations count for the first, members alone for the second.
_CLAIMS: dict[str, tuple[str, int, Callable[[Session], int]]] = {
    "devices": ("devices", 1145392, _devices),
    "users": ("users", 1145393, _users),
    "invitations": ("users", 1145393, _users_to_be),
    "rules": ("rules", 1145394, _rules),
}
_LOCK = tenancy.sql("SELECT pg_advisory_xact_lock(:lock, :tenant)")


def claim(db: Session, name: str, count: int = 1) -> None:
    """Make sure that `count` more of `name` ("devices", "users", "invitations", "rules") fit, until the end of the transaction.

    Call it before the insert, in the same transaction and with a scope that has a tenant. Holders of the lock create one after the other; each
    sees what the one before has committed. Raises QuotaExceeded(limit's name, limit, use).
    """
    limit_name, lock, _ = _CLAIMS[name]
    tenant_id = _tenant(db)
    db.execute(_LOCK, {"lock": lock, "tenant": tenant_id})
    # A tenant without a quota may have nothing: the forgotten case is the closed one.
    limit = db.scalar(select(getattr(Quota, limit_name)).where(Quota.tenant_id == tenant_id)) or 0
    used = in_use(db, name)
    if used + count > limit:
        raise QuotaExceeded(limit_name, limit, used)


def in_use(db: Session, name: str) -> int:
    """How many of `name` the session's tenant has; a member who is limited to some devices counts those alone, and makes none."""
    return _CLAIMS[name][2](db)


def _tenant(db: Session) -> int:
    tenant_id = db.scope.tenant_id if isinstance(db, ScopedSession) else None
    if tenant_id is None:
        raise tenancy.NoTenant("A quota belongs to a tenant: open the session with its scope.")
    return tenant_id
