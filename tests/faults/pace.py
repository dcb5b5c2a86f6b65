"""At what rate something was offered while somebody was there to take it: for tests that kill under a load that shall not be a smaller one."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.services import eventually

# Of the wanted rate: the rest is for a moment in which the machine did something else.
SHARE = 0.9
# What the issue allows from the kill until what was sent after it is stored.
RECOVERY_SECONDS = 30.0


class Pace:
    """A schedule of so many messages a second, and what was offered while the server was there. Any thread may look; one sends.

    The sender offers what is due as soon as it may, so it catches up after a moment in which it could not. What became due while the server was away is
    left out.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        # Sent for the first time: in all, and while the server was there.
        self.total = self.offered = 0
        self._began = 0.0
        self._left_out = 0
        self._there = self._last = 0.0
        self._since: float | None = None
        self._lock = threading.Lock()
        self.recovered: list[float] = []

    def run(self) -> None:
        """The server is there from now on."""
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                self._began = self._began or self._since
                self._left_out += max(0, self.due() - self.total)

    def rest(self) -> None:
        """It is not."""
        with self._lock:
            if self._since is not None:
                self._there += time.monotonic() - self._since
                self._since = None

    def due(self) -> int:
        """How many shall have been sent by now."""
        return int((time.monotonic() - self._began) * self.rate) - self._left_out

    def offer(self) -> None:
        """One was sent."""
        with self._lock:
            self.total += 1
            if self._since is not None:
                self.offered += 1
                self._last = self._there + time.monotonic() - self._since

    @contextmanager
    def fault(self, is_back: Callable[[], bool]) -> Iterator[None]:
        """Something is killed in here, first of all, and started again; then waits until `is_back`, at most half a minute from the kill."""
        killed = time.monotonic()
        yield
        eventually(is_back, max(1.0, RECOVERY_SECONDS - (time.monotonic() - killed)), 0.05)
        self.recovered.append(round(time.monotonic() - killed, 2))
        assert self.recovered[-1] <= RECOVERY_SECONDS

    @property
    def reached(self) -> float:
        """Messages a second while the server was there, until the last one."""
        return self.offered / max(self._last, 1 / self.rate)

    def check(self) -> None:
        """The load was what it should be, where the long form runs alone (IIOT_FAULT_SECONDS). Prints the figures: beside other tests a machine may be slow."""
        print(
            f"{self.reached:.0f} of {self.rate} messages/s for {self._last:.1f} s; recovered after {self.recovered} s"
        )
        assert self.reached >= SHARE * self.rate or "IIOT_FAULT_SECONDS" not in os.environ
