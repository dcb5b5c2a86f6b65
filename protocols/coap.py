"""The CoAP adapter (RFC 7252): a server for what constrained devices send, answered after the commit.

Resources: `GET /.well-known/core` (RFC 6690), `POST /telemetry?uid=…&token=…`, `GET /devices?uid=…&token=…`. A
confirmable request that takes longer than a tenth of a second is acknowledged empty and answered separately (section
5.2.2); the answer always comes after the commit. Answers to strangers are small and sent once: see `_finish`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import quote

import aiocoap
from aiocoap import Context
from aiocoap.numbers import codes
from aiocoap.numbers.constants import Unreliable
from aiocoap.numbers.optionnumbers import OptionNumber

from protocols import coap_wire as wire
from protocols.base import AdapterError, ConnectionLost, Inbox, Message, Outcome, Refusal
from protocols.buckets import Buckets

NAME = "coap"
DESCRIPTION = "CoAP: POST /telemetry?uid=…&token=… on the UDP address of IIOT_COAP_BIND"

TOPIC: Final = "POST /telemetry"
TICK_SECONDS: Final = 0.1
LEAVE_SECONDS: Final = 2.0
# Requests being answered, and messages waiting for their commit; more are told to come back.
MOST_AT_ONCE: Final = 1_000
# After so long without a commit the device is told to come back; what it sent may be stored all the same.
ANSWER_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 5
# Requests of one source: a gateway's backlog in blocks of a kilobyte passes, a flood does not.
SOURCE_RATE: Final = 200
SOURCE_BURST: Final = 2_000
SIGN_IN_THREADS: Final = 3
# Separate answers that wait for one remote; more go out unconfirmed.
BACKLOG: Final = 32
TOLD_PER_MESSAGE: Final = 5
ANSWER_BYTES: Final = 1_000
# The first block of /.well-known/core may be this much larger than the request: 16 bytes are the smallest block.
SLACK_BYTES: Final = 8

JSON: Final = 50
LINK_FORMAT: Final = 40
CONTENT_TYPES: Final = {
    None: "application/json",
    JSON: "application/json",
    60: "application/cbor",
    110: "application/senml+json",
    112: "application/senml+cbor",
}
LINKS: Final = b'</telemetry>;rt="iiot.telemetry";ct="50 60 110 112",</devices>;rt="iiot.device";ct=50'
CODES: Final = {
    "unauthorized": codes.UNAUTHORIZED,
    "unknown-device": codes.UNAUTHORIZED,
    "device-disabled": codes.FORBIDDEN,
    "tenant-suspended": codes.FORBIDDEN,
    "tenant-deleting": codes.FORBIDDEN,
    "too-large": codes.REQUEST_ENTITY_TOO_LARGE,
    "unsupported-content-type": codes.UNSUPPORTED_CONTENT_FORMAT,
    "rate-limited": codes.TOO_MANY_REQUESTS,
    "readings-quota": codes.TOO_MANY_REQUESTS,
    "unavailable": codes.SERVICE_UNAVAILABLE,
    "not-storable": codes.INTERNAL_SERVER_ERROR,
}
STRANGERS: Final = frozenset({"unauthorized", "rate-limited", "unavailable"})
# Critical options that are followed; others are refused (RFC 7252 section 5.4.1).
FOLLOWED: Final = frozenset(
    {
        OptionNumber.URI_HOST, OptionNumber.URI_PORT, OptionNumber.URI_PATH, OptionNumber.URI_QUERY, OptionNumber.ACCEPT,
        OptionNumber.BLOCK1, OptionNumber.BLOCK2,
    }
)  # fmt: skip
PROXY: Final = frozenset({OptionNumber.PROXY_URI, OptionNumber.PROXY_SCHEME})


def make(settings: Any) -> CoapAdapter:
    """From IIOT_COAP_BIND; raises AdapterError where CoAP without encryption is not allowed."""
    if not settings.coap_is_on:
        raise AdapterError(
            "CoAP carries the devices' tokens in plain text and is off. Set IIOT_COAP_PLAIN=true if the network protects them."
        )
    host, _, port = settings.coap_bind.rpartition(":")
    return CoapAdapter(host.strip("[]"), int(port))


class CoapAdapter:
    """See `protocols.base.Adapter`."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def _bind(self) -> Any:
        try:
            return wire.bind(self.host, self.port)
        except OSError as error:
            where = f"{self.host}:{self.port}"
            raise ConnectionLost(
                f"UDP {where} cannot be bound ({error}); end the program that has it, or change IIOT_COAP_BIND"
            ) from error

    def check(self) -> None:
        """Bind the port and leave it; a running adapter has it."""
        try:
            self._bind().close()
        except ConnectionLost as error:
            raise AdapterError(str(error)) from error

    def run(self, inbox: Inbox, stop: threading.Event) -> None:
        """Serve until `stop`; the event loop lives in this thread."""
        asyncio.run(_Server(inbox).serve(self._bind(), stop))

    def send(self, uid: str, token: str, payload: bytes) -> None:
        """POST one message as the device; returns after 2.04, which means that it is stored."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared with
        shown = f"[{host}]" if ":" in host else host
        uri = f"coap://{shown}:{self.port}/telemetry?uid={quote(uid)}&token={quote(token)}"
        asyncio.run(_post(uri, payload))


async def _post(uri: str, payload: bytes) -> None:
    context = await Context.create_client_context(transports=["simple6"])
    try:
        request = aiocoap.Message(code=codes.POST, uri=uri, payload=payload, content_format=JSON)
        answer = await asyncio.wait_for(context.request(request).response, ANSWER_SECONDS + 5)
    except (aiocoap.error.Error, OSError, TimeoutError) as error:
        reason = str(error) or "no answer"
        raise AdapterError(f"the message was not confirmed: {reason}") from error
    finally:
        await context.shutdown()
    if not answer.code.is_successful():
        raise AdapterError(f"{answer.code}: {answer.payload.decode('utf-8', 'replace')}")


class _Refused(Exception):
    """An answer that is no success. `known`: whether it goes to a device that has proved itself."""

    def __init__(self, code: Any, text: str = "", known: bool = False, max_age: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.known = known
        self.max_age = max_age

    def answer(self) -> Any:
        """With a diagnostic payload (RFC 7252 section 5.5.2)."""
        message = aiocoap.Message(code=self.code, payload=str(self).encode("utf-8", "replace")[:ANSWER_BYTES])
        message.opt.max_age = self.max_age
        if self.code == codes.REQUEST_ENTITY_TOO_LARGE:
            message.opt.size1 = wire.BODY_BYTES
        return message


def _refusal(refusal: Refusal, known: bool) -> _Refused:
    code = CODES.get(refusal.code, codes.BAD_REQUEST)
    return _Refused(code, f"{refusal.code}: {refusal.reason}", known, refusal.retry_after)


class _Server:
    """One life of the server: its requests, and the messages that wait for their commit."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.alive = True
        self.leaving = False
        self.waiting = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.transfers = wire.Transfers()
        self.sources = Buckets(SOURCE_RATE, SOURCE_BURST)
        self.threads = ThreadPoolExecutor(SIGN_IN_THREADS, "coap-sign-in")
        self.resources = {
            (".well-known", "core"): {codes.GET: self._links},
            ("telemetry",): {codes.POST: self._telemetry},
            ("devices",): {codes.GET: self._devices},
        }

    async def serve(self, sock: Any, stop: threading.Event) -> None:
        """Until `stop`; then settle what was taken and answer it."""
        self.loop = asyncio.get_running_loop()
        context, self.manager = await wire.serve(self, sock)
        try:
            self.inbox.connected()
            while not stop.is_set():
                await asyncio.sleep(TICK_SECONDS)
            await self._leave()
        finally:
            self.alive = False
            await context.shutdown()
            self.threads.shutdown(wait=False, cancel_futures=True)

    async def _leave(self) -> None:
        self.leaving = True
        await self.loop.run_in_executor(None, self.inbox.finish)
        deadline = self.loop.time() + LEAVE_SECONDS
        while (self.tasks or self.manager.unconfirmed) and self.loop.time() < deadline:
            await asyncio.sleep(TICK_SECONDS / 4)

    # What aiocoap calls.

    async def render_to_pipe(self, pipe: Any) -> None:
        """Answer one request; duplicates do not come here."""
        task = self.loop.create_task(self._serve(pipe.request))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        # A later request with the same token ends the interest in this answer; what the device sent is stored all the same.
        pipe.add_response(await asyncio.shield(task), is_last=True)

    async def _serve(self, request: Any) -> Any:
        try:
            answer, known = await self._answer(request), True
        except _Refused as refused:
            answer, known = refused.answer(), refused.known
        return self._finish(request, answer, known)

    async def _answer(self, request: Any) -> Any:
        wait = self.sources.take(request.remote.address[0])
        if wait:
            raise _Refused(codes.TOO_MANY_REQUESTS, "too many requests of this address", max_age=math.ceil(wait))
        if self.leaving or len(self.tasks) > MOST_AT_ONCE:
            raise _Refused(codes.SERVICE_UNAVAILABLE, "too much at once", max_age=RETRY_SECONDS)
        _check_options(request)
        methods = self.resources.get(tuple(request.opt.uri_path))
        if methods is None:
            raise _Refused(codes.NOT_FOUND)
        if request.code not in methods:
            raise _Refused(codes.METHOD_NOT_ALLOWED)
        return await methods[request.code](request)

    def _finish(self, request: Any, answer: Any, known: bool) -> Any:
        """Keep answers to strangers small: the sender's address may be forged (RFC 7252 section 11.3).

        One that would be larger than its request goes without its text, and it is never repeated. A device that does not
        confirm its answers is not waited for either.
        """
        size = wire.size_of(request, request.token)
        if not known and wire.size_of(answer, request.token) > size:
            answer.payload = b""
        if not known or request.opt.uri_path[:1] == (".well-known",) or self.manager.backlog(request.remote) > BACKLOG:
            answer.transport_tuning = Unreliable()
        answer.opt.no_response = request.opt.no_response
        return answer

    # The resources.

    async def _links(self, request: Any) -> Any:
        """In blocks that are hardly larger than the request, as anybody may ask (RFC 7252 section 11.3)."""
        _check_accept(request, LINK_FORMAT)
        allowed = wire.size_of(request, request.token) + SLACK_BYTES
        answer = aiocoap.Message(code=codes.CONTENT, payload=LINKS, content_format=LINK_FORMAT)
        if request.opt.block2 is None and wire.size_of(answer, request.token) <= allowed:
            return answer
        exponents = [
            each for each in range(wire.BIGGEST_BLOCK + 1) if len(request.token) + 12 + (16 << each) <= allowed
        ]
        return wire.paged(answer, request.opt.block2, max(exponents, default=0))

    async def _devices(self, request: Any) -> Any:
        """The device as it may see itself, JSON; in blocks when it has a long name."""
        uid, token = _credentials(request)
        _check_accept(request, JSON)
        found = await self._ask(self.inbox.describe, uid, token, request)
        body = json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()
        answer = aiocoap.Message(code=codes.CONTENT, payload=body, content_format=JSON)
        answer.opt.max_age = 0
        answer.opt.etag = hashlib.sha256(body).digest()[:4]
        return wire.paged(answer, request.opt.block2)

    async def _telemetry(self, request: Any) -> Any:
        """2.04 after the commit; 2.31 for a block of a body that is not whole yet (RFC 7959 section 2.9.1)."""
        uid, token = _credentials(request)
        await self._ask(self.inbox.authenticate, uid, token, request)
        body = self._body(request, uid)
        if body is None:
            answer = aiocoap.Message(code=codes.CONTINUE)
        else:
            number = request.opt.content_format
            name = CONTENT_TYPES.get(number) or f"CoAP content format {int(number)}"
            answer = _told(await self._store(uid, body, name))
        answer.opt.block1 = request.opt.block1
        return answer

    async def _ask(self, question: Any, uid: str, token: str, request: Any) -> Any:
        """Ask the inbox from a thread, as the database may take its time."""
        source = request.remote.address[0]
        found = await self.loop.run_in_executor(self.threads, question, uid, token, source)
        if isinstance(found, Refusal):
            raise _refusal(found, known=found.code not in STRANGERS)
        return found

    def _body(self, request: Any, uid: str) -> bytes | None:
        """The whole body, None while blocks are missing. Nothing of a stranger is collected."""
        try:
            block = request.opt.block1
            if block is None:
                return bytes(request.payload)
            key = (uid, request.remote, tuple(request.opt.request_tag or ()))
            return self.transfers.feed(key, block, request.payload)
        except wire.BlockError as error:
            busy = RETRY_SECONDS if error.code == codes.SERVICE_UNAVAILABLE else None
            raise _Refused(error.code, str(error), known=True, max_age=busy) from None

    async def _store(self, uid: str, body: bytes, content_type: str) -> Outcome:
        """Hand the message over and wait for its commit."""
        if self.leaving or self.waiting >= MOST_AT_ONCE:
            raise _Refused(codes.SERVICE_UNAVAILABLE, "too many messages wait for the database", True, RETRY_SECONDS)
        future: asyncio.Future[Outcome] = self.loop.create_future()
        self.waiting += 1
        # It never waits here: fewer messages are under way than the queue takes.
        self.inbox.deliver(Message(uid, "telemetry", body, TOPIC, self._settle, future, content_type))
        try:
            return await asyncio.wait_for(future, ANSWER_SECONDS)
        except TimeoutError:
            raise _Refused(codes.SERVICE_UNAVAILABLE, "the database is away", True, RETRY_SECONDS) from None

    def _settle(self, message: Message, outcome: Outcome) -> None:
        """From the writer's thread: wake the request."""
        if self.alive:
            # The loop may end between the question and the call.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._resolve, message.receipt, outcome)

    def _resolve(self, future: asyncio.Future[Outcome], outcome: Outcome) -> None:
        self.waiting -= 1
        if not future.done():
            future.set_result(outcome)


