"""Tenants: creation, who sees which, quotas and figures."""

import re
import secrets
import unicodedata
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from iiot import auth, clock, ids
from iiot.errors import NotFound
from iiot.models import Device, Membership, Quota, Signal, Tenant, UsageDay
from iiot.services.listing import Found, Wanted, find
from iiot.services.overview import overview

RATE_SECONDS = 60


@dataclass(frozen=True)
class Limit:
    """A quota: what is allowed and what is used."""

    limit: int
    used: int


def slug_of(name: str) -> str:
    """A name as part of an address: lower-case ASCII letters, digits and hyphens; may be empty."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-")


def create(db: Session, name: str, timezone: str = "UTC") -> Tenant:
    """A tenant with the default quota. `db`: scope "sign-in" or "operator"."""
    base = slug_of(name) or "tenant"
    taken = db.scalar(select(func.count()).select_from(Tenant).where(Tenant.slug == base))
    slug = f"{base}-{secrets.token_hex(3)}" if taken else base
    tenant = Tenant(uid=ids.new_uid(), name=name, slug=slug, timezone=timezone)
    db.add(tenant)
    db.flush()
    db.add(Quota(tenant_id=tenant.id))
    db.flush()
    return tenant


def visible(db: Session, principal: auth.Principal, wanted: Wanted) -> Found[Tenant]:
    """A page of the tenants the caller belongs to; platform administrators see all. `db`: scope "platform"."""
    statement = select(Tenant)
    if not principal.is_platform_admin:
        mine = select(Membership.tenant_id).where(Membership.user_id == principal.user_id)
        statement = statement.where(Tenant.id.in_(mine))
    columns = {"name": func.lower(Tenant.name), "created_at": Tenant.created_at, "slug": Tenant.slug}
    return find(db, statement, columns, Tenant.id, wanted)  # type: ignore[arg-type]


def get(db: Session, principal: auth.Principal, uid: str) -> Tenant:
    """A tenant the caller may see; raises NotFound for any other. `db`: scope "platform"."""
    tenant = db.scalar(select(Tenant).where(Tenant.uid == uid))
    if tenant is None or not (principal.is_platform_admin or _is_member(db, principal, tenant)):
        raise NotFound("tenant")
    return tenant


def _is_member(db: Session, principal: auth.Principal, tenant: Tenant) -> bool:
    return db.get(Membership, (tenant.id, principal.user_id)) is not None


def quota(db: Session) -> dict[str, Limit]:
    """The session's tenant's limits and their use. `signals_per_device` shows the device that has most."""
    limits = db.scalars(select(Quota)).one()
    per_device = select(func.count().label("n")).select_from(Signal).group_by(Signal.device_id).subquery()
    return {
        "devices": Limit(limits.devices, db.scalar(select(func.count()).select_from(Device)) or 0),
        "users": Limit(limits.users, db.scalar(select(func.count()).select_from(Membership)) or 0),
        "rules": Limit(limits.rules, 0),
        "signals_per_device": Limit(limits.signals_per_device, db.scalar(select(func.max(per_device.c.n))) or 0),
        "readings_per_day": Limit(limits.readings_per_day, _readings_since(db, _midnight())),
    }


def _midnight() -> datetime:
    return clock.now().replace(hour=0, minute=0, second=0, microsecond=0)


def _readings_since(db: Session, since: datetime) -> int:
    return int(db.scalar(select(func.coalesce(func.sum(UsageDay.readings), 0)).where(UsageDay.day >= since)) or 0)


@dataclass(frozen=True)
class Stats:
    """Counts of now and of today (UTC); `readings_per_second` is the mean of the last minute."""

    devices: int
    online: int
    offline: int
    never_seen: int
    signals: int
    readings_today: int
    rejected_today: int
    readings_per_second: float


def stats(db: Session) -> Stats:
    """The figures of the session's tenant."""
    seen = overview(db)
    steps = RATE_SECONDS // seen.rate_step
    # The newest step is still being filled.
    recent = seen.rate[-steps - 1 : -1]
    return Stats(
        seen.devices,
        seen.online,
        seen.offline,
        seen.never_seen,
        db.scalar(select(func.count()).select_from(Signal)) or 0,
        seen.readings_today,
        seen.rejected_today,
        round(sum(recent) / RATE_SECONDS, 2),
    )
