"""How much tenants ask of the portal: API requests per minute and per day, and live connections, counted over all processes through Redis.

A request costs a look into this process's memory, some microseconds. At most once a second per tenant and process the counts travel: what was
counted here is added to the hash of the day (and of the minute) in Redis, and the answer is the count of all processes. So a limit may be passed
by what the other processes answered in the last second. While Redis is down each process goes on with what it knew last and counts for itself:
the limit becomes weaker by the number of processes at most, and never open.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import redis
import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from iiot import cache, config, tenancy, valkey
from iiot.errors import Problem
from iiot.models import Quota, Tenant, UsageDay

log = structlog.get_logger(__name__)

DAY, MINUTE = 86_400, 60
SYNC_SECONDS = 1.0
REMEMBER_SECONDS = 30.0
REST_SECONDS = 5.0
TIMEOUT_SECONDS = 0.5
# Live connections are counted over all workers; a worker that died is forgotten after this long.
CONNECTION_SECONDS = 90
KEPT_DAYS = 3

Answer = TypeVar("Answer")

_down_until = 0.0


@dataclass(frozen=True, slots=True)
class Allowed:
    """What is remembered of a tenant's quota, and the requests of its present day as the database knows them."""

    requests_per_day: int
    connections: int
    requests_today: int


@dataclass(slots=True)
class _Window:
    """A count since the beginning of a day or minute. `known`: of all processes at the last synchronisation; `pending`: of this one since."""

    slot: int = -1
    known: int = 0
    pending: int = 0

    @property
    def used(self) -> int:
        return self.known + self.pending

    def enter(self, slot: int) -> None:
        """Begin anew when another day or minute has come."""
        if slot != self.slot:
            self.slot, self.known, self.pending = slot, 0, 0


@dataclass(slots=True)
class _Meter:
    """The counts of one tenant in this process."""

    day: _Window = field(default_factory=_Window)
    minute: _Window = field(default_factory=_Window)
    day_limit: int = 0
    minute_limit: int = 0
    sync_at: float = 0.0


# By the uid of the tenant.
_meters: dict[str, _Meter] = {}
_allowed: cache.Memory[str, Allowed] = cache.Memory(REMEMBER_SECONDS)
NOTHING = Allowed(0, 0, 0)


def ask(question: Callable[[redis.Redis], Answer]) -> Answer | None:
    """The answer of Redis, None while it is down; after a failure nobody waits for it again for some seconds."""
    global _down_until
    if time.monotonic() < _down_until:
        return None
    try:
        return question(valkey.client(TIMEOUT_SECONDS))
    except redis.RedisError as error:
        _down_until = time.monotonic() + REST_SECONDS
        log.warning("Redis does not answer, counting per process", error=str(error)[:200])
        return None


def allowed(tenant_uid: str) -> Allowed:
    """The tenant's limits, at most half a minute old; a tenant without a quota may do nothing."""
    known = _allowed.get(tenant_uid)
    if known is None:
        mark = _allowed.mark()
        today = (UsageDay.tenant_id == Tenant.id) & (UsageDay.day == _today(time.time()))
        statement = (
            select(Quota.api_requests_per_day, Quota.connections, UsageDay.api_requests)
            .join(Tenant, Tenant.id == Quota.tenant_id)
            .outerjoin(UsageDay, today)
            .where(Tenant.uid == tenant_uid)
        )
        with tenancy.work(tenancy.system("platform")) as db:
            row = db.execute(statement).one_or_none()
        known = NOTHING if row is None else Allowed(row[0], row[1], row[2] or 0)
        _allowed.put(tenant_uid, known, mark)
    return known


def _today(now: float) -> datetime:
    return datetime.fromtimestamp(now - now % DAY, UTC)


