"""The second factor: an authenticator (TOTP, RFC 6238: SHA-1, six digits, 30 s) and ten recovery codes.

The seed is stored encrypted (AES-256-GCM under a derived key, bound to its person); of recovery codes an HMAC is stored. A time step counts once: the
newest one used is remembered, and older ones are refused with it (RFC 6238 section 5.2).
"""

import base64
import hashlib
import hmac
import os
import secrets
import struct
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from iiot import auth, cache, clock, config, tenancy
from iiot.errors import Conflict, Invalid, Problem
from iiot.models import RecoveryCode, SecondFactor, User
from iiot.services import audit, mail, sessions, users

STEP_SECONDS = 30
DIGITS = 6
# One step to either side: clocks differ, and typing takes time.
DRIFT = 1
SEED_BYTES = 20
NONCE_BYTES = 12
RECOVERY_CODES = 10
ISSUER = "IIoT Portal"
CHANGED = """The second factor of your account on the IIoT Portal was {what} on {at:%Y-%m-%d at %H:%M} UTC.

If that was not you, change your password at once: {link}
"""


@dataclass(frozen=True)
class SetUp:
    """What an authenticator needs: the seed in base32, and as the address that its QR code holds."""

    secret: str
    uri: str


def totp(seed: bytes, step: int) -> str:
    """The code of a time step: HOTP (RFC 4226 section 5.3) of its number."""
    digest = hmac.new(seed, struct.pack(">Q", step), hashlib.sha1).digest()
    at = digest[-1] & 15
    number = int.from_bytes(digest[at : at + 4], "big") & 0x7FFFFFFF
    return str(number % 10**DIGITS).zfill(DIGITS)


def _step_now() -> int:
    return clock.now_ms() // 1000 // STEP_SECONDS


def _cipher() -> AESGCM:
    return AESGCM(config.load().derived_key("second-factor"))


def _bound_to(user_uid: str) -> bytes:
    """What a seed is tied to, so that a row copied to another person opens nothing."""
    return f"second_factor|{user_uid}".encode()


def _seal(seed: bytes, user_uid: str) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + _cipher().encrypt(nonce, seed, _bound_to(user_uid))


def _unseal(sealed: bytes, user_uid: str) -> bytes:
    try:
        return _cipher().decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound_to(user_uid))
    except InvalidTag:
        raise Problem(
            500, "internal", "The second factor cannot be read: the portal's secret key has changed. Ask the operator."
        ) from None


def _wrong(field: str = "code", message: str = "not the code of this moment; each works once") -> Invalid:
    return Invalid("The code is not right.", [{"loc": ["body", field], "msg": message}])


# --- setting up --------------------------------------------------------------------------------------------------------------------------------


def start(db: Session, principal: auth.Principal) -> SetUp:
    """A new seed, which counts once it is confirmed. Raises Conflict when a factor is set up already. `db`: scope "sign-in"."""
    user = db.get_one(User, principal.user_id, with_for_update=True)
    if user.has_mfa:
        raise Conflict("You have a second factor. Switch it off before you set another one up.", "mfa-already-set-up")
    seed = secrets.token_bytes(SEED_BYTES)
    db.execute(delete(SecondFactor).where(SecondFactor.user_id == user.id))
    db.add(SecondFactor(user_id=user.id, seed=_seal(seed, user.uid)))
    return _set_up(seed, user)


def pending(db: Session, principal: auth.Principal) -> SetUp | None:
    """The seed that waits to be confirmed, so that the page can show it once more. `db`: scope "sign-in"."""
    user = db.get_one(User, principal.user_id)
    factor = db.get(SecondFactor, user.id)
    if factor is None or factor.confirmed_at is not None:
        return None
    return _set_up(_unseal(factor.seed, user.uid), user)


def _set_up(seed: bytes, user: User) -> SetUp:
    secret = base64.b32encode(seed).decode("ascii")
    label = quote(f"{ISSUER}:{user.email}", safe="@:")
    options = {"secret": secret, "issuer": ISSUER, "algorithm": "SHA1", "digits": DIGITS, "period": STEP_SECONDS}
    return SetUp(secret, f"otpauth://totp/{label}?{urlencode(options, quote_via=quote)}")


def confirm(db: Session, principal: auth.Principal, code: str) -> list[str]:
    """Switch the factor on with a first code; returns ten recovery codes, which are known only here. `db`: scope "sign-in"."""
    user = db.get_one(User, principal.user_id, with_for_update=True)
    factor = db.get(SecondFactor, user.id)
    if factor is None or factor.confirmed_at is not None:
        raise Conflict("Start with POST /api/v1/auth/mfa/setup: there is nothing to confirm.", "mfa-not-started")
    if not _use_totp(db, user, code):
        raise _wrong()
    db.execute(update(SecondFactor).where(SecondFactor.user_id == user.id).values(confirmed_at=clock.now()))
    user.has_mfa = True
    codes = _new_codes(db, user)
    audit.record(db, "mfa.enable", ("user", user.uid), actor=principal)
    _tell(db, user, "switched on")
    tenancy.after_commit(db, cache.forget_everywhere)
    return codes


