"""Who may connect, how often a client may ask, and who has to go."""

import time
from collections.abc import Iterable, Mapping

import redis
import structlog

from iiot import auth, cache, events
from iiot.errors import Forbidden, Problem, Unauthorized
from iiot.live.clients import Client
from iiot.services import sessions

log = structlog.get_logger(__name__)

PER_USER = 20
PER_TENANT = 1_000
EVENTS_PER_MINUTE = 100
# Who goes on after so many refusals in a minute is disconnected.
ABUSE = 3 * EVENTS_PER_MINUTE
# Every client is checked against its session this often, and at once after any revocation on this machine.
CHECK_SECONDS = 60.0
# Connections are counted over all workers in Redis; a worker that died is forgotten after this long.
COUNT_SECONDS = 90

_revocations: cache.Memory[str, str] = cache.Memory(CHECK_SECONDS)


def check(principal: auth.Principal) -> None:
    """Raises Problem unless the principal may listen to its tenant's telemetry."""
    if principal.kind != "user":
        raise Unauthorized("Live events are for people; sign in as a user.")
    if principal.must_change_password:
        raise Forbidden("Change your password first.", "password-change-required")
    if principal.tenant_id is None:
        raise Forbidden("This account belongs to no tenant.", "no-tenant")
    principal.require("telemetry:read")


def admit(clients: Mapping[str, Client], client: Client) -> None:
    """Raises Problem when the user or the tenant has too many connections. While Redis is down each worker counts its own."""
    for field, key, limit in _limits(client):
        local = sum(
            getattr(other.principal, field) == getattr(client.principal, field) for other in list(clients.values())
        )
        if max(local, _count(key)) >= limit:
            detail = f"There are {limit} live connections already. Close some pages."
            raise Problem(429, "too-many-connections", detail, headers={"Retry-After": "10"})
    report([client])


def _limits(client: Client) -> list[tuple[str, str, int]]:
    principal = client.principal
    return [
        ("user_id", f"iiot:live:user:{principal.user_uid}", PER_USER),
        ("tenant_id", f"iiot:live:tenant:{principal.tenant_uid}", PER_TENANT),
    ]


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
            for _, key, _ in _limits(client):
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
        for _, key, _ in _limits(client):
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


def still_allowed(client: Client) -> bool:
    """Whether the client's session still stands and its user may still listen. An unreachable database changes nothing."""
    principal = client.principal
    try:
        now = sessions.principal_of(principal.session_uid or "", principal.user_uid or "", client.epoch)
        check(now)
    except Problem as problem:
        log.info("client loses its right", user=principal.user_uid, reason=problem.code)
        return False
    except Exception as error:
        log.warning("session not checked", error=str(error))
        return True
    client.checked_at = time.monotonic()
    if now.tenant_id != principal.tenant_id:
        return False
    client.principal = now
    return True
