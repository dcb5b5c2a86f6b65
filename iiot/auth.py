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
from datetime import datetime
from functools import cache
from typing import Any, Literal

import bcrypt

from iiot import config, metrics, wordlists
from iiot.errors import Forbidden, Invalid, Unauthorized, Unavailable

BCRYPT_ROUNDS = 12
MAX_PASSWORD_BYTES = 1024
SCHEME = "v2$"
# An unsalted SHA-256 of the portal's predecessor, wrapped at its import; replaced at the person's next sign-in.
LEGACY_SCHEME = "v1w$"
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
_ENGINEER = ("device:write", "telemetry:write", "rule:write", "model:write", "site:write")
_ADMIN = ("tenant:write", "member:write", "audit:read", "api-key:write")
PERMISSIONS: dict[str, frozenset[str]] = {
    "viewer": frozenset(_VIEWER),
    "operator": frozenset(_VIEWER + _OPERATOR),
    "engineer": frozenset(_VIEWER + _OPERATOR + _ENGINEER),
    "admin": frozenset(_VIEWER + _OPERATOR + _ENGINEER + _ADMIN),
}
ALL_PERMISSIONS = PERMISSIONS["admin"]
# What concerns the whole tenant: members who are limited to some devices do not hold it, whatever their role says.
TENANT_WIDE = frozenset(_ADMIN)
# What a platform administrator may do in a tenant without being its member: manage it, never read what it owns.
PLATFORM_PERMISSIONS = frozenset(("tenant:read", "tenant:write", "member:read", "member:write"))
READ_ONLY = {
    "suspended": "This tenant is suspended: you can read, and change nothing. Ask the platform administrator.",
    "deleting": "This tenant is being deleted: you can read, and change nothing. An admin can restore it.",
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who has proved who they are: a person or a service account in one tenant, or a device.

    `granted`: the permissions themselves, for custom roles and API keys with scopes; None means those of `role`. `limited_user_id`: the member
    sees some devices alone. `tenant_status` other than "active" leaves permissions to read. `label`: how the audit trail calls them.
    """

    kind: Literal["user", "device", "service"]
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
    granted: frozenset[str] | None = None
    limited_user_id: int | None = None
    tenant_status: str = "active"
    must_set_up_mfa: bool = False
    api_key_uid: str | None = None
    service_uid: str | None = None
    label: str = ""

    @property
    def held(self) -> frozenset[str]:
        """What the role or key grants, whatever state the tenant is in."""
        held = PERMISSIONS.get(self.role or "", frozenset()) if self.granted is None else self.granted
        return held - TENANT_WIDE if self.is_limited else held

    @property
    def permissions(self) -> frozenset[str]:
        """What this principal may do in its tenant now; a device holds none of these."""
        if self.tenant_status == "active":
            return self.held
        return frozenset(permission for permission in self.held if permission.endswith(":read"))

    @property
    def is_limited(self) -> bool:
        """Whether this member sees some devices of the tenant alone."""
        return self.limited_user_id is not None

    @property
    def uid(self) -> str:
        """The random id of whoever this is."""
        return self.user_uid or self.service_uid or self.device_uid or ""

    def require(self, permission: str) -> None:
        """Raise Forbidden unless the principal holds `permission` and its tenant is in a state to use it."""
        if permission in self.permissions:
            return
        if permission in self.held:
            raise Forbidden(READ_ONLY[self.tenant_status], f"tenant-{self.tenant_status}")
        if self.api_key_uid is not None:
            raise Forbidden(f"This API key does not hold the permission {permission}. Make one with that scope.")
        needed = next(role for role in ("viewer", "operator", "engineer", "admin") if permission in PERMISSIONS[role])
        raise Forbidden(f"This needs the permission {permission}: ask an admin of your tenant for the role {needed}.")


@dataclass(frozen=True, slots=True)
class Proof:
    """Whom a token or key stands for, and until when it does; None: until it is revoked."""

    principal: Principal
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from, for the audit trail."""

    address: str = ""
    user_agent: str = ""
    request_id: str = ""


_NOWHERE = Origin()
_origin: ContextVar[Origin] = ContextVar("origin", default=_NOWHERE)


def origin() -> Origin:
    """Where the request being served comes from; empty outside one."""
    return _origin.get()


def set_origin(where: Origin) -> None:
    """Set by the edge that took the request."""
    _origin.set(where)


def acting() -> Principal | None:
    """The principal of the request being served, None outside one and for strangers."""
    return _current.get()


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
    scheme, hashed = _split(stored)
    peppered = _peppered(password)
    if scheme == LEGACY_SCHEME:
        peppered = _peppered(hashlib.sha256(password.encode("utf-8", "surrogatepass")).hexdigest())
    metrics.password_checks.inc()
    matches = _pool().run(_check, peppered, hashed)
    return bool(matches) and hashed is not None


def _split(stored: str | None) -> tuple[str, bytes | None]:
    """Scheme and bcrypt hash of what is stored; no hash for nobody and for what is no hash, such as `!`."""
    for scheme in (SCHEME, LEGACY_SCHEME):
        if stored is not None and stored.startswith(scheme):
            return scheme, stored.removeprefix(scheme).encode("ascii")
    return "", None


def wrap_legacy(sha256_hex: str) -> str:
    """`v1w$` + bcrypt(12, base64(HMAC-SHA384(pepper, hex))) of an unsalted SHA-256: 0.3 s on the caller's own thread, for imports."""
    return LEGACY_SCHEME + bcrypt.hashpw(_peppered(sha256_hex.lower()), bcrypt.gensalt(BCRYPT_ROUNDS)).decode("ascii")


def is_legacy(stored: str) -> bool:
    """Whether the hash is a wrapped one that the next sign-in replaces."""
    return stored.startswith(LEGACY_SCHEME)


def _check(peppered: bytes, target: bytes | None) -> bool:
    return bcrypt.checkpw(peppered, DUMMY_HASH if target is None else target)


def check_password_policy(password: str, *, email: str, name: str, loc: str = "password") -> None:
    """Raise Invalid unless the password is long enough, not a common one and not made of the person's own name or address.

    No composition rules and no forced changes (NIST SP 800-63B section 5.1.1.2, ASVS 6.2.5, 6.2.10).
    """
    minimum = config.load().password_min_length
    problem = None
    if len(password) < minimum:
        problem = f"at least {minimum} characters; several words in a row are easy to remember"
    elif len(password.encode("utf-8", "surrogatepass")) > MAX_PASSWORD_BYTES:
        problem = f"at most {MAX_PASSWORD_BYTES} bytes"
    elif _resembles(wordlists.fold(password), email, name):
        problem = "it is made of your own name or address; take something others cannot guess"
    elif wordlists.is_common(password):
        problem = "this one is among the first that are tried; take three or more words, or something less common"
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
