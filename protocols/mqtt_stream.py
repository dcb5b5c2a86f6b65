"""paho's MQTT client over a buffered socket: a third of the time per message. Not an adapter."""

from __future__ import annotations

import socket
from typing import Any

from paho.mqtt.client import Client


class Stream:
    """A socket with a buffer on both sides, for paho.

    paho reads the header of each packet byte by byte and sends each acknowledgement by itself: five system calls per
    message, each of which also gives the interpreter away to the writer's thread. Through this one a burst of messages
    is one `recv` and its acknowledgements are one `send`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._in = b""
        self._pos = 0
        self._out: list[bytes] = []

    def recv(self, size: int) -> bytes:
        """As socket.recv: at most `size` bytes, b"" at the end, BlockingIOError when there is nothing."""
        data = self._in[self._pos : self._pos + size]
        if data:
            self._pos += len(data)
            return data
        self._in = self._sock.recv(65_536)
        self._pos = min(size, len(self._in))
        return self._in[:size]

    @property
    def buffered(self) -> bool:
        """Whether `recv` has something without asking the system."""
        return self._pos < len(self._in)

    @property
    def unsent(self) -> bool:
        """Whether `flush` could not send everything."""
        return bool(self._out)

    def send(self, data: bytes | bytearray) -> int:
        """Take all of `data`; it leaves with `flush`."""
        self._out.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Send what was taken, as far as the system takes it now. Raises OSError when the connection is gone."""
        if not self._out:
            return
        data = b"".join(self._out)
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        self._out = [data[sent:]] if sent < len(data) else []

    def close(self) -> None:
        """Send what can still be sent (the DISCONNECT) and close."""
        try:
            self.flush()
        except OSError:
            pass
        finally:
            self._sock.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class BufferedClient(Client):
    """paho's client over `Stream`. `_create_socket` is its only seam for that; a test holds the pinned version to it.

    For an external loop: `loop_read` while the stream is `buffered`, `loop_write`, then `flush`.
    """

    def _create_socket(self) -> Any:
        sock: Any = super()._create_socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Stream(sock)
