"""Socket.IO packets of JSON alone, by msgspec: frames from Redis pass through without being parsed again."""

from typing import Any

import msgspec
from socketio.packet import ACK, CONNECT, DISCONNECT, EVENT, Packet

# The library would take these names for its own events; no client may send them (socket.io-protocol, reserved events).
RESERVED = frozenset(("*", "connect", "connect_error", "disconnect", "disconnecting"))
ACCEPTED = frozenset((CONNECT, DISCONNECT, EVENT, ACK))


class Msgspec:
    """The two functions of the module `json` that Socket.IO uses."""

    @staticmethod
    def dumps(value: Any, **_: Any) -> str:
        return msgspec.json.encode(value).decode()

    @staticmethod
    def loads(text: str, **_: Any) -> Any:
        """Raises ValueError for what is not JSON, as the module `json` does."""
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(str(error)) from None


class JsonPacket(Packet):  # type: ignore[misc]
    """A packet without binary attachments: none are sent, and none are taken."""

    packet_type: int
    namespace: str | None
    id: int | None
    data: Any
    uses_binary_events = False
    json = Msgspec

    def decode(self, encoded_packet: Any) -> int:
        """Read a packet. Nonsense reads as the event `malformed`, which is refused and counted like any unknown event."""
        try:
            attachments = int(super().decode(encoded_packet) or 0)
        except (ValueError, TypeError, IndexError):
            attachments = 1
        event = isinstance(self.data, list) and self.data and isinstance(self.data[0], str)
        if event and self.data[0] in RESERVED:
            self.data = ["malformed"]
        if attachments or self.packet_type not in ACCEPTED or (self.packet_type == EVENT and not event):
            self.packet_type, self.namespace, self.id, self.data = EVENT, None, None, ["malformed"]
        return 0
