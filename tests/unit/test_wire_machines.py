"""What comes over the wire in pieces, as state machines: MQTT packets in chunks of any size, CoAP bodies in blocks of any order."""

import asyncio
from dataclasses import dataclass
from typing import Any

from aiocoap.numbers import codes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from protocols import coap_wire
from protocols.coap_wire import BlockError, Transfers
from protocols.mqtt_stream import MalformedStreamError
from tests.fuzz.targets import Wire

TOPICS = st.sampled_from([b"iiot/a/up/telemetry", b"iiot/b/up/status", "iiot/é/up/x".encode()])


def packet(first: int, body: bytes) -> bytes:
    """An MQTT packet: fixed header, length, body (MQTT 5 section 2.1)."""
    length, digits = len(body), bytearray()
    while True:
        length, digit = divmod(length, 128)
        digits.append(digit | (0x80 if length else 0))
        if not length:
            return bytes([first]) + bytes(digits) + body


class MqttStream(RuleBasedStateMachine):
    """Whatever the sizes of the chunks, every PUBLISH comes out once, whole and in order, and paho gets the other packets."""

    five = True

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire(self.five)
        self.sent: list[tuple[bytes, bytes, int]] = []
        self.others: list[bytes] = []
        self.waiting = b""

    @rule(topic=TOPICS, payload=st.binary(max_size=140), number=st.integers(0, 0xFFFF), retain=st.booleans())
    def publish(self, topic: bytes, payload: bytes, number: int, retain: bool) -> None:
        """QoS 1, or 0 when the number is 0."""
        body = len(topic).to_bytes(2, "big") + topic + (number.to_bytes(2, "big") if number else b"")
        if self.five:
            body += b"\x00" if len(payload) % 2 else b"\x05\x03\x00\x02ab"
        self.waiting += packet(0x30 | (2 if number else 0) | retain, body + payload)
        self.sent.append((topic, payload, number))

    @rule(fill=st.binary(min_size=1, max_size=3), topic=TOPICS)
    def publish_much(self, fill: bytes, topic: bytes) -> None:
        """A packet whose length takes three bytes."""
        self.publish(topic, fill * 20_000, 7, False)

    @rule(body=st.sampled_from([packet(0xD0, b""), packet(0x40, b"\x00\x01"), packet(0x90, b"\x00\x01\x00\x01")]))
    def other(self, body: bytes) -> None:
        """A packet that paho reads."""
        self.waiting += body
        self.others.append(body)

    @rule(size=st.integers(1, 5000))
    def arrive(self, size: int) -> None:
        """Some bytes arrive."""
        self.wire.feed(self.waiting[:size])
        self.waiting = self.waiting[size:]

    @precondition(lambda self: self.sent)
    @rule()
    def arrive_wholly(self) -> None:
        """All bytes arrive."""
        self.wire.feed(self.waiting)
        self.waiting = b""

    @invariant()
    def everything_in_order(self) -> None:
        """What is out is the beginning of what was sent, and all of it when nothing is on its way."""
        out = [(each.topic, each.payload, each.packet_id) for each in self.wire.published]
        assert out == self.sent[: len(out)]
        assert self.wire.rest.packets == self.others[: len(self.wire.rest.packets)]
        if not self.waiting:
            assert (out, self.wire.rest.packets) == (self.sent, self.others)

    def teardown(self) -> None:
        self.wire.close()


class OldMqttStream(MqttStream):
    """The same for 3.1.1, which has no properties."""

    five = False


@given(st.binary(max_size=60), st.booleans())
def test_a_broken_publish_is_a_broken_connection(body: bytes, five: bool) -> None:
    """Everything that is no PUBLISH is told by the one error that the adapter expects; what is one keeps to its bytes."""
    wire, behind = Wire(five), packet(0xD0, b"")
    try:
        wire.feed(packet(0x32, body) + behind)
        [found] = wire.published
        assert len(found.topic) + len(found.payload) <= len(body)
        assert wire.rest.packets == [behind]
    except MalformedStreamError:
        assert wire.published == []
    finally:
        wire.close()


