"""The CoAP server: one life of it, its requests, and the messages that wait for their commit. Not an adapter.

A request comes from the message layer as a call, is answered at once where nothing has to be asked, and else by a task;
messages are answered when their commit is known. Answers to strangers are small and sent once: see `_send`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

import aiocoap
from aiocoap.numbers import codes
from aiocoap.numbers.constants import Reliable, Unreliable

from protocols import coap_oscore as sealed
from protocols import coap_wire as wire
from protocols.base import Inbox, Message, Outcome, Refusal
from protocols.coap_entry import Entry
from protocols.coap_exchange import (
    JSON,
    RETRY_SECONDS,
    Exchange,
    Refused,
    check_accept,
    check_options,
    refusal,
    representation,
    shorten,
    told,
)
from protocols.coap_guard import Guard
from protocols.coap_observe import Observers
from protocols.coap_ping import Pings
from protocols.coap_questions import Questions

TICK_SECONDS: Final = 0.1
LEAVE_SECONDS: Final = 2.0
# Messages waiting for their commit, and requests waiting for an answer of the database; more are told to come back. Strangers
# have half of the places: after a restart every device is one.
MOST_WAITING: Final = 1_000
MOST_ASKING: Final = 2_000
MOST_STRANGERS: Final = 1_000
# After so long without a commit the device is told to come back; what it sent may be stored all the same.
ANSWER_SECONDS: Final = 30.0
# Separate answers that wait for one remote; more go out unconfirmed.
BACKLOG: Final = 32

CONTENT_TYPES: Final = {
    None: "application/json",
    JSON: "application/json",
    60: "application/cbor",
    110: "application/senml+json",
    112: "application/senml+cbor",
}
Resource = Callable[[Exchange], None]


class Server:
    """One life of the server."""

    def __init__(self, inbox: Inbox, guard: Guard, takes_tokens: bool = True) -> None:
        self.inbox = inbox
        self.guard = guard
        self.alive = True
        self.leaving = False
        self.waiting = 0
        self.strangers = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.transfers = wire.Transfers()
        self.entry = Entry(self, takes_tokens)
        self.observers = Observers(self)
        self.questions = Questions()
        self.ask = self.questions.ask
        self._under_way: deque[tuple[float, Exchange]] = deque()
        self._settled: deque[tuple[Exchange, Outcome]] = deque()
        self._is_woken = False
        self._log = logging.getLogger("protocols.coap")

    async def serve(self, sock: Any, stop: threading.Event, started: Callable[[], None]) -> None:
        """Until `stop`; then settle what was taken and answer it. Calls `started` when it listens."""
        self.loop = asyncio.get_running_loop()
        context, self.manager = await wire.serve(self, sock)
        self.pings = Pings(self.manager)
        try:
            started()
            self.inbox.connected()
            while not stop.is_set():
                await asyncio.sleep(TICK_SECONDS)
                self._give_up()
                self.observers.keep()
                self.pings.keep()
            await self._leave()
        finally:
            self.alive = False
            await context.shutdown()
            self.questions.close()

    async def _leave(self) -> None:
        self.leaving = True
        await self.loop.run_in_executor(None, self.inbox.finish)
        deadline = self.loop.time() + LEAVE_SECONDS
        while (self.tasks or self._settled or self.manager.unconfirmed) and self.loop.time() < deadline:
            await asyncio.sleep(TICK_SECONDS / 4)

    # What the message layer calls.

    def handle(self, request: Any) -> None:
        """Take a request; duplicates do not come here."""
        exchange = Exchange(request)
        self._guarded(exchange, lambda: self.entry.admit(exchange))

    def lost(self, remote: Any) -> None:
        """It confirms nothing any more."""
        self.observers.lost(remote)

    def _guarded(self, exchange: Exchange, work: Callable[[], None]) -> None:
        """Do it, and answer what is refused, in the event loop's thread."""
        try:
            work()
        except Refused as refused:
            self.answer(exchange, refused.answer(), refused.known)
        except Exception:
            self._log.exception("a request was not answered")
            self.answer(exchange, aiocoap.Message(code=codes.INTERNAL_SERVER_ERROR), False)

    def resource(self, exchange: Exchange) -> Resource | None:
        """What serves the request; None for the links, which are open to everybody."""
        request = exchange.request
        path, code = tuple(request.opt.uri_path), request.code
        try:
            if self.leaving or len(self.tasks) > MOST_ASKING:
                raise Refused(codes.SERVICE_UNAVAILABLE, "too much at once", max_age=RETRY_SECONDS)
            check_options(request)
            if path == ("telemetry",):
                methods: dict[Any, Resource | None] = {codes.POST: self._telemetry}
            elif path == ("devices",):
                methods = {codes.GET: self._devices}
            elif path == ("commands",):
                methods = {codes.GET: self._commands}
            elif path[:1] == ("commands",) and len(path) == 2:
                methods = {codes.POST: self._result}
            elif path == (".well-known", "core"):
                methods = {codes.GET: None}
            else:
                raise Refused(codes.NOT_FOUND)
            if code not in methods:
                raise Refused(codes.METHOD_NOT_ALLOWED)
        except Refused:
            if exchange.device is None:
                self.entry.check_stranger(exchange)
            raise
        return methods[code]

    # The resources: the device has proved itself.

    def _telemetry(self, exchange: Exchange) -> None:
        """2.04 after the commit; 2.31 for a block of a body that is not whole yet (RFC 7959 section 2.9.1)."""
        body = self._body(exchange)
        if body is not None:
            number = exchange.request.opt.content_format
            name = CONTENT_TYPES.get(number) or f"CoAP content format {int(number)}"
            self._store(
                exchange, Message(exchange.uid, "telemetry", body, "POST /telemetry", self._settle, exchange, name)
            )

    def _result(self, exchange: Exchange) -> None:
        """2.04 when the answer to a command is stored; the same again, too."""
        number = exchange.request.opt.content_format
        if number is not None and int(number) != JSON:
            raise Refused(codes.UNSUPPORTED_CONTENT_FORMAT, "an answer is JSON")
        body = self._body(exchange)
        if body is not None:
            command = exchange.request.opt.uri_path[1]
            message = Message(exchange.uid, "result", body, f"POST /commands/{command}"[:200], self._settle, exchange)
            message.command_id = exchange.answered = command
            self._store(exchange, message)

    def _devices(self, exchange: Exchange) -> None:
        """The device as it may see itself, JSON; in blocks when it has a long name."""
        check_accept(exchange.request, JSON)
        self._count(exchange)
        self.spawn(exchange, self._describe(exchange))

    async def _describe(self, exchange: Exchange) -> None:
        device = exchange.device
        found = await self.ask(("describe", device), self.inbox.describe, device)
        if isinstance(found, Refusal):
            raise refusal(found)
        self.answer(exchange, representation(exchange.request, found))

    def _commands(self, exchange: Exchange) -> None:
        """The command that the device has to do now, or an empty object; with Observe also those that follow."""
        check_accept(exchange.request, JSON)
        self._count(exchange)
        self.spawn(exchange, self.observers.answer(exchange))

    def _count(self, exchange: Exchange) -> None:
        refused = self.guard.request(exchange.uid)
        if refused is not None:
            raise refusal(refused, known=True)

    def _body(self, exchange: Exchange) -> bytes | None:
        """The whole body; None while blocks are missing, which is answered. Nothing of a stranger is collected."""
        request = exchange.request
        block = request.opt.block1
        try:
            if block is None:
                body: bytes | None = bytes(request.payload)
            else:
                self._count(exchange)
                key = (exchange.uid, exchange.endpoint, request.opt.uri_path, tuple(request.opt.request_tag or ()))
                body = self.transfers.feed(key, block, request.payload)
        except wire.BlockError as error:
            busy = RETRY_SECONDS if error.code == codes.SERVICE_UNAVAILABLE else None
            raise Refused(error.code, str(error), known=True, max_age=busy) from None
        if body is None:
            self.answer(exchange, aiocoap.Message(code=codes.CONTINUE, block1=block))
            return None
        refused = self.guard.message(exchange.uid)
        if refused is not None:
            raise refusal(refused, known=True)
        return body

    # Storing.

    def _store(self, exchange: Exchange, message: Message) -> None:
        """Hand the message over; `_settle` is called after its commit."""
        if self.leaving or self.waiting >= MOST_WAITING:
            text = "too many messages wait for the database"
            raise Refused(codes.SERVICE_UNAVAILABLE, text, known=True, max_age=RETRY_SECONDS)
        self.waiting += 1
        self._under_way.append((self.loop.time() + ANSWER_SECONDS, exchange))
        # It never waits here: fewer messages are under way than the queue takes.
        self.inbox.deliver(message)

    def _settle(self, message: Message, outcome: Outcome) -> None:
        """From the writer's thread: one wake-up of the loop for all that are settled together."""
        self._settled.append((message.receipt, outcome))
        if not self._is_woken and self.alive:
            self._is_woken = True
            # The loop may end between the question and the call.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._answer_settled)

    def _answer_settled(self) -> None:
        self._is_woken = False
        settled = self._settled
        while settled:
            exchange, outcome = settled.popleft()
            self.waiting -= 1
            self._guarded(exchange, lambda e=exchange, o=outcome: self._answer_outcome(e, o))  # type: ignore[misc]
        while self._under_way and self._under_way[0][1].is_answered:
            self._under_way.popleft()

    def _answer_outcome(self, exchange: Exchange, outcome: Outcome) -> None:
        if exchange.answered is not None and not outcome.refusals:
            self.observers.answered(exchange.uid, exchange.answered)
        if not outcome.refusals and exchange.is_simple and self.manager.acknowledge_changed(exchange.wire):
            exchange.is_answered = True
            return
        answer = told(outcome)
        answer.opt.block1 = exchange.request.opt.block1
        self.answer(exchange, answer)

    def _give_up(self) -> None:
        """Tell those to come back whose commit takes too long; what they sent may be stored all the same."""
        now = self.loop.time()
        while self._under_way and (self._under_way[0][1].is_answered or self._under_way[0][0] < now):
            _, exchange = self._under_way.popleft()
            late = Refused(codes.SERVICE_UNAVAILABLE, "the database is away", known=True, max_age=RETRY_SECONDS)
            self.answer(exchange, late.answer())

    # Answering.

    def spawn(self, exchange: Exchange, work: Coroutine[Any, Any, None], is_stranger: bool = False) -> None:
        """Go on in a task, whose refusals are answered."""
        if is_stranger and self.strangers >= MOST_STRANGERS:
            work.close()
            raise Refused(codes.SERVICE_UNAVAILABLE, "too much at once", max_age=RETRY_SECONDS)
        self.strangers += is_stranger
        task = self.loop.create_task(self._work(exchange, work, is_stranger))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _work(self, exchange: Exchange, work: Coroutine[Any, Any, None], is_stranger: bool) -> None:
        try:
            await work
        except Refused as refused:
            self.answer(exchange, refused.answer(), refused.known)
        except Exception:
            self._log.exception("a request was not answered")
            self.answer(exchange, aiocoap.Message(code=codes.INTERNAL_SERVER_ERROR), False)
        finally:
            self.strangers -= is_stranger

    def answer(self, exchange: Exchange, answer: Any, known: bool = True) -> None:
        """Answer a request, once."""
        if exchange.is_answered:
            return
        exchange.is_answered = True
        answer.opt.no_response = exchange.request.opt.no_response
        self.close(exchange, answer, lambda closed: self._send(exchange, closed, known))

    def close(self, exchange: Exchange, answer: Any, send: Callable[[Any], None]) -> None:
        """Protect an answer or notification where the request was, and `send` it; later, when a number has to be reserved."""
        if exchange.seal is None:
            send(answer)
            return
        try:
            send(exchange.seal.close(answer))
        except sealed.NoNumber:
            self.spawn(exchange, self._close_later(exchange.seal, answer, send))

    async def _close_later(self, seal: sealed.Seal, answer: Any, send: Callable[[Any], None]) -> None:
        # By the context, not by the key: two contexts of one key must not share numbers.
        found = await self.ask(("reserve", seal.context), self.inbox.reserve, seal.key)
        if isinstance(found, Refusal):
            self._log.error("an answer could not be protected: %s", found.reason)
            return
        seal.context.add(found)
        send(seal.close(answer))

    def _send(self, exchange: Exchange, answer: Any, known: bool) -> None:
        """Keep answers to strangers small: the sender's address may be forged (RFC 7252 section 11.3).

        One that would be larger than its request goes without its text, and more if need be; it is never repeated. A device that does not
        confirm its answers is not waited for either.
        """
        request = exchange.wire
        if not known and exchange.seal is None:
            shorten(answer, request)
        if not known or self.manager.backlog(request.remote) > BACKLOG:
            answer.transport_tuning = Unreliable()
        self.emit(exchange, answer)

    def emit(self, exchange: Exchange, answer: Any, confirmed: Callable[[bool], None] | None = None) -> Any:
        """Put an answer on its way; with `confirmed` as a confirmable notification."""
        answer.token = exchange.wire.token
        answer.remote = exchange.wire.remote.as_response_address()
        answer.request = exchange.wire
        if confirmed is None:
            self.manager.send_message(answer, lambda: None)
            return None
        answer.transport_tuning = Reliable()
        return self.manager.send_watched(answer, confirmed)
