"""Keeps proofs alive that are in use: one question a moment for all of them, instead of one per device. Used by `protocols.devices`.

A proof is remembered for a second. Whoever goes on sending would be asked about again after that, device by device; here
those that were used are asked about together, a little earlier. What the database does not confirm in time is forgotten as before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable
from typing import Final, Generic, TypeVar

import structlog

from iiot import cache

RENEW_SECONDS: Final = 0.4
KEPT: Final = 50_000
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
log = structlog.get_logger("protocols")


class Renewed(Generic[Key, Value]):
    """A memory of proofs. `ask` says which of the values still count, and raises what the database raises; it runs in a thread."""

    def __init__(self, seconds: float, ask: Callable[[Collection[Value]], Collection[Value]]) -> None:
        self._memory: cache.Memory[Key, Value] = cache.Memory(seconds, KEPT)
        self._ask = ask
        self._used: dict[Key, Value] = {}
        self._lock = threading.Lock()
        self._is_running = False

    def mark(self) -> bytes:
        """See `cache.Memory.mark`."""
        return self._memory.mark()

    def put(self, key: Key, value: Value, mark: bytes) -> None:
        """Remember a proof that was asked for after `mark` was taken."""
        self._memory.put(key, value, mark)

    def get(self, key: Key) -> Value | None:
        """What is remembered; it is in use then."""
        found = self._memory.get(key)
        if found is not None and key not in self._used:
            self._used[key] = found
            if not self._is_running:
                self._start()
        return found

    def _start(self) -> None:
        with self._lock:
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="proofs", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(RENEW_SECONDS)
            with self._lock:
                used, self._used = self._used, {}
                if not used:
                    # Nobody sends; the next who does starts another thread.
                    self._is_running = False
                    return
            try:
                self._renew(used)
            except Exception as error:
                log.warning("proofs not renewed", error=f"{type(error).__name__}: {error}"[:200])

    def _renew(self, used: dict[Key, Value]) -> None:
        mark = self._memory.mark()
        confirmed = set(map(id, self._ask(list(used.values()))))
        for key, value in used.items():
            if id(value) in confirmed:
                self._memory.put(key, value, mark)
