"""The members of a tenant: who they are, what they may do and see, and how they leave. A tenant keeps at least one admin who can sign in."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, or_, select
from sqlalchemy.orm import Session

from iiot import auth, cache, ids, tenancy
from iiot.errors import Conflict, Invalid, NotFound
from iiot.models import Membership, Role, User
from iiot.services import audit, limited, roles
from iiot.services.limited import LimitedTo
from iiot.services.listing import Found, Wanted, escape_like, find

# Changes of roles and removals happen one after the other, so that two admins cannot demote each other at the same moment.
_LOCK = tenancy.sql("SELECT pg_advisory_xact_lock(1145395, (SELECT iiot.tid()))")
SORTS: dict[str, Any] = {
    "email": func.lower(User.email),
    "name": func.lower(User.name),
    "role": Membership.role,
    "joined_at": Membership.created_at,
}


@dataclass(frozen=True)
class Member:
    """A member as lists show it. `role` is a built-in name or the id of a custom role, `limited_to` None for who sees everything."""

    uid: str
    email: str
    name: str
    role: str
    role_name: str
    status: str
    has_mfa: bool
    last_login_at: datetime | None
    limited_to: LimitedTo | None
    joined_at: datetime


@dataclass(frozen=True)
class Changes:
    """What shall change of a member. `set_limits` tells "see everything" from "leave it as it is"."""

    role: str | None = None
    set_limits: bool = False
    limited_to: LimitedTo | None = None


def search(db: Session, wanted: Wanted, q: str | None = None) -> Found[Member]:
    """A page of the session's tenant's members; `q` is looked for in address and name."""
    statement = select(Membership).join(User, User.id == Membership.user_id)
    if q:
        pattern = f"%{escape_like(q)}%"
        statement = statement.where(or_(User.email.ilike(pattern, escape="\\"), User.name.ilike(pattern, escape="\\")))
    found = find(db, statement, SORTS, Membership.user_id, wanted)  # type: ignore[arg-type]
    by_id = {row.id: row for row in _rows(db, [each.user_id for each in found.items])}
    limits = limited.read(db, [row.id for row in by_id.values() if row.is_limited])
    items = [_member(by_id[each.user_id], limits) for each in found.items if each.user_id in by_id]
    return Found(items, found.next_position, found.total)


def _rows(db: Session, user_ids: list[int]) -> list[Row[Any]]:
    """What is shown of some members. The columns are named: others of a user are closed to tenants."""
    columns = (User.id, User.uid, User.email, User.name, User.status, User.has_mfa, User.last_login_at)
    statement = (
        select(
            *columns,
            Membership.role,
            Membership.role_id,
            Membership.is_limited,
            Membership.created_at,
            Role.uid.label("role_uid"),
            Role.name.label("role_name"),
        )
        .join(Membership, Membership.user_id == User.id)
        .outerjoin(Role, (Role.tenant_id == Membership.tenant_id) & (Role.id == Membership.role_id))
        .where(User.id.in_(user_ids))
    )
    return list(db.execute(statement))


def _member(row: Row[Any], limits: dict[int, LimitedTo]) -> Member:
    return Member(
        uid=row.uid,
        email=row.email,
        name=row.name,
        role=row.role_uid or row.role,
        role_name=row.role_name or row.role,
        status=row.status,
        has_mfa=row.has_mfa,
        last_login_at=row.last_login_at,
        limited_to=limits.get(row.id, LimitedTo()) if row.is_limited else None,
        joined_at=row.created_at,
    )


def get(db: Session, user_uid: str) -> Member:
    """A member of the session's tenant; raises NotFound for anybody else."""
    row = _found(db, user_uid)
    return _member(row, limited.read(db, [row.id]) if row.is_limited else {})


def _found(db: Session, user_uid: str) -> Row[Any]:
    user_id = db.scalar(select(User.id).where(User.uid == user_uid)) if ids.is_uid(user_uid) else None
    rows = _rows(db, [user_id]) if user_id is not None else []
    if not rows:
        raise NotFound("member")
    return rows[0]


def check_above(db: Session, principal: auth.Principal, user_uid: str) -> None:
    """Raise Forbidden when the member may do more than the caller: nobody changes, removes or helps in somebody who stands above them."""
    row = _found(db, user_uid)
    roles.check_grant(principal, roles.permissions_of(db, row.role, row.role_id))


def change(db: Session, principal: auth.Principal, user_uid: str, wanted: Changes) -> Member:
    """Give a member another role or other limits, from the next request on.

    Raises Forbidden (more than the caller holds), Conflict "last-admin" or Invalid (no such role, device or site; an admin with limits).
    """
    db.execute(_LOCK)
    before = get(db, user_uid)
    check_above(db, principal, user_uid)
    user_id = db.scalars(select(User.id).where(User.uid == user_uid)).one()
    membership = db.scalars(select(Membership).where(Membership.user_id == user_id).with_for_update()).one()
    if wanted.role is not None:
        _give_role(db, principal, membership, wanted.role)
    if wanted.set_limits:
        limits = None if wanted.limited_to is None else limited.check(db, wanted.limited_to)
        limited.replace(db, membership.tenant_id, user_id, limits)
        membership.is_limited = limits is not None
    if membership.role == "admin" and membership.is_limited:
        raise ADMIN_LIMITED
    db.flush()
    after = get(db, user_uid)
    was, now = audit.changes(_noted(before), _noted(after))
    if now:
        audit.record(db, "member.change", ("user", user_uid), before=was, after=now)
        tenancy.after_commit(db, cache.forget_everywhere)
    return after


ADMIN_LIMITED = Invalid(
    "Admins see the whole tenant.",
    [{"loc": ["body", "limited_to"], "msg": "an admin cannot be limited; choose another role, or no limits"}],
)


def _noted(member: Member) -> dict[str, Any]:
    limits = member.limited_to
    return {"role": member.role, "role_name": member.role_name, "limited_to": limits and limits.as_json()}


def _give_role(db: Session, principal: auth.Principal, membership: Membership, wanted: str) -> None:
    role, role_id = roles.resolve(db, wanted)
    roles.check_grant(principal, roles.permissions_of(db, role, role_id))
    if membership.role == "admin" and role != "admin":
        _check_not_last_admin(db, membership.user_id)
    membership.role, membership.role_id = role, role_id


def _check_not_last_admin(db: Session, user_id: int) -> None:
    others = (
        select(func.count())
        .select_from(Membership)
        .join(User, User.id == Membership.user_id)
        .where(Membership.role == "admin", Membership.user_id != user_id, User.status == "active")
    )
    if not db.scalar(others):
        raise Conflict("This is the last admin of the tenant. Make somebody else an admin first.", "last-admin")


def remove(db: Session, principal: auth.Principal, user_uid: str) -> None:
    """End a membership: its sessions and API keys in this tenant end at once. Anybody may leave who is not the last admin."""
    db.execute(_LOCK)
    before = get(db, user_uid)
    if principal.user_uid != user_uid:
        check_above(db, principal, user_uid)
    user_id = db.scalars(select(User.id).where(User.uid == user_uid)).one()
    membership = db.scalars(select(Membership).where(Membership.user_id == user_id).with_for_update()).one()
    if membership.role == "admin":
        _check_not_last_admin(db, user_id)
    db.delete(membership)
    db.flush()
    audit.record(db, "member.remove", ("user", user_uid), before={"email": before.email, **_noted(before)})
    tenancy.after_commit(db, cache.forget_everywhere)
