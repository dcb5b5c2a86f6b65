"""The runner: one adapter, one bounded queue, one writer, one commit per batch.

The adapter's thread delivers, which parses, and waits while the queue is full; so the socket is not read and the sender
feels it. The writer takes what is there (up to BATCH messages, or what LINGER_SECONDS bring), stores it in one commit and
only then settles, in the order of arrival. Messages that hold nothing but old readings take a lane of their own, see
`protocols.lanes`. A failed commit settles nothing: the same batch is tried again. A batch that
the database refuses for its content is halved until the message at fault is alone; that one is kept as rejected.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, get_args

import structlog
from prometheus_client import Counter, Gauge, Histogram

from iiot import clock
from iiot.services import ingest
from iiot.services.ingest import Incoming, StatusEvent, is_late
from iiot.services.ingest import Outcome as Result
from protocols import gateways, translate
from protocols.base import Adapter, Commander, ConnectionLost, Kind, Message, Outcome
from protocols.beat import Beat
from protocols.devices import Devices
from protocols.halving import Halving, Store
from protocols.lanes import LONGEST_REST, LateQueue, Line
from protocols.orders import Orders, note_outage, take_answers

if TYPE_CHECKING:
    from protocols.plant import Plant

BATCH: Final = 4_000
LINGER_SECONDS: Final = 0.025
QUEUE: Final = 20_000
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 60.0
# The supervisor gives ten seconds; what is not settled by then comes again after the next start.
FINISH_SECONDS: Final = 5.0
# For each of the two threads beside the writer, so that nothing of an adapter goes on after its end.
JOIN_SECONDS: Final = 1.0
# Devices whose last time of arrival is remembered.
TIMES_KEPT: Final = 100_000

messages_total = Counter("iiot_protocol_messages_total", "Messages taken over and settled.", ["protocol", "kind"])
readings_total = Counter(
    "iiot_protocol_readings_total", "Readings of settled messages: stored, duplicate.", ["protocol", "result"]
)
rejected_total = Counter("iiot_protocol_rejected_total", "Messages refused in whole or in part.", ["protocol", "code"])
batch_messages = Histogram(
    "iiot_protocol_batch_messages", "Messages per commit.", ["protocol"], buckets=(1, 10, 50, 100, 250, 500, 1000, 2000)
)
commit_seconds = Histogram(
    "iiot_protocol_commit_seconds",
    "Time to store one batch, in seconds.",
    ["protocol"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
commit_failures = Counter("iiot_protocol_commit_failures_total", "Batches that had to be tried again.", ["protocol"])
queue_messages = Gauge(
    "iiot_protocol_queue_messages", "Messages waiting for the writer.", ["protocol"], multiprocess_mode="livesum"
)
lag_seconds = Gauge(
    "iiot_protocol_lag_seconds", "Age of the oldest message at its commit.", ["protocol"], multiprocess_mode="livemax"
)
reconnects_total = Counter("iiot_protocol_reconnects_total", "Connections that failed or ended.", ["protocol"])

_STORED: Final = Outcome(accepted=1)

log = structlog.get_logger("protocols")


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row: half more each time, from FIRST_PAUSE to LONGEST_PAUSE, jittered to half.

    So whoever is back is noticed after a third of the time that it was away.
    """
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 1.5 ** min(failures - 1, 40))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads reconnections, nothing secret


