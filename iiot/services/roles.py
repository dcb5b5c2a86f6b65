"""Roles: the built-in ones and those a tenant makes of single permissions, and who may hand which out.

In JSON a role is one text: the name of a built-in role, or the id of a role of the tenant.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from iiot import auth, cache, clock, ids, tenancy
from iiot.errors import Conflict, Forbidden, Invalid, NotFound
from iiot.models import ROLES, Invitation, Membership, Role, ServiceAccount
from iiot.services import audit
from iiot.services.names import check_name

CUSTOM = "custom"
MAX_ROLES = 100
LIMITED = Forbidden(
    "You are limited to some devices, and this concerns the whole tenant. Ask an admin of your tenant.",
    "limited-member",
)


@dataclass(frozen=True)
class Listed:
    """A role as lists show it. `used_by`: members, service accounts and open invitations that have it."""

    uid: str
    name: str
    permissions: list[str]
    is_builtin: bool
    used_by: int


# --- handing out -----------------------------------------------------------------------------------------------------------------------------


def resolve(db: Session, wanted: str) -> tuple[str, int | None]:
    """The columns `role` and `role_id` for a role as JSON names it; raises Invalid when the tenant has no such role."""
    if wanted in ROLES:
        return wanted, None
    # Held until the commit, so that the role is not deleted between this look and the row that names it.
    held = select(Role.id).where(Role.uid == wanted).with_for_update(read=True, key_share=True)
    found = db.scalar(held) if ids.is_uid(wanted) else None
    if found is None:
        message = f"one of {', '.join(ROLES)}, or the id of a role of your tenant"
        raise Invalid("There is no such role.", [{"loc": ["body", "role"], "msg": message}])
    return CUSTOM, found


def permissions_of(db: Session, role: str, role_id: int | None) -> frozenset[str]:
    """What the columns `role` and `role_id` grant."""
    if role_id is None:
        return auth.PERMISSIONS.get(role, frozenset())
    found = db.scalar(select(Role.permissions).where(Role.id == role_id))
    return frozenset(found or ()) & auth.ALL_PERMISSIONS


def check_grant(principal: auth.Principal, permissions: Iterable[str]) -> None:
    """Raise Forbidden unless the caller may hand these permissions out: nobody gives more than they hold.

    Platform administrators give tenants their first admins, so they may give everything; their API keys may not.
    """
    if principal.is_platform_admin and principal.api_key_uid is None:
        return
    missing = sorted(set(permissions) - principal.permissions)
    if missing:
        raise Forbidden(
            f"You cannot give, change or take what you do not hold yourself: {', '.join(missing)}. Ask an admin of your tenant.",
            "more-than-you-hold",
        )


def check_unlimited(who: auth.Principal | tenancy.Scope) -> None:
    """Raise Forbidden for a member who sees some devices alone: this concerns more than those."""
    limited_user = who.limited_user if isinstance(who, tenancy.Scope) else who.limited_user_id
    if limited_user is not None:
        raise LIMITED


# --- the roles of a tenant -------------------------------------------------------------------------------------------------------------------


def list_all(db: Session) -> list[Listed]:
    """The built-in roles, then the tenant's own by name."""
    used = _use(db)
    builtin = [Listed(name, name, sorted(auth.PERMISSIONS[name]), True, used.get((name, None), 0)) for name in ROLES]
    own = db.scalars(select(Role).order_by(func.lower(Role.name), Role.id))
    return builtin + [_listed(role, used) for role in own]


def _listed(role: Role, used: dict[tuple[str, int | None], int]) -> Listed:
    return Listed(role.uid, role.name, sorted(role.permissions), False, used.get((CUSTOM, role.id), 0))


def _use(db: Session) -> dict[tuple[str, int | None], int]:
    counts: dict[tuple[str, int | None], int] = {}
    for model, condition in ((Membership, ()), (ServiceAccount, ()), (Invitation, _open_invitations())):
        table: Any = model
        rows = db.execute(
            select(table.role, table.role_id, func.count()).where(*condition).group_by(table.role, table.role_id)
        )
        for role, role_id, count in rows:
            counts[role, role_id] = counts.get((role, role_id), 0) + count
    return counts


