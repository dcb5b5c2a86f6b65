"""The bytes of an MQTT connection: acknowledgements leave in the order of the messages, whatever order they are asked for."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.mqtt_stream import PUBACK, Publish, Stream

NO_CLIENT: Any = None


def publish(packet_id: int, qos: int = 1) -> bytes:
    """A PUBLISH of MQTT 3.1.1 to the topic `t`."""
    body = b"\x00\x01t" + (packet_id.to_bytes(2, "big") if qos else b"") + b"x"
    return bytes([0x30 | qos << 1, len(body)]) + body


class Wire:
    """A stream, and the broker's end of it."""

    def __init__(self, *packets: bytes) -> None:
        ours, self.broker = socket.socketpair()
        ours.setblocking(False)
        self.broker.settimeout(30)
        self.stream = Stream(ours, False)
        self.came: list[Publish] = []
        self.stream.on_publish = self.came.append
        self.broker.sendall(b"".join(packets))
        while len(self.came) < len(packets):
            self.stream.pump(NO_CLIENT)

    def acknowledged(self, count: int) -> list[int]:
        """The packet ids that the broker reads."""
        self.stream.flush()
        data = b""
        while len(data) < 4 * count:
            data += self.broker.recv(65_536)
        assert all(data[start : start + 2] == PUBACK for start in range(0, len(data), 4))
        return [int.from_bytes(data[start + 2 : start + 4], "big") for start in range(0, len(data), 4)]

    def close(self) -> None:
        self.stream.close()
        self.broker.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    """Three messages at QoS 1 with one at QoS 0 among them."""
    made = Wire(publish(7), publish(0, qos=0), publish(3), publish(9))
    yield made
    made.close()


def test_an_acknowledgement_waits_for_those_before_it(wire: Wire) -> None:
    assert not wire.stream.acknowledge(9)
    assert not wire.stream.acknowledge(3)
    assert not wire.stream.unsent
    assert wire.stream.acknowledge(7), "something was queued, so the loop is to be woken"
    assert wire.acknowledged(3) == [7, 3, 9]


def test_in_order_each_goes_at_once(wire: Wire) -> None:
    assert wire.stream.acknowledge(7)
    assert not wire.stream.acknowledge(3), "the loop is awake already"
    assert wire.acknowledged(2) == [7, 3]
    assert wire.stream.acknowledge(9)
    assert wire.acknowledged(1) == [9]


@given(st.permutations(range(1, 30)))
def test_any_order_becomes_the_order_of_arrival(order: list[int]) -> None:
    wire = Wire(*(publish(number) for number in range(1, 30)))
    try:
        threads = [
            threading.Thread(target=lambda part=part: [wire.stream.acknowledge(each) for each in part])
            for part in (order[::2], order[1::2])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert wire.acknowledged(29) == list(range(1, 30))
    finally:
        wire.close()
