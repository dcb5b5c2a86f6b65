"""How somebody stands in a tenant: role, permissions, limits; and how people enter a tenant that a route names."""

from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from iiot import auth
from iiot.errors import NotFound
from iiot.models import Membership, RefreshSession, Role, Tenant, User
from iiot.tenancy import system, work

# Joined to a row of `membership`: the permissions of a custom role, its name, and whether the member is limited.
COLUMNS = (
    Membership.role,
    Role.name,
    Role.permissions,
    Membership.is_limited,
)


def with_role(statement: Any) -> Any:
    """`statement`, which has the membership already, with the member's custom role joined."""
    return statement.outerjoin(Role, (Role.tenant_id == Membership.tenant_id) & (Role.id == Membership.role_id))


def person(
    user: User,
    tenant: Tenant | None,
    role: str | None,
    custom: tuple[str | None, list[str] | None],
    is_limited: bool,
    session: RefreshSession | None = None,
) -> auth.Principal:
    """The principal of a user in a tenant; `custom` is name and permissions of a custom role."""
    name, permissions = custom
    granted = frozenset(permissions or ()) & auth.ALL_PERMISSIONS if role == "custom" else None
    is_admin = role == "admin" or user.is_platform_admin
    return auth.Principal(
        kind="user",
        tenant_id=tenant.id if tenant else None,
        tenant_uid=tenant.uid if tenant else None,
        user_id=user.id,
        user_uid=user.uid,
        role=name if role == "custom" else role,
        session_uid=session.uid if session else None,
        is_platform_admin=user.is_platform_admin,
        must_change_password=user.must_change_password,
        granted=granted,
        limited_user_id=user.id if is_limited else None,
        tenant_status=tenant.status if tenant else "active",
        must_set_up_mfa=bool(tenant and tenant.require_mfa and is_admin and not user.has_mfa),
        label=user.email,
    )


def enter(principal: auth.Principal, tenant_uid: str) -> auth.Principal:
    """The caller in the tenant that a route names; raises NotFound for a tenant that does not exist and for one that is not theirs.

    Members enter with their role there. Platform administrators enter every tenant to manage it. API keys and devices stay in their own tenant.
    """
    own = principal.tenant_uid == tenant_uid
    if principal.api_key_uid is not None or principal.kind != "user":
        if own:
            return principal
        raise NotFound("tenant")
    if own and not principal.is_platform_admin:
        return principal
    with work(system("platform")) as db:
        found = _standing(db, principal.user_id or 0, tenant_uid)
        if found is None:
            raise NotFound("tenant")
        user, tenant, inside = found
    if inside is None:
        if not principal.is_platform_admin:
            raise NotFound("tenant")
        inside = replace(
            principal,
            tenant_id=tenant.id,
            tenant_uid=tenant.uid,
            role=None,
            granted=frozenset(),
            limited_user_id=None,
        )
    if user.is_platform_admin:
        # Platform administrators manage suspended tenants, too: somebody has to let them in again. Being limited as a member takes their
        # sight of devices away here, not the power to manage.
        held = frozenset() if inside.is_limited else inside.held
        inside = replace(inside, granted=held | auth.PLATFORM_PERMISSIONS, tenant_status="active", limited_user_id=None)
    return replace(inside, session_uid=principal.session_uid)


def _standing(db: Session, user_id: int, tenant_uid: str) -> tuple[User, Tenant, auth.Principal | None] | None:
    statement = (
        select(User, Tenant, *COLUMNS)
        .select_from(User)
        .join(Tenant, Tenant.uid == tenant_uid)
        .outerjoin(Membership, (Membership.user_id == User.id) & (Membership.tenant_id == Tenant.id))
        .where(User.id == user_id)
    )
    found = db.execute(with_role(statement)).one_or_none()
    if found is None:
        return None
    user, tenant, role, name, permissions, is_limited = found
    inside = None if role is None else person(user, tenant, role, (name, permissions), is_limited)
    return user, tenant, inside
