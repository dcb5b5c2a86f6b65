"""The database and a web worker are killed while devices POST: what was answered 200 is stored, once."""

import base64
import contextlib
import http.client
import itertools
import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from iiot.config import Settings
from tests import factories, services
from tests.faults.ledger import Ledger, sending
from tests.integration.mqtt_devices import Device
from tests.live import WebServer
from tests.services import PostgresServer

SENDERS = 8
# Messages in one request, as a gateway sends them: two thousand requests a second are more than two cores answer.
TOGETHER = 10


@pytest.fixture
def web(settings: Settings) -> Iterator[WebServer]:
    """Gunicorn with two workers, which lets one device send as much as it can."""
    with services.active(settings.model_copy(update={"device_rate": 100_000, "device_burst": 100_000})):
        server = WebServer()
        server.start()
        yield server
        server.stop()


class Poster:
    """A device that keeps its connection, and sends again what was not answered with 200."""

    def __init__(self, web: WebServer, device: Device) -> None:
        self.port = web.port
        login = base64.b64encode(f"{device.uid}:{device.token}".encode()).decode()
        self.headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}

    def __call__(self, ledger: Ledger) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=40)) as connection:
            numbers = ledger.paced()
            while batch := list(itertools.islice(numbers, TOGETHER)):
                payload = b"[" + b",".join(map(ledger.payload, batch)) + b"]"
                while not self.stored(connection, payload):
                    if ledger.stop.wait(0.1):
                        return
                for number in batch:
                    ledger.acknowledge(number)

    def stored(self, connection: http.client.HTTPConnection, payload: bytes) -> bool:
        """Whether the answer was 200; anything else, or none, is no promise."""
        try:
            connection.request("POST", "/api/v1/telemetry", payload, self.headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return False
        return answer.status == 200


@pytest.mark.timeout(240)
def test_the_database_and_the_web_workers_are_killed(web: WebServer, postgres: PostgresServer) -> None:
    device = Device(factories.make_tenant())
    ledger = Ledger(device)
    with sending(ledger, *[Poster(web, device)] * SENDERS):
        ledger.reach(0.2)
        with ledger.fault():
            postgres.kill()
            postgres.start()
        ledger.reach(0.6)
        with ledger.fault():
            assert web.popen is not None
            for child in psutil.Process(web.popen.pid).children():
                os.kill(child.pid, signal.SIGKILL)
        ledger.check()
