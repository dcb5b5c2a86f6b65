"""Deliveries put together from the bytes of RabbitMQ, in any pieces, are what pika would have made of them."""

from datetime import UTC, datetime
from typing import Any

import hypothesis
import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.connection import Connection
from pika.exceptions import InvalidFrameError

from protocols.amqp_stream import StreamConnection, read_properties

TEXT = st.text(max_size=40)
PROPERTIES = st.builds(
    pika.BasicProperties,
    content_type=st.none() | TEXT,
    content_encoding=st.none() | TEXT,
    headers=st.none() | st.dictionaries(st.text(max_size=10), st.integers(-(2**31), 2**31) | TEXT, max_size=4),
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | TEXT,
    reply_to=st.none() | TEXT,
    expiration=st.none() | TEXT,
    message_id=st.none() | TEXT,
    timestamp=st.none() | st.integers(0, 2**40),
    type=st.none() | TEXT,
    user_id=st.none() | TEXT,
    app_id=st.none() | TEXT,
    cluster_id=st.none() | TEXT,
)


class Fed(StreamConnection):
    """One that is fed with bytes instead of a socket's."""

    def __init__(self) -> None:
        self._frame_buffer = b""
        self.bytes_received = 0
        self.delivered: list[tuple[Any, ...]] = []
        self.others: list[Any] = []
        self.on_deliver = lambda *delivery: self.delivered.append(delivery)

    def _process_frame(self, frame_value: Any) -> None:
        self.others.append(frame_value)


def delivery(tag: int, key: str, properties: pika.BasicProperties, body: bytes, piece: int) -> list[bytes]:
    """The frames of one message."""
    method = spec.Basic.Deliver("ctag1.0", tag, False, "iiot", key)
    frames = [frame.Method(1, method), frame.Header(1, len(body), properties)]
    frames += [frame.Body(1, body[start : start + piece]) for start in range(0, len(body), piece)]
    return [each.marshal() for each in frames]


@hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@given(
    messages=st.lists(st.tuples(st.text("abc.", max_size=30), PROPERTIES, st.binary(max_size=300)), max_size=5),
    piece=st.integers(1, 200),
    cuts=st.integers(1, 300),
    beats=st.booleans(),
)
def test_any_pieces_give_the_same_messages(
    messages: list[tuple[str, pika.BasicProperties, bytes]], piece: int, cuts: int, beats: bool
) -> None:
    stream = b""
    for tag, (key, properties, body) in enumerate(messages, 1):
        # RabbitMQ may put frames of another channel between those of a message.
        for each in delivery(tag, key, properties, body, piece):
            stream += each + (frame.Heartbeat().marshal() if beats else b"")
    fed = Fed()
    for start in range(0, len(stream), cuts):
        fed._on_data_available(stream[start : start + cuts])
    assert [(tag, key.decode(), body) for tag, key, _, body in fed.delivered] == [
        (tag, key, body) for tag, (key, _, body) in enumerate(messages, 1)
    ]
    for (_, _, read, _), (_, given_properties, _) in zip(fed.delivered, messages, strict=True):
        for name in ("content_type", "user_id", "correlation_id"):
            assert getattr(read, name) == getattr(given_properties, name)
    assert all(isinstance(each, frame.Heartbeat) for each in fed.others)
    assert bool(fed.others) == (beats and bool(messages))
    assert fed._frame_buffer == b""
    assert fed.bytes_received == len(stream)


def test_headers_are_read_where_they_are_asked_for_and_hostile_ones_are_none() -> None:
    properties = pika.BasicProperties(headers={"command-id": "abc", "n": 5, "at": datetime(2026, 1, 1, tzinfo=UTC)})
    raw = b"".join(properties.encode())
    read = read_properties(raw)
    assert (read.header("command-id"), read.header("n"), read.header("other")) == ("abc", None, None)
    assert read_properties(b"\x00\x00").header("command-id") is None
    broken = raw.replace(b"\x02atT", b"\x02at?")
    assert broken != raw
    assert read_properties(broken).header("command-id") is None


def test_a_frame_without_its_end_ends_the_connection() -> None:
    whole = b"".join(delivery(1, "telemetry.a", pika.BasicProperties(), b"{}", 100))
    with pytest.raises(InvalidFrameError):
        Fed()._on_data_available(whole[:-1] + b"\x00")


def test_pika_still_has_the_seams_that_are_used() -> None:
    for name in ("_on_data_available", "_process_frame"):
        assert callable(getattr(Connection, name))
    from pika.adapters.utils.io_services_utils import _AsyncTransportBase

    assert _AsyncTransportBase._MAX_RECV_BYTES > 0
