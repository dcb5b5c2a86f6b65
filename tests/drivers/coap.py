"""CoAP: the adapter is the server. The device is aiocoap's client."""

import asyncio
import importlib
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aiocoap
import pytest
from aiocoap import Context, Message
from aiocoap.numbers import codes

from tests.drivers import Driver, Send
from tests.integration.coap_devices import with_port

# RFC 7252 section 12.3, RFC 8949, RFC 8428.
NUMBERS = {"application/json": 50, "application/cbor": 60, "application/senml+json": 110, "application/senml+cbor": 112}


class Protocol(Driver):
    """2.04 comes after the commit."""

    def start(self, _request: pytest.FixtureRequest) -> None:
        self.settings = with_port(self.settings)

    def tighten(self, messages: int, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("coap.MOST_AT_ONCE", "coap_server.MOST_WAITING"):
            module, _, constant = name.partition(".")
            if importlib.util.find_spec(f"protocols.{module}"):
                monkeypatch.setattr(importlib.import_module(f"protocols.{module}"), constant, messages, raising=False)

    @contextmanager
    def device(self, uid: str, token: str) -> Iterator[Send]:
        """One context in a thread of its own; a content type that CoAP has no number for is sent as 65000."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        uri = f"coap://{self.settings.coap_bind}/telemetry?uid={uid}&token={token}"
        client = asyncio.run_coroutine_threadsafe(_client(), loop).result(10)

        async def post(payload: bytes, number: int | None) -> None:
            request = Message(code=codes.POST, uri=uri, payload=payload, content_format=number)
            try:
                await asyncio.wait_for(client.request(request).response, 60)
            except aiocoap.error.Error:
                return

        def send(payload: bytes, content_type: str | None) -> None:
            number = None if content_type is None else NUMBERS.get(content_type, 65_000)
            asyncio.run_coroutine_threadsafe(post(payload, number), loop).result(90)

        try:
            yield send
        finally:
            asyncio.run_coroutine_threadsafe(client.shutdown(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()


async def _client() -> Context:
    return await Context.create_client_context(transports=["simple6"])
