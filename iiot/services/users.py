"""People: registration, the first administrator, what somebody may know of himself."""

import secrets
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from iiot import auth, config, ids, tenancy
from iiot.errors import Conflict, Forbidden, NotFound
from iiot.models import Membership, Tenant, User
from iiot.services import sessions, tenants

FIRST_ADMIN_EMAIL = "admin@iiot.local"
FIRST_TENANT = "Main"
# Without 0 and o, 1 and l: it is read from a console and typed.
ONE_TIME_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


@dataclass(frozen=True)
class Registration:
    """What a stranger gives to open a tenant."""

    email: str
    password: str
    name: str
    tenant: str


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


def register(wanted: Registration, client: sessions.Client) -> sessions.Opened:
    """A new tenant with its admin, signed in. Raises Forbidden when registration is switched off, Conflict when the address is taken.

    Opens its own transactions, as hashing must not hold a connection.
    """
    if not config.load().registration_enabled:
        raise Forbidden(
            "Registration is switched off here. Ask the operator of this portal for an account.",
            "registration-disabled",
        )
    address = wanted.email.strip().lower()
    auth.check_password_policy(wanted.password, email=address, name=wanted.name)
    hashed = auth.hash_password(wanted.password)
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = User(uid=ids.new_uid(), email=address, name=wanted.name, password_hash=hashed)
        try:
            with db.begin_nested():
                db.add(user)
        except IntegrityError:
            raise Conflict("This e-mail address is taken. Sign in, or use another one.", "email-taken") from None
        tenant = tenants.create(db, wanted.tenant or f"{wanted.name or address.partition('@')[0]}'s tenant")
        add_member(db, tenant.id, user.id, "admin")
        return sessions.open_session(db, user.id, client)


def me(db: Session, principal: auth.Principal) -> tuple[User, Tenant | None, list[tuple[Tenant, str]]]:
    """The caller, the tenant of his session, and all his tenants with his role in each. `db`: scope "sign-in"."""
    user = db.get(User, principal.user_id)
    if user is None:
        raise NotFound("user")
    rows = db.execute(
        select(Tenant, Membership.role)
        .join(Membership, Membership.tenant_id == Tenant.id)
        .where(Membership.user_id == user.id)
        .order_by(Tenant.id)
    ).all()
    current = next((row[0] for row in rows if row[0].id == principal.tenant_id), None)
    return user, current, [(row[0], row[1]) for row in rows]


def set_password(db: Session, email: str, password: str, *, must_change: bool = True) -> None:
    """The operator's reset: a new password, and every session ended. `db`: scope "operator"."""
    user = db.scalar(select(User).where(func.lower(User.email) == email.strip().lower()))
    if user is None:
        raise NotFound("user")
    hashed = auth.hash_password(password)
    db.execute(update(User).where(User.id == user.id).values(password_hash=hashed, must_change_password=must_change))
    sessions.end_all(db, user.id, "password reset by the operator")
