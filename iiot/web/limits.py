"""Rate limits: flask-limiter's storage in Redis, counted in memory while Redis is down; never open."""

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

from iiot import metrics
from iiot.config import Settings
from iiot.errors import Problem

log = structlog.get_logger(__name__)

LIMITS = {
    # Per address and account: what guessing one password may cost.
    "sign-in": parse("5/minute"),
    # Per address: a factory is one address with many people behind it.
    "sign-in-address": parse("30/minute"),
    "register": parse("10/hour"),
    "password-change": parse("10/minute"),
    "device-sign-in": parse("20/minute"),
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


def _refuse(name: str, keys: tuple[str, ...]) -> Problem:
    metrics.limited.labels(name).inc()
    seconds = _counter().seconds_left(LIMITS[name], name, *keys)
    return Problem(
        429, "rate-limited", f"Too many attempts. Try again in {seconds} s.", headers={"Retry-After": str(seconds)}
    )


def spend(name: str, *keys: str) -> None:
    """Count one use of a limit in `LIMITS` for these keys; raises 429 with Retry-After when it is used up."""
    if not _counter().hit(LIMITS[name], name, *keys):
        raise _refuse(name, keys)


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
