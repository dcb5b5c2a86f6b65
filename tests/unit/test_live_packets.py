"""Frames from strangers never raise, and nothing but text events gets through."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from socketio.packet import EVENT

from iiot import events
from iiot.live.packets import ACCEPTED, RESERVED, JsonPacket

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(
    st.one_of(
        st.text(),
        st.binary(),
        st.tuples(st.integers(0, 9), JSON).map(lambda pair: f"{pair[0]}{msgspec.json.encode(pair[1]).decode()}"),
    )
)
def test_any_frame_becomes_a_packet_that_can_be_handled(frame: str | bytes) -> None:
    packet = JsonPacket(encoded_packet=frame) if frame else JsonPacket(encoded_packet="x")
    assert packet.packet_type in ACCEPTED
    assert packet.attachment_count == 0
    if packet.packet_type == EVENT:
        assert isinstance(packet.data[0], str)
        assert packet.data[0] not in RESERVED


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_events_cannot_be_sent(name: str) -> None:
    packet = JsonPacket(encoded_packet=f'27["{name}",{{}}]')
    assert (packet.id, packet.data) == (7, ["malformed"])


def test_a_frame_from_redis_is_passed_on_as_it_is() -> None:
    data = {"device_id": "a", "readings": {"t": [[1, 2.5]]}, "cursor": "0"}
    name, raw = events.unframe(events.frame("telemetry", data))
    packet = JsonPacket(EVENT, [name, raw]).encode()
    assert msgspec.json.decode(packet[1:]) == ["telemetry", data]
    assert JsonPacket(encoded_packet=packet).data == ["telemetry", data]
