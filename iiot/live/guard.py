"""Who may connect, how often a client may ask, and who has to go."""

import time
from collections.abc import Iterable, Mapping

import redis
import structlog
from sqlalchemy import select

from iiot import auth, cache, events, tenancy
from iiot.errors import Forbidden, Problem, Unauthorized
from iiot.live.clients import Client
from iiot.models import Device
from iiot.services import api_keys, metering, sessions

log = structlog.get_logger(__name__)

PER_USER = 20
EVENTS_PER_MINUTE = 100
# Who goes on after so many refusals in a minute is disconnected.
ABUSE = 3 * EVENTS_PER_MINUTE
# Every client is checked against its session this often, and at once after any revocation on this machine.
CHECK_SECONDS = 60.0
# Connections are counted over all workers in Redis; a worker that died is forgotten after this long.
COUNT_SECONDS = metering.CONNECTION_SECONDS

_revocations: cache.Memory[str, str] = cache.Memory(CHECK_SECONDS)


def check(principal: auth.Principal) -> None:
    """Raises Problem unless the principal may listen to its tenant's telemetry."""
    if principal.kind == "device":
        raise Unauthorized("Live events are for people and their programs; sign in as a user or use an API key.")
    if principal.must_change_password:
        raise Forbidden("Change your password first.", "password-change-required")
    if principal.must_set_up_mfa:
        raise Forbidden("Set your second factor up first.", "mfa-setup-required")
    if principal.tenant_id is None:
        raise Forbidden("This account belongs to no tenant.", "no-tenant")
    principal.require("telemetry:read")


def admit(clients: Mapping[str, Client], client: Client) -> None:
    """Raises Problem when the user or the tenant has too many connections. While Redis is down each worker counts its own."""
    of_user, of_tenant = _keys(client)
    used = _connected(clients, client, "uid", of_user)
    if used >= PER_USER:
        raise _too_many(f"There are {used} live connections of yours already. Close some pages.", {})
    used = _connected(clients, client, "tenant_id", of_tenant)
    limit = metering.allowed(client.principal.tenant_uid or "").connections
    if used >= limit:
        detail = f"The quota 'connections' of your tenant allows {limit} live connections and {used} are open. Close some pages."
        raise _too_many(detail, {"quota": "connections", "limit": limit, "used": used})
    report([client])


def _too_many(detail: str, extra: dict[str, object]) -> Problem:
    return Problem(429, "too-many-connections", detail, headers={"Retry-After": "10"}, extra=extra)


def _connected(clients: Mapping[str, Client], client: Client, field: str, key: str) -> int:
    """How many connections have the same user or tenant: those of this worker, or of all of them when Redis answers."""
    own = getattr(client.principal, field)
    local = sum(1 for other in list(clients.values()) if getattr(other.principal, field) == own)
    return max(local, _count(key))


def _keys(client: Client) -> tuple[str, str]:
    """The sorted sets that count the connections of the client's user and of its tenant."""
    principal = client.principal
    return f"iiot:live:user:{principal.uid}", metering.connection_key(principal.tenant_uid or "")


def _count(key: str) -> int:
    """How many are connected on all workers; 0 when Redis does not answer."""
    try:
        return int(events.client().zcount(key, time.time() - COUNT_SECONDS, "+inf"))
    except redis.RedisError:
        return 0


def report(clients: Iterable[Client]) -> None:
    """Tell Redis that these clients are still connected."""
    now = time.time()
    try:
        pipe = events.client().pipeline(transaction=False)
        for client in clients:
            for key in _keys(client):
                pipe.zadd(key, {client.sid: now})
                pipe.zremrangebyscore(key, 0, now - COUNT_SECONDS)
                pipe.expire(key, 2 * COUNT_SECONDS)
        pipe.execute()
    except redis.RedisError as error:
        log.warning("connections not counted", error=str(error))


def leave(client: Client) -> None:
    """The client has gone."""
    try:
        pipe = events.client().pipeline(transaction=False)
        for key in _keys(client):
            pipe.zrem(key, client.sid)
        pipe.execute()
    except redis.RedisError:
        return


def spend(client: Client) -> None:
    """Count an event of the client; raises Problem over the limit."""
    now = time.monotonic()
    while client.recent and client.recent[0] < now - 60:
        client.recent.popleft()
    client.recent.append(now)
    if len(client.recent) > EVENTS_PER_MINUTE:
        client.abusive = len(client.recent) > ABUSE
        raise Problem(
            429, "rate-limited", f"At most {EVENTS_PER_MINUTE} events a minute. Subscribe to several devices at once."
        )


def mark() -> bytes:
    """Changes when anything was revoked on this machine."""
    return _revocations.mark()


def _principal_now(client: Client) -> auth.Principal:
    """Who the client is by what the database knows now; raises Unauthorized when its session or key has ended."""
    principal = client.principal
    if principal.api_key_uid is not None:
        return api_keys.principal_of(principal.api_key_uid)
    return sessions.principal_of(principal.session_uid or "", principal.user_uid or "", client.epoch)


def _within_limits(now: auth.Principal, client: Client) -> bool:
    """Whether a limited member still sees all that the client follows."""
    if client.tenant:
        return False
    with tenancy.work(tenancy.of(now)) as db:
        seen = set(db.scalars(select(Device.uid).where(Device.uid.in_(client.devices))))
    return seen == client.devices


def still_allowed(client: Client) -> bool:
    """Whether the client's session or key still stands and its owner may still listen. An unreachable database changes nothing."""
    principal = client.principal
    try:
        now = _principal_now(client)
        check(now)
        sees_all = not now.is_limited or _within_limits(now, client)
    except Problem as problem:
        log.info("client loses its right", user=principal.uid, reason=problem.code)
        return False
    except Exception as error:
        log.warning("session not checked", error=str(error))
        return True
    client.checked_at = time.monotonic()
    if now.tenant_id != principal.tenant_id or not sees_all:
        return False
    client.principal = now
    return True
