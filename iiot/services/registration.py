"""Registration: a stranger opens a tenant and becomes its admin.

With mail the answer is the same whether the address is taken or not, after the same time: the mail alone says which. Without mail a taken
address has to be refused.
"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from iiot import auth, clock, config, ids, tenancy
from iiot.errors import Conflict, Forbidden, Invalid
from iiot.models import PendingRegistration, User
from iiot.services import audit, mail, sessions, tenants, users

LIFE = timedelta(hours=24)
TAKEN = Conflict("This e-mail address is taken. Sign in, or use another one.", "email-taken")
CONFIRM = """Somebody, hopefully you, asked to open the organisation "{tenant}" on the IIoT Portal with this address.

Open this link within 24 hours to confirm it and to sign in:
{link}

If that was not you, do nothing: without the link no account is made.
"""
EXISTS = """Somebody, hopefully you, asked to open an organisation on the IIoT Portal with this address. It has an account already.

Sign in: {login}
Forgot the password? {forgot}

If that was not you, do nothing: nothing was changed.
"""


@dataclass(frozen=True)
class Registration:
    """What a stranger gives to open a tenant."""

    email: str
    password: str
    name: str
    tenant: str

    @property
    def address(self) -> str:
        """The address as it is stored."""
        return self.email.strip().lower()

    @property
    def tenant_name(self) -> str:
        """The name of the tenant, made of the person's when none is given."""
        return self.tenant or f"{self.name or self.address.partition('@')[0]}'s tenant"


def register(wanted: Registration, client: sessions.Client) -> sessions.Opened | None:
    """A new tenant with its admin, signed in; None when a mail is on its way that has to be confirmed first.

    Raises Forbidden when registration is switched off, Invalid for a poor password and, without mail alone, Conflict when the address is taken.
    Opens its own transactions, as hashing must not hold a connection.
    """
    if not config.load().registration_enabled:
        raise Forbidden(
            "Registration is switched off here. Ask the operator of this portal for an account.",
            "registration-disabled",
        )
    auth.check_password_policy(wanted.password, email=wanted.address, name=wanted.name)
    hashed = auth.hash_password(wanted.password)
    if mail.configured():
        # Beside the request: what depends on whether the address is known takes no time of the answer.
        mail.soon(_ask, wanted, hashed)
        return None
    with tenancy.work(tenancy.system("sign-in")) as db:
        return _open(db, (wanted.address, wanted.name, wanted.tenant_name, hashed), client)


def _ask(wanted: Registration, hashed: str) -> None:
    """Send the mail: a link to confirm, or word that there is an account."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        if users.by_email(db, wanted.address) is not None:
            text = EXISTS.format(login=mail.link("/login"), forgot=mail.link("/forgot"))
            mail.after_commit(db, wanted.address, "You have an account on the IIoT Portal", text)
            return
        token, now = ids.new_token(), clock.now()
        db.add(
            PendingRegistration(
                email=wanted.address,
                name=wanted.name,
                tenant_name=wanted.tenant_name,
                password_hash=hashed,
                token_hash=auth.refresh_token_hash(token),
                created_at=now,
                expires_at=now + LIFE,
            )
        )
        text = CONFIRM.format(tenant=wanted.tenant_name, link=mail.link(f"/signup/confirm?token={token}"))
        mail.after_commit(db, wanted.address, "Confirm your IIoT Portal account", text)


def confirm(token: str, client: sessions.Client) -> sessions.Opened:
    """Make the user and the tenant that were asked for, and sign in. The link works once; raises Invalid when it does not."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        asked = db.execute(
            delete(PendingRegistration)
            .where(
                PendingRegistration.token_hash == auth.refresh_token_hash(token),
                PendingRegistration.expires_at > clock.now(),
            )
            .returning(
                PendingRegistration.email,
                PendingRegistration.name,
                PendingRegistration.tenant_name,
                PendingRegistration.password_hash,
            )
        ).one_or_none()
        if asked is None:
            raise Invalid(
                "The link does not work any more. Register again, or sign in if you have confirmed it before.",
                [{"loc": ["body", "token"], "msg": "used, expired or never given out"}],
            )
        return _open(db, (asked[0], asked[1], asked[2], asked[3]), client)


def _open(db: Session, row: tuple[str, str, str, str], client: sessions.Client) -> sessions.Opened:
    address, name, tenant_name, hashed = row
    user = User(uid=ids.new_uid(), email=address, name=name, password_hash=hashed)
    try:
        with db.begin_nested():
            db.add(user)
    except IntegrityError:
        raise TAKEN from None
    tenant = tenants.create(db, tenant_name)
    users.add_member(db, tenant.id, user.id, "admin")
    opened = sessions.open_session(db, user.id, client)
    audit.record(db, "tenant.register", ("tenant", tenant.uid), actor=opened.principal, after={"name": tenant.name})
    return opened
