"""Devices that speak OSCORE: aiocoap as their side of the security context, over bare datagrams."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

from aiocoap import Message, oscore
from aiocoap.message import Direction
from aiocoap.numbers import codes

from iiot import tenancy
from iiot.services import devices
from iiot.services import oscore as service
from tests.integration.coap_devices import Raw, Server
from tests.integration.mqtt_devices import Device


def issue(device: Device, name: str = "") -> service.Issued:
    """A key for the device, made as the API makes it."""
    with tenancy.work(tenancy.of(device.tenant)) as db:
        return service.issue(db, devices.locked(db, device.uid), name)


class Side(oscore.CanProtect, oscore.CanUnprotect, oscore.SecurityContextUtils):  # type: ignore[misc]
    """The device's side of a context."""

    def __init__(self, issued: service.Issued, secret: bytes | None = None) -> None:
        self.alg_aead = oscore.algorithms["AES-CCM-16-64-128"]
        self.hashfun = oscore.hashfunctions["sha256"]
        self.id_context = None
        self.sender_id, self.recipient_id = issued.context.kid, issued.context.own_id
        self.derive_keys(issued.context.salt, secret or issued.secret)
        self.sender_sequence_number = 0
        self.recipient_replay_window = oscore.ReplayWindow(32, lambda: None)
        self.recipient_replay_window.initialize_empty()
        self.echo_recovery = None

    def post_seqnoincrease(self) -> None:
        """A test's device does not restart."""


@dataclasses.dataclass
class Opened:
    """An answer: as it came, and what was inside; None where it was not protected."""

    outer: Message
    inner: Message | None

    @property
    def code(self) -> Any:
        """What was said, protected or not."""
        return self.outer.code if self.inner is None else self.inner.code


class Protected:
    """A device on a socket of its own, with its key. It answers an Echo once, as devices shall."""

    def __init__(self, server: Server, issued: service.Issued, secret: bytes | None = None) -> None:
        self.server = server
        self.side = Side(issued, secret)
        self.raw: Raw = server.raw()
        self.observed: Any = None
        self.echoes = 0

    def __enter__(self) -> Protected:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.socket.close()

    def datagram(self, code: Any, path: str, payload: bytes = b"", **options: Any) -> tuple[bytes, bytes, Any]:
        """A protected request: its bytes, its token, and what opens the answer."""
        self.raw.mid += 1
        token = options.pop("token", secrets.token_bytes(3))
        plain = Message(code=code, payload=payload, uri_path=path.split("/"), **options)
        outer, identifiers = self.side.protect(plain)
        outer.mid, outer.mtype, outer.token = self.raw.mid, 0, token
        return bytes(outer.encode()), token, identifiers

    def ask(self, code: Any, path: str, payload: bytes = b"", **options: Any) -> Opened:
        """Send a request; the answer to it, or to the request with the Echo that was asked for."""
        datagram, token, identifiers = self.datagram(code, path, payload, **options)
        answer = self.exchange(datagram, token, identifiers)
        inner = answer.inner
        if inner is not None and inner.code == codes.UNAUTHORIZED and inner.opt.echo is not None:
            self.echoes += 1
            again = {**options, "echo": inner.opt.echo}
            datagram, token, identifiers = self.datagram(code, path, payload, **again)
            answer = self.exchange(datagram, token, identifiers)
        self.observed = identifiers
        return answer

    def exchange(self, datagram: bytes, token: bytes, identifiers: Any) -> Opened:
        """Send these bytes; the answer with this token."""
        self.raw.send(datagram)
        while True:
            found = self.raw._next(20.0, 0x60)
            assert found is not None, "no answer"
            if found.token == token:
                return self.open(found, identifiers)
            self.raw.held.append(found)

    def open(self, message: Message, identifiers: Any) -> Opened:
        """What is inside an answer or notification."""
        if message.opt.oscore is None:
            return Opened(message, None)
        message.direction = Direction.INCOMING
        inner, _ = self.side.unprotect(message, identifiers)
        return Opened(message, inner)

    def post(self, payload: bytes, content_format: int | None = 50, **options: Any) -> Opened:
        """POST telemetry."""
        return self.ask(codes.POST, "telemetry", payload, content_format=content_format, **options)
