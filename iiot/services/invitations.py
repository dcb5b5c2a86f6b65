"""Invitations: somebody is asked into a tenant by a link that works once, for seven days, and for the address that it was made for.

The token has 256 random bits; only its hash is stored. With mail configured it travels in a mail and nowhere else, else the admin gets the link
once and passes it on.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from iiot import auth, clock, ids, tenancy
from iiot.errors import Conflict, Forbidden, NotFound, Problem
from iiot.models import Invitation, Membership, Role, Tenant, User
from iiot.services import audit, limited, mail, members, quotas, roles, sessions, users
from iiot.services.limited import LimitedTo
from iiot.services.listing import Found, Wanted, find
from iiot.services.names import check_name

VALID = timedelta(days=7)
PAGE = "/invitations/accept"
SORTS: dict[str, Any] = {
    "email": func.lower(Invitation.email),
    "created_at": Invitation.created_at,
    "expires_at": Invitation.expires_at,
}
_OPEN = (Invitation.accepted_at.is_(None), Invitation.revoked_at.is_(None))


@dataclass(frozen=True)
class Invited:
    """An invitation as its makers see it. `link` is known once, and only where no mail is sent."""

    uid: str
    email: str
    role: str
    role_name: str
    limited_to: LimitedTo | None
    invited_by: str
    created_at: datetime
    expires_at: datetime
    has_expired: bool
    link: str | None = None


@dataclass(frozen=True)
class Asked:
    """An invitation as the one who holds the link sees it."""

    email: str
    tenant_name: str
    role_name: str
    has_account: bool
    invited_by: str


@dataclass(frozen=True)
class Newcomer:
    """What somebody without an account says of themselves."""

    name: str
    password: str


def invalid() -> Problem:
    """The one answer for a token that is wrong, used, revoked or expired: nobody learns which."""
    return Problem(
        404,
        "invitation-invalid",
        "This invitation is not valid: it was used, was revoked or has expired. Ask the person who invited you for a new one.",
    )


# --- for the members who invite --------------------------------------------------------------------------------------------------------------


def search(db: Session, wanted: Wanted) -> Found[Invited]:
    """A page of the session's tenant's invitations that wait or have expired unanswered."""
    found = find(db, select(Invitation).where(*_OPEN), SORTS, Invitation.id, wanted)  # type: ignore[arg-type]
    names = _role_names(db)
    return Found([_shown(each, names) for each in found.items], found.next_position, found.total)


def _role_names(db: Session) -> dict[int, tuple[str, str]]:
    return {role.id: (role.uid, role.name) for role in db.scalars(select(Role))}


def _shown(row: Invitation, names: dict[int, tuple[str, str]], link: str | None = None) -> Invited:
    role, role_name = names[row.role_id] if row.role_id is not None else (row.role, row.role)
    limits = None if row.limited_to is None else LimitedTo(**row.limited_to)
    return Invited(
        row.uid,
        row.email,
        role,
        role_name,
        limits,
        row.invited_by,
        row.created_at,
        row.expires_at,
        row.expires_at <= clock.now(),
        link,
    )


def create(
    db: Session, principal: auth.Principal, email: str, role: str, limited_to: LimitedTo | None = None
) -> Invited:
    """Invite an address. Raises Conflict (already a member, already invited), Forbidden (more than the caller holds), QuotaExceeded, Invalid."""
    address = email.strip().lower()
    name, role_id = roles.resolve(db, role)
    roles.check_grant(principal, roles.permissions_of(db, name, role_id))
    limits = None if limited_to is None else limited.check(db, limited_to)
    if limits is not None and name == "admin":
        raise members.ADMIN_LIMITED
    # The lock of the quota also keeps two invitations of one address apart.
    quotas.claim(db, "invitations")
    _check_new(db, address)
    token = ids.new_token()
    row = Invitation(
        uid=ids.new_uid(),
        email=address,
        role=name,
        role_id=role_id,
        limited_to=limits and limits.as_json(),
        token_hash=auth.refresh_token_hash(token),
        invited_by=principal.label,
        expires_at=clock.now() + VALID,
    )
    db.add(row)
    db.flush()
    db.refresh(row)
    shown = _send(db, row, token)
    after = {"email": address, "role": shown.role, "role_name": shown.role_name, "limited_to": row.limited_to}
    audit.record(db, "invitation.create", ("invitation", row.uid), after=after)
    return shown


def _check_new(db: Session, address: str) -> None:
    if db.scalar(select(User.id).where(func.lower(User.email) == address)) is not None:
        raise Conflict("This person is a member of the tenant already.", "already-member")
    waiting = db.scalars(select(Invitation).where(*_OPEN, func.lower(Invitation.email) == address)).all()
    for row in waiting:
        if row.expires_at > clock.now():
            raise Conflict(
                "This address is invited already. Send that invitation again, or revoke it first.", "already-invited"
            )
        row.revoked_at = clock.now()


def _send(db: Session, row: Invitation, token: str) -> Invited:
    """The mail with the link, or the link in the answer where no mail is configured."""
    link = mail.link(f"{PAGE}?token={token}")
    names = _role_names(db)
    if not mail.configured():
        return _shown(row, names, link)
    shown = _shown(row, names)
    tenant = db.scalars(select(Tenant.name)).one()
    text = (
        f"{row.invited_by} invites you to {tenant} in the IIoT Portal, with the role {shown.role_name}.\n\n"
        f"Accept within seven days:\n{link}\n\n"
        "If you do not know what this is about, ignore this mail: nothing happens.\n"
    )
    subject = " ".join(f"Invitation to {tenant} (IIoT Portal)".split())
    mail.after_commit(db, row.email, subject, text)
    return shown


def _get(db: Session, uid: str) -> Invitation:
    statement = select(Invitation).where(Invitation.uid == uid, *_OPEN).with_for_update()
    row = db.scalar(statement) if ids.is_uid(uid) else None
    if row is None:
        raise NotFound("invitation")
    return row


def resend(db: Session, principal: auth.Principal, uid: str) -> Invited:
    """A new token for seven more days; the one before is dead. Raises Forbidden when the role is more than the caller holds."""
    row = _get(db, uid)
    roles.check_grant(principal, roles.permissions_of(db, row.role, row.role_id))
    if row.expires_at <= clock.now():
        quotas.claim(db, "invitations")
    token = ids.new_token()
    row.token_hash, row.expires_at = auth.refresh_token_hash(token), clock.now() + VALID
    db.flush()
    audit.record(db, "invitation.resend", ("invitation", uid), after={"email": row.email})
    return _send(db, row, token)


def revoke(db: Session, uid: str) -> None:
    """Take an invitation back; its link is dead."""
    row = _get(db, uid)
    row.revoked_at = clock.now()
    db.flush()
    audit.record(db, "invitation.revoke", ("invitation", uid), before={"email": row.email, "role": row.role})


# --- for the one who was invited -------------------------------------------------------------------------------------------------------------


def look(token: str) -> Asked:
    """What a link asks; raises `invalid()`. Opens its own transaction."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        row = _by_token(db, token)
        tenant = db.get_one(Tenant, row.tenant_id)
        known = db.scalar(select(User.id).where(func.lower(User.email) == row.email))
        name = db.scalar(select(Role.name).where(Role.tenant_id == row.tenant_id, Role.id == row.role_id))
        return Asked(row.email, tenant.name, name or row.role, known is not None, row.invited_by)


