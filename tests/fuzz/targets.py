"""The parsers that read bytes of strangers, as functions of bytes: each returns, whatever the bytes are, or a defect was found."""

import math
import socket
from collections.abc import Callable
from typing import Any

from aiocoap import Message
from aiocoap.error import UnparsableMessage

from iiot import payloads
from iiot.payloads import PayloadError, parse
from protocols import coap_wire
from protocols.mqtt_stream import MalformedStreamError, Publish, Stream

NOW = 1_766_000_000_000


def _payload(content_type: str | None) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        try:
            parsed = parse(data, content_type, NOW)
        except PayloadError:
            return
        for ts, values in parsed.items:
            assert NOW - payloads.MAX_AGE_MS <= ts <= NOW + payloads.MAX_AHEAD_MS
            assert all(payloads.KEY_PATTERN.fullmatch(key) for key in values)
            assert all(not isinstance(value, float) or math.isfinite(value) for value in values.values())

    return target


class Rest:
    """Stands where paho's client stands: takes the packets that are no PUBLISH, as `loop_read` does."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.packets: list[bytes] = []

    def loop_read(self) -> int:
        """Read the packet at hand to its end."""
        whole = b""
        try:
            while True:
                whole += self._stream.recv(3)
        except BlockingIOError:
            self.packets.append(whole)
        return 0

    def socket(self) -> Stream:
        """The connection is there."""
        return self._stream


class Wire:
    """A stream whose broker is the test."""

    def __init__(self, five: bool) -> None:
        self._broker, own = socket.socketpair()
        own.setblocking(False)
        self.stream = Stream(own, five)
        self.rest = Rest(self.stream)
        self.published: list[Publish] = []
        self.stream.on_publish = self.published.append

    def feed(self, data: bytes) -> None:
        """The broker sends; the stream takes it in. Raises OSError where the adapter gives the connection up."""
        for start in range(0, len(data), 4096):
            self._broker.sendall(data[start : start + 4096])
            self.stream.pump(self.rest)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close both ends."""
        self._broker.close()
        self.stream.close()


def _mqtt(five: bool) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        wire = Wire(five)
        try:
            wire.feed(data)
        except MalformedStreamError:
            pass
        finally:
            wire.close()

    return target


def coap(data: bytes) -> None:
    """A datagram: what is not dropped and can be read has a size, few options, and can be answered in blocks."""
    if not data or data[0] & 0x0F > coap_wire.LONGEST_TOKEN or coap_wire.are_odd(data):
        return
    try:
        request: Any = Message.decode(data)
    except (UnparsableMessage, ValueError, IndexError):
        # What the adapter drops, see `coap_wire`.
        return
    assert len(list(request.opt.option_list())) <= coap_wire.MOST_OPTIONS
    assert coap_wire.size_of(request, request.token) > 0
    answer = Message(payload=b"x" * 3000)
    assert len(coap_wire.paged(answer, request.opt.block2).payload) <= 1024


TARGETS: dict[str, Callable[[bytes], None]] = {
    "json": _payload(None),
    "cbor": _payload("application/cbor"),
    "senml-json": _payload("application/senml+json"),
    "senml-cbor": _payload("application/senml+cbor"),
    "mqtt-5": _mqtt(True),
    "mqtt-3": _mqtt(False),
    "coap": coap,
}