@dataclass(frozen=True)
class Block:
    """Block1 as aiocoap gives it."""

    block_number: int
    more: bool
    size_exponent: int

    @property
    def size(self) -> int:
        return int(16 << self.size_exponent)

    @property
    def start(self) -> int:
        return self.block_number * self.size


class CoapBodies(RuleBasedStateMachine):
    """Blocks in any order: a body that comes out is exactly one that was sent, and what is kept is bounded."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.transfers = Transfers()
        self.sent: dict[Any, bytes] = {}

    @rule(target=keys, device=st.integers(0, 3), number=st.integers(0, 9))
    def key(self, device: int, number: int) -> tuple[str, int]:
        return f"device{device}", number

    @rule(key=keys, exponent=st.integers(0, 2), fill=st.integers(0, 255), more=st.booleans(), size=st.integers(0, 64))
    def begin(self, key: Any, exponent: int, fill: int, more: bool, size: int) -> None:
        """Block 0 begins anew."""
        self.sent.pop(key, None)
        self.feed(
            key, Block(0, more, exponent), bytes([fill]) * (16 << exponent if more else min(size, 16 << exponent))
        )

    @rule(key=keys, number=st.integers(1, 4), exponent=st.integers(0, 7), fill=st.integers(0, 255), more=st.booleans())
    def go_on(self, key: Any, number: int, exponent: int, fill: int, more: bool) -> None:
        """A later block, perhaps the one that is expected."""
        self.feed(key, Block(number, more, exponent), bytes([fill]) * (16 << exponent))

    @rule(key=consumes(keys))
    def too_much(self, key: Any) -> None:
        """A body that has passed the limit comes out at once, whatever the sender has still to send, and is forgotten."""
        self.ask(key, Block(0, True, 6), b"y" * 1024)
        for number in range(1, coap_wire.BODY_BYTES // 1024):
            assert self.ask(key, Block(number, True, 6), b"x" * 1024) is None
        body = self.ask(key, Block(coap_wire.BODY_BYTES // 1024, True, 6), b"x" * 1024)
        assert body is not None
        assert len(body) == coap_wire.BODY_BYTES + 1024
        assert key not in self.transfers._open
        self.sent.pop(key, None)

    def feed(self, key: Any, block: Block, payload: bytes) -> None:
        """Feed it, and compare with what a sender of this key has sent so far."""
        before = self.sent.get(key, b"")
        try:
            body = self.ask(key, block, payload)
        except BlockError as refused:
            if refused.code == codes.REQUEST_ENTITY_INCOMPLETE:
                self.sent.pop(key, None)
            elif refused.code != codes.BAD_REQUEST:
                raise
            return
        whole = before if block.start + len(payload) == len(before) and before.endswith(payload) else before + payload
        if body is None:
            self.sent[key] = whole
        else:
            assert body == whole
            self.sent.pop(key, None)

    def ask(self, key: Any, block: Block, payload: bytes) -> bytes | None:
        """`Transfers.feed`, which asks the loop for the time."""

        async def feed() -> bytes | None:
            return self.transfers.feed(key, block, payload)

        return self.loop.run_until_complete(feed())

    def teardown(self) -> None:
        self.loop.close()

    @invariant()
    def bounded(self) -> None:
        """Four transfers of one device at once."""
        of_device: dict[str, int] = {}
        for uid, _ in self.transfers._open:
            of_device[uid] = of_device.get(uid, 0) + 1
        assert max(of_device.values(), default=0) <= coap_wire.TRANSFERS_OF_DEVICE


def lean(machine: type[RuleBasedStateMachine]) -> Any:
    """Its test; a second each, `make nightly` sets its own number of examples."""
    case = machine.TestCase
    case.settings = settings(max_examples=max(25, settings().max_examples // 4), stateful_step_count=30, deadline=None)
    return case


TestMqttStream = lean(MqttStream)
TestOldMqttStream = lean(OldMqttStream)
TestCoapBodies = lean(CoapBodies)