def _tell(db: Session, user: User, what: str) -> None:
    if mail.configured():
        text = CHANGED.format(what=what, at=clock.now(), link=mail.link("/password"))
        mail.after_commit(db, user.email, f"Your second factor was {what}", text)


# --- recovery codes ----------------------------------------------------------------------------------------------------------------------------


def _new_codes(db: Session, user: User) -> list[str]:
    letters = users.ONE_TIME_ALPHABET
    codes = [
        "-".join("".join(secrets.choice(letters) for _ in range(5)) for _ in range(2)) for _ in range(RECOVERY_CODES)
    ]
    db.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user.id))
    db.add_all(RecoveryCode(user_id=user.id, code_hash=_code_hash(code, user.uid)) for code in codes)
    return codes


def _code_hash(code: str, user_uid: str) -> str:
    """HMAC under a derived key: a code has 50 bits, too few for a bare hash."""
    plain = "".join(each for each in code.lower() if each.isalnum())
    return hmac.new(
        config.load().derived_key("recovery-code"), f"{user_uid}|{plain}".encode(), hashlib.sha256
    ).hexdigest()


def codes_left(db: Session, user_id: int) -> int:
    """How many recovery codes have not been used. `db`: scope "sign-in"."""
    unused = (RecoveryCode.user_id == user_id, RecoveryCode.used_at.is_(None))
    return db.scalar(select(func.count()).select_from(RecoveryCode).where(*unused)) or 0


def regenerate(principal: auth.Principal, password: str, code: str) -> list[str]:
    """Ten new recovery codes; the old ones die. Raises Invalid unless password and code are right."""
    user = _prove(principal, password)
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = db.get_one(User, user.id, with_for_update=True)
        if not use(db, user, code):
            raise _wrong()
        audit.record(db, "mfa.new-codes", ("user", user.uid), actor=principal)
        _tell(db, user, "given new recovery codes")
        return _new_codes(db, user)


# --- codes -------------------------------------------------------------------------------------------------------------------------------------


def use(db: Session, user: User, code: str) -> bool:
    """Whether a code of the authenticator or a recovery code is right; it is used up, also when many try it at a time. `db`: scope "sign-in"."""
    if not user.has_mfa:
        return False
    return _use_totp(db, user, code) or _use_recovery_code(db, user, code)


def _use_totp(db: Session, user: User, code: str) -> bool:
    plain = "".join(each for each in code if not each.isspace())
    factor = db.get(SecondFactor, user.id)
    if factor is None or len(plain) != DIGITS:
        return False
    seed, now = _unseal(factor.seed, user.uid), _step_now()
    steps = range(now - DRIFT, now + DRIFT + 1)
    fitting = [step for step in steps if auth.same_text(plain, totp(seed, step))]
    if not fitting:
        return False
    newer = (SecondFactor.user_id == user.id, SecondFactor.last_step < fitting[0])
    used = update(SecondFactor).where(*newer).values(last_step=fitting[0]).returning(SecondFactor.user_id)
    return db.execute(used).one_or_none() is not None


def _use_recovery_code(db: Session, user: User, code: str) -> bool:
    mine = (RecoveryCode.user_id == user.id, RecoveryCode.used_at.is_(None))
    digest = _code_hash(code, user.uid)
    used = update(RecoveryCode).where(*mine, RecoveryCode.code_hash == digest).values(used_at=clock.now())
    if db.execute(used.returning(RecoveryCode.id)).first() is None:
        return False
    audit.record(db, "mfa.recovery-code-used", ("user", user.uid), actor=users.itself(user))
    return True


# --- switching off -----------------------------------------------------------------------------------------------------------------------------


def _prove(principal: auth.Principal, password: str) -> User:
    """The caller, after the password was checked without holding a connection."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = db.get_one(User, principal.user_id)
    if not auth.verify_password(password, user.password_hash):
        raise Invalid("Nothing was changed.", [{"loc": ["body", "password"], "msg": "this is not your password"}])
    return user


def disable(principal: auth.Principal, password: str, code: str) -> None:
    """Switch the caller's second factor off. Raises Invalid unless password and code are right."""
    user = _prove(principal, password)
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = db.get_one(User, user.id, with_for_update=True)
        if not use(db, user, code):
            raise _wrong()
        _remove(db, user)
        audit.record(db, "mfa.disable", ("user", user.uid), actor=principal)
        _tell(db, user, "switched off")


def reset(db: Session, principal: auth.Principal, user: User) -> None:
    """Remove the second factor of somebody who lost it, and end their sessions: see `users.check_in_charge`. `db`: scope "sign-in" without a tenant.

    Raises Forbidden or NotFound for people the caller is not in charge of, Conflict for those without a second factor.
    """
    users.check_in_charge(db, principal, user)
    if not user.has_mfa:
        raise Conflict("This person has no second factor.", "mfa-not-set-up")
    _remove(db, user)
    sessions.end_all(db, user.id, "second factor reset")
    audit.record(db, "mfa.reset", ("user", user.uid), actor=principal)
    _tell(db, user, "removed by an admin")


def _remove(db: Session, user: User) -> None:
    db.execute(delete(SecondFactor).where(SecondFactor.user_id == user.id))
    db.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user.id))
    user.has_mfa = False
    db.flush()
    tenancy.after_commit(db, cache.forget_everywhere)
