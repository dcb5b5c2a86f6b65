"""People: the first administrator, new ones, what somebody may know of himself, who may help them back in."""

import secrets

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload

from iiot import auth, cache, ids, tenancy
from iiot.errors import Conflict, Forbidden, Invalid, NotFound
from iiot.models import Membership, Role, Tenant, User
from iiot.services import audit, roles, sessions, standing, tenants

FIRST_ADMIN_EMAIL = "admin@iiot.local"
FIRST_TENANT = "Main"
LONGEST_NAME = 200
# Without 0 and o, 1 and l: it is read from a console and typed.
ONE_TIME_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


def one_time_password() -> str:
    """Four groups of five characters, 100 bits."""
    return "-".join("".join(secrets.choice(ONE_TIME_ALPHABET) for _ in range(5)) for _ in range(4))


def ensure_first_admin(db: Session, email: str = FIRST_ADMIN_EMAIL) -> tuple[str, str | None]:
    """The platform administrator's address and, when he was created just now, his one-time password.

    He also becomes admin of a first tenant, so that he can create devices at once. `db`: scope "operator" or "sign-in".
    """
    existing = db.scalar(select(User).where(User.is_platform_admin).order_by(User.id).limit(1))
    if existing is not None:
        return existing.email, None
    password = one_time_password()
    user = User(
        uid=ids.new_uid(),
        email=email.strip().lower(),
        name="Administrator",
        password_hash=auth.hash_password(password),
        must_change_password=True,
        is_platform_admin=True,
    )
    db.add(user)
    db.flush()
    tenant = tenants.create(db, FIRST_TENANT)
    db.add(Membership(tenant_id=tenant.id, user_id=user.id, role="admin"))
    db.flush()
    return user.email, password


def create(db: Session, email: str, password: str, name: str = "", *, must_change: bool = False) -> User:
    """A new user without a tenant; raises Invalid for a poor password, Conflict for an address that is taken."""
    address = email.strip().lower()
    auth.check_password_policy(password, email=address, name=name)
    hashed = auth.hash_password(password)
    user = User(uid=ids.new_uid(), email=address, name=name, password_hash=hashed, must_change_password=must_change)
    try:
        with db.begin_nested():
            db.add(user)
    except IntegrityError:
        raise Conflict("This e-mail address is taken. Sign in, or use another one.", "email-taken") from None
    return user


def add_member(db: Session, tenant_id: int, user_id: int, role: str) -> Membership:
    """Make a user a member of a tenant."""
    membership = Membership(tenant_id=tenant_id, user_id=user_id, role=role)
    db.add(membership)
    db.flush()
    return membership


def me(db: Session, principal: auth.Principal) -> tuple[User, Tenant | None, list[tuple[Tenant, str]]]:
    """The caller, the tenant of his session, and all his tenants with his role in each (a custom role by its id). `db`: scope "sign-in"."""
    user = db.get(User, principal.user_id)
    if user is None:
        raise NotFound("user")
    statement = (
        select(Tenant, func.coalesce(Role.uid, Membership.role))
        .options(joinedload(Tenant.plan))
        .join(Membership, Membership.tenant_id == Tenant.id)
        .where(Membership.user_id == user.id)
        .order_by(Tenant.id)
    )
    rows = db.execute(standing.with_role(statement)).all()
    current = next((row[0] for row in rows if row[0].id == principal.tenant_id), None)
    return user, current, [(row[0], row[1]) for row in rows]


def rename(db: Session, principal: auth.Principal, name: str) -> User:
    """Change the caller's own name; raises Invalid for one that is too long or has line breaks. `db`: scope "sign-in"."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise Invalid(
            "The name was not saved.",
            [{"loc": ["body", "name"], "msg": f"at most {LONGEST_NAME} characters in one line"}],
        )
    user = db.get_one(User, principal.user_id)
    before, user.name = user.name, name.strip()
    audit.record(db, "user.rename", ("user", user.uid), before={"name": before}, after={"name": user.name})
    db.flush()
    return user


def set_password(db: Session, email: str, password: str, *, must_change: bool = True) -> None:
    """The operator's reset: a new password, and every session ended. `db`: scope "operator"."""
    user = by_email(db, email)
    if user is None:
        raise NotFound("user")
    hashed = auth.hash_password(password)
    db.execute(update(User).where(User.id == user.id).values(password_hash=hashed, must_change_password=must_change))
    sessions.end_all(db, user.id, "password reset by the operator")
    audit.record(db, "password.reset", ("user", user.uid), after={"by": "operator"})


def set_status(db: Session, email: str, status: str) -> User:
    """Disable an account ("disabled": every session ends, its API keys stop working) or enable it ("active"). `db`: scope "operator"."""
    user = by_email(db, email)
    if user is None:
        raise NotFound("user")
    before, user.status = user.status, status
    db.flush()
    if status != "active":
        sessions.end_all(db, user.id, "disabled by the operator")
    audit.record(db, "user.status", ("user", user.uid), before={"status": before}, after={"status": status})
    tenancy.after_commit(db, cache.forget_everywhere)
    return user


def by_email(db: Session, email: str) -> User | None:
    """The person with this address, in any case of letters."""
    return db.scalar(select(User).where(func.lower(User.email) == email.strip().lower()))


def itself(user: User) -> auth.Principal:
    """The person as the actor of what they do before they are signed in, for the audit trail: in no tenant, with no permission."""
    return auth.Principal("user", None, None, user_id=user.id, user_uid=user.uid, label=user.email)


def check_in_charge(db: Session, principal: auth.Principal, user: User) -> None:
    """Raise unless the caller may let this person in anew (a link to a new password, another second factor).

    Whoever does so could sign in as that person: so NotFound for people who are not in the caller's tenant, and Forbidden for those who are in others
    too, for platform administrators, and for members who may do more than the caller. `db`: scope "sign-in" without a tenant.
    """
    statement = (
        select(Tenant, *standing.COLUMNS)
        .join(Membership, Membership.tenant_id == Tenant.id)
        .where(Membership.user_id == user.id)
    )
    found = db.execute(standing.with_role(statement)).all()
    here = [row for row in found if row[0].id == principal.tenant_id]
    if not here:
        raise NotFound("user")
    if len(found) > 1 or user.is_platform_admin:
        raise Forbidden(
            'This person does not belong to your tenant alone. They can use "forgot password", or ask the operator of this portal.',
            "not-yours-alone",
        )
    tenant, role, name, permissions, is_limited = here[0]
    roles.check_unlimited(principal)
    roles.check_grant(principal, standing.person(user, tenant, role, (name, permissions), is_limited).held)