def spend(tenant_uid: str) -> None:
    """Count one API request of a tenant; raises 429 with Retry-After when its minute or its day is used up."""
    now = time.time()
    meter = _meters.get(tenant_uid) or _begin(tenant_uid, now)
    day, minute = meter.day, meter.minute
    day.enter(int(now // DAY))
    minute.enter(int(now // MINUTE))
    if now >= meter.sync_at or meter.sync_at > now + 2 * SYNC_SECONDS:
        meter.sync_at = now + SYNC_SECONDS
        _synchronise(tenant_uid, meter)
    if minute.known + minute.pending >= meter.minute_limit:
        raise _too_many_a_minute(meter, now)
    if day.known + day.pending >= meter.day_limit:
        raise _too_many_a_day(meter, now)
    day.pending += 1
    minute.pending += 1


def _begin(tenant_uid: str, now: float) -> _Meter:
    """The meter of a tenant new to this process. Known to others only when it has its limits: they would find them zero."""
    meter = _Meter(sync_at=now + SYNC_SECONDS)
    meter.day.enter(int(now // DAY))
    meter.minute.enter(int(now // MINUTE))
    _synchronise(tenant_uid, meter)
    return _meters.setdefault(tenant_uid, meter)


def _synchronise(tenant_uid: str, meter: _Meter) -> None:
    """Add what was counted here to the counts of all, and take those over. They never go back within a window: Redis may have lost its memory."""
    limits = allowed(tenant_uid)
    meter.day_limit, meter.minute_limit = limits.requests_per_day, config.load().tenant_requests_per_minute
    slots = (meter.day.slot, meter.minute.slot)
    more = (meter.day.pending, meter.minute.pending)
    totals = ask(lambda client: _add(client, tenant_uid, slots, more))
    for window, slot, sent, total in zip((meter.day, meter.minute), slots, more, totals or (None, None), strict=True):
        # Other greenlets went on counting meanwhile, and a window may have ended.
        if total is not None and window.slot == slot:
            window.known = max(total, window.known + sent)
            window.pending -= sent
    meter.day.known = max(meter.day.known, limits.requests_today)


def _add(client: redis.Redis, tenant_uid: str, slots: tuple[int, int], more: tuple[int, int]) -> tuple[int, int]:
    day, minute = _key("day", slots[0]), _key("minute", slots[1])
    pipe = client.pipeline(transaction=False)
    pipe.hincrby(day, tenant_uid, more[0])
    pipe.hincrby(minute, tenant_uid, more[1])
    pipe.expire(day, KEPT_DAYS * DAY)
    pipe.expire(minute, 2 * MINUTE)
    found = pipe.execute()
    return int(found[0]), int(found[1])


def _key(kind: str, slot: int) -> str:
    return f"iiot:requests:{kind}:{slot}"


def _too_many_a_minute(meter: _Meter, now: float) -> Problem:
    seconds = max(1, int(MINUTE - now % MINUTE) + 1)
    detail = f"Your tenant may send {meter.minute_limit} API requests a minute. Try again in {seconds} s."
    extra = {"limit": meter.minute_limit, "allowed": meter.minute_limit, "used": meter.minute.used}
    return Problem(429, "rate-limited", detail, headers={"Retry-After": str(seconds)}, extra=extra)


def _too_many_a_day(meter: _Meter, now: float) -> Problem:
    seconds = until_midnight(now)
    detail = (
        f"The quota 'api_requests_per_day' allows {meter.day_limit} and {meter.day.used} were answered today. "
        "It begins anew at midnight UTC; the platform administrator can raise it."
    )
    extra: dict[str, Any] = {"quota": "api_requests_per_day", "limit": meter.day_limit, "used": meter.day.used}
    extra["allowed"] = meter.day_limit
    return Problem(429, "quota-exceeded", detail, headers={"Retry-After": str(seconds)}, extra=extra)


def until_midnight(now: float | None = None) -> int:
    """Whole seconds until the day in UTC ends, at least one."""
    moment = time.time() if now is None else now
    return max(1, int(DAY - moment % DAY) + 1)


def requests_today(tenant_uid: str) -> int:
    """API requests of the present day (UTC) as Redis and the database know them; younger than a second ones may be missing."""
    slot = int(time.time() // DAY)
    found = ask(lambda client: cast(Any, client.hget(_key("day", slot), tenant_uid)))
    return max(int(found or 0), allowed(tenant_uid).requests_today)


# Copied, not added: the same number may be written twice. The join leaves out tenants that are gone.
_STORE = tenancy.sql(
    """
    INSERT INTO iiot.usage_day (tenant_id, day, api_requests)
    SELECT t.id, CAST(:day AS timestamptz), given.n
    FROM unnest(CAST(:tenants AS text[]), CAST(:counts AS bigint[])) AS given (uid, n) JOIN iiot.tenant t ON t.uid = given.uid
    ORDER BY t.id
    ON CONFLICT (tenant_id, day) DO UPDATE SET api_requests = greatest(usage_day.api_requests, excluded.api_requests)
    """
)


def _all(client: redis.Redis, key: str) -> dict[bytes, bytes]:
    return cast(dict[bytes, bytes], client.hgetall(key))


def store(db: Session) -> None:
    """Copy the counts of today and yesterday from Redis to the table of use. `db`: scope "stream"."""
    today = int(time.time() // DAY)
    for slot in (today - 1, today):
        key = _key("day", slot)
        found = ask(functools.partial(_all, key=key))
        if found:
            tenants, counts = [uid.decode() for uid in found], [int(count) for count in found.values()]
            day = datetime.fromtimestamp(slot * DAY, UTC)
            db.execute(_STORE, {"day": day, "tenants": tenants, "counts": counts})


# --- live connections -------------------------------------------------------------------------------------------------------------------------


def connection_key(tenant_uid: str) -> str:
    """The sorted set of a tenant's live connections: session id by the time it was last reported."""
    return f"iiot:live:tenant:{tenant_uid}"


def connections(tenant_uid: str) -> int:
    """How many live connections a tenant has on all workers; 0 while Redis is down."""
    key = connection_key(tenant_uid)
    return ask(lambda client: int(client.zcount(key, time.time() - CONNECTION_SECONDS, "+inf"))) or 0


# --- token buckets ----------------------------------------------------------------------------------------------------------------------------

# The generic cell rate algorithm: the stored number is the time (µs) at which the bucket would be full again. One trip, the server's own clock.
_BUCKET = """
local now = redis.call('TIME')
local at = now[1] * 1000000 + now[2]
local step, depth = tonumber(ARGV[1]), tonumber(ARGV[2])
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or at), at) + step
if full - at > depth then return math.ceil(full - at - depth) end
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - at) / 1000) + 1)
return 0
"""
MAX_BUCKETS = 100_000
_buckets: dict[str, float] = {}


def take(name: str, rate: float, burst: int) -> float:
    """Take a token from a bucket that holds `burst` and is refilled with `rate` a second; 0, or the seconds until there is one.

    While Redis is down each process has buckets of its own.
    """
    step, depth = 1_000_000 / rate, burst * 1_000_000 / rate
    wait = ask(lambda client: cast(int, client.eval(_BUCKET, 1, f"iiot:bucket:{name}", str(step), str(depth))))
    if wait is not None:
        return wait / 1_000_000
    at = time.time() * 1_000_000
    full = max(_buckets.get(name, at), at) + step
    if full - at > depth:
        return (full - at - depth) / 1_000_000
    if len(_buckets) >= MAX_BUCKETS:
        _buckets.clear()
    _buckets[name] = full
    return 0.0
