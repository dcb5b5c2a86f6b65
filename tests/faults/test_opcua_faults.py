"""Servers are killed under a client that watches 500 signals and writes: the newest values come back, no write is lost or doubled."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from asyncua import Client, Node, ua
from sqlalchemy.exc import DBAPIError

from iiot import clock
from iiot.config import Settings
from tests import factories
from tests.integration.opcua_clients import Server, Side, node, serving
from tests.services import PostgresServer, ValkeyServer, eventually

DEVICES = 50
SIGNALS = 10
RECOVERY = 30.0
# All that is ever said to a write that was not taken.
NOT_NOW = "BadResourceUnavailable"


class Source(threading.Thread):
    """Readings of all signals, round after round, each again until it is committed. A round's number is its value."""

    def __init__(self, devices: list[factories.DeviceRow]) -> None:
        super().__init__(daemon=True)
        self.uids = [each.uid for each in devices]
        self.stored = 0
        self.done = threading.Event()
        self._base = clock.now_ms() - 100_000

    def round(self) -> None:
        """Store one round."""
        values = dict.fromkeys((f"s{number}" for number in range(SIGNALS)), float(self.stored))
        item = (self._base + self.stored, values)
        factories.ingest([factories.message(uid, item) for uid in self.uids])
        self.stored += 1

    def run(self) -> None:
        """Until `done`."""
        while not self.done.wait(0.2):
            try:
                self.round()
            except DBAPIError:
                continue


class Operator(threading.Thread):
    """One client with one session: hears of all signals in one subscription, and writes numbers that are never used again."""

    def __init__(self, server: Server, email: str, devices: list[factories.DeviceRow]) -> None:
        super().__init__(daemon=True)
        self.newest: dict[str, float] = {}
        self.good: list[float] = []
        self.refused: list[str] = []
        self.wrong: list[str] = []
        self.ready = threading.Event()
        self.done = threading.Event()
        self._server, self._email = server, email
        self._signals = [f"{each.uid}/s{number}" for each in devices for number in range(SIGNALS)]
        self._written = [f"{each.uid}/s0" for each in devices[:5]]

    def datachange_notification(self, signal: Node, value: Any, data: Any) -> None:
        """Called by asyncua. A newest value never becomes an older one, and never bad."""
        name, before = signal.nodeid.Identifier, self.newest.get(signal.nodeid.Identifier, -1.0)
        if value is None or value < before:
            self.wrong.append(f"{name}: {before} → {value} {data.monitored_item.Value.StatusCode}")
        self.newest[name] = value

    def status_change_notification(self, status: Any) -> None:
        """Called by asyncua when the subscription ends."""
        self.wrong.append(f"the subscription: {status}")

    def run(self) -> None:
        """Until `done`; whatever goes wrong is told at the end."""
        try:
            asyncio.run(self._work())
        except Exception as error:
            self.wrong.append(repr(error))

    async def _work(self) -> None:
        async with self._server.connected(self._email) as client:
            subscription = await client.create_subscription(200, self)
            await subscription.subscribe_data_change([node(client, text) for text in self._signals])
            self.ready.set()
            number = 0
            while not await asyncio.to_thread(self.done.wait, 0.5):
                await self._write(client, self._written[number % len(self._written)], float(number))
                number += 1
            # It is the session of the beginning: this client never connects again by itself.
            assert await client.nodes.server_state.read_value() == ua.ServerState.Running

    async def _write(self, client: Client, signal: str, number: float) -> None:
        try:
            await node(client, signal).write_value(number)
        except ua.UaStatusCodeError as error:
            self.refused.append(type(error).__name__)
        else:
            self.good.append(number)

    def has(self, number: int) -> bool:
        """Whether it has heard this round or a later one of every signal."""
        return len(self.newest) == DEVICES * SIGNALS and min(self.newest.values()) >= number


class Plant:
    """All that goes on while servers are killed."""

    def __init__(self, server: Server) -> None:
        self.side = Side(factories.make_tenant())
        self.devices = [factories.make_device(self.side.tenant) for _ in range(DEVICES)]
        self.source = Source(self.devices)
        self.source.round()
        for device in self.devices[:5]:
            self.side.change(device, "s0", writable=True)
        self.operator = Operator(server, self.side.user("operator"), self.devices)

    def goes_on(self) -> None:
        """From now on within half a minute: readings are stored, all of them are heard, a write is answered Good."""
        goal, written = self.source.stored + 3, len(self.operator.good)
        eventually(
            lambda: (
                self.operator.wrong
                or (self.source.stored > goal and self.operator.has(goal) and len(self.operator.good) > written + 1)
            ),
            RECOVERY,
        )
        assert self.operator.wrong == []

    def finish(self) -> None:
        """Nothing more happens: what was stored last is what is seen, and every good write is one command."""
        self.source.done.set()
        self.source.join(RECOVERY)
        eventually(lambda: self.operator.has(self.source.stored - 1))
        self.operator.done.set()
        self.operator.join(RECOVERY)
        assert not self.operator.is_alive()
        assert self.operator.wrong == []
        assert set(self.operator.newest.values()) == {float(self.source.stored - 1)}
        query = """SELECT (params->>'s0')::float, count(*) FROM iiot.command WHERE device_id = ANY(%s) GROUP BY 1"""
        commands = dict(factories.rows(query, [each.device_id for each in self.devices]))
        assert set(self.operator.good) <= commands.keys()
        assert set(commands.values()) == {1}
        assert set(self.operator.refused) <= {NOT_NOW}


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[Server]:
    with serving(module_settings) as running:
        yield running


@contextmanager
def working(server: Server) -> Iterator[Plant]:
    """Readings and writes go on; afterwards everything is compared."""
    plant = Plant(server)
    plant.source.start()
    plant.operator.start()
    try:
        assert plant.operator.ready.wait(RECOVERY)
        plant.goes_on()
        yield plant
        plant.finish()
    finally:
        plant.source.done.set()
        plant.operator.done.set()


def test_the_database_is_killed_under_a_watching_client(server: Server, postgres: PostgresServer) -> None:
    with working(server) as plant:
        for _ in range(2):
            plant.operator.refused.clear()
            postgres.kill()
            # Not without a refused write: so the outage was noticed.
            try:
                eventually(lambda: plant.operator.refused or plant.operator.wrong, RECOVERY)
            finally:
                postgres.start()
            assert set(plant.operator.refused) <= {NOT_NOW}
            plant.goes_on()


def test_valkey_is_killed_under_a_watching_client(server: Server, valkey: ValkeyServer) -> None:
    with working(server) as plant:
        valkey.kill()
        try:
            # What nobody brings any more is looked up.
            plant.goes_on()
        finally:
            valkey.start()
        plant.goes_on()
