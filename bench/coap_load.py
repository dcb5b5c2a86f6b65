"""CoAP clients by hand, for the CoAP bench and the long tests: confirmable requests, so many under way at any moment.

    python -m bench.coap_load <folder>      reads <folder>/load.json, prints one JSON object

`load.json`: {"host", "port", "seconds", "window", "requests": [[code, path, [queries], content format or null, payload], …]}, one request
per client, which has a socket of its own. `%d` in a payload is replaced by a number of its own, which may be a time in milliseconds. Answers are
taken in the acknowledgement or separately (RFC 7252 section 5.2); what is not answered in three seconds is sent again.
"""

import contextlib
import json
import selectors
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

EMPTY, CHANGED = 0, 68
RESEND_SECONDS = 3.0


def options(path: str, queries: list[str], content_format: int | None) -> bytes:
    """Uri-Path, Content-Format and Uri-Query (RFC 7252 section 3.1)."""
    found: list[tuple[int, bytes]] = [(11, part.encode()) for part in path.split("/")]
    if content_format is not None:
        found.append((12, bytes([content_format])))
    found += [(15, each.encode()) for each in queries]
    out, last = bytearray(), 0
    for number, value in found:
        head, extended = len(value), b""
        if head >= 13:
            head, extended = 13, bytes([len(value) - 13])
        out += bytes([(number - last) << 4 | head]) + extended + value
        last = number
    return bytes(out)


class Client:
    """One device: a socket with `window` requests under way."""

    def __init__(self, address: tuple[str, int], request: list[Any], window: int) -> None:
        code, path, queries, content_format, payload = request
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(address)
        self.socket.setblocking(False)
        self.head = struct.pack("!BB", 0x42, code)
        self.tail = options(path, queries, content_format) + b"\xff"
        self.payload = payload.encode()
        self.window = window
        # Numbers are times of the last hour, one millisecond apart.
        self.number = self.first = int(time.time() * 1000) - 3_600_000
        self.waiting: dict[bytes, tuple[float, bytes, int]] = {}
        self.confirmed: list[int] = []
        self.codes: dict[int, int] = {}

    def fill(self, now: float) -> None:
        """Send until the window is full."""
        while not self.is_full:
            self.offer(now)

    @property
    def is_full(self) -> bool:
        """Whether as many requests are under way as may be."""
        return len(self.waiting) >= self.window

    def offer(self, now: float) -> None:
        """Send one more."""
        self.number += 1
        mid = struct.pack("!H", (self.number - self.first) & 0xFFFF)
        datagram = self.head + mid + mid + self.tail + self.payload.replace(b"%d", str(self.number).encode())
        self.waiting[mid] = (now, datagram, self.number)
        self._send(datagram)

    def _send(self, datagram: bytes) -> None:
        # Nobody may be listening for a while: then it is sent again.
        with contextlib.suppress(OSError):
            self.socket.send(datagram)

    def read(self, now: float) -> int:
        """Take what has come; how many requests were answered."""
        answered = 0
        while True:
            try:
                data = self.socket.recv(2048)
            except BlockingIOError:
                return answered
            except OSError:
                continue
            kind, code, mid = data[0] >> 4 & 3, data[1], data[2:4]
            if code == EMPTY:
                continue
            if kind == 0:
                self._send(b"\x60\x00" + mid)
            waited = self.waiting.pop(data[4:6], None)
            if waited is not None:
                self.codes[code] = self.codes.get(code, 0) + 1
                answered += 1
                if code == CHANGED:
                    self.confirmed.append(waited[2])

    def resend(self, now: float) -> None:
        """Send again what was not answered."""
        for mid, (sent, datagram, number) in list(self.waiting.items()):
            if now - sent > RESEND_SECONDS:
                self.waiting[mid] = (now, datagram, number)
                self._send(datagram)


def run(load: dict[str, Any]) -> dict[str, Any]:
    """Requests for so many seconds: {"answered", "seconds", "codes"}."""
    address = (load["host"], load["port"])
    clients = [Client(address, request, load["window"]) for request in load["requests"]]
    selector = selectors.DefaultSelector()
    for client in clients:
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.fill(time.monotonic())
    began = looked = time.monotonic()
    answered = 0
    while (now := time.monotonic()) - began < load["seconds"]:
        for key, _ in selector.select(0.2):
            answered += key.data.read(now)
            key.data.fill(now)
        if now - looked > 0.5:
            looked = now
            for client in clients:
                client.resend(now)
    seconds = time.monotonic() - began
    codes: dict[str, int] = {}
    for client in clients:
        client.socket.close()
        for code, count in client.codes.items():
            word = f"{code >> 5}.{code & 31:02d}"
            codes[word] = codes.get(word, 0) + count
    return {"answered": answered, "seconds": seconds, "codes": codes}


if __name__ == "__main__":
    print(json.dumps(run(json.loads((Path(sys.argv[1]) / "load.json").read_text()))))
