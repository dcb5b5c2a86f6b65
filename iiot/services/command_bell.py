"""Wakes what waits for commands: long polls of devices in the web workers, and the adapters.

One Redis channel carries the uid of a device whose next command can go out. A process listens while somebody in it waits, on one connection,
however many wait. While Redis is down everybody looks by themselves once a second.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from iiot import config, events

log = structlog.get_logger(__name__)

# The key of those who wait for any device.
ANY = ""
POLL_SECONDS = 1.0
LISTEN_SECONDS = 1.0
Found = TypeVar("Found")


class Bell:
    """The waiting threads of this process, and the thread that listens for them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._waiting: dict[str, set[threading.Event]] = {}
        self._running = False
        self.is_listening = False

    @contextmanager
    def waiting(self, key: str) -> Iterator[threading.Event]:
        """An event that is set when something may have happened to the device `key`, or to ANY."""
        event = threading.Event()
        with self._lock:
            self._waiting.setdefault(key, set()).add(event)
            start = bool(self._url) and not self._running
            self._running = self._running or start
        if start:
            threading.Thread(target=self._run, name="command-bell", daemon=True).start()
        try:
            yield event
        finally:
            with self._lock:
                self._waiting[key].discard(event)
                if not self._waiting[key]:
                    del self._waiting[key]

    def ring(self, *keys: str) -> None:
        """Wake those who wait for these keys; without keys everybody."""
        with self._lock:
            events_ = [event for key in keys or self._waiting for event in self._waiting.get(key, ())]
        for event in events_:
            event.set()

    def _run(self) -> None:
        while not self._is_idle():
            try:
                self._listen()
            except (redis.RedisError, OSError, ValueError) as error:
                self.is_listening = False
                self.ring()
                log.warning("waiting commands are looked for once a second", error=str(error)[:200])
                time.sleep(POLL_SECONDS)

    def _is_idle(self) -> bool:
        """Whether nobody waits; then the thread ends, and the next who waits starts another."""
        with self._lock:
            if not self._waiting:
                self._running = self.is_listening = False
            return not self._running

    def _listen(self) -> None:
        connection: Any = redis.Redis.from_url(
            self._url, retry=Retry(NoBackoff(), 0), health_check_interval=5, socket_connect_timeout=2
        )
        pubsub = connection.pubsub()
        try:
            pubsub.subscribe(events.ORDERS)
            while not self._is_idle():
                message = pubsub.get_message(timeout=LISTEN_SECONDS)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    # What happened before this moment was not heard: everybody looks once more.
                    self.is_listening = True
                    self.ring()
                elif message["type"] == "message":
                    self.ring(message["data"].decode(), ANY)
        finally:
            pubsub.close()
            connection.close()


_bells: dict[str, Bell] = {}


def bell() -> Bell:
    """The bell of this process."""
    url = config.load().redis_url or ""
    return _bells.setdefault(url, Bell(url))


def wait_for(device_uid: str, look: Callable[[], Found | None], seconds: float) -> Found | None:
    """What `look()` finds: at once, or as soon as it may find something, or None after `seconds`. Nothing is held while it waits."""
    if seconds <= 0:
        return look()
    deadline = time.monotonic() + seconds
    here = bell()
    # Waiting begins before the first look: what happens between the two is heard.
    with here.waiting(device_uid) as rung:
        while True:
            found = look()
            left = deadline - time.monotonic()
            if found is not None or left <= 0:
                return found
            rung.wait(left if here.is_listening else min(left, POLL_SECONDS))
            rung.clear()
