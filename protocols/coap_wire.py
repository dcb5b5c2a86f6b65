"""CoAP below the resources: aiocoap's message layer with bounded memory, the sizes of messages, bodies in blocks (RFC 7959).

aiocoap parses datagrams, repeats what is not confirmed, and acknowledges. It remembers every answer for 247 s, collects
blocks without a limit and makes tasks and pipes for every request: here the oldest answers are forgotten when there are
too many, only what a proved device sends is collected, and requests go to the server directly. What is replaced of it,
`tests/integration/test_coap.py` looks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from aiocoap import Context, Message
from aiocoap.error import UnparsableMessage
from aiocoap.messagemanager import MessageManager
from aiocoap.numbers import codes
from aiocoap.numbers.constants import TransportTuning
from aiocoap.numbers.types import ACK, CON, RST
from aiocoap.tokenmanager import TokenManager
from aiocoap.transports.simplesocketserver import MessageInterfaceSimpleServer, _DatagramServerSocketSimple
from aiocoap.util import hostportjoin

LIFETIME_SECONDS: Final = TransportTuning().EXCHANGE_LIFETIME
# Answers kept for requests that come twice, 400 bytes each: all of 247 s at 600 requests a second.
ANSWERS_KEPT: Final = 150_000
# A message without token, options and payload (RFC 7252 section 4.1).
EMPTY_BYTES: Final = 4
LONGEST_TOKEN: Final = 8
VERSION: Final = 1
# Where the first byte has the type: 0 is confirmable.
TYPE_BITS: Final = 0x30
# An empty reset, without the id of what it rejects, and an empty confirmable message without its own.
RESET: Final = b"\x70\x00"
PING: Final = b"\x40\x00"
# Of codes: neither requests (0) nor answers (2, 4, 5).
RESERVED_CLASSES: Final = frozenset((1, 3, 6, 7))
# Of one message; a request has six, a path of many parts and OSCORE some more.
MOST_OPTIONS: Final = 64
PAYLOAD_MARKER: Final = 0xFF
BIGGEST_NUMBER: Final = 0xFFFF
BIGGEST_BLOCK: Final = 6
BODY_BYTES: Final = 256 * 1024
TRANSFERS: Final = 256
TRANSFERS_OF_DEVICE: Final = 4
# MAX_TRANSMIT_WAIT of RFC 7252 section 4.8.2: by then the sender has given up.
TRANSFER_SECONDS: Final = 93.0


def _may_repeat(answer: bytes, token: bytes) -> bool:
    """Whether it is an empty acknowledgement, or has this token, no more and no less."""
    return len(answer) == EMPTY_BYTES or (answer[0] & 0x0F == len(token) and answer[4 : 4 + len(token)] == token)


class Manager(MessageManager):  # type: ignore[misc]
    """aiocoap's message layer with a bounded memory of answers: bytes, without the requests they belong to."""

    def __init__(self, token_manager: Any) -> None:
        super().__init__(token_manager)
        self._recent_messages: dict[tuple[Any, int], bytes | None] = {}
        self._order: deque[tuple[float, tuple[Any, int]]] = deque()
        self._watched: dict[tuple[Any, int], Callable[[bool], None]] = {}

    def _deduplicate_message(self, message: Any) -> bool:
        """True when the request was here before: a confirmable one gets the same answer again (RFC 7252 section 4.5)."""
        recent, order, now = self._recent_messages, self._order, self.loop.time()
        while order and (order[0][0] < now or len(order) >= ANSWERS_KEPT):
            recent.pop(order.popleft()[1], None)
        key = (message.remote, message.mid)
        if key not in recent:
            recent[key] = None
            order.append((now + LIFETIME_SECONDS, key))
            return False
        answer = recent[key]
        # Another token is another request: whoever forges addresses shall not call up a longer answer with a short one.
        if message.mtype is CON and answer is not None and _may_repeat(answer, message.token):
            message.remote.send(answer)
        return True

    def _store_response_for_duplicates(self, message: Any) -> None:
        """Only what answers by message id; a separate answer has an id of ours, which may be anybody's."""
        key = (message.remote, message.mid)
        if message.mtype in (ACK, RST) and key in self._recent_messages:
            self._recent_messages[key] = message.encode()

    def _remove_exchange(self, message: Any) -> None:
        """An acknowledgement, or a reset, of something confirmable."""
        watcher = self._watched.pop((message.remote, message.mid), None)
        super()._remove_exchange(message)
        if watcher is not None:
            watcher(message.mtype is ACK)

    def send_watched(self, message: Any, confirmed: Callable[[bool], None]) -> tuple[Any, int]:
        """Send something confirmable; `confirmed` learns whether it was acknowledged or reset, and nothing when neither comes.

        Returns its key for `forget`.
        """
        self.send_message(message, lambda: None)
        key = (message.remote, message.mid)
        self._watched[key] = confirmed
        return key

    def watch(self, key: tuple[Any, int], confirmed: Callable[[bool], None]) -> bool:
        """The same of what is sent past aiocoap; False when its id is in use."""
        if key in self._watched or key in (self._active_exchanges or ()):
            return False
        self._watched[key] = confirmed
        return True

    def forget(self, key: tuple[Any, int]) -> None:
        """Nobody waits for this confirmation any more."""
        self._watched.pop(key, None)

    def is_answering(self, remote: Any, token: bytes) -> bool:
        """Whether a request with this token waits for its answer or acknowledgement."""
        return (remote, token) in self._piggyback_opportunities

    def acknowledge_changed(self, request: Any) -> bool:
        """Answer 2.04 without anything else, as almost every request is; False when its acknowledgement has gone out already."""
        opportunity = self._piggyback_opportunities.pop((request.remote, request.token), None)
        if opportunity is None:
            return False
        mid, handle = opportunity
        handle.cancel()
        token = request.token
        datagram = bytes((0x60 | len(token), codes.CHANGED, mid >> 8, mid & 0xFF)) + token
        self._recent_messages[request.remote, mid] = datagram
        request.remote.send(datagram)
        return True

    def backlog(self, remote: Any) -> int:
        """Answers that wait until `remote` confirms an earlier one."""
        return len(self._backlogs.get(remote, ()))

    @property
    def unconfirmed(self) -> int:
        """Separate answers that were sent and not confirmed yet."""
        return len(self._active_exchanges or ())


