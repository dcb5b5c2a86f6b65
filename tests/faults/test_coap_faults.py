"""Kill tests over CoAP: what was confirmed is stored once, whatever died under the load.

IIOT_FAULT_RATE (2,000) messages a second, for IIOT_FAULT_SECONDS (6) around the faults of a test.
"""

import os
import selectors
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.coap_load import Client
from iiot import clock
from iiot.config import Settings
from tests import factories
from tests.faults.pace import Pace
from tests.integration.coap_devices import Device, Server, serving
from tests.services import PostgresServer, eventually

DEVICES = 24
WINDOW = 8
WAIT = 60
RATE = int(os.environ.get("IIOT_FAULT_RATE", "2000"))
# Messages that are confirmed before the next fault.
BETWEEN = int(RATE * float(os.environ.get("IIOT_FAULT_SECONDS", "6")) / 3)


class Load(threading.Thread):
    """Confirmable messages of many devices, RATE a second together; each device keeps the ledger of what was confirmed."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        host, port = server.bind.rsplit(":", 1)
        self.devices = [server.device() for _ in range(DEVICES)]
        self.clients = [
            Client(
                (host, int(port)),
                [2, "telemetry", [f"uid={each.uid}", f"token={each.token}"], 50, '{"ts": %d, "values": {"n": %d}}'],
                WINDOW,
            )
            for each in self.devices
        ]
        for client in self.clients:
            # Live data: the bench's numbers are an hour old.
            client.number = client.first = clock.now_ms() - 300_000
        self.pace = Pace(RATE)
        self._turn = 0
        self.before: list[int] = []
        self.done = threading.Event()
        self.start()

    @property
    def confirmed(self) -> int:
        """How many were answered 2.04 so far."""
        return sum(len(each.confirmed) for each in self.clients)

    def run(self) -> None:
        """Until `done`; then wait for the answers that are still to come, without sending more."""
        selector = selectors.DefaultSelector()
        for client in self.clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        looked, until = time.monotonic(), float("inf")
        self.pace.run()
        while (now := time.monotonic()) < until and not (
            self.done.is_set() and not any(c.waiting for c in self.clients)
        ):
            if self.done.is_set() and until == float("inf"):
                until = now + WAIT
            if not self.done.is_set():
                self._offer(now)
            for key, _ in selector.select(0.005):
                key.data.read(now)
            if now - looked > 0.5:
                looked = now
                for client in self.clients:
                    client.resend(now)

    def _offer(self, now: float) -> None:
        """What is due, in turn, as far as the windows allow."""
        full = 0
        while self.pace.total < self.pace.due() and full < len(self.clients):
            client = self.clients[self._turn]
            self._turn = (self._turn + 1) % len(self.clients)
            if client.is_full:
                full += 1
            else:
                full = 0
                client.offer(now)
                self.pace.offer()

    def _is_back(self) -> bool:
        """Whether each device was confirmed something that it sent after the kill: more than could have been on the way."""
        return all(
            len(each.confirmed) > before + WINDOW for each, before in zip(self.clients, self.before, strict=True)
        )

    @contextmanager
    def fault(self) -> Iterator[None]:
        """What dies in here is what the devices talk to, or the database behind it: either way nobody can take messages."""
        with self.pace.fault(self._is_back):
            self.pace.rest()
            yield
            self.before = [len(each.confirmed) for each in self.clients]
        self.pace.run()

    def finish(self) -> None:
        """Send no more, wait, and compare the ledger with the database: nothing lost, nothing twice."""
        self.done.set()
        self.join(WAIT * 2)
        assert not self.is_alive()
        self.pace.check()
        for device, client in zip(self.devices, self.clients, strict=True):
            client.socket.close()
            stored = values(device)
            assert set(client.confirmed) <= stored.keys()
            assert len(set(client.confirmed)) == len(client.confirmed)
            assert set(stored.values()) == {1}
            assert set(client.codes) <= {68, 163}, client.codes


def values(device: Device) -> dict[int, int]:
    """How often each number of the device is stored."""
    query = """SELECT t.num, count(*) FROM iiot.telemetry t JOIN iiot.signal s
        ON s.tenant_id = t.tenant_id AND s.id = t.signal_id WHERE s.device_id = %s GROUP BY t.num"""
    return {int(number): int(count) for number, count in factories.rows(query, device.device_id)}


@pytest.fixture
def server(settings: Settings) -> Iterator[Server]:
    with serving(settings.model_copy(update={"device_rate": 10_000, "device_burst": 10_000})) as (process, changed):
        yield Server(process, changed.coap_bind, factories.make_tenant())


def goes_on(load: Load) -> None:
    """As many again are confirmed."""
    before = load.confirmed
    eventually(lambda: load.confirmed > before + BETWEEN, WAIT)


def test_the_database_is_killed_under_load(server: Server, postgres: PostgresServer) -> None:
    load = Load(server)
    goes_on(load)
    with load.fault():
        postgres.kill()
        postgres.start()
    goes_on(load)
    load.finish()


def test_the_adapter_is_killed_under_load_and_back(server: Server) -> None:
    load = Load(server)
    for _ in range(2):
        goes_on(load)
        with load.fault():
            server.process.kill()
            server.process.start()
    goes_on(load)
    load.finish()


def test_the_adapter_is_stopped_under_load_and_back(server: Server) -> None:
    load = Load(server)
    goes_on(load)
    with load.fault():
        assert server.process.stop() == 0
        server.process.start()
    goes_on(load)
    load.finish()
