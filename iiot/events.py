"""The one door for live events: published through Redis, per room, to the web workers that have somebody in that room.

A room is a Redis channel. A worker subscribes to the rooms of its clients, so nothing is sent where nobody listens, and `listened()` tells at any
moment what somebody waits for. Events are not kept here: what must not be missed is in the batch log, and clients resume from there.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import redis
import structlog

from iiot import metrics, valkey

log = structlog.get_logger(__name__)

PREFIX = "iiot:room:"
# Every worker listens here: the place up to which everything has been sent.
PROGRESS = "iiot:progress"
# The uids of devices whose next command can go out: long polls and adapters listen here.
ORDERS = "iiot:orders"
TIMEOUT_SECONDS = 2.0
# After a failure the callers of `publish` are not kept waiting again for this long.
REST_SECONDS = 1.0

_down_until = 0.0
_encode = msgspec.json.Encoder().encode


def tenant_room(tenant_uid: str) -> str:
    """The room of those who listen to a whole tenant."""
    return f"t:{tenant_uid}"


def device_room(tenant_uid: str, device_uid: str) -> str:
    """The room of those who listen to one device. A client is in a tenant's room or in device rooms, never in both."""
    return f"t:{tenant_uid}:d:{device_uid}"


def client() -> redis.Redis:
    """The Redis client of this process; answers or fails within two seconds."""
    return valkey.client(TIMEOUT_SECONDS)


def listened() -> set[str]:
    """The rooms somebody is in, on any worker, at this moment. Raises redis.RedisError."""
    skip = len(PREFIX)
    names: list[Any] = client().pubsub_channels(f"{PREFIX}*")
    return {name.decode()[skip:] for name in names}


def publish_all(messages: Iterable[tuple[str, str, Mapping[str, Any]]]) -> int:
    """Publish (room, event, data) in order, in one go; returns how many. Raises redis.RedisError, and then some may have been sent."""
    pipe = client().pipeline(transaction=False)
    counts: dict[str, int] = {}
    for room, event, data in messages:
        pipe.publish(PREFIX + room, frame(event, data))
        counts[event] = counts.get(event, 0) + 1
    if counts:
        pipe.execute()
        for event, count in counts.items():
            metrics.live_events.labels(event).inc(count)
    return sum(counts.values())


def publish(room: str, event: str, data: Mapping[str, Any]) -> bool:
    """Publish one event, at best: False when Redis is down. Call it after the commit of what it tells (`tenancy.after_commit`)."""
    global _down_until
    if time.monotonic() < _down_until:
        metrics.live_lost.inc()
        return False
    try:
        publish_all([(room, event, data)])
    except redis.RedisError as error:
        _down_until = time.monotonic() + REST_SECONDS
        metrics.live_lost.inc()
        log.warning("event not published", event_name=event, error=str(error))
        return False
    return True


def publish_device(tenant_uid: str, device_uid: str, event: str, data: Mapping[str, Any]) -> bool:
    """Publish an event of a device to those who listen to it, and to those who listen to its tenant."""
    sent = publish(device_room(tenant_uid, device_uid), event, data)
    return publish(tenant_room(tenant_uid), event, data) and sent


def device(tenant_uid: str, device_uid: str, data: Mapping[str, Any]) -> bool:
    """Publish the event `device`: `{"device_id", "status", "last_seen_at"}`."""
    return publish_device(tenant_uid, device_uid, "device", data)


def command(tenant_uid: str, device_uid: str, data: Mapping[str, Any]) -> bool:
    """Publish the event `command`: the command as REST shows it, after each step of its life."""
    return publish_device(tenant_uid, device_uid, "command", data)


def publish_order(device_uid: str) -> bool:
    """Wake what brings commands to this device; False when Redis is down, and then it looks by itself within a second."""
    if time.monotonic() < _down_until:
        return False
    try:
        client().publish(ORDERS, device_uid)
    except redis.RedisError as error:
        log.warning("waiting command not announced", error=str(error))
        return False
    return True


def publish_progress(cursor: str) -> None:
    """Tell all workers that everything up to `cursor` has been published. Raises redis.RedisError."""
    client().publish(PROGRESS, cursor)


def frame(event: str, data: Mapping[str, Any]) -> bytes:
    """What travels on a channel: the event's name, a line feed, the data as JSON."""
    return event.encode() + b"\n" + _encode(data)


def unframe(message: bytes) -> tuple[str, msgspec.Raw]:
    """(event, data as JSON that is not parsed again)."""
    event, _, data = message.partition(b"\n")
    return event.decode(), msgspec.Raw(data)
