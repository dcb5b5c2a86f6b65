"""Devices that observe /commands (RFC 7641): who they are, and commands on their way to them. Not an adapter.

A command goes out as a confirmable notification; it counts as handed over when the device has acknowledged it. Somebody who
resets a notification, or does not confirm it in all of its repetitions, observes no more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from protocols.base import Order, Proved, Refusal, SharedKey
from protocols.coap_exchange import Exchange, refusal, representation

if TYPE_CHECKING:
    from protocols.coap_server import Server

NOTHING: Final = b"{}"
OF_DEVICE: Final = 4
AT_ALL: Final = 10_000
# How long a command waits for its acknowledgement before others are sent; the repetitions go on.
CONFIRM_SECONDS: Final = 1.8
# After so long without a word the state is sent again: it keeps the way open and shows who is gone.
KEEP_SECONDS: Final = 60.0
KEPT_AT_ONCE: Final = 50
MAX_AGE: Final = 90
REGISTER: Final = 0
NUMBERS: Final = 1 << 24


class Observation:
    """One observer: where it is and what it has been sent. `key` is set while a notification waits for its confirmation."""

    __slots__ = ("exchange", "heard", "is_busy", "key")

    def __init__(self, exchange: Exchange, now: float) -> None:
        self.exchange = exchange
        self.heard = now
        self.is_busy = False
        self.key: Any = None

    @property
    def place(self) -> tuple[Any, bytes]:
        """By what the device knows it."""
        return self.exchange.wire.remote, self.exchange.wire.token


class Observers:
    """All observations of one server. For the event loop alone, `listening` excepted."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._at: dict[tuple[Any, bytes], Observation] = {}
        self._of: dict[str, list[Observation]] = {}
        # What a device was given last and has not answered; what it has confirmed after `push` had given up.
        self._current: dict[str, Order] = {}
        self._late: dict[str, str] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._at)

    def listening(self) -> list[str]:
        """See `protocols.base.Listening`."""
        return [uid for uid, observed in list(self._of.items()) if any(not each.is_busy for each in list(observed))]

    # Asking.

    async def answer(self, exchange: Exchange) -> None:
        """Answer GET /commands: the next command, and an observation where one is wanted and there is room for it."""
        server, device = self.server, exchange.device
        found = await server.ask(("next", device), server.inbox.next_command, device)
        if isinstance(found, Refusal):
            raise refusal(found)
        request, uid = exchange.request, exchange.uid
        self._given(uid, found)
        wanted, block = request.opt.observe, request.opt.block2
        former = self._at.get((exchange.wire.remote, exchange.wire.token))
        if former is not None and (block is None or block.block_number == 0):
            self._drop(former)
        message = representation(request, NOTHING if found is None else found.payload())
        if wanted == REGISTER and (block is None or block.block_number == 0):
            message.opt.observe = self._register(exchange)
            message.opt.max_age = None if message.opt.observe is None else _age(found)
        if not self._of.get(uid):
            self._forget(uid)
        server.answer(exchange, message)

    def _register(self, exchange: Exchange) -> int | None:
        """The number for the Observe option; None when there is no room, then the answer says that nothing follows."""
        own = self._of.get(exchange.uid, [])
        if len(own) >= OF_DEVICE:
            # Its own oldest is given up: a device that was reset begins anew.
            self._drop(own[0])
        if len(self._at) >= AT_ALL:
            return None
        observation = Observation(exchange, self.server.loop.time())
        self._at[observation.place] = observation
        self._of.setdefault(exchange.uid, []).append(observation)
        return self._next_number()

    def _next_number(self) -> int:
        """The value of the next Observe option (section 4.4): of all observations, so it rises also for one that begins anew."""
        self._number = (self._number + 1) % NUMBERS
        return self._number

    def _given(self, uid: str, order: Order | None) -> None:
        """What the device has to do now, as the database says."""
        if order is None:
            self._current.pop(uid, None)
        else:
            self._current[uid] = order

    def answered(self, uid: str, command: str) -> None:
        """The device has answered a command."""
        current = self._current.get(uid)
        if current is not None and current.id == command:
            del self._current[uid]

    # Leaving.

    def _drop(self, observation: Observation) -> None:
        uid = observation.exchange.uid
        if self._at.get(observation.place) is observation:
            del self._at[observation.place]
        if observation.key is not None:
            self.server.manager.forget(observation.key)
        own = self._of.get(uid, [])
        if observation in own:
            own.remove(observation)
        if not own:
            self._of.pop(uid, None)
            self._forget(uid)

    def _forget(self, uid: str) -> None:
        self._current.pop(uid, None)
        self._late.pop(uid, None)

    def lost(self, remote: Any) -> None:
        """Nothing is confirmed from there any more."""
        for observation in [each for each in self._at.values() if each.place[0] == remote]:
            self._drop(observation)

    # Sending.

    async def push(self, order: Order) -> bool:
        """Send a command to all observers of its device; True once one of them has acknowledged it."""
        if self._late.pop(order.uid, None) == order.id:
            return True
        self._current[order.uid] = order
        confirmed = self.server.loop.create_future()
        sent = [
            each
            for each in list(self._of.get(order.uid, ()))
            if not each.is_busy and await self._may_know(each) and self._send(each, order, confirmed)
        ]
        if not sent:
            return False
        try:
            return bool(await asyncio.wait_for(confirmed, CONFIRM_SECONDS))
        except TimeoutError:
            return False

    async def _may_know(self, observation: Observation) -> bool:
        """Whether the observer still is who it was; one that is not is told and dropped."""
        exchange, server = observation.exchange, self.server
        if exchange.proof is None:
            return True
        observation.is_busy = True
        found = await exchange.proof()
        observation.is_busy = False
        if isinstance(found, SharedKey):
            found = found.refused or found.device
        if isinstance(found, Proved):
            return observation.place in self._at
        if found.code != "unavailable":
            self._drop(observation)
            server.close(exchange, refusal(found).answer(), lambda closed: server.emit(exchange, closed))
        return False

    def _send(self, observation: Observation, order: Order | None, confirmed: asyncio.Future[bool] | None) -> bool:
        exchange, manager = observation.exchange, self.server.manager
        if manager.is_answering(*observation.place):
            # It is just asking again.
            return False
        message = representation(exchange.request, NOTHING if order is None else order.payload(), _age(order))
        message.opt.observe = self._next_number()
        observation.is_busy = True

        def heard(is_acknowledged: bool) -> None:
            observation.is_busy, observation.key = False, None
            observation.heard = self.server.loop.time()
            if not is_acknowledged:
                self._drop(observation)
            if order is not None and confirmed is not None:
                self._confirm(order, confirmed, is_acknowledged)

        def send(closed: Any) -> None:
            observation.key = self.server.emit(exchange, closed, heard)

        self.server.close(exchange, message, send)
        return True

    def _confirm(self, order: Order, confirmed: asyncio.Future[bool], is_acknowledged: bool) -> None:
        if not confirmed.done():
            others = any(each.is_busy for each in self._of.get(order.uid, ()))
            if is_acknowledged or not others:
                confirmed.set_result(is_acknowledged)
        elif is_acknowledged and order.uid in self._of:
            self._late[order.uid] = order.id

    def keep(self) -> None:
        """Send the state again to those who have been silent for long; called every moment."""
        due = self.server.loop.time() - KEEP_SECONDS
        silent = [each for each in self._at.values() if each.heard < due and not each.is_busy]
        for observation in silent[:KEPT_AT_ONCE]:
            # Whatever becomes of it, not again at once.
            observation.heard = self.server.loop.time()
            self.server.spawn(observation.exchange, self._repeat(observation))

    async def _repeat(self, observation: Observation) -> None:
        if not await self._may_know(observation):
            return
        uid, device, server = observation.exchange.uid, observation.exchange.device, self.server
        order = self._current.get(uid)
        if order is not None:
            # It may have been cancelled, or answered elsewhere. Only then: asking moves the device's commands here.
            found = await server.ask(("next", device), server.inbox.next_command, device)
            if isinstance(found, Refusal) or self._current.get(uid) is not order:
                return
            self._given(uid, found)
            order = found
        if self._at.get(observation.place) is observation and not observation.is_busy:
            self._send(observation, order, None)


def _age(order: Order | None) -> int:
    return MAX_AGE if order is None else min(MAX_AGE, order.seconds_left())
