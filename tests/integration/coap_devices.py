"""Devices for CoAP tests: aiocoap, bare datagrams and libcoap's program, and the adapter as a real process."""

import asyncio
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiocoap
from aiocoap import Context, Message, Reliable, Unreliable
from aiocoap.numbers import codes

from iiot import tenancy
from iiot.config import Settings
from iiot.embedded import ports
from iiot.services import commands
from protocols import coap
from protocols.runner import Runner
from tests import factories, services
from tests.integration.mqtt_devices import AdapterProcess, Device, adapter

T = TypeVar("T")
SECONDS = 20.0


def with_port(settings: Settings) -> Settings:
    """The same settings with a free UDP port."""
    return settings.model_copy(update={"coap_bind": f"127.0.0.1:{ports.free_port(kind=socket.SOCK_DGRAM)}"})


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[AdapterProcess, Settings]]:
    """A running adapter on a port of its own."""
    changed = with_port(settings)
    with services.active(changed), adapter(changed, "coap") as process:
        yield process, changed


@contextmanager
def within(settings: Settings) -> Iterator["Server"]:
    """The adapter in this process, where a test may set what is fixed in another one."""
    changed = with_port(settings)
    with services.active(changed):
        runner = Runner("coap")
        thread = threading.Thread(target=runner.run, args=(coap.make(changed),))
        thread.start()
        try:
            # `process` is what the others start; nothing of it is asked for here.
            found = Server(None, changed.coap_bind, factories.make_tenant())  # type: ignore[arg-type]
            services.eventually(lambda: found.get("nowhere").code == codes.NOT_FOUND)
            yield found
        finally:
            runner.stop.set()
            thread.join(20)
        assert not thread.is_alive()


@dataclass
class Server:
    """Where the adapter listens, and a tenant for its devices."""

    process: AdapterProcess
    bind: str
    tenant: factories.TenantRow

    def device(self, **quota: int) -> Device:
        """A new device."""
        return Device(self.tenant)

    def uri(self, path: str, device: Device | None = None, token: str | None = None) -> str:
        """`coap://…` of a resource, with the credentials of a device."""
        query = "" if device is None else f"?uid={device.uid}&token={device.token if token is None else token}"
        return f"coap://{self.bind}/{path}{query}"

    def post(self, device: Device, payload: bytes, content_format: int | None = 50, **options: Any) -> Message:
        """POST telemetry; the answer."""
        uri = self.uri("telemetry", device, options.pop("token", None))
        return self.ask(Message(code=codes.POST, uri=uri, payload=payload, content_format=content_format, **options))

    def get(self, path: str, device: Device | None = None, **options: Any) -> Message:
        """GET; the answer."""
        return self.ask(Message(code=codes.GET, uri=self.uri(path, device), **options))

    def ask(self, request: Message, blockwise: bool = True) -> Message:
        """The answer to one request of a client of its own; without `blockwise` the options are as given."""
        return run(self._ask(request, blockwise))

    async def _ask(self, request: Message, blockwise: bool) -> Message:
        context = await Context.create_client_context(transports=["simple6"])
        try:
            return await asyncio.wait_for(context.request(request, handle_blockwise=blockwise).response, SECONDS)
        finally:
            await context.shutdown()

    def raw(self) -> "Raw":
        """A socket that speaks CoAP by hand."""
        return Raw(self.bind)

    def program(self, *arguments: str) -> str:
        """What libcoap's client prints with these arguments."""
        found = shutil.which("coap-client-notls")
        if found is None:
            services.missing("coap-client-notls (apt-get install libcoap3-bin)")
        done = subprocess.run([found, "-B", "20", *arguments], capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own."""
    return asyncio.run(coroutine)


class Raw:
    """Datagrams as they are on the wire."""

    def __init__(self, bind: str) -> None:
        host, port = bind.rsplit(":", 1)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((host, int(port)))
        self.socket.settimeout(SECONDS)
        # A port may come again, and what was asked from it before is remembered by its ids.
        self.mid = secrets.randbelow(0x7000)
        self.held: list[Message] = []

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, datagram: bytes) -> None:
        self.socket.send(datagram)

    def receive(self, timeout: float = SECONDS) -> bytes:
        """The next datagram; b"" when there is none within `timeout`."""
        self.socket.settimeout(timeout)
        try:
            return self.socket.recv(65536)
        except TimeoutError:
            return b""

    def answer(self, datagram: bytes) -> Message:
        """Send, and return the first answer that is more than an empty acknowledgement."""
        self.send(datagram)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            message = Message.decode(self.receive())
            if message.code != codes.EMPTY:
                if message.mtype == aiocoap.CON:
                    self.send(bytes([0x60, 0, message.mid >> 8, message.mid & 255]))
                return message
        raise AssertionError("no answer")

    def ask(self, code: Any, uri: str, payload: bytes = b"", **options: Any) -> Message:
        """Send a confirmable request with a message id and token of its own; the answer, which is acknowledged."""
        self.mid += 1
        token = options.pop("token", self.mid.to_bytes(2, "big"))
        message = Message(code=code, uri=uri, payload=payload, _mid=self.mid, _mtype=0, _token=token, **options)
        self.send(bytes(message.encode()))
        while True:
            found = self._next(SECONDS, 0x60)
            assert found is not None, "no answer"
            if found.token == token:
                return found
            self.held.append(found)

    def datagram(self, timeout: float = SECONDS, answer: int | None = 0x60) -> bytes:
        """The next datagram that is more than an empty acknowledgement, b"" when there is none; a confirmable one gets `answer`."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            found = self.receive(left)
            if not found:
                return b""
            if found[1] != codes.EMPTY:
                if answer is not None and found[0] & 0x30 == 0:
                    self.send(bytes([answer, 0]) + found[2:4])
                return found
        return b""

    def _next(self, timeout: float, answer: int | None) -> Message | None:
        found = self.datagram(timeout, answer)
        return Message.decode(found) if found else None

    def observe(self, uri: str, token: bytes = b"\x0b", **options: Any) -> Message:
        """Register as an observer; the first answer."""
        return self.ask(codes.GET, uri, token=token, observe=0, **options)

    def notified(self, timeout: float = SECONDS, answer: int | None = 0x60) -> Message | None:
        """The next notification, acknowledged (`answer` 0x60), reset (0x70) or left alone (None); None when there is none."""
        return self.held.pop(0) if self.held else self._next(timeout, answer)


def order(device: Device, name: str = "restart", ttl: int = 60, **params: Any) -> str:
    """A command for the device; its id."""
    with tenancy.work(tenancy.of(device.tenant)) as db:
        return commands.create(db, device.uid, commands.NewCommand(name, params, ttl)).uid


def states(uid: str) -> list[str]:
    """The command's states so far."""
    ((history,),) = factories.rows("SELECT history FROM iiot.command WHERE uid = %s", uid)
    return [step["state"] for step in history]


def request(code: Any, uri: str, mid: int, payload: bytes = b"", confirmable: bool = True) -> bytes:
    """The datagram of a request; its token is its message id."""
    kind = 0 if confirmable else 1
    message = Message(code=code, uri=uri, payload=payload, _mid=mid, _mtype=kind, _token=mid.to_bytes(2, "big"))
    return bytes(message.encode())


__all__ = ["Device", "Reliable", "Server", "Unreliable", "order", "request", "run", "serving", "states", "within"]