def _by_token(db: Session, token: str, *, lock: bool = False) -> Invitation:
    statement = select(Invitation).where(
        Invitation.token_hash == auth.refresh_token_hash(token), *_OPEN, Invitation.expires_at > clock.now()
    )
    row = db.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise invalid()
    return row


def accept_as(token: str, principal: auth.Principal, client: sessions.Client) -> sessions.Opened:
    """Make somebody who is signed in a member, and move their session into that tenant. The invitation must be for their address.

    Raises `invalid()`, Conflict (already a member), Forbidden (another address, tenant suspended) or QuotaExceeded. Opens its own transactions.
    """
    with tenancy.work(tenancy.system("sign-in")) as db:
        tenant_id = _by_token(db, token).tenant_id
    with tenancy.work(tenancy.system("sign-in", tenant_id)) as db:
        tenant = _join(db, token, db.get_one(User, principal.user_id))
    # The session is still of another tenant, which a scope with this one does not see.
    with tenancy.work(tenancy.system("sign-in")) as db:
        return sessions.switch(db, principal, tenant.uid, client)


def accept_new(token: str, newcomer: Newcomer, client: sessions.Client) -> sessions.Opened:
    """Make an account for the invited address and sign in. Raises as `accept_as` does, and Invalid for a poor password.

    Opens its own transactions, as hashing must not hold a connection.
    """
    with tenancy.work(tenancy.system("sign-in")) as db:
        row = _by_token(db, token)
        tenant_id, address = row.tenant_id, row.email
    name = check_name(newcomer.name, longest=200) if newcomer.name.strip() else ""
    auth.check_password_policy(newcomer.password, email=address, name=name)
    hashed = auth.hash_password(newcomer.password)
    with tenancy.work(tenancy.system("sign-in", tenant_id)) as db:
        user = User(uid=ids.new_uid(), email=address, name=name, password_hash=hashed)
        try:
            with db.begin_nested():
                db.add(user)
        except IntegrityError:
            raise Conflict(
                "This address has an account meanwhile. Open the link again and sign in.", "email-taken"
            ) from None
        tenant = _join(db, token, user)
        return sessions.open_session(db, user.id, client, tenant.uid)


def _join(db: Session, token: str, user: User) -> Tenant:
    """The membership; the invitation is used up. `db`: scope "sign-in" with the tenant."""
    row = _by_token(db, token, lock=True)
    tenant = db.get_one(Tenant, row.tenant_id)
    if user.email.lower() != row.email:
        raise Forbidden(
            f"This invitation is for {row.email}. Sign out, then open the link again.", "invitation-for-another"
        )
    if user.status != "active":
        raise Forbidden("This account is disabled. Ask an admin of your tenant.", "account-disabled")
    if tenant.status != "active":
        raise Forbidden(
            "This tenant takes no new members at present. Ask the person who invited you.", f"tenant-{tenant.status}"
        )
    if db.get(Membership, (tenant.id, user.id)) is not None:
        raise Conflict("You are a member of this tenant already.", "already-member")
    quotas.claim(db, "users")
    limits = None if row.limited_to is None else LimitedTo(**row.limited_to)
    membership = Membership(
        tenant_id=tenant.id, user_id=user.id, role=row.role, role_id=row.role_id, is_limited=limits is not None
    )
    db.add(membership)
    db.flush()
    if limits is not None:
        limited.add(db, tenant.id, user.id, limits)
    row.accepted_at = clock.now()
    db.flush()
    after = {"email": row.email, "user": user.uid, "role": row.role, "limited_to": row.limited_to}
    audit.record(db, "invitation.accept", ("invitation", row.uid), after=after, actor=users.itself(user))
    return tenant
