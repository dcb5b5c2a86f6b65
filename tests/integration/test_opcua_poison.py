"""The poison corpus over OPC UA: as values that somebody writes, and as bytes at the port. Nothing crashes, and nobody else waits for it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest
from asyncua import Client, ua

from iiot.config import Settings
from tests import factories
from tests.integration.opcua_clients import Server, Side, node, run, serving
from tests.poison.corpus import CORPUS

# What the issue allows a neighbour to be later than without the poison.
DELAY_SECONDS = 1.0
# Four of them still fit into a message of the server's limits, also when every byte becomes three.
LARGEST = 60_000
Codes = ua.StatusCodes
# A person may order 100 commands an hour; what comes after them is refused by that.
ANSWERS = {Codes.Good, Codes.BadTypeMismatch, Codes.BadOutOfRange, Codes.BadServerTooBusy}


@pytest.fixture(scope="module")
def server(module_settings: Settings, unmeasured: None) -> Iterator[Server]:
    with serving(module_settings) as running:
        yield running


class Neighbour:
    """Somebody of another tenant who reads a value over and over."""

    def __init__(self, client: Client, side: Side) -> None:
        self._node = node(client, f"{side.device(n=1.0).uid}/n")
        self.longest = 0.0

    async def read(self, stop: asyncio.Event) -> None:
        """Until `stop`."""
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            began = loop.time()
            await self._node.read_data_value(raise_on_bad_status=False)
            self.longest = max(self.longest, loop.time() - began)
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def beside(server: Server) -> AsyncIterator[None]:
    """What is done within must keep no neighbour waiting, nor end the server."""
    side, stop = Side(factories.make_tenant()), asyncio.Event()
    async with server.connected(side.user("viewer")) as client:
        neighbour = Neighbour(client, side)
        reading = asyncio.create_task(neighbour.read(stop))
        try:
            yield
        finally:
            stop.set()
            await reading
    assert neighbour.longest <= DELAY_SECONDS
    assert server.process.process is not None
    assert server.process.process.poll() is None


def test_as_values_it_is_queued_or_refused(server: Server) -> None:
    side = Side(factories.make_tenant())
    device = side.device(text="a", data={"a": 1}, number=1.0)
    for key in ("text", "data", "number"):
        side.change(device, key, writable=True)

    async def look() -> list[int]:
        codes = []
        async with beside(server), server.connected(side.user("engineer")) as client:
            for item in CORPUS:
                text = ua.Variant(item.payload[:LARGEST].decode(errors="replace"), ua.VariantType.String)
                raw = ua.Variant(item.payload[:LARGEST], ua.VariantType.ByteString)
                values = [("text", text), ("data", text), ("number", text), ("text", raw)]
                wanted = [
                    ua.WriteValue(
                        node(client, f"{device.uid}/{key}").nodeid, ua.AttributeIds.Value, None, ua.DataValue(value)
                    )
                    for key, value in values
                ]
                params = ua.WriteParameters()
                params.NodesToWrite = wanted
                codes += [code.value for code in await client.uaclient.write(params)]
        return codes

    codes = run(look())
    assert len(codes) == 4 * len(CORPUS)
    assert set(codes) <= ANSWERS
    # One command per request that had something to queue.
    [(made,)] = factories.rows("SELECT count(*) FROM iiot.command WHERE device_id = %s", device.device_id)
    assert 0 < made <= 100
    assert codes.count(Codes.Good) >= made


def _throw(server: Server, payload: bytes) -> None:
    """These bytes on a connection of their own, and after a Hello that is right."""
    parts = urlsplit(server.url)
    hello = b"HELF" + (32 + len(server.url)).to_bytes(4, "little") + b"".join(
        number.to_bytes(4, "little") for number in (0, 65_535, 65_535, 0, 0, len(server.url))
    ) + server.url.encode()  # fmt: skip
    for before in (b"", hello):
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname, parts.port), timeout=5) as raw:
            raw.sendall(before + payload[:LARGEST])


def test_as_bytes_at_the_port_it_is_dropped(server: Server) -> None:
    async def look() -> None:
        async with beside(server):
            for item in CORPUS:
                await asyncio.to_thread(_throw, server, item.payload)

    run(look())
