"""Half of an MQTT connection: the bytes, and the two packets that are nearly all of the traffic. Not an adapter.

paho keeps the connection: CONNECT, SUBSCRIBE, pings, what we publish. Incoming PUBLISH packets are read here and their
PUBACKs are written here, because paho spends 45 to 60 microseconds on one such pair (three to five system calls, a lock
and a dictionary of properties per message) and this module 4. `bench/ingest.py` shows what that is worth.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

CHUNK: Final = 65_536
# Rounds of reading before the acknowledgements get their turn.
ROUNDS: Final = 8
PUBLISH: Final = 0x30
PUBACK: Final = b"\x40\x02"


class Publish(NamedTuple):
    """An incoming PUBLISH (MQTT 5 section 3.3). `packet_id` is 0 at QoS 0; `properties` is None when there are none."""

    topic: bytes
    payload: bytes
    qos: int
    packet_id: int
    retain: bool
    properties: Properties | None


class MalformedStreamError(OSError):
    """The bytes of the broker are not MQTT, or something we did not subscribe to."""


class Stream:
    """A non-blocking socket that gives paho one packet at a time, and the PUBLISH packets to `on_publish`."""

    def __init__(self, sock: Any, five: bool) -> None:
        self._sock = sock
        self._five = five
        self._in = b""
        self._pos = 0
        self._end = 0  # paho may read up to here
        self._out: list[bytes] = []
        self.on_publish: Callable[[Publish], None] | None = None
        # Seconds that `close` waits for the broker to end the connection after a DISCONNECT.
        self.patience = 0.0

    # What paho uses of a socket.

    def recv(self, size: int) -> bytes:
        """The next bytes of the packet at hand; BlockingIOError when paho has had all of it."""
        if self._pos >= self._end:
            raise BlockingIOError
        data = self._in[self._pos : min(self._pos + size, self._end)]
        self._pos += len(data)
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Take all of `data`; it leaves with `flush`. Any thread may call this."""
        self._out.append(bytes(data))
        return len(data)

    def close(self) -> None:
        """Send what can still be sent (the DISCONNECT) and close, after `patience`."""
        try:
            self.flush()
            self._wait_for_end()
        except OSError:
            self._out.clear()
        finally:
            self._sock.close()

    def _wait_for_end(self) -> None:
        """Until the broker has ended the connection, at most `patience` seconds: then it has read every acknowledgement.

        Mosquitto reads one packet of each connection in turn, so the next connection of this client would overtake them.
        """
        deadline = time.monotonic() + self.patience
        while (left := deadline - time.monotonic()) > 0:
            select.select([self._sock], [], [], left)
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                if not self._sock.recv(CHUNK):
                    return

    def setblocking(self, flag: bool) -> None:
        """As socket.setblocking."""
        self._sock.setblocking(flag)

    def fileno(self) -> int:
        """As socket.fileno: -1 after `close`."""
        return int(self._sock.fileno())

    # What the loop uses.

    @property
    def unsent(self) -> bool:
        """Whether something waits for `flush`."""
        return bool(self._out)

    def acknowledge(self, packet_id: int) -> bool:
        """Queue a PUBACK (4 bytes in both versions). Any thread may call; True when nothing was queued before it."""
        out = self._out
        out.append(PUBACK + packet_id.to_bytes(2, "big"))
        return len(out) == 1

    def flush(self) -> None:
        """Send what is queued, as far as the system takes it now. Raises OSError when the connection is gone."""
        while self._out:
            # Other threads append meanwhile; what they add stays for the next round.
            parts = self._out[:]
            data = b"".join(parts)
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, ssl.SSLWantWriteError):
                return
            self._out[: len(parts)] = [data[sent:]] if sent < len(data) else []
            if sent < len(data):
                return

    def pump(self, client: Client) -> MQTTErrorCode:
        """Take in what has arrived. Returns paho's error, or success; raises OSError when the connection is gone."""
        code = self._dispatch(client)  # what was left while `on_publish` was not set
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return code
        for _ in range(ROUNDS):
            try:
                chunk = self._sock.recv(CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            if not chunk:
                raise ConnectionResetError("the broker closed the connection")
            self._in = self._in[self._pos :] + chunk
            self._pos = self._end = 0
            code = self._dispatch(client)
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return code
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _dispatch(self, client: Client) -> MQTTErrorCode:
        """Hand out every complete packet of the buffer."""
        data, size = self._in, len(self._in)
        while True:
            start = self._pos
            if size - start < 2:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            length, body = data[start + 1], start + 2
            if length & 0x80:
                length, body = _variable(data, start + 1)
            end = body + length
            if not body or end > size:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            first = data[start]
            if first & 0xF0 == PUBLISH:
                if self.on_publish is None:
                    return MQTTErrorCode.MQTT_ERR_SUCCESS
                self._pos = end
                self.on_publish(_publish(data, first, body, end, self._five))
            else:
                self._end = end
                code = client.loop_read()
                if code != MQTTErrorCode.MQTT_ERR_SUCCESS or client.socket() is None:
                    return code or MQTTErrorCode.MQTT_ERR_CONN_LOST
                self._pos = end


def _variable(data: bytes, pos: int) -> tuple[int, int]:
    """A variable byte integer (MQTT 5 section 1.5.5): (value, place after it), or (0, 0) when it is not complete."""
    value, shift = 0, 0
    for place in range(pos, min(pos + 4, len(data))):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, place + 1
        shift += 7
    if shift > 21:
        raise MalformedStreamError("the broker sent a packet with a malformed length")
    return 0, 0


def _publish(data: bytes, first: int, body: int, end: int, five: bool) -> Publish:
    qos = first >> 1 & 3
    place = body + 2 + (data[body] << 8 | data[body + 1])
    topic = data[body + 2 : place]
    packet_id = 0
    if qos:
        if qos > 1:
            raise MalformedStreamError("the broker sent a message at QoS 2, subscribed is QoS 1")
        packet_id = data[place] << 8 | data[place + 1]
        place += 2
    properties = None
    if five:
        length = data[place]
        if length:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            _, used = properties.unpack(data[place:end])  # type: ignore[no-untyped-call]
            place += used
        else:
            place += 1
    return Publish(topic, data[place:end], qos, packet_id, bool(first & 1), properties)


class StreamClient(Client):
    """paho's client over `Stream`. `_create_socket` is its one seam for that; a test holds the pinned version to it."""

    def _create_socket(self) -> Any:
        sock: Any = super()._create_socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Stream(sock, int(self.protocol) == 5)

    @property
    def stream(self) -> Stream:
        """The open connection; raises ConnectionResetError when there is none."""
        sock: Any = self.socket()
        if sock is None:
            raise ConnectionResetError("the connection to the broker ended")
        stream: Stream = sock
        return stream
