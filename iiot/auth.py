"""Who somebody is and what they may do: principals, permissions, password and device-token hashing. No framework, no SQL."""

import base64
import hashlib
import hmac
import os
import sys
import threading
import unicodedata
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import bcrypt

from iiot import config, metrics
from iiot.errors import Forbidden, Invalid, Unauthorized, Unavailable

BCRYPT_ROUNDS = 12
MAX_PASSWORD_BYTES = 1024
SCHEME = "v2$"
# A hash of 48 random bytes that were thrown away: unknown accounts are compared with it and take as long as known ones.
DUMMY_HASH = b"$2b$12$V/dGUvdbyUsGBDdR9l4DeeUvyU9tOk6IQVvIpXd20o9VTZs8K6HWK"

# Every permission a route may ask for. A role holds the ones listed for it and those of the roles below it.
_VIEWER = (
    "device:read",
    "telemetry:read",
    "tenant:read",
    "member:read",
    "rule:read",
    "alarm:read",
    "entity:read",
    "model:read",
    "job:read",
)
_OPERATOR = ("device:command", "alarm:write", "entity:control")
_ENGINEER = ("device:write", "telemetry:write", "rule:write", "model:write")
_ADMIN = ("tenant:write", "member:write", "audit:read", "api-key:write")
PERMISSIONS: dict[str, frozenset[str]] = {
    "viewer": frozenset(_VIEWER),
    "operator": frozenset(_VIEWER + _OPERATOR),
    "engineer": frozenset(_VIEWER + _OPERATOR + _ENGINEER),
    "admin": frozenset(_VIEWER + _OPERATOR + _ENGINEER + _ADMIN),
}
ALL_PERMISSIONS = PERMISSIONS["admin"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who has proved who they are: a person in one tenant, or a device."""

    kind: Literal["user", "device"]
    tenant_id: int | None
    tenant_uid: str | None
    user_id: int | None = None
    user_uid: str | None = None
    role: str | None = None
    session_uid: str | None = None
    is_platform_admin: bool = False
    must_change_password: bool = False
    device_id: int | None = None
    device_uid: str | None = None

    @property
    def permissions(self) -> frozenset[str]:
        """What this principal may do in its tenant; a device holds none of these."""
        return PERMISSIONS.get(self.role or "", frozenset())

    def require(self, permission: str) -> None:
        """Raise Forbidden unless the principal's role holds `permission`."""
        if permission not in self.permissions:
            needed = next(
                role for role in ("viewer", "operator", "engineer", "admin") if permission in PERMISSIONS[role]
            )
            raise Forbidden(
                f"This needs the permission {permission}: ask an admin of your tenant for the role {needed}."
            )


_current: ContextVar[Principal | None] = ContextVar("principal", default=None)


def current() -> Principal:
    """The principal of the request being served; raises Unauthorized outside one."""
    principal = _current.get()
    if principal is None:
        raise Unauthorized
    return principal


def set_current(principal: Principal | None) -> None:
    """Set by the edge that authenticated the caller, and cleared by it when the request ends."""
    _current.set(principal)


# --- passwords -------------------------------------------------------------------------------------------------------------------------------


class _HashPool:
    """Runs bcrypt off the event loop on as many threads as there are cores; a bounded queue in front refuses what would only wait."""

    def __init__(self, threads: int) -> None:
        self._slots = threading.BoundedSemaphore(threads * 5)
        self._threads = threads
        self._lock = threading.Lock()
        self._apply: Callable[..., Any] | None = None

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result; raises Unavailable when four rounds of work are already waiting."""
        if not self._slots.acquire(blocking=False):
            raise Unavailable("Too many sign-ins at this moment. Try again in a few seconds.", retry_after=3)
        try:
            return self._runner()(function, arguments)
        finally:
            self._slots.release()

    def _runner(self) -> Callable[..., Any]:
        with self._lock:
            if self._apply is None:
                self._apply = self._make_runner()
            return self._apply

    def _make_runner(self) -> Callable[..., Any]:
        monkey = sys.modules.get("gevent.monkey")
        if monkey is not None and monkey.is_module_patched("threading"):
            from gevent.threadpool import ThreadPool

            # Patched threads are greenlets, and bcrypt inside one stops every other request of the worker for 0.4 s.
            apply: Callable[..., Any] = ThreadPool(self._threads).apply
            return apply
        from concurrent.futures import ThreadPoolExecutor

        executor = ThreadPoolExecutor(self._threads, "bcrypt")
        return lambda function, arguments: executor.submit(function, *arguments).result()


_pools: dict[int, _HashPool] = {}


def _pool() -> _HashPool:
    """The pool of this process: threads do not survive a fork, so each worker makes its own."""
    return _pools.setdefault(os.getpid(), _HashPool(os.cpu_count() or 1))


def _peppered(password: str) -> bytes:
    """64 characters made of the whole password: bcrypt alone refuses more than 72 bytes.

    The key keeps leaked hashes useless without the server's secret (OWASP Password Storage Cheat Sheet, peppering and pre-hashing).
    """
    text = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    if len(text) > MAX_PASSWORD_BYTES:
        raise Invalid(
            "The password is too long.", [{"loc": ["body", "password"], "msg": f"at most {MAX_PASSWORD_BYTES} bytes"}]
        )
    return base64.b64encode(hmac.new(_key("password-pepper"), text, hashlib.sha384).digest())


@cache
def _key(purpose: str) -> bytes:
    return config.load().derived_key(purpose)


def hash_password(password: str) -> str:
    """`v2$` + bcrypt(12, base64(HMAC-SHA384(pepper, NFC UTF-8))). Takes about 0.3 s of a core, off the event loop."""
    peppered = _peppered(password)
    return SCHEME + str(_pool().run(bcrypt.hashpw, peppered, bcrypt.gensalt(BCRYPT_ROUNDS)).decode("ascii"))


def verify_password(password: str, stored: str | None) -> bool:
    """Whether `password` matches; with `stored` None the same work is done for nothing, so time does not tell who exists."""
    peppered = _peppered(password)
    known = stored is not None and stored.startswith(SCHEME)
    target = stored.removeprefix(SCHEME).encode("ascii") if known and stored is not None else None
    metrics.password_checks.inc()
    matches = _pool().run(_check, peppered, target)
    return bool(matches) and known


def _check(peppered: bytes, target: bytes | None) -> bool:
    return bcrypt.checkpw(peppered, DUMMY_HASH if target is None else target)


# The words people reach for first; longer lists hold mostly passwords shorter than twelve characters.
_COMMON_TEXT = """
password1234 password12345 password123456 123456789012 1234567890123 12345678901234 qwertyuiop123 qwertyuiopas qwerty123456 1q2w3e4r5t6y
administrator administrator1 changemechangeme letmeinletmein welcome12345 welcome123456 iloveyou1234 abcdefghijkl abcdefghijklm
passwordpassword adminadminadmin qwertyqwerty monkeymonkey dragondragon football1234 baseball1234 superman1234 trustno1trustno1
correcthorsebatterystaple p@ssw0rd1234 passw0rd1234 zaq12wsxcde3 1qaz2wsx3edc qazwsxedcrfv asdfghjkl123
internet1234 computer1234 secret123456 summer2024summer winter2024winter iiotportal123 industrial123 mosquitto1234
"""
_COMMON = frozenset(_COMMON_TEXT.split())


def check_password_policy(password: str, *, email: str, name: str, loc: str = "password") -> None:
    """Raise Invalid unless the password is long enough, not a well-known one and not made of the person's own name or address.

    No composition rules and no forced changes (NIST SP 800-63B section 5.1.1.2, ASVS 6.2.5, 6.2.10).
    """
    minimum = config.load().password_min_length
    folded = unicodedata.normalize("NFKC", password).casefold()
    problem = None
    if len(password) < minimum:
        problem = f"at least {minimum} characters; several words in a row are easy to remember"
    elif len(password.encode("utf-8", "surrogatepass")) > MAX_PASSWORD_BYTES:
        problem = f"at most {MAX_PASSWORD_BYTES} bytes"
    elif folded in _COMMON or len(set(folded)) < 4:
        problem = "this one is among the first that are tried; take something longer or less common"
    elif _resembles(folded, email, name):
        problem = "it is made of your own name or address; take something others cannot guess"
    if problem:
        raise Invalid("The password is not acceptable.", [{"loc": ["body", loc], "msg": problem}])


def _resembles(folded: str, email: str, name: str) -> bool:
    """Whether a part of the person's name or address makes up most of the password."""
    address = email.casefold()
    words = {address, address.partition("@")[0], *name.casefold().split(), name.casefold().replace(" ", "")}
    return any(len(word) >= 4 and word in folded and len(folded) - len(word) < 8 for word in words)


# --- device tokens and refresh tokens ---------------------------------------------------------------------------------------------------------


def device_token_hash(token: str) -> str:
    """What is stored of a device token: HMAC-SHA256 under a derived key. The token has 256 random bits, so a slow hash adds nothing."""
    return hmac.new(_key("device-token"), token.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def device_token_matches(token: str, stored: str) -> bool:
    """Constant-time comparison with what `device_token_hash` returned."""
    return hmac.compare_digest(device_token_hash(token), stored)


def refresh_token_hash(token: str) -> str:
    """SHA-256 of a refresh token; only this is stored."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def next_refresh_secret(secret: str) -> str:
    """The successor of a refresh secret: 256 bits, the same one whenever it is asked for, and unknown without the server's key.

    Being derived, it can be given again to a client that lost the answer, without ever being stored.
    """
    digest = hmac.new(_key("refresh-chain"), secret.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def same_text(offered: str, expected: str) -> bool:
    """Compare two secrets in constant time."""
    return hmac.compare_digest(offered.encode("utf-8", "surrogatepass"), expected.encode("utf-8", "surrogatepass"))


def csrf_token(session_uid: str) -> str:
    """The synchroniser token of a session: pages carry it, unsafe requests send it back in a header."""
    return hmac.new(_key("csrf"), session_uid.encode("ascii"), hashlib.sha256).hexdigest()


def fingerprint(user_agent: str, address: str) -> str:
    """What tells one client from another for the grace period of a refresh: user agent and address, hashed."""
    return hashlib.sha256(f"{user_agent}\n{address}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
