"""The one door to Redis (Valkey): clients of this process, which answer or fail within a time that the caller names."""

import os
import threading

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from iiot import config

_clients: dict[tuple[int, str, float], redis.Redis] = {}
_lock = threading.Lock()


def client(seconds: float) -> redis.Redis:
    """A client with a pool of connections, shared by all who name the same time limit; made after any fork, at the first use.

    Raises redis.ConnectionError when no Redis is configured, so that this is handled like one that is down.
    """
    url = config.load().redis_url
    if not url:
        raise redis.ConnectionError("No Redis is configured: set IIOT_REDIS_URL or start the embedded one.")
    key = (os.getpid(), url, seconds)
    with _lock:
        if key not in _clients:
            _clients[key] = redis.Redis.from_url(
                url,
                socket_timeout=seconds,
                socket_connect_timeout=seconds,
                retry=Retry(NoBackoff(), 1),
                health_check_interval=30,
            )
        return _clients[key]
