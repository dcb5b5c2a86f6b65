"""Signing in: the password, then the code of the second factor for those who have one."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import jwt
import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from iiot import auth, clock, config, metrics, tenancy
from iiot.errors import Forbidden, Problem, Unauthorized
from iiot.models import User
from iiot.services import audit, mfa, sessions, users
from iiot.services.sessions import Client, Opened

log = structlog.get_logger(__name__)

WRONG = "The e-mail address or the password is wrong."
DISABLED = "This account is disabled. Ask an admin of your tenant."
CODE_LIFE = timedelta(minutes=5)
PURPOSE = "iiot-second-factor"


class CodeNeeded(Problem):
    """The password is right, and a code is needed too. `mfa_token` stands for the password for five minutes."""

    def __init__(self, user_uid: str, mfa_token: str) -> None:
        super().__init__(
            401,
            "mfa-required",
            "Send the code of your authenticator, or a recovery code: POST /api/v1/auth/mfa/login with mfa_token and code.",
            extra={"mfa_token": mfa_token},
        )
        self.user_uid = user_uid
        self.mfa_token = mfa_token


def sign_in(email: str, password: str, client: Client, tenant: str | None = None) -> Opened:
    """Open a session for the right password; raises Unauthorized for a wrong one and for an unknown address, alike and after the same time.

    Raises CodeNeeded for people with a second factor. `tenant`: uid or slug of the tenant to work in; without it the one used last, or the first.
    Opens its own transactions, as hashing for 0.3 s must not hold a connection.
    """
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = users.by_email(db, email)
    good = auth.verify_password(password, user.password_hash if user else None)
    if user is None or not good:
        _refuse({"email": email.strip().lower()[:254]}, client)
        raise Unauthorized(WRONG)
    if user.status != "active":
        metrics.logins.labels("disabled").inc()
        raise Forbidden(DISABLED, "account-disabled")
    if auth.is_legacy(user.password_hash):
        _rehash(user, password)
    if user.has_mfa:
        raise CodeNeeded(user.uid, _token(user, tenant))
    with tenancy.work(tenancy.system("sign-in")) as db:
        return _open(db, user, client, tenant)


def prove(email: str, password: str, code: str | None, client: Client, count: Callable[[str], object]) -> Opened:
    """Open a session for password and code in one step, for callers that have both; raises as `sign_in` and `finish` do.

    `count` is called with the person's uid before a code is tried, and raises when too many were.
    """
    try:
        return sign_in(email, password, client)
    except CodeNeeded as needed:
        if not code:
            raise Problem(
                401,
                "mfa-required",
                "This account has a second factor: send its code, or a recovery code, as `code` too.",
            ) from None
        count(needed.user_uid)
        return finish(needed.mfa_token, code, client)


def _open(db: Session, user: User, client: Client, tenant: str | None) -> Opened:
    opened = sessions.open_session(db, user.id, client, tenant)
    tenancy.after_commit(db, metrics.logins.labels("ok").inc)
    log.info("signed in", user=user.uid, address=client.address)
    return opened


def _refuse(known: dict[str, Any], client: Client) -> None:
    """Count and note a refusal; in the platform's chain for known and unknown addresses alike: neither the time nor a tenant tells them apart."""
    metrics.logins.labels("wrong").inc()
    log.info("sign-in refused", address=client.address)
    with tenancy.work(tenancy.system("sign-in")) as db:
        audit.record(db, "session.refused", after=known)


def _rehash(user: User, password: str) -> None:
    """Replace a hash that was wrapped at its import, now that the password itself is here."""
    hashed = auth.hash_password(password)
    with tenancy.work(tenancy.system("sign-in")) as db:
        mine = (User.id == user.id, User.password_hash == user.password_hash)
        db.execute(update(User).where(*mine).values(password_hash=hashed))
        audit.record(db, "password.rehash", ("user", user.uid), actor=users.itself(user))


# --- the second step ---------------------------------------------------------------------------------------------------------------------------


def _key() -> bytes:
    return config.load().derived_key("mfa-token")


def _token(user: User, tenant: str | None) -> str:
    """Stands for the right password; it is of no use anywhere else, and dies with the password (`epoch`)."""
    claims = {"aud": PURPOSE, "sub": user.uid, "epoch": user.epoch, "tenant": tenant, "exp": clock.now() + CODE_LIFE}
    return jwt.encode(claims, _key(), algorithm="HS256")


def holder(mfa_token: str) -> str:
    """The uid of whose password a token stands for; raises Unauthorized for one that is forged or too old. To count attempts by."""
    return str(_claims(mfa_token)["sub"])


def _claims(mfa_token: str) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(
            mfa_token, _key(), algorithms=["HS256"], audience=PURPOSE, options={"require": ["exp", "sub", "aud"]}
        )
    except jwt.PyJWTError:
        raise Unauthorized("The sign-in took too long. Start again with your password.") from None
    return claims


def finish(mfa_token: str, code: str, client: Client) -> Opened:
    """Open the session that a right password and a right code were given for; raises Unauthorized for a wrong or used code."""
    claims = _claims(mfa_token)
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = db.scalar(select(User).where(User.uid == claims["sub"]).with_for_update())
        if user is None or user.status != "active" or user.epoch != claims["epoch"]:
            raise Unauthorized("The sign-in took too long. Start again with your password.")
        opened = _open(db, user, client, claims["tenant"]) if mfa.use(db, user, code) else None
    if opened is None:
        _refuse({"user": claims["sub"], "second_factor": "wrong code"}, client)
        raise Problem(401, "mfa-wrong-code", "The code is not right, or was used before. Take the next one.")
    return opened
