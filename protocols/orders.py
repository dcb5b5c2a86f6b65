"""Commands between the portal's queue and an adapter that can take them to devices: one thread per adapter, and the answers.

The thread is woken through Redis when a command was made or the one before it has ended, and looks once a second in any case. It also notes which
devices were seen on the protocol: their commands go there, see `iiot.services.command_delivery`. A device that does not listen is asked again less
and less often, and at once when it was seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final

import structlog
from prometheus_client import Counter

from iiot import clock
from iiot.services import command_bell, command_delivery, presence
from iiot.services.ingest import Incoming
from protocols.base import Commander, Listening, Message, NobodyThere, Order

LOOK_SECONDS: Final = 1.0
# How long a device that was noted is not noted again; it may have asked over HTTP meanwhile.
NOTED_SECONDS: Final = 10.0
# A device that does not listen is tried again after a tenth of the time that it has not, at least and at most so many seconds.
PAUSES: Final = (1.0, 60.0)
NOTED: Final = 100_000

commands_total = Counter("iiot_protocol_commands_total", "Commands handed to the protocol for a device.", ["protocol"])
log = structlog.get_logger("protocols")


class Orders:
    """Hands commands to an adapter until `stop` is set."""

    def __init__(self, name: str, adapter: Commander, stop: threading.Event) -> None:
        self.name = name
        self.adapter = adapter
        self.stop = stop
        self._lock = threading.Lock()
        self._noted: set[str] = set()
        self._news: set[str] = set()
        self._forget_at = 0.0
        self._passed_over: set[str] = set()
        self._reach = command_delivery.Reach(_span(adapter, "strangers_after"), _span(adapter, "others_after"))
        # Devices that do not listen: since when, and when they are tried again (`time.monotonic`).
        self._absent: dict[str, tuple[float, float]] = {}
        self._thread = threading.Thread(target=self._run, name=f"{name}-commands", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own that ends with `stop`."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """After `stop`: wait for what is being handed over, so many seconds at most."""
        command_bell.bell().ring(command_bell.ANY)
        self._thread.join(seconds)

    def note(self, uids: set[str]) -> None:
        """These devices have sent something. Called by the writer after every batch, so it only compares sets.

        It says nothing where devices ask for their commands.
        """
        if isinstance(self.adapter, Listening):
            return
        now = time.monotonic()
        with self._lock:
            if now >= self._forget_at or len(self._noted) > NOTED:
                self._noted, self._forget_at = set(), now + NOTED_SECONDS
            news = uids - self._noted
            self._noted |= news
            self._news |= news
            for uid in news & self._absent.keys():
                del self._absent[uid]
        if news:
            command_bell.bell().ring(command_bell.ANY)

    def _run(self) -> None:
        with command_bell.bell().waiting(command_bell.ANY) as rung:
            while not self.stop.is_set():
                try:
                    self._reached()
                    self._hand_over()
                except Exception as error:
                    log.error(
                        "commands not handed over", protocol=self.name, error=f"{type(error).__name__}: {error}"[:500]
                    )
                    self.stop.wait(LOOK_SECONDS)
                rung.wait(LOOK_SECONDS)
                rung.clear()

    def _hand_over(self) -> None:
        """As long as there is something to hand over. A device that could not take its command holds up none of the others."""
        self._passed_over = self._resting()
        while not self.stop.is_set():
            among = self.adapter.listening() if isinstance(self.adapter, Listening) else None
            if among is not None and not among:
                return
            before = len(self._passed_over)
            if command_delivery.deliver(
                self.name, self._give, among=among, without=self._passed_over, reach=self._reach
            ):
                commands_total.labels(self.name).inc()
            elif len(self._passed_over) == before:
                return

    def _resting(self) -> set[str]:
        now = time.monotonic()
        with self._lock:
            return {uid for uid, (_, due) in self._absent.items() if due > now}

    def _rest(self, uid: str) -> None:
        now = time.monotonic()
        with self._lock:
            if len(self._absent) > NOTED:
                self._absent.clear()
            since = self._absent.get(uid, (now, now))[0]
            self._absent[uid] = since, now + min(max((now - since) / 10, PAUSES[0]), PAUSES[1])

    def _reached(self) -> None:
        with self._lock:
            news, self._news = self._news, set()
        if not news:
            return
        try:
            command_delivery.reached(self.name, news)
        except Exception:
            with self._lock:
                self._news |= news
            raise

    def _give(self, order: command_delivery.Order) -> bool:
        uid = order.device_uid
        try:
            taken = self.adapter.command(
                Order(
                    uid, order.uid, order.name, order.params, clock.to_ms(order.expires_at), order.child, order.address
                )
            )
        except NobodyThere:
            self._rest(uid)
            self._passed_over.add(uid)
            return False
        if taken:
            with self._lock:
                self._absent.pop(uid, None)
        elif isinstance(self.adapter, Listening):
            self._passed_over.add(uid)
        return taken


def _span(adapter: Commander, name: str) -> timedelta | None:
    seconds = getattr(adapter, name, None)
    return None if seconds is None else timedelta(seconds=seconds)


def note_outage(protocol: str, seconds: float) -> None:
    """Leave a note in the history of the devices that were on this protocol's broker while it was away."""
    try:
        presence.lost_broker(protocol, seconds)
    except Exception as error:
        log.warning("outage not noted", protocol=protocol, error=f"{type(error).__name__}: {error}"[:200])


def take_answers(protocol: str, batch: Sequence[Message], places: Sequence[int]) -> Iterator[tuple[int, Incoming]]:
    """Store the answers at these places of a batch in one commit; yields those that were refused, to be kept with the reason."""
    if not places:
        return
    messages = [batch[place] for place in places]
    answers = [
        command_delivery.parse_answer(message.uid, message.command_id or "", message.payload) for message in messages
    ]
    for place, message, error in zip(places, messages, command_delivery.take_all(answers), strict=True):
        if error is not None:
            incoming = Incoming(message.uid, None, error, protocol, message.topic, message.payload)
            incoming.received_ms = message.received_ms
            yield place, incoming
