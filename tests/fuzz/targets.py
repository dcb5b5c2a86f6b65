"""The parsers that read bytes of strangers, as functions of bytes: each returns, whatever the bytes are, or a defect was found."""

import math
import socket
from collections.abc import Callable
from typing import Any

from aiocoap import Message, oscore
from aiocoap.message import Direction
from pika.exceptions import InvalidFrameError

from iiot import payloads
from iiot.payloads import Parsed, PayloadError, gateway, parse
from iiot.services import commands
from iiot.services.command_delivery import parse_answer
from protocols import amqp_stream, coap_oscore, coap_wire
from protocols.base import Proved, SharedKey
from protocols.mqtt_stream import MalformedStreamError, Publish, Stream

NOW = 1_766_000_000_000
KEY = SharedKey(b"\x01", b"", b"secret of sixteen", b"salt", Proved("pump", None))


def _payload(content_type: str | None) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        try:
            _look_at(parse(data, content_type, NOW))
        except PayloadError:
            return

    return target


def _look_at(parsed: Parsed) -> None:
    """What was read can be stored."""
    for ts, values in parsed.items:
        assert NOW - payloads.MAX_AGE_MS <= ts <= NOW + payloads.MAX_AHEAD_MS
        assert all(payloads.KEY_PATTERN.fullmatch(key) for key in values)
        assert all(not isinstance(value, float) or math.isfinite(value) for value in values.values())
    for place, marks in (parsed.marks or {}).items():
        assert marks.keys() <= parsed.items[place][1].keys()


def _children(content_type: str | None) -> Callable[[bytes], None]:
    """A gateway's message: each child has readings or a reason, and its part as JSON."""

    def target(data: bytes) -> None:
        try:
            parts = gateway.parse_children(data, content_type, NOW)
        except PayloadError:
            return
        assert 0 < len(parts) <= gateway.MAX_CHILDREN
        for name, (said, _) in parts.items():
            if isinstance(said, Parsed):
                assert gateway.is_child_name(name)
                _look_at(said)

    return target


def home(data: bytes) -> None:
    """A message of the smart-home scheme: the topic, a zero byte, the payload."""
    topic, _, payload = data.partition(b"\0")
    try:
        found = gateway.read_topic(topic.decode(errors="replace"))
        if found.kind:
            _look_at(gateway.parse_state(found, payload, NOW))
        else:
            gateway.parse_status(payload)
    except PayloadError:
        return


def answer(data: bytes) -> None:
    """A device's answer to a command: one that can be stored, or what was wrong with it."""
    found = parse_answer("pump", "", data)
    assert found.status in ("done", "failed")
    assert found.error or found.result is None or commands.json_mistake(found.result) is None


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
    request = coap_wire.decoded(data)
    if request is None:
        return
    assert len(list(request.opt.option_list())) <= coap_wire.MOST_OPTIONS
    assert coap_wire.size_of(request, request.token) > 0
    answer = Message(payload=b"x" * 3000)
    assert len(coap_wire.paged(answer, request.opt.block2).payload) <= 1024


class Deliveries(amqp_stream.StreamConnection):
    """A consuming connection whose bytes are the test's; what goes pika's way is kept."""

    def __init__(self) -> None:
        self._frame_buffer = b""
        self.bytes_received = 0
        self.found: list[Any] = []
        self.on_deliver = lambda *delivery: self.found.append(delivery)

    def _process_frame(self, frame_value: Any) -> None:
        self.found.append(type(frame_value))

    def feed(self, data: bytes, step: int) -> list[Any]:
        """What comes of these bytes, up to where the adapter gives the connection up."""
        try:
            for start in range(0, len(data), step):
                self._on_data_available(data[start : start + step])
        except InvalidFrameError:
            self.found.append(InvalidFrameError)
        return self.found


def amqp(data: bytes) -> None:
    """Frames of a consuming connection: the same whether they come at once or in pieces."""
    whole, pieces = Deliveries().feed(data, max(1, len(data))), Deliveries().feed(data, 7)
    assert whole == pieces
    for each in whole:
        if isinstance(each, tuple):
            each[2].header("command-id")


class Unsealed(oscore.AES_CCM_16_64_128):  # type: ignore[misc]
    """The algorithm without its key, so that the fuzzer gets inside: a tag that ends with a one is wrong."""

    @classmethod
    def decrypt(cls, ciphertext_and_tag: bytes, _aad: bytes, _key: bytes, _iv: bytes) -> bytes:
        """The text without its tag."""
        if ciphertext_and_tag[-1] == 1:
            raise oscore.ProtectionInvalid("Tag invalid")
        return ciphertext_and_tag[: -cls.tag_bytes]


def _oscore(algorithm: Any, is_open: bool) -> Callable[[bytes], None]:
    """A datagram under OSCORE, for a context whose replay window is open or not: a request inside, or one of the answers of RFC 8613."""

    def target(data: bytes) -> None:
        request = coap_wire.decoded(data)
        if request is None or request.opt.oscore is None or not request.code.is_request():
            return
        request.direction = Direction.INCOMING
        context = coap_oscore.Context(KEY)
        context.alg_aead = algorithm()
        if is_open:
            context.recipient_replay_window.initialize_empty()
        try:
            coap_oscore.kid_of(request)
            inner, _ = coap_oscore.open_(request, KEY, context)
        except (coap_oscore.Unopened, coap_oscore.Stale):
            return
        assert inner.code.is_request()
        assert len(list(inner.opt.option_list())) <= coap_wire.MOST_OPTIONS
        assert coap_wire.size_of(inner, inner.token) > 0

    return target


TARGETS: dict[str, Callable[[bytes], None]] = {
    "json": _payload(None),
    "cbor": _payload("application/cbor"),
    "senml-json": _payload("application/senml+json"),
    "senml-cbor": _payload("application/senml+cbor"),
    "mqtt-5": _mqtt(True),
    "mqtt-3": _mqtt(False),
    "coap": coap,
    "amqp": amqp,
    "gateway-json": _children(None),
    "gateway-cbor": _children("application/cbor"),
    "home": home,
    "answer": answer,
    "oscore": _oscore(oscore.AES_CCM_16_64_128, False),
    "oscore-inside": _oscore(Unsealed, True),
}
