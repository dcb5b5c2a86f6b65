"""Two lanes for what is delivered: live data, and late data beside it. Not an adapter.

A device that was cut off sends hours of readings at once. In the queue of the live ones they would be stored first and
make everybody wait; so they have a queue, a writer and a connection of their own, with small commits and rests between
them (docs/adr/0013-lane-of-late-data.md). `Line` gives back the order that two writers take away.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from protocols.base import Message, Outcome

# What may wait in the lane. A late message beyond it makes the adapter wait.
MOST_MESSAGES: Final = 60_000
MOST_READINGS: Final = 300_000
# One commit: it holds back the readers of the batch log, so it is over in some hundredths of a second.
COMMIT_READINGS: Final = 2_000
# After a commit the lane rests as long as the commit took, at most this many seconds: the other half belongs to the live lane.
LONGEST_REST: Final = 0.25

late_total = Counter("iiot_protocol_late_messages_total", "Messages that took the lane of late data.", ["protocol"])
late_waiting = Gauge(
    "iiot_protocol_late_queue_messages",
    "Messages waiting in the lane of late data.",
    ["protocol"],
    multiprocess_mode="livesum",
)

log = structlog.get_logger("protocols")


class LateQueue:
    """Messages that wait in the lane of late data. Any thread may use it."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._queue: deque[Message] = deque()
        self._readings = 0
        self._changed = threading.Condition()
        self._is_closed = False

    def wait_for_room(self) -> None:
        """Return once the lane takes another message, or was closed. Called for late messages alone, in the adapter's thread."""
        with self._changed:
            while self._is_full() and not self._is_closed:
                self._changed.wait(1.0)

    def _is_full(self) -> bool:
        return len(self._queue) >= MOST_MESSAGES or self._readings >= MOST_READINGS

    def put(self, messages: Sequence[Message]) -> None:
        """Take these over; it never waits, as live data is behind it."""
        with self._changed:
            self._queue.extend(messages)
            self._readings += sum(map(_size, messages))
            self._changed.notify_all()
        late_total.labels(self.protocol).inc(len(messages))
        late_waiting.labels(self.protocol).set(len(self._queue))

    def take(self) -> list[Message]:
        """The next commit; waits for it. Empty once the lane was closed and nothing is left."""
        batch: list[Message] = []
        readings = 0
        with self._changed:
            while not self._queue and not self._is_closed:
                self._changed.wait(1.0)
            while self._queue and readings < COMMIT_READINGS:
                message = self._queue.popleft()
                readings += _size(message)
                batch.append(message)
            self._readings -= readings
            self._changed.notify_all()
        late_waiting.labels(self.protocol).set(len(self._queue))
        return batch

    def more(self, most: int) -> list[Message]:
        """Up to so many further messages, without waiting: a batch that failed alone is tried again with others."""
        with self._changed:
            batch = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
            self._readings -= sum(map(_size, batch))
            self._changed.notify_all()
        return batch

    def close(self, *, give_up: bool = False) -> None:
        """Nothing more will come; `give_up`: and what waits is left to the protocol, which delivers it again."""
        with self._changed:
            self._is_closed = True
            if give_up:
                self._queue.clear()
            self._changed.notify_all()


def _size(message: Message) -> int:
    return sum(len(values) for _, values in message.prepared.parsed.items)


class Line:
    """Settles messages in the order of delivery, whichever lane stores them first.

    While no late message is under way nothing is noted and nothing waits. `is_free`: the adapter takes outcomes in any order,
    and gets each as soon as it is known. `enter` and `settle` of live messages are called by one thread, the live writer.
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.is_free = False
        self._line: deque[Message] = deque()
        self._stored: dict[int, Outcome] = {}
        self._lock = threading.Lock()

    def enter(self, batch: Sequence[Message], ahead: Sequence[Message] = ()) -> None:
        """Note the order of these, when there is need to. `ahead`: live messages that came before and are not settled yet."""
        if self.is_free:
            return
        with self._lock:
            if self._line:
                self._line.extend(batch)
            elif any(message.late for message in batch):
                self._line.extend((*ahead, *batch))

    def settle(self, batch: Sequence[Message], outcomes: Sequence[Outcome], *, late: bool = False) -> None:
        """Settle these, and what waited for them."""
        if self.is_free or (not late and not self._line):
            for message, outcome in zip(batch, outcomes, strict=True):
                self._tell(message, outcome)
            return
        with self._lock:
            self._stored.update(zip(map(id, batch), outcomes, strict=True))
            while self._line and (known := self._stored.pop(id(self._line[0]), None)) is not None:
                # Taken out afterwards: while the line is not empty nobody passes it.
                self._tell(self._line[0], known)
                self._line.popleft()

    def _tell(self, message: Message, outcome: Outcome) -> None:
        try:
            message.settle(message, outcome)
        except Exception:
            # It is stored; without the acknowledgement it comes again and is found to be there.
            log.exception("message not settled", protocol=self.protocol, uid=message.uid)