class Runner:
    """Runs one adapter until it is stopped. Implements `protocols.base.Inbox`."""

    def __init__(self, name: str, store: Store = ingest, late_after: int = 600) -> None:
        """`late_after`: seconds after which a reading is late."""
        self.name = name
        self.store = store
        self.stop = threading.Event()
        self._ears = gateways.Ears(name)
        # See the methods of `Inbox` with these names.
        devices = Devices(name)
        self.recall, self.knows, self.authenticate = devices.recall, devices.knows, devices.authenticate
        self.recall_key, self.shared_key, self.reserve = devices.recall_key, devices.shared_key, devices.reserve
        self.describe, self.next_command = devices.describe, devices.next_command
        self._queue: deque[Message] = deque()
        # The writer sleeps on `_filled` until the queue has `_wake_at` messages; the adapter on `_room`.
        self._filled = threading.Event()
        self._wake_at = 1
        self._room = threading.Event()
        self._done = threading.Event()
        self._finish_by = float("inf")
        self._failures = 0
        self._lost_at: float | None = None
        self._times: dict[str, int] = {}
        self._orders: Orders | None = None
        self._beat = Beat(name, self.stop)
        self._late_ms = late_after * 1000
        self._late = LateQueue(name)
        self._line = Line(name)
        self._writer = threading.Thread(target=self._write_all, name=f"{name}-writer", daemon=True)
        self._late_writer = threading.Thread(target=self._write_late, name=f"{name}-late", daemon=True)
        self._writer.start()
        self._late_writer.start()

    # The adapter's side.

    def deliver(self, message: Message) -> None:
        """See `Inbox.deliver`. The message is parsed here, in the adapter's thread, while the writer waits for the database.

        Appending to a deque is atomic; a lock here would cost more than all the rest of it.
        """
        self._separate(message)
        if message.kind in ("telemetry", "other"):
            message.prepared = prepared = translate.incoming(message, self.name)
            if is_late(prepared.parsed, message.received_ms - self._late_ms):
                message.late = True
                self._late.wait_for_room()
        elif message.kind in gateways.KINDS:
            message.prepared = gateways.prepare(message)
        queue = self._queue
        queue.append(message)
        waiting = len(queue)
        if waiting >= self._wake_at:
            self._wake_at = QUEUE * 2
            self._filled.set()
        while waiting >= QUEUE and not self._done.is_set():
            self._room.clear()
            if len(queue) >= QUEUE:
                self._room.wait(1.0)
            waiting = len(queue)

    def connected(self) -> None:
        """See `Inbox.connected`."""
        self._failures = 0
        if self._lost_at is not None and self._orders is not None:
            outage = (self.name, time.monotonic() - self._lost_at)
            threading.Thread(target=note_outage, args=outage, daemon=True).start()
        self._lost_at = None
        self._beat.tell(True)
        log.info("connected", protocol=self.name)

    def plant(self) -> Plant:
        """See `Inbox.plant`."""
        # Few adapters serve what is stored, and it needs numpy: 13 MB that the others save.
        from protocols.plant import Plant

        return Plant(self.name)

    def finish(self) -> None:
        """See `Inbox.finish`. The writer leaves when the queue is empty, or FINISH_SECONDS after the first call."""
        self._finish_by = min(self._finish_by, time.monotonic() + FINISH_SECONDS)
        self.stop.set()
        self._filled.set()
        self._done.wait(max(0.0, self._finish_by + 1.0 - time.monotonic()))

    def run(self, adapter: Adapter) -> None:
        """Keep the adapter connected until `stop` is set. AdapterError goes through to the caller."""
        self._beat.tell(False)
        self._beat.start()
        self._line.is_free = getattr(adapter, "any_order", False)
        if isinstance(adapter, Commander):
            self._orders = Orders(self.name, adapter, self.stop)
            self._orders.start()
        try:
            while not self.stop.is_set():
                try:
                    adapter.run(self, self.stop)
                except ConnectionLost as error:
                    self._beat.tell(False)
                    reconnects_total.labels(self.name).inc()
                    self._failures += 1
                    self._lost_at = self._lost_at or time.monotonic()
                    pause = pause_after(self._failures)
                    log.warning("connection lost", protocol=self.name, reason=str(error), retry_in=round(pause, 2))
                    self.stop.wait(pause)
        finally:
            self._beat.tell(False)
            self.finish()
            if self._orders is not None:
                self._orders.join(JOIN_SECONDS)
            self._beat.join(JOIN_SECONDS)

    # The writer's side.

    def _write_all(self) -> None:
        try:
            while batch := self._take():
                if live := self._divert(batch):
                    self._store_stubbornly(live)
        finally:
            # Should the writer ever die of a defect, the process ends, and its supervisor starts it again.
            self.stop.set()
            self._late.close()
            self._late_writer.join(max(0.0, min(self._finish_by - time.monotonic(), FINISH_SECONDS)))
            self._done.set()
            self._room.set()

    def _write_late(self) -> None:
        """The writer of the lane of late data: small commits, and a rest after each while the runner is not stopped."""
        try:
            while batch := self._late.take():
                started = time.monotonic()
                self._store_stubbornly(batch, late=True)
                self.stop.wait(min(LONGEST_REST, time.monotonic() - started))
        finally:
            self.stop.set()

    def _divert(self, batch: list[Message], ahead: Sequence[Message] = ()) -> list[Message]:
        """The live messages of a batch; late ones go to their lane. `ahead`: see `Line.enter`."""
        self._line.enter(batch, ahead)
        late = [message for message in batch if message.late]
        if not late:
            return batch
        self._late.put(late)
        return [message for message in batch if not message.late]

    def _take(self) -> list[Message]:
        """The next batch; empty when the runner is stopped and nothing is left."""
        queue = self._queue
        while not queue:
            if self.stop.is_set() and self._finish_by != float("inf"):
                return []
            self._sleep(1, 1.0)
        if len(queue) < BATCH and not self.stop.is_set():
            self._sleep(BATCH, LINGER_SECONDS)
        take = queue.popleft
        batch = [take() for _ in range(min(BATCH, len(queue)))]
        self._room.set()
        queue_messages.labels(self.name).set(len(queue))
        return batch

    def _separate(self, message: Message) -> None:
        """Give two messages of one device different times of arrival: without times of their own the second would be lost."""
        times = self._times
        last = times.get(message.uid, 0)
        if message.received_ms <= last:
            message.received_ms = last + 1
        if len(times) >= TIMES_KEPT:
            times.clear()
        times[message.uid] = message.received_ms

    def _sleep(self, wake_at: int, seconds: float) -> None:
        """Until the queue has `wake_at` messages, or the time is over, or the end has come."""
        self._filled.clear()
        self._wake_at = wake_at
        if len(self._queue) < wake_at and not (self.stop.is_set() and self._queue):
            self._filled.wait(seconds)
        self._wake_at = QUEUE * 2

    def _store_stubbornly(self, batch: list[Message], *, late: bool = False) -> None:
        """Until it is stored; or until the runner is stopped and the time is over: then nobody is acknowledged."""
        failures = 0
        while True:
            try:
                outcomes = self._store(batch, late=late)
                break
            except Exception as error:
                failures += 1
                commit_failures.labels(self.name).inc()
                pause = pause_after(failures)
                log.error(
                    "batch not stored, nothing acknowledged",
                    protocol=self.name,
                    messages=len(batch),
                    error=f"{type(error).__name__}: {error}"[:500],
                    retry_in=round(pause, 2),
                )
                if not self._may_retry(pause):
                    self._late.close(give_up=True)
                    if not late:
                        self._queue.clear()
                    return
                # Others may show whether the batch or the database is at fault; see `Halving`.
                if late:
                    batch += self._late.more(BATCH - len(batch))
                else:
                    more = [self._queue.popleft() for _ in range(min(BATCH - len(batch), len(self._queue)))]
                    batch += self._divert(more, ahead=batch)
                    self._room.set()
        self._line.settle(batch, outcomes, late=late)

    def _may_retry(self, pause: float) -> bool:
        """Wait; False when the runner is stopped and there is no time left for another attempt."""
        if self.stop.wait(pause):
            pause = min(pause, 0.25)
            time.sleep(pause)
        return time.monotonic() < self._finish_by

    def _store(self, batch: list[Message], *, late: bool) -> list[Outcome]:
        """Commit one batch; raises when it was not stored for a reason that may pass."""
        started = time.monotonic()
        outcomes = [_STORED] * len(batch)
        incoming: list[Incoming] = []
        places: list[int] = []
        events: list[StatusEvent] = []
        answers: list[int] = []
        for_others: dict[int, Message] = {}
        for place, message in enumerate(batch):
            if translate.is_no_news(message):
                continue
            event = translate.status_event(message, self.name) if message.kind == "status" else None
            if event is not None:
                events.append(event)
            elif message.kind == "result":
                answers.append(place)
            elif message.kind in gateways.KINDS:
                for_others[place] = message
            else:
                incoming.append(message.prepared or translate.incoming(message, self.name))
                places.append(place)
        answered = {batch[place].uid for place in answers}
        for place, refused in take_answers(self.name, batch, answers):
            incoming.append(refused)
            places.append(place)
            answered.discard(refused.uid)
        through = gateways.Through(self.name, for_others)
        incoming += through.incoming
        events += through.events + self._ears.news(through.heard) + self._ears.news(answered, "answer")
        results: list[Result] = []
        if incoming:
            halving = Halving(self.store, incoming, late)
            results = halving.run()
            for place, result in zip(places, results, strict=False):
                if result.rejected or result.ack or result.status != "stored":
                    outcomes[place] = translate.outcome(result)
            readings_total.labels(self.name, "stored").inc(halving.stored)
            readings_total.labels(self.name, "duplicate").inc(halving.duplicate)
        if events:
            self.store.status(events)
        through.finish(results[len(places) :], outcomes)
        if self._orders is not None:
            self._orders.note({message.uid for message in batch if message.uid})
        self._measure(batch, outcomes, None if late else started)
        return outcomes

    def _measure(self, batch: list[Message], outcomes: list[Outcome], started: float | None) -> None:
        """Once per batch: a counter costs more than parsing a message. `started`: None for late data, whose pace is its own."""
        if started is not None:
            commit_seconds.labels(self.name).observe(time.monotonic() - started)
            batch_messages.labels(self.name).observe(len(batch))
            lag_seconds.labels(self.name).set((clock.now_ms() - batch[0].received_ms) / 1000)
        kinds = dict.fromkeys(get_args(Kind), 0)
        for message in batch:
            kinds[message.kind] += 1
        for kind, count in kinds.items():
            if count:
                messages_total.labels(self.name, kind).inc(count)
        for outcome in outcomes:
            for code in {refusal.code for refusal in outcome.refusals}:
                rejected_total.labels(self.name, code).inc()
