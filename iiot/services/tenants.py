"""Tenants: creation, who sees which, settings, the life from active to gone, and figures."""

import functools
import re
import secrets
import unicodedata
import zoneinfo
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, joinedload

from iiot import auth, cache, clock, ids, tenancy
from iiot.errors import Conflict, Forbidden, Invalid, NotFound, Problem
from iiot.models import Membership, Plan, Quota, Tenant
from iiot.services import audit, plans, quotas
from iiot.services.listing import Found, Wanted, escape_like, find
from iiot.services.names import check_name
from iiot.services.overview import RATE_STEP, Counts, counts, rates
from iiot.tenancy import ScopedSession

RATE_SECONDS = 60
MAX_NAME = 200
MAX_REASON = 500
GRACE = timedelta(days=30)
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


def slug_of(name: str) -> str:
    """A name as part of an address: lower-case ASCII letters, digits and hyphens; may be empty."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-")


@functools.cache
def timezones() -> frozenset[str]:
    """The IANA names of all time zones."""
    return frozenset(zoneinfo.available_timezones()) - {"localtime", "Factory"}


def _refuse(loc: str, message: str) -> Invalid:
    return Invalid("The tenant is not valid.", [{"loc": ["body", loc], "msg": message}])


def check_timezone(text: str) -> str:
    """An IANA name; raises Invalid for any other."""
    if text not in timezones():
        raise _refuse("timezone", "not a time zone; write its IANA name, like Europe/Berlin or UTC")
    return text


def check_colour(text: str | None) -> str | None:
    """`#rrggbb` in lower case, or None. Any colour will do: pages derive shades of it that can be read."""
    if text is None:
        return None
    if not COLOUR.fullmatch(text):
        raise _refuse("colour", "write it like #0b6b74")
    return text.lower()


# --- making and finding ------------------------------------------------------------------------------------------------------------------------


def create(db: Session, name: str, timezone: str = "UTC", plan: Plan | None = None) -> Tenant:
    """A tenant with the limits of a plan, or the default ones. `db`: scope "platform", "sign-in" or "operator"."""
    name, timezone = check_name(name, longest=MAX_NAME), check_timezone(timezone)
    base = slug_of(name) or "tenant"
    taken = db.scalar(select(func.count()).select_from(Tenant).where(Tenant.slug == base))
    slug = f"{base}-{secrets.token_hex(3)}" if taken else base
    tenant = Tenant(uid=ids.new_uid(), name=name, slug=slug, timezone=timezone, plan=plan)
    db.add(tenant)
    db.flush()
    db.add(Quota(tenant_id=tenant.id, **(plans.limits_of(plan) if plan else {})))
    db.flush()
    after = {"name": name, "slug": slug, "timezone": timezone, "plan": plan.name if plan else None}
    audit.record(db, "tenant.create", ("tenant", tenant.uid), after=after, actor=plans.platform_actor())
    return tenant


@dataclass(frozen=True)
class Filters:
    """Which tenants a list shows; None means any. `q` is looked for in name, slug and id."""

    q: str | None = None
    status: str | None = None


def visible(db: Session, principal: auth.Principal, wanted: Wanted, filters: Filters | None = None) -> Found[Tenant]:
    """A page of the tenants the caller belongs to; platform administrators see all. `db`: scope "platform"."""
    filters = filters or Filters()
    statement = select(Tenant).options(joinedload(Tenant.plan))
    if not principal.is_platform_admin:
        # A key stays in its own tenant, whatever else its owner belongs to.
        mine = select(Membership.tenant_id).where(Membership.user_id == principal.user_id)
        key = principal.api_key_uid is not None or principal.kind != "user"
        statement = statement.where(Tenant.id == principal.tenant_id if key else Tenant.id.in_(mine))
    if filters.status is not None:
        statement = statement.where(Tenant.status == filters.status)
    if filters.q:
        pattern = f"%{escape_like(filters.q)}%"
        names = (Tenant.name.ilike(pattern, escape="\\"), Tenant.slug.ilike(pattern, escape="\\"))
        statement = statement.where(or_(*names, Tenant.uid == filters.q.lower()))
    columns = {"name": func.lower(Tenant.name), "created_at": Tenant.created_at, "slug": Tenant.slug}
    return find(db, statement, columns, Tenant.id, wanted)  # type: ignore[arg-type]


def by_uid(db: Session, uid: str) -> Tenant:
    """Any tenant; raises NotFound. For platform administrators alone. `db`: scope "platform"."""
    statement = select(Tenant).options(joinedload(Tenant.plan)).where(Tenant.uid == uid)
    tenant = db.scalar(statement) if ids.is_uid(uid) else None
    if tenant is None:
        raise NotFound("tenant")
    return tenant


def own(db: Session, *, lock: bool = False) -> Tenant:
    """The tenant of the session's scope, with its plan. `db`: scope "platform" with a tenant; members' own role cannot read plans."""
    tenant_id = db.scope.tenant_id if isinstance(db, ScopedSession) else None
    statement = select(Tenant).options(joinedload(Tenant.plan)).where(Tenant.id == tenant_id)
    tenant = db.scalar(statement.with_for_update(of=Tenant) if lock else statement)
    if tenant is None:
        raise NotFound("tenant")
    return tenant


# --- settings and life -------------------------------------------------------------------------------------------------------------------------


def version(tenant: Tenant) -> str:
    """What `If-Match` is compared with."""
    return tenant.updated_at.isoformat()


def _locked(db: Session, expected_version: str | None) -> Tenant:
    tenant = own(db, lock=True)
    if expected_version is not None and expected_version != version(tenant):
        raise Problem(
            412,
            "precondition-failed",
            "The tenant was changed since you read it. Read it again, then repeat your change.",
        )
    return tenant


_CHECKS: dict[str, Any] = {
    "name": functools.partial(check_name, longest=MAX_NAME),
    "timezone": check_timezone,
    "colour": check_colour,
}


def change(db: Session, changes: dict[str, Any], expected_version: str | None = None) -> Tenant:
    """Change name, timezone, colour, require_mfa or logo (a PNG, None removes it). `db`: see `own`. Raises 412 when the version is another now."""
    tenant = _locked(db, expected_version)
    checked = {name: _CHECKS[name](value) if name in _CHECKS else value for name, value in changes.items()}
    shown = [name for name in checked if name != "logo"]
    before = {name: getattr(tenant, name) for name in shown}
    for name in shown:
        setattr(tenant, name, checked[name])
    old, new = audit.changes(before, {name: checked[name] for name in shown})
    if "logo" in checked:
        tenant.logo = checked["logo"]
        tenant.logo_type = "image/png" if checked["logo"] else None
        new["logo"] = f"{len(checked['logo'])} bytes" if checked["logo"] else None
    _touch(db, tenant)
    audit.record(db, "tenant.change", ("tenant", tenant.uid), before=old, after=new)
    return tenant


def set_status(
    db: Session, status: str, reason: str, actor: auth.Principal | None, expected_version: str | None = None
) -> Tenant:
    """Suspend a tenant, lift a suspension, or restore one that is being deleted. `db`: see `own`; `actor` None: the operator.

    Suspensions are for platform administrators, who give a reason that the tenant can read. Admins of a tenant may restore it within the grace
    period; one that was suspended before is suspended again then. Raises Forbidden, Conflict, Invalid.
    """
    tenant = _locked(db, expected_version)
    is_platform = actor is None or actor.is_platform_admin
    if status == "suspended":
        return _suspend(db, tenant, reason, is_platform)
    if tenant.status == "suspended":
        _only_platform(is_platform, "lift a suspension")
        return _enter(db, tenant, "tenant.activate", "active")
    if tenant.status == "deleting":
        if tenant.delete_at is not None and tenant.delete_at <= clock.now():
            raise Conflict(
                "The grace period has ended: the tenant is being removed and cannot be restored.", "tenant-gone"
            )
        return _enter(
            db, tenant, "tenant.restore", "suspended" if tenant.status_reason and not is_platform else "active"
        )
    return tenant


def _only_platform(is_platform: bool, what: str) -> None:
    if not is_platform:
        raise Forbidden(f"Only platform administrators {what}.", "not-platform-admin")


def _suspend(db: Session, tenant: Tenant, reason: str, is_platform: bool) -> Tenant:
    _only_platform(is_platform, "suspend a tenant")
    text = " ".join(reason.split())
    if not 1 <= len(text) <= MAX_REASON:
        raise _refuse("reason", f"say why, in 1 to {MAX_REASON} characters; the tenant's people read it")
    if tenant.status == "deleting":
        raise Conflict("The tenant is being deleted. Restore it first.", "tenant-deleting")
    return _enter(db, tenant, "tenant.suspend", "suspended", text)


def start_deletion(db: Session, expected_version: str | None = None) -> Tenant:
    """Delete the session's tenant in 30 days; until then it can be restored. Asking again changes nothing. `db`: see `own`."""
    tenant = _locked(db, expected_version)
    if tenant.status == "deleting":
        return tenant
    tenant.delete_at = clock.now() + GRACE
    return _enter(db, tenant, "tenant.delete", "deleting", tenant.status_reason)


