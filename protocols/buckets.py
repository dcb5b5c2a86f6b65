"""Token buckets in bounded memory: how often a stranger may do something."""

from __future__ import annotations

import threading
import time
from typing import Final

SIZE: Final = 20_000


class Buckets:
    """One bucket per key that holds `burst` tokens and is refilled with `rate` a second.

    The generic cell rate algorithm: kept is the moment at which a bucket would be full again. With more than `size`
    keys the oldest is forgotten. May be used from any thread.
    """

    def __init__(self, rate: float, burst: int, size: int = SIZE) -> None:
        self._step = 1.0 / rate
        self._depth = burst / rate
        self._size = size
        self._full_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Take a token: 0.0, or the seconds until there is one; then none is taken."""
        with self._lock:
            now = time.monotonic()
            full_at = max(self._full_at.pop(key, now), now) + self._step
            wait = full_at - now - self._depth
            self._full_at[key] = full_at - self._step if wait > 0 else full_at
            if len(self._full_at) > self._size:
                del self._full_at[next(iter(self._full_at))]
            return max(0.0, wait)

    def wait(self, key: str) -> float:
        """Seconds until there is a token, without taking it."""
        with self._lock:
            now = time.monotonic()
            return max(0.0, self._full_at.get(key, now) + self._step - now - self._depth)
