"""Socket.IO packets of JSON alone, by msgspec: frames from Redis pass through without being parsed again."""

from typing import Any

import msgspec
from socketio.packet import BINARY_ACK, BINARY_EVENT, Packet


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

    uses_binary_events = False
    json = Msgspec

    def decode(self, encoded_packet: Any) -> int:
        """Read a packet; raises ValueError for anything but text of the kinds that carry no attachments."""
        if not isinstance(encoded_packet, str):
            raise ValueError("binary packets are not accepted")
        count = int(super().decode(encoded_packet) or 0)
        if count or self.packet_type in (BINARY_EVENT, BINARY_ACK):
            raise ValueError("binary packets are not accepted")
        if self.packet_type == 2 and not (isinstance(self.data, list) and self.data and isinstance(self.data[0], str)):
            raise ValueError("an event is a list that begins with its name")
        return 0
