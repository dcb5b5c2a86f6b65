"""The CoAP adapter (RFC 7252): a server for what constrained devices send, answered after the commit, and for their commands.

Resources: `GET /.well-known/core` (RFC 6690), `POST /telemetry`, `GET /devices`, `GET /commands` (RFC 7641 Observe), `POST
/commands/<id>`. A device proves itself by `?uid=…&token=…`, in plain text, or by OSCORE (RFC 8613). A confirmable request
that takes longer than a tenth of a second is acknowledged empty and answered separately (section 5.2.2); the answer always
comes after the commit.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any, Final
from urllib.parse import quote

import aiocoap
from aiocoap import Context
from aiocoap.numbers import codes

from protocols import coap_wire as wire
from protocols.base import AdapterError, ConnectionLost, Inbox, Order
from protocols.coap_exchange import JSON, LINKS
from protocols.coap_guard import SOURCE_BURST, Guard
from protocols.coap_server import ANSWER_SECONDS, Server

NAME = "coap"
DESCRIPTION = "CoAP: POST /telemetry, GET /devices, GET /commands (Observe) on the UDP address of IIOT_COAP_BIND"

# The runner gives a command two seconds.
COMMAND_SECONDS: Final = 2.0


def make(settings: Any) -> CoapAdapter:
    """From IIOT_COAP_BIND. Where tokens in plain text are not allowed, OSCORE alone opens anything."""
    host, _, port = settings.coap_bind.rpartition(":")
    guard = Guard(settings.device_rate, settings.device_burst)
    return CoapAdapter(host.strip("[]"), int(port), guard, takes_tokens=settings.coap_is_on)


class CoapAdapter:
    """See `protocols.base.Adapter`, `Commander` and `Listening`."""

    any_order = True

    def __init__(self, host: str, port: int, guard: Guard, takes_tokens: bool = True) -> None:
        self.host = host
        self.port = port
        self.guard = guard
        self.takes_tokens = takes_tokens
        self._server: Server | None = None

    def _bind(self) -> Any:
        try:
            return wire.bind(self.host, self.port)
        except OSError as error:
            where = f"{self.host}:{self.port}"
            raise ConnectionLost(
                f"UDP {where} cannot be bound ({error}); end the program that has it, or change IIOT_COAP_BIND"
            ) from error

    def check(self) -> None:
        """Bind the port and leave it; a running adapter has it."""
        try:
            self._bind().close()
        except ConnectionLost as error:
            raise AdapterError(str(error)) from error

    def run(self, inbox: Inbox, stop: threading.Event) -> None:
        """Serve until `stop`; the event loop lives in this thread."""
        asyncio.run(self._serve(inbox, self._bind(), stop))

    async def _serve(self, inbox: Inbox, sock: Any, stop: threading.Event) -> None:
        server = Server(inbox, self.guard, self.takes_tokens)
        try:
            await server.serve(sock, stop, lambda: setattr(self, "_server", server))
        finally:
            self._server = None

    def listening(self) -> list[str]:
        """The devices that observe /commands and have confirmed the last notification."""
        server = self._server
        return [] if server is None else server.observers.listening()

    def command(self, order: Order) -> bool:
        """Notify the observers of the device; True once one of them has acknowledged it."""
        server = self._server
        if server is None:
            return False
        work = server.observers.push(order)
        try:
            asked = asyncio.run_coroutine_threadsafe(work, server.loop)
        except RuntimeError:
            # The loop has just ended.
            work.close()
            return False
        try:
            return asked.result(COMMAND_SECONDS)
        except (TimeoutError, concurrent.futures.CancelledError):
            asked.cancel()
            return False

    def send(self, uid: str, token: str, payload: bytes) -> None:
        """POST one message as the device; returns after 2.04, which means that it is stored."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared with
        shown = f"[{host}]" if ":" in host else host
        uri = f"coap://{shown}:{self.port}/telemetry?uid={quote(uid)}&token={quote(token)}"
        asyncio.run(_post(uri, payload))


async def _post(uri: str, payload: bytes) -> None:
    context = await Context.create_client_context(transports=["simple6"])
    try:
        request = aiocoap.Message(code=codes.POST, uri=uri, payload=payload, content_format=JSON)
        answer = await asyncio.wait_for(context.request(request).response, ANSWER_SECONDS + 5)
    except (aiocoap.error.Error, OSError, TimeoutError) as error:
        reason = str(error) or "no answer"
        raise AdapterError(f"the message was not confirmed: {reason}") from error
    finally:
        await context.shutdown()
    if not answer.code.is_successful():
        raise AdapterError(f"{answer.code}: {answer.payload.decode('utf-8', 'replace')}")


__all__ = ["LINKS", "SOURCE_BURST", "CoapAdapter", "make"]
