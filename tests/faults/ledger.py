"""What a device was told is stored, against what is stored: for tests that kill something while messages arrive.

A sender takes numbers from `ledger.paced()`, sends `ledger.payload(number)`, repeats what was not acknowledged as a good
device does, and calls `ledger.acknowledge(number)` when its protocol has said "stored". The test kills things inside
`with ledger.fault():` and ends with `ledger.check()`. Each number is one reading with a time of its own, so a message
that comes twice is seen: as a reading that is there once.

IIOT_FAULT_RATE (messages a second, 2,000) and IIOT_FAULT_SECONDS (3) say how hard and how long.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from iiot import clock
from tests import factories
from tests.faults.pace import RECOVERY_SECONDS, SHARE, Pace
from tests.services import eventually

RATE = int(os.environ.get("IIOT_FAULT_RATE", "2000"))
SECONDS = float(os.environ.get("IIOT_FAULT_SECONDS", "3"))

STORED = """SELECT t.num, count(*) FROM iiot.telemetry t JOIN iiot.signal s
    ON s.tenant_id = t.tenant_id AND s.id = t.signal_id WHERE s.device_id = %s AND s.key = 'n' GROUP BY t.num"""


@dataclass(frozen=True)
class Report:
    """The sums. `rate`: messages a second that were sent outside the faults; `recovered`: the longest, in seconds from the kill."""

    sent: int
    acknowledged: int
    stored: int
    lost: int
    duplicates: int
    rate: float
    recovered: float


class Ledger:
    """The messages of one device (anything with `device_id`). Senders may use it from several threads."""

    def __init__(self, device: Any, rate: int = RATE, seconds: float = SECONDS) -> None:
        self.device = device
        self.rate = rate
        self.total = int(rate * seconds)
        self._base = clock.now_ms() - self.total
        self._numbers = iter(range(self.total))
        self._lock = threading.Lock()
        self.pace = Pace(rate)
        self._acknowledged: dict[int, float] = {}
        self.stop = threading.Event()

    # The sender's side.

    def paced(self) -> Iterator[int]:
        """The next numbers, not before their time; several senders share them. Ends early when `stop` is set."""
        while not self.stop.is_set():
            with self._lock:
                number = next(self._numbers, None)
                if number is None:
                    return
                if not self.pace.total:
                    self.pace.run()
                wait = (self.pace.total - self.pace.due()) / self.rate
                if wait > 0:
                    self.stop.wait(wait)
                self.pace.offer()
            yield number

    def payload(self, number: int) -> bytes:
        """What is sent: the number, at a time of its own."""
        return b'{"ts":%d,"values":{"n":%d}}' % (self._base + number, number)

    def acknowledge(self, number: int) -> None:
        """The device was told that this one is stored."""
        self._acknowledged.setdefault(number, time.monotonic())

    # The test's side.

    def reach(self, share: float, timeout: float = 60) -> None:
        """Wait until this share of all messages was acknowledged."""
        eventually(lambda: len(self._acknowledged) >= share * self.total, timeout)

    @contextmanager
    def fault(self) -> Iterator[None]:
        """Something dies in here, first of all, and is back at the end; then waits until a message of later is acknowledged."""
        with self.pace.fault(lambda: self._goes_on(sent)):
            self.pace.rest()
            yield
            sent = self.pace.total
        self.pace.run()

    def _goes_on(self, sent: int) -> bool:
        """Whether a message that was sent after so many is acknowledged, or all are."""
        if sent < self.total:
            return any(number >= sent for number in tuple(self._acknowledged))
        return len(self._acknowledged) == self.total

    def report(self) -> Report:
        """The sums of this moment."""
        acknowledged = set(self._acknowledged)
        stored = {int(number): int(count) for number, count in factories.rows(STORED, self.device.device_id)}
        return Report(
            self.pace.total,
            len(acknowledged),
            len(stored),
            len(acknowledged - stored.keys()),
            sum(stored.values()) - len(stored),
            round(self.pace.reached, 1),
            max(self.pace.recovered, default=0.0),
        )

    def check(self, timeout: float = 120) -> Report:
        """Everything was sent, acknowledged and stored once, and soon after each fault. Prints the sums."""
        eventually(lambda: len(self._acknowledged) == self.total, timeout, 0.1)
        report = self.report()
        print(report)
        assert (report.lost, report.duplicates) == (0, 0), report
        assert report.sent == report.acknowledged == report.stored == self.total, report
        assert report.recovered <= RECOVERY_SECONDS, report
        assert report.rate >= SHARE * self.rate, report
        return report


@contextmanager
def sending(ledger: Ledger, *senders: Callable[[Ledger], None]) -> Iterator[None]:
    """Run the senders, each in a thread of its own; what one raises is raised at the end."""
    failures: list[BaseException] = []

    def run(sender: Callable[[Ledger], None]) -> None:
        try:
            sender(ledger)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(sender,), daemon=True) for sender in senders]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        # Whoever still repeats after a failed test shall stop.
        ledger.stop.set() if len(ledger._acknowledged) < ledger.total else None
        for thread in threads:
            thread.join(30)
    if failures:
        raise failures[0]
