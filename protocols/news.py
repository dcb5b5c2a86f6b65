"""Live events from Redis for adapters that serve stored things: the rooms of the tenants that somebody looks at.

The same events that browsers get (`iiot.events`). What happens while Redis is away is not brought later; whoever listens
looks at the database by itself then.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec
import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from iiot import config, events
from protocols.served import News

# How long an order to listen to another room may wait.
LOOK_SECONDS: Final = 0.1
PAUSE_SECONDS: Final = 1.0
AT_ONCE: Final = 500
IDLE: Final = "iiot:nothing"

log = structlog.get_logger("protocols")


class RedisWire:
    """Implements `served.Wire` with a thread of its own."""

    def __init__(self, hear: Callable[[list[News]], None]) -> None:
        self._hear = hear
        self._wanted: frozenset[str] = frozenset()
        self._since: dict[str, float] = {}
        self._stop = threading.Event()
        self._url = config.load().redis_url or ""
        if self._url:
            threading.Thread(target=self._run, name="news", daemon=True).start()

    def want(self, tenants: Collection[str]) -> None:
        """See `served.Wire.want`."""
        self._wanted = frozenset(tenants)

    def live_since(self, tenant: str) -> float:
        """See `served.Wire.live_since`."""
        return self._since.get(tenant, math.inf)

    def close(self) -> None:
        """See `served.Wire.close`."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except (redis.RedisError, OSError, ValueError) as error:
                log.warning("news interrupted, the database is looked at instead", error=str(error)[:200])
            self._since = {}
            self._stop.wait(PAUSE_SECONDS)

    def _listen(self) -> None:
        connection: Any = redis.Redis.from_url(
            self._url, retry=Retry(NoBackoff(), 0), health_check_interval=5, socket_connect_timeout=2
        )
        pubsub = connection.pubsub()
        rooms: frozenset[str] = frozenset()
        try:
            pubsub.subscribe(IDLE)
            while not self._stop.is_set():
                rooms = self._settle(pubsub, rooms)
                self._take(pubsub)
        finally:
            pubsub.close()
            connection.close()

    def _settle(self, pubsub: Any, rooms: frozenset[str]) -> frozenset[str]:
        wanted = self._wanted
        for tenant in wanted - rooms:
            pubsub.subscribe(events.PREFIX + events.tenant_room(tenant))
        for tenant in rooms - wanted:
            pubsub.unsubscribe(events.PREFIX + events.tenant_room(tenant))
            self._since.pop(tenant, None)
        return wanted

    def _take(self, pubsub: Any) -> None:
        """Wait for news and hand over what is there."""
        news: list[News] = []
        message = pubsub.get_message(timeout=LOOK_SECONDS)
        while message is not None:
            tenant = message["channel"].decode().removeprefix(events.PREFIX + events.tenant_room(""))
            if message["type"] == "subscribe":
                self._since[tenant] = time.monotonic()
            elif message["type"] == "message":
                read = _read(tenant, message["data"])
                if read is not None:
                    news.append(read)
            if len(news) >= AT_ONCE:
                break
            message = pubsub.get_message(timeout=0)
        if news:
            self._hear(news)


def _read(tenant: str, message: bytes) -> News | None:
    name, raw = events.unframe(message)
    if name == "telemetry":
        content = msgspec.json.decode(raw)
        return News(tenant, content["device_id"], content["readings"], quality=content.get("quality", {}))
    if name == "device":
        content = msgspec.json.decode(raw)
        return News(tenant, content["device_id"], {}, content["status"])
    return None
