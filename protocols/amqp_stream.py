"""The bytes of an AMQP connection that consumes: pika's connection, with a short way for deliveries, which are nearly all of the traffic. Not an adapter.

pika spends some thirty microseconds on a delivery: three frames, each decoded to objects and passed through several callbacks. Here they are put together
from the bytes (AMQP 0-9-1 sections 2.3.5, 4.2.3 and 4.2.6); everything else goes pika's way. That also keeps pika from decoding headers that a device
made up, some of which it cannot: a date beyond the year 9999 would end the connection. `_on_data_available` is the one seam; a test holds the pinned
version to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import pika
from pika import data as amqp_data
from pika import frame
from pika.exceptions import InvalidFrameError

METHOD, HEADER, BODY, END = 1, 2, 3, 0xCE
# Class 60 (basic), method 60 (deliver).
DELIVER: Final = b"\x00\x3c\x00\x3c"
CHUNK: Final = 65_536
PROPERTIES_KEPT: Final = 20_000
# Section 4.2.6.1: the highest bit is the first property.
CONTENT_TYPE, HEADERS, CORRELATION_ID, USER_ID = 0x8000, 0x2000, 0x0400, 0x0010
_SHORT: Final = {0x8000, 0x4000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010, 0x0008, 0x0004}


class Properties(NamedTuple):
    """What the adapter looks at. `headers` are not decoded."""

    content_type: str | None = None
    user_id: str | None = None
    correlation_id: str | None = None
    headers: bytes = b""

    def header(self, name: str) -> str | None:
        """A header that is a text."""
        if not self.headers:
            return None
        try:
            table, _ = amqp_data.decode_table(self.headers, 0)
        except Exception:
            # Whatever pika makes of them: a device may send any bytes.
            return None
        value = table.get(name)
        return value if isinstance(value, str) else None


OnDeliver = Callable[[int, bytes, Properties, bytes], None]


class StreamConnection(pika.SelectConnection):  # type: ignore[misc]
    """pika's connection that hands deliveries to `on_deliver(tag, routing key, properties, body)` as soon as that is set, before it consumes."""

    on_deliver: OnDeliver | None = None
    # The delivery at hand: what its method frame said, its properties, the length of its body and what has come of it.
    _tag, _key, _raw, _length = 0, b"", b"", 0
    _parts: list[bytes]
    _frame_buffer: bytes

    def _on_data_available(self, data_in: bytes) -> None:
        if self.on_deliver is None:
            super()._on_data_available(data_in)
            return
        buffer = self._frame_buffer + data_in
        self.bytes_received += len(data_in)
        self._frame_buffer = b""
        pos = self._dispatch(buffer)
        self._frame_buffer = buffer[pos:]

    def _dispatch(self, buffer: bytes) -> int:
        """Take every complete frame; returns where the first incomplete one begins."""
        pos, size = 0, len(buffer)
        while size - pos > 7:
            start = pos + 7
            end = start + int.from_bytes(buffer[pos + 3 : start], "big")
            if end >= size:
                break
            kind = buffer[pos]
            if buffer[end] != END:
                raise InvalidFrameError("the frame does not end where it should")
            part = buffer[start:end]
            if kind == BODY:
                self._take_body(part)
            elif kind == HEADER:
                self._raw, self._parts = part[12:], []
                self._length = int.from_bytes(part[4:12], "big")
                if not self._length:
                    self._hand_out(b"")
            elif kind == METHOD and part[:4] == DELIVER:
                self._take_method(part)
            else:
                self._process_frame(_read_frame(buffer[pos : end + 1]))
            pos = end + 1
        return pos

    def _take_method(self, part: bytes) -> None:
        """Consumer tag, delivery tag, redelivered, exchange, routing key."""
        try:
            place = 5 + part[4]
            self._tag = int.from_bytes(part[place : place + 8], "big")
            place += 10 + part[place + 9]
            self._key = part[place + 1 : place + 1 + part[place]]
        except IndexError as error:
            raise InvalidFrameError("a delivery ends too early") from error

    def _take_body(self, part: bytes) -> None:
        if len(part) < self._length:
            self._parts.append(part)
            if sum(map(len, self._parts)) < self._length:
                return
            part = b"".join(self._parts)
        self._hand_out(part)

    def _hand_out(self, payload: bytes) -> None:
        properties = _known.get(self._raw)
        if properties is None:
            properties = remember(self._raw)
        if self.on_deliver is not None:
            self.on_deliver(self._tag, self._key, properties, payload)


def _read_frame(whole: bytes) -> frame.Frame:
    """A frame that goes pika's way; InvalidFrameError for whatever pika raises for one that is none."""
    try:
        _, value = frame.decode_frame(whole)
    except Exception as error:
        raise InvalidFrameError("the frame cannot be read") from error
    if value is None:
        raise InvalidFrameError("the frame is of no known kind")
    return value


# The same few properties come with every message of a device.
_known: dict[bytes, Properties] = {}


def remember(raw: bytes) -> Properties:
    """Flags and list of properties of a content header, read; kept unless there are headers, which may be many."""
    found = read_properties(raw)
    if not found.headers:
        if len(_known) >= PROPERTIES_KEPT:
            _known.clear()
        _known[raw] = found
    return found


def read_properties(raw: bytes) -> Properties:
    """Section 4.2.6.1, with RabbitMQ's fourteen properties. Strings that are no UTF-8 keep a sign for what cannot be read.

    Raises InvalidFrameError where they end too early.
    """
    flags, place = int.from_bytes(raw[:2], "big"), 2
    found: dict[int, str] = {}
    headers = b""
    bit = 0x8000
    while bit > 2:
        if flags & bit:
            if bit in _SHORT:
                length = raw[place] if place < len(raw) else 0
                found[bit] = raw[place + 1 : place + 1 + length].decode(errors="replace")
                place += 1 + length
            elif bit == HEADERS:
                length = 4 + int.from_bytes(raw[place : place + 4], "big")
                headers = raw[place : place + length]
                place += length
            else:
                # Delivery mode and priority are one byte, the timestamp eight.
                place += 8 if bit == 0x0040 else 1
        bit >>= 1
    if place > len(raw):
        raise InvalidFrameError("the properties end too early")
    return Properties(found.get(CONTENT_TYPE), found.get(USER_ID), found.get(CORRELATION_ID), headers)


def read_more_at_once(connection: pika.SelectConnection) -> None:
    """pika reads 4 KiB at a time, which is 25 messages."""
    transport = getattr(connection, "_transport", None)
    if transport is not None:
        transport._MAX_RECV_BYTES = CHUNK