def _enter(db: Session, tenant: Tenant, action: str, status: str, reason: str = "") -> Tenant:
    """Give the tenant another status. Everybody's rights depend on it, so nobody goes on with what they remember."""
    before = {"status": tenant.status, "status_reason": tenant.status_reason}
    tenant.status = status
    if status != "deleting":
        tenant.delete_at = None
    if status != "suspended" or reason:
        tenant.status_reason = reason
    _touch(db, tenant)
    after: dict[str, Any] = {"status": status, "status_reason": tenant.status_reason}
    if tenant.delete_at is not None:
        after["delete_at"] = clock.rfc3339(tenant.delete_at)
    audit.record(db, action, ("tenant", tenant.uid), before=before, after=after)
    return tenant


def _touch(db: Session, tenant: Tenant) -> None:
    tenant.updated_at = clock.now()
    db.flush()
    tenancy.after_commit(db, cache.forget_everywhere)


def set_limits(db: Session, limits: dict[str, int], plan_uid: str | None = None) -> Quota:
    """Change limits of the session's tenant, or give it a plan, which sets all of them. `db`: see `own`.

    A limit may be below the use: nothing is taken away, and nothing new can be made. Raises Invalid for both, neither or an unknown plan.
    """
    if bool(limits) == (plan_uid is not None):
        raise Invalid(
            "Give limits or a plan.",
            [{"loc": ["body"], "msg": 'some of the limits, or {"plan": "<id of a plan>"}, not both'}],
        )
    tenant = own(db, lock=True)
    quota = db.scalars(select(Quota).where(Quota.tenant_id == tenant.id).with_for_update()).one()
    before: dict[str, Any] = {name: getattr(quota, name) for name in quotas.NAMES}
    before["plan"] = tenant.plan.name if tenant.plan else None
    if plan_uid is not None:
        tenant.plan = plans.named(db, plan_uid)
        limits = plans.limits_of(tenant.plan)
    for name, value in limits.items():
        setattr(quota, name, value)
    _touch(db, tenant)
    after = {**{name: getattr(quota, name) for name in quotas.NAMES}, "plan": tenant.plan.name if tenant.plan else None}
    old, new = audit.changes(before, after)
    audit.record(db, "quota.change", ("tenant", tenant.uid), before=old, after=new)
    return quota


# --- figures -----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stats(Counts):
    """Counts of now and of today (UTC); `readings_per_second` is the mean of the last minute."""

    readings_per_second: float


def stats(db: ScopedSession) -> Stats:
    """The figures of the session's tenant."""
    steps = RATE_SECONDS // RATE_STEP
    # The newest step is still being filled.
    recent = rates(db, steps + 1)[0][:-1]
    return Stats(**vars(counts(db)), readings_per_second=round(sum(recent) / RATE_SECONDS, 2))