class Site(Protocol):
    """What serves the requests."""

    def handle(self, request: Any) -> None:
        """Take a request that is no duplicate; the answer goes through the Manager whenever it is there."""

    def lost(self, remote: Any) -> None:
        """`remote` did not confirm what it should have confirmed."""


class _Tokens(TokenManager):  # type: ignore[misc]
    """aiocoap's matching of answers to requests, left out: requests go to the site."""

    def __init__(self, context: Context, site: Site) -> None:
        super().__init__(context)
        self.site = site

    def process_request(self, request: Any) -> None:
        """Instead of a pipe and two tasks."""
        self.site.handle(request)

    def dispatch_error(self, exception: Exception, remote: Any) -> None:
        """The retransmissions have come to their end."""
        self.site.lost(remote)


class _Datagrams(MessageInterfaceSimpleServer):  # type: ignore[misc]
    """aiocoap's socket, which no datagram can upset."""

    def _received_datagram(self, address: Any, datagram: bytes) -> None:
        message = decoded(datagram, address)
        if message is not None:
            self._mman.dispatch_message(message)
        elif is_ours(datagram) and datagram[0] & TYPE_BITS == 0:
            # A confirmable one is rejected (RFC 7252 section 4.2), which is never larger than what came; any other is ignored.
            address.send(RESET + datagram[2:EMPTY_BYTES])


def is_ours(datagram: bytes) -> bool:
    """Whether it has a header, of the version that there is; others are ignored (RFC 7252 section 3)."""
    return len(datagram) >= EMPTY_BYTES and datagram[0] >> 6 == VERSION


def decoded(datagram: bytes, remote: Any = None) -> Any:
    """The message of a datagram, or None when it is none (RFC 7252 section 3) or has more than MOST_OPTIONS options."""
    if not is_ours(datagram) or datagram[0] & 0x0F > LONGEST_TOKEN or datagram[1] >> 5 in RESERVED_CLASSES:
        return None
    if (datagram[1] == codes.EMPTY and len(datagram) > EMPTY_BYTES) or are_odd(datagram):
        return None
    # Bytes that are no UTF-8 in an option and the like.
    with contextlib.suppress(UnparsableMessage, ValueError, IndexError):
        return Message.decode(datagram, remote)
    return None


def are_odd(datagram: bytes) -> bool:
    """Whether the options of a datagram are more than MOST_OPTIONS, have numbers that there are not, or do not end where they
    say (RFC 7252 section 3.1), or whether a payload is announced and absent (section 3).

    aiocoap takes 20 microseconds for each option, and 64 KiB have room for 65,000.
    """
    place, size, number = EMPTY_BYTES + (datagram[0] & 0x0F), len(datagram), 0
    for _ in range(MOST_OPTIONS + 1):
        if place >= size:
            return place > size
        if datagram[place] == PAYLOAD_MARKER:
            return place + 1 == size
        first, place = datagram[place], place + 1
        delta, place = _extended(datagram, place, first >> 4)
        length, place = _extended(datagram, place, first & 0x0F)
        number += delta
        place += length
        if number > BIGGEST_NUMBER:
            return True
    return True


