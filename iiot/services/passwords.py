"""Passwords: change, a link to a new one by mail, and the one-time link that an admin or the operator hands out.

A link holds a token of 256 bits whose SHA-256 is stored. It works once, for an hour, and dies with the account's epoch: with every change of the
password (OWASP Forgot Password Cheat Sheet).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Select, delete, select, update
from sqlalchemy.orm import Session

from iiot import auth, clock, ids, tenancy
from iiot.errors import Invalid, NotFound
from iiot.models import PasswordReset, User
from iiot.services import audit, mail, sessions, users

log = structlog.get_logger(__name__)

LIFE = timedelta(hours=1)
LINK = """Somebody, hopefully you, asked for a new password for your account on the IIoT Portal.

Open this link within an hour to choose one:
{link}

If that was not you, do nothing: your password stays as it is.
"""
NOTICE = """The password of your account on the IIoT Portal was changed on {at:%Y-%m-%d at %H:%M} UTC, and all other sessions were ended.

If that was not you, ask for a new password at once: {forgot}
"""


@dataclass(frozen=True)
class Link:
    """A link to a new password; it is known only here."""

    link: str
    expires_at: datetime


def change(principal: auth.Principal, current: str, new: str, client: sessions.Client) -> sessions.Opened:
    """Replace the caller's password: this session lives on with fresh tokens, all others end. Raises Invalid for a wrong or poor password.

    Opens its own transactions, as hashing must not hold a connection.
    """
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = db.get_one(User, principal.user_id)
    if not auth.verify_password(current, user.password_hash):
        raise _refused("current_password", "this is not your current password")
    auth.check_password_policy(new, email=user.email, name=user.name, loc="new_password")
    if new == current:
        raise _refused("new_password", "take one that differs from the current one")
    hashed = auth.hash_password(new)
    with tenancy.work(tenancy.system("sign-in")) as db:
        changed = db.execute(
            update(User)
            .where(User.id == user.id, User.password_hash == user.password_hash)
            .values(password_hash=hashed, must_change_password=False)
            .returning(User.id)
        ).one_or_none()
        if changed is None:
            raise _refused("current_password", "it was changed elsewhere meanwhile")
        audit.record(db, "password.change", ("user", user.uid), actor=principal)
        sessions.end_all(db, user.id, "password changed", keep=principal.session_uid)
        _tell(db, user)
        return sessions.renew(db, principal.session_uid or "", client)


def _refused(field: str, message: str) -> Invalid:
    return Invalid("The password was not changed.", [{"loc": ["body", field], "msg": message}])


def _tell(db: Session, user: User) -> None:
    if mail.configured():
        text = NOTICE.format(at=clock.now(), forgot=mail.link("/forgot"))
        mail.after_commit(db, user.email, "Your password was changed", text)


# --- forgotten ---------------------------------------------------------------------------------------------------------------------------------


def forgot(email: str) -> None:
    """Send a link to the account of this address, if there is one; the caller goes on at once and learns nothing."""
    mail.soon(_send_link, email)


def _send_link(email: str) -> None:
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = users.by_email(db, email)
        if user is None or user.status != "active":
            log.info("no account to reset")
            return
        if not mail.configured():
            log.warning(
                "a reset was asked for, and there is no mail: an admin or the operator can make a link", user=user.uid
            )
            audit.record(db, "password.forgot", ("user", user.uid), actor=users.itself(user))
            return
        made = _link(db, user)
        audit.record(db, "password.forgot", ("user", user.uid), actor=users.itself(user))
        mail.after_commit(db, user.email, "A new password for the IIoT Portal", LINK.format(link=made.link))


def _link(db: Session, user: User) -> Link:
    token, expires_at = ids.new_token(), clock.now() + LIFE
    digest = auth.refresh_token_hash(token)
    db.add(PasswordReset(user_id=user.id, token_hash=digest, epoch=user.epoch, expires_at=expires_at))
    return Link(mail.link(f"/reset?token={token}"), expires_at)


def admin_link(db: Session, principal: auth.Principal, user: User) -> Link:
    """A one-time link for a person whom the caller is in charge of: see `users.check_in_charge`. `db`: scope "sign-in" without a tenant.

    The admin never learns the password, and the person is told by mail, where there is mail, when it was used.
    """
    users.check_in_charge(db, principal, user)
    made = _link(db, user)
    audit.record(db, "password.link", ("user", user.uid), actor=principal, after={"expires_at": made.expires_at})
    return made


def operator_link(db: Session, email: str) -> Link:
    """A one-time link for anybody, made on the server's command line. `db`: scope "operator"."""
    user = users.by_email(db, email)
    if user is None:
        raise NotFound("user")
    made = _link(db, user)
    audit.record(db, "password.link", ("user", user.uid), after={"expires_at": made.expires_at})
    return made


def reset(token: str, new: str) -> None:
    """Set a new password by a link: once, even when many use it at a time. Ends every session and refresh family, and signs nobody in.

    Raises Invalid for a link that does not work and for a poor password. Opens its own transactions, as hashing must not hold a connection.
    """
    digest = auth.refresh_token_hash(token)
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = db.scalar(_holder(digest))
    if user is None:
        raise _dead_link()
    auth.check_password_policy(new, email=user.email, name=user.name, loc="new_password")
    hashed = auth.hash_password(new)
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = db.scalar(_holder(digest).with_for_update())
        if user is None:
            raise _dead_link()
        user.password_hash, user.must_change_password = hashed, False
        db.execute(delete(PasswordReset).where(PasswordReset.user_id == user.id))
        audit.record(db, "password.reset", ("user", user.uid), actor=users.itself(user))
        _tell(db, user)
        db.flush()
        sessions.end_all(db, user.id, "password reset")


def _holder(digest: str) -> Select[User]:
    """Whoever a link still works for."""
    return (
        select(User)
        .join(PasswordReset, PasswordReset.user_id == User.id)
        .where(
            PasswordReset.token_hash == digest,
            PasswordReset.expires_at > clock.now(),
            PasswordReset.epoch == User.epoch,
            User.status == "active",
        )
    )


def _dead_link() -> Invalid:
    return Invalid(
        "The link does not work any more. Ask for a new one.",
        [{"loc": ["body", "token"], "msg": "used, expired or never given out"}],
    )
