"""Rate limits: flask-limiter's storage in Redis, counted in memory while Redis is down; never open.

What every request spends, the tenant's requests of the minute and the day, is counted by services.metering.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import structlog
from flask import Flask, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter, RateLimiter

from iiot import auth, config, metrics
from iiot.config import Settings
from iiot.errors import Problem
from iiot.services import metering

log = structlog.get_logger(__name__)

LIMITS = {
    # Per address and account: what guessing one password may cost.
    "sign-in": parse("5/minute"),
    # Per address: a factory is one address with many people behind it.
    "sign-in-address": parse("30/minute"),
    "register": parse("10/hour"),
    "password-change": parse("10/minute"),
    # Mails to one address whoever asks for them, and askers of one address; using links.
    "account-mail": parse("3/hour"),
    "forgot": parse("10/hour"),
    "link": parse("30/hour"),
    # Codes of a second factor, per account.
    "second-factor": parse("5/minute"),
    # Per address that follows a link, and per tenant that sends mails.
    "invitation-accept": parse("20/minute"),
    "invite": parse("200/hour"),
    # Failures per address and device or key, and per address alone against guessing: a factory is one address with many devices behind it, of
    # which some may be forgotten ones that knock for ever.
    "device-sign-in": parse("20/minute"),
    # Per user: orders to devices.
    "control": parse("100/hour"),
    # Per user: names of homes, which are one of their kind in the installation, shall not be found by guessing.
    "home": parse("30/hour"),
    "device-sign-in-address": parse("120/minute"),
    "api-key": parse("20/minute"),
    "api-key-address": parse("120/minute"),
}
Answer = TypeVar("Answer")
RETRY_STORAGE_SECONDS = 5.0


class _Counter:
    """Counts in Redis; for some seconds after a failure in the memory of this process."""

    def __init__(self, settings: Settings) -> None:
        self._limiter = Limiter(
            get_remote_address,
            storage_uri=settings.redis_url or "memory://",
            storage_options=cast(dict[str, str | int], {"socket_connect_timeout": 0.5, "socket_timeout": 0.5})
            if settings.redis_url
            else {},
            strategy="moving-window",
            key_prefix="iiot:limit",
        )
        self._fallback: RateLimiter = MovingWindowRateLimiter(MemoryStorage())
        self._down_until = 0.0

    def init_app(self, app: Flask) -> None:
        # The extension's hooks ask the storage on every request; ours ask on the limited ones alone, so it is entered as already hooked.
        app.extensions.setdefault("limiter", set()).add(self._limiter)
        self._limiter.init_app(app)

    def _run(self, ask: Callable[[RateLimiter], Answer]) -> Answer:
        if time.monotonic() >= self._down_until:
            try:
                return ask(self._limiter.limiter)
            except Exception as error:
                # Whatever the storage's driver raises: an attacker must not switch the limit off by taking Redis down.
                self._down_until = time.monotonic() + RETRY_STORAGE_SECONDS
                log.warning("rate limits are counted per process", error=str(error)[:200])
        return ask(self._fallback)

    def hit(self, item: RateLimitItem, *keys: str) -> bool:
        return self._run(lambda limiter: limiter.hit(item, *keys))

    def test(self, item: RateLimitItem, *keys: str) -> bool:
        return self._run(lambda limiter: limiter.test(item, *keys))

    def seconds_left(self, item: RateLimitItem, *keys: str) -> int:
        reset = self._run(lambda limiter: limiter.get_window_stats(item, *keys).reset_time)
        return max(1, min(int(reset - time.time()) + 1, item.get_expiry()))


def init_app(app: Flask, settings: Settings) -> None:
    """Give the application its counter."""
    counter = _Counter(settings)
    counter.init_app(app)
    app.extensions["iiot.limits"] = counter


def _counter() -> _Counter:
    from flask import current_app

    counter: _Counter = current_app.extensions["iiot.limits"]
    return counter


def _told(limit: RateLimitItem) -> str:
    """As the protocols say it: 20/min."""
    every = {"minute": "min"}.get(limit.GRANULARITY.name, limit.GRANULARITY.name)
    return f"{limit.amount}/{every}" if limit.multiples == 1 else str(limit)


def _refuse(name: str, keys: tuple[str, ...]) -> Problem:
    metrics.limited.labels(name).inc()
    seconds = _counter().seconds_left(LIMITS[name], name, *keys)
    return Problem(
        429,
        "rate-limited",
        f"Too many attempts. Try again in {seconds} s.",
        headers={"Retry-After": str(seconds)},
        extra={"limit": name, "allowed": _told(LIMITS[name])},
    )


def spend(name: str, *keys: str) -> None:
    """Count one use of a limit in `LIMITS` for these keys; raises 429 with Retry-After when it is used up."""
    if not _counter().hit(LIMITS[name], name, *keys):
        raise _refuse(name, keys)


def within(name: str, *keys: str) -> bool:
    """Count one use of a limit like `spend`, and say whether it was within; for answers that must not tell."""
    is_within = _counter().hit(LIMITS[name], name, *keys)
    if not is_within:
        metrics.limited.labels(name).inc()
    return is_within


def spend_sign_in(account: str) -> None:
    """The two limits of a sign-in: per address, and per address and account."""
    address = request.remote_addr or "unknown"
    spend("sign-in-address", address)
    spend("sign-in", address, account.strip().casefold()[:320])


@contextmanager
def failures(name: str, *keys: str) -> Iterator[Callable[[], None]]:
    """Refuse when too many failures were counted before; call what it yields to count one."""
    if not _counter().test(LIMITS[name], name, *keys):
        raise _refuse(name, keys)

    def count() -> None:
        _counter().hit(LIMITS[name], name, *keys)

    yield count


def meter(principal: auth.Principal) -> None:
    """Count a request of a tenant's people and programs, or a message of a device; raises 429 with Retry-After over the limits."""
    if principal.kind == "device":
        _spend_message(principal.device_uid or "")
    elif principal.tenant_uid is not None:
        try:
            metering.spend(principal.tenant_uid)
        except Problem:
            metrics.limited.labels("tenant").inc()
            raise


def _spend_message(uid: str) -> None:
    """A token of the device's bucket: devices may catch up after an outage, and none of them occupies the portal for long."""
    settings = config.load()
    seconds = metering.take(f"device:{uid}", settings.device_rate, settings.device_burst)
    if seconds:
        metrics.limited.labels("device").inc()
        after = max(1, math.ceil(seconds))
        detail = (
            f"This device sends too much: {settings.device_burst} messages at once and {settings.device_rate} a second are allowed. "
            f"Send several readings in one message, and go on in {after} s."
        )
        extra = {"limit": "messages_per_second", "allowed": settings.device_rate}
        raise Problem(429, "rate-limited", detail, headers={"Retry-After": str(after)}, extra=extra)