def _extended(datagram: bytes, place: int, nibble: int) -> tuple[int, int]:
    """(value, place after it): 13 and 14 stand for one and two bytes more, 15 for nothing: more than there can be."""
    if nibble < 13:
        return nibble, place
    if nibble == 15:
        return BIGGEST_NUMBER + 1, place
    width = nibble - 12
    return (13 if width == 1 else 269) + int.from_bytes(datagram[place : place + width], "big"), place + width


def bind(host: str, port: int) -> socket.socket:
    """A UDP socket of our own; raises OSError when the address is taken or not this machine's."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # A burst of some thousand datagrams waits here instead of being lost; the kernel may give less.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


async def serve(site: Site, sock: socket.socket) -> tuple[Context, Manager]:
    """Let aiocoap serve `site` on a bound socket; end it with `context.shutdown()`."""
    loop = asyncio.get_running_loop()
    # Below that it logs every strange message of strangers, with tokens in the query.
    logging.getLogger("protocols.coap").setLevel(logging.ERROR)
    context = Context(loop=loop, loggername="protocols.coap")
    tokens = _Tokens(context, site)
    manager = Manager(tokens)
    interface = _Datagrams(manager, context.log, loop)
    _, protocol = await loop.create_datagram_endpoint(
        lambda: _DatagramServerSocketSimple(lambda _: None, interface, context.log), sock=sock
    )
    protocol._loop = loop
    protocol.hostinfo_local = hostportjoin(*sock.getsockname()[:2])
    interface._pool = protocol
    manager.message_interface = interface
    tokens.token_interface = manager
    context.request_interfaces.append(tokens)
    return context, manager


def size_of(message: Any, token: bytes) -> int:
    """Bytes of a message on the wire (RFC 7252 section 3)."""
    payload = len(message.payload)
    return 4 + len(token) + len(message.opt.encode()) + (payload + 1 if payload else 0)


def paged(answer: Any, asked: Any, exponent: int = BIGGEST_BLOCK) -> Any:
    """The block of `answer` that a request asks for (RFC 7959 section 2.4): 16 << `exponent` bytes at most.

    `asked` is the Block2 option of the request, or None. A body that fits is left whole.
    """
    body = answer.payload
    start = asked.start if asked is not None else 0
    exponent = min(exponent, asked.size_exponent if asked is not None else BIGGEST_BLOCK)
    size = 16 << exponent
    if asked is None and len(body) <= size:
        return answer
    if start > 0 and start >= len(body):
        return Message(code=codes.BAD_REQUEST, payload=b"there is no such block")
    answer.payload = body[start : start + size]
    answer.opt.block2 = (start // size, start + size < len(body), exponent)
    return answer


class BlockError(Exception):
    """A block that cannot be taken: `code` is the answer's."""

    def __init__(self, code: Any, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass
class _Transfer:
    until: float
    body: bytearray = field(default_factory=bytearray)


class Transfers:
    """Bodies of requests that come in blocks (RFC 7959 section 2.5). Keys begin with the device's uid."""

    def __init__(self) -> None:
        self._open: dict[tuple[Any, ...], _Transfer] = {}

    def feed(self, key: tuple[Any, ...], block: Any, payload: bytes) -> bytes | None:
        """Take a block; the whole body with the last one, None before. Raises BlockError.

        A body that has become too large is given out as it is: it is refused, and kept with the reason, where all others are.
        """
        now = asyncio.get_running_loop().time()
        if block.size_exponent > BIGGEST_BLOCK or (block.more and len(payload) != block.size):
            raise BlockError(codes.BAD_REQUEST, "the block has not the size that its option says")
        if block.block_number == 0:
            self._begin(key, now)
        transfer = self._open.get(key)
        if transfer is None or transfer.until < now:
            raise BlockError(codes.REQUEST_ENTITY_INCOMPLETE, "earlier blocks are missing, begin again")
        body = transfer.body
        repeated = block.start + len(payload) == len(body) and body.endswith(payload)
        if block.start == len(body):
            body += payload
        elif not repeated:
            del self._open[key]
            raise BlockError(codes.REQUEST_ENTITY_INCOMPLETE, "blocks are missing in between, begin again")
        transfer.until = now + TRANSFER_SECONDS
        if block.more and len(body) <= BODY_BYTES:
            return None
        del self._open[key]
        return bytes(body)

    def _begin(self, key: tuple[Any, ...], now: float) -> None:
        self._open.pop(key, None)
        if len(self._open) >= TRANSFERS:
            self._open = {kept: transfer for kept, transfer in self._open.items() if transfer.until >= now}
        own = [kept for kept in self._open if kept[0] == key[0]]
        if len(own) >= TRANSFERS_OF_DEVICE:
            # Its own oldest is given up: a device that was reset begins anew.
            del self._open[own[0]]
        elif len(self._open) >= TRANSFERS:
            raise BlockError(codes.SERVICE_UNAVAILABLE, "too many bodies are being transferred")
        self._open[key] = _Transfer(now + TRANSFER_SECONDS)
