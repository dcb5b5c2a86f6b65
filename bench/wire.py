"""MQTT 3.1.1 by hand: what a publisher and a reader must at least do. The load and the limit of the ingest bench.

Packets as in the OASIS standard MQTT 3.1.1, sections 3.1 CONNECT, 3.3 PUBLISH, 3.4 PUBACK, 3.8 SUBSCRIBE. QoS 1 only, no reconnect.
"""

import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

PUBACK = b"\x40\x02"


@dataclass(frozen=True)
class Login:
    """Where and as whom to connect."""

    host: str
    port: int
    username: str
    password: str


def _text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(data)) + data


def _length(size: int) -> bytes:
    out = bytearray()
    while True:
        size, digit = divmod(size, 128)
        out.append(digit | (128 if size else 0))
        if not size:
            return bytes(out)


def connect(login: Login, client_id: str) -> socket.socket:
    """A connected socket with a clean session; raises ConnectionError when the broker refuses."""
    flags = 0b11000010
    body = (
        _text("MQTT")
        + bytes([4, flags])
        + struct.pack("!H", 120)
        + _text(client_id)
        + _text(login.username)
        + _text(login.password)
    )
    connection = socket.create_connection((login.host, login.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(b"\x10" + _length(len(body)) + body)
    answer = _exactly(connection, 4)
    if answer[0] != 0x20 or answer[3] != 0:
        raise ConnectionError(f"the broker refused {client_id}: {answer.hex()}")
    return connection


def subscribe(connection: socket.socket, topic_filter: str) -> None:
    """Subscribe at QoS 1; raises ConnectionError when it is denied."""
    body = struct.pack("!H", 1) + _text(topic_filter) + b"\x01"
    connection.sendall(b"\x82" + _length(len(body)) + body)
    answer = _exactly(connection, 5)
    if answer[0] != 0x90 or answer[4] > 2:
        raise ConnectionError(f"the subscription was denied: {answer.hex()}")


def publish(topic: bytes, payload: bytes, number: int) -> bytes:
    """A PUBLISH packet at QoS 1."""
    body = struct.pack("!H", len(topic)) + topic + struct.pack("!H", number) + payload
    return b"\x32" + _length(len(body)) + body


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the broker closed the connection")
        data += more
    return data


class Publisher(threading.Thread):
    """Sends prepared packets; at most `window` of them unacknowledged. `acknowledged` counts PUBACKs."""

    def __init__(self, login: Login, client_id: str, packets: list[bytes], window: int = 1000, chunk: int = 50) -> None:
        super().__init__(daemon=True, name=client_id)
        self.chunks = [
            (b"".join(packets[i : i + chunk]), len(packets[i : i + chunk])) for i in range(0, len(packets), chunk)
        ]
        self.window = window
        self.connection = connect(login, client_id)
        self.acknowledged = 0
        self.started_at = 0.0

    def run(self) -> None:
        """Send everything, then wait for the last acknowledgement."""
        self.started_at = time.time()
        sent = received = 0
        # The kernel wakes us for many acknowledgements at once: the publisher shall cost little of the machine it shares.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self.window)
        for data, count in self.chunks:
            while sent - received // 4 > self.window:
                received += len(self._receive())
            self.connection.sendall(data)
            sent += count
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        while received // 4 < sent:
            received += len(self._receive())
        self.acknowledged = received // 4
        self.connection.close()

    def _receive(self) -> bytes:
        data = self.connection.recv(65536)
        if not data:
            raise ConnectionError("the broker closed the connection")
        return data


class PacedPublisher(threading.Thread):
    """Sends one message after the other at a fixed rate, each with its own time of sending."""

    def __init__(self, login: Login, client_id: str, topics: list[bytes], rate: float, count: int) -> None:
        super().__init__(daemon=True, name=client_id)
        self.connection = connect(login, client_id)
        self.topics, self.rate, self.count = topics, rate, count
        self.late = 0
        self._drain = threading.Thread(target=self._read, daemon=True)

    def run(self) -> None:
        """Send `count` messages; `late` counts those sent more than 20 ms after their turn."""
        self._drain.start()
        begun = time.perf_counter()
        used: dict[bytes, int] = {}
        for number in range(self.count):
            wait = begun + number / self.rate - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            elif wait < -0.02:
                self.late += 1
            topic = self.topics[number % len(self.topics)]
            ts = max(time.time_ns() // 1_000_000, used.get(topic, 0) + 1)
            used[topic] = ts
            self.connection.sendall(publish(topic, payload(number, ts), number % 65535 + 1))
        time.sleep(0.5)
        self.connection.close()

    def _read(self) -> None:
        try:
            while self.connection.recv(65536):
                pass
        except OSError:
            return


def payload(number: int, ts: int) -> bytes:
    """A message of three readings, some 77 bytes."""
    part = (number * 7919) % 1000
    return b'{"ts":%d,"values":{"temperature":%.2f,"pressure":%.3f,"vibration":%.2f}}' % (
        ts,
        20 + part / 100,
        1 + part / 10000,
        part / 1000,
    )


def parse(buffer: bytes, out: list[tuple[bytes, bytes, bytes]]) -> int:
    """Append (packet id, topic, payload) of every complete PUBLISH in `buffer`; returns how many bytes were used."""
    position, size = 0, len(buffer)
    while size - position >= 2:
        header, length, start, shift = buffer[position], 0, position + 1, 0
        while True:
            if start >= size:
                return position
            digit = buffer[start]
            start += 1
            length |= (digit & 127) << shift
            if digit < 128:
                break
            shift += 7
        end = start + length
        if end > size:
            return position
        if header & 0xF0 == 0x30:
            topic_end = start + 2 + (buffer[start] << 8 | buffer[start + 1])
            out.append((buffer[topic_end : topic_end + 2], buffer[start + 2 : topic_end], buffer[topic_end + 2 : end]))
        position = end
    return position


def pubacks(numbers: Iterable[bytes]) -> bytes:
    """The acknowledgements of several messages, to be sent at once."""
    return b"".join([PUBACK + number for number in numbers])