def _check_options(request: Any) -> None:
    for option in request.opt.option_list():
        if option.number in PROXY:
            raise _Refused(codes.PROXYING_NOT_SUPPORTED)
        if option.number.is_critical() and option.number not in FOLLOWED:
            raise _Refused(codes.BAD_OPTION, f"option {int(option.number)} is not supported")


def _check_accept(request: Any, offered: int) -> None:
    if request.opt.accept is not None and int(request.opt.accept) != offered:
        raise _Refused(codes.NOT_ACCEPTABLE)


def _credentials(request: Any) -> tuple[str, str]:
    """uid and token of the query; each stands there once."""
    given = [each.partition("=")[::2] for each in request.opt.uri_query]
    found = [[value for name, value in given if name == wanted] for wanted in ("uid", "token")]
    if any(len(values) != 1 for values in found):
        raise _Refused(codes.UNAUTHORIZED, "unauthorized: send ?uid=<uid>&token=<token>")
    return found[0][0], found[1][0]


def _told(outcome: Outcome) -> Any:
    """2.04, with at most five refusals as JSON where some readings were refused; raises _Refused when all were."""
    if outcome.refusals and not outcome.accepted:
        raise _refusal(outcome.refusals[0], known=True)
    answer = aiocoap.Message(code=codes.CHANGED)
    told = [
        {"code": each.code, "reason": each.reason, "key": each.key, "index": each.index}
        for each in outcome.refusals[:TOLD_PER_MESSAGE]
    ]
    while told:
        notice = {"accepted": outcome.accepted, "refused": len(outcome.refusals), "refusals": told}
        answer.payload = json.dumps(notice, ensure_ascii=False, separators=(",", ":")).encode()
        answer.opt.content_format = JSON
        if len(answer.payload) <= ANSWER_BYTES:
            break
        told = told[:-1]
    return answer