def _open_invitations() -> tuple[Any, ...]:
    return (
        Invitation.accepted_at.is_(None),
        Invitation.revoked_at.is_(None),
        Invitation.expires_at > clock.now(),
    )


def get(db: Session, uid: str, *, lock: bool = False) -> Role:
    """A role that the tenant made; raises NotFound for any other, Conflict for a built-in one."""
    if uid in ROLES:
        raise Conflict(
            "A built-in role cannot be changed or deleted. Make a role of your own with the permissions you need.",
            "builtin-role",
        )
    statement = select(Role).where(Role.uid == uid)
    role = db.scalar(statement.with_for_update() if lock else statement) if ids.is_uid(uid) else None
    if role is None:
        raise NotFound("role")
    return role


def _check_permissions(permissions: Collection[str]) -> list[str]:
    unknown = sorted(set(permissions) - auth.ALL_PERMISSIONS)
    if unknown:
        message = f"unknown: {', '.join(unknown[:5])}; known are {', '.join(sorted(auth.ALL_PERMISSIONS))}"
        raise Invalid("The role is not valid.", [{"loc": ["body", "permissions"], "msg": message}])
    if not permissions:
        raise Invalid("The role is not valid.", [{"loc": ["body", "permissions"], "msg": "choose at least one"}])
    return sorted(set(permissions))


def _check_role_name(name: str) -> str:
    text = check_name(name)
    if text.casefold() in (*ROLES, CUSTOM):
        message = "this is the name of a built-in role; take another"
        raise Invalid("The role is not valid.", [{"loc": ["body", "name"], "msg": message}])
    return text


def _save(db: Session, role: Role) -> None:
    try:
        with db.begin_nested():
            db.add(role)
    except IntegrityError as error:
        if "uq_role_tenant_id_name" not in str(error.orig):
            raise
        raise Conflict("Another role of this tenant has this name.", "name-taken") from None


def create(db: Session, principal: auth.Principal, name: str, permissions: Collection[str]) -> Listed:
    """A new role. Raises Invalid, Conflict (name taken, too many) or Forbidden (more than the caller holds)."""
    wanted = _check_permissions(permissions)
    check_grant(principal, wanted)
    if (db.scalar(select(func.count()).select_from(Role)) or 0) >= MAX_ROLES:
        raise Conflict(f"A tenant has at most {MAX_ROLES} roles of its own. Delete one first.", "too-many-roles")
    role = Role(uid=ids.new_uid(), name=_check_role_name(name), permissions=wanted)
    _save(db, role)
    audit.record(db, "role.create", ("role", role.uid), after={"name": role.name, "permissions": wanted})
    return _listed(role, {})


def change(
    db: Session, principal: auth.Principal, uid: str, name: str | None, permissions: Collection[str] | None
) -> Listed:
    """Rename a role or give it other permissions; who has it can do more or less from the next request on."""
    role = get(db, uid, lock=True)
    check_grant(principal, role.permissions)
    before = {"name": role.name, "permissions": sorted(role.permissions)}
    if name is not None:
        role.name = _check_role_name(name)
    if permissions is not None:
        wanted = _check_permissions(permissions)
        check_grant(principal, wanted)
        role.permissions = wanted
    after = {"name": role.name, "permissions": sorted(role.permissions)}
    _save(db, role)
    if before != after:
        was, now = audit.changes(before, after)
        audit.record(db, "role.change", ("role", uid), before=was, after=now)
        tenancy.after_commit(db, cache.forget_everywhere)
    return _listed(role, _use(db))


def remove(db: Session, principal: auth.Principal, uid: str) -> None:
    """Delete a role that nobody has; raises Conflict otherwise."""
    role = get(db, uid, lock=True)
    check_grant(principal, role.permissions)
    used = _use(db).get((CUSTOM, role.id), 0)
    if used:
        raise Conflict(
            f"{used} {'has' if used == 1 else 'have'} this role: members, service accounts or open invitations. "
            "Give them another one first.",
            "role-in-use",
        )
    # What is left of invitations that were accepted, revoked or have expired stands in the audit trail.
    db.execute(delete(Invitation).where(Invitation.role_id == role.id))
    before = {"name": role.name, "permissions": sorted(role.permissions)}
    db.delete(role)
    db.flush()
    audit.record(db, "role.delete", ("role", uid), before=before)
