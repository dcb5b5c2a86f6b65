"""Processes and servers are killed while readings arrive: nothing is missed by the newest values or by those who listen."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import pytest
from sqlalchemy.exc import DBAPIError

from iiot import clock, tenancy
from iiot.config import Settings
from iiot.stream.log import lag
from iiot.tenancy import sql
from tests import factories
from tests.live import Listener, Process, WebServer, listening, stream, token_of
from tests.services import PostgresServer, ValkeyServer, eventually


@dataclass
class Portal:
    """The processes under test."""

    web: WebServer
    stream: Process


@pytest.fixture(scope="module")
def portal(module_settings: Settings) -> Iterator[Portal]:
    """The web server and the stream, for all tests of the module."""
    running = Portal(WebServer(), stream())
    running.web.start()
    running.stream.start()
    yield running
    running.stream.stop()
    running.web.stop()


class Source:
    """Stores one reading after another in the background, each again until it is committed, as an adapter does."""

    def __init__(self, device: factories.DeviceRow) -> None:
        self.device = device
        self.base = clock.now_ms() - 100_000
        self.stored = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                factories.store(self.device.uid, (self.base + self.stored, {"n": float(self.stored)}))
            except DBAPIError:
                self._stop.wait(0.05)
            else:
                self.stored += 1
                self._stop.wait(0.005)

    def more(self, count: int = 30) -> None:
        """Wait until so many more are stored."""
        goal = self.stored + count
        eventually(lambda: self.stored >= goal, 30)

    @property
    def everything(self) -> set[tuple[str, str, int]]:
        """What a listener must have seen."""
        return {(self.device.uid, "n", self.base + number) for number in range(self.stored)}


@contextmanager
def storing(device: factories.DeviceRow) -> Iterator[Source]:
    """Readings arrive; at the end the newest value is the last one stored."""
    source = Source(device)
    source._thread.start()
    try:
        source.more()
        yield source
    finally:
        source._stop.set()
        source._thread.join(30)
    eventually(lambda: _newest(device) == float(source.stored - 1), 30)


def _newest(device: factories.DeviceRow) -> float | None:
    with tenancy.work(tenancy.of_device(device)) as db:
        newest: float | None = db.scalar(sql("SELECT num FROM iiot.latest"))
        return newest


def _lag(name: str) -> int:
    with tenancy.work(tenancy.system("stream")) as db:
        return lag(db, name).rows


@pytest.fixture
def device(portal: Portal) -> factories.DeviceRow:
    """A device of a tenant of its own."""
    return factories.make_device(factories.make_tenant())


@pytest.fixture
def listener(portal: Portal, device: factories.DeviceRow) -> Iterator[Listener]:
    """Somebody of the device's tenant who listens to it."""
    user = factories.make_user(factories.TenantRow(device.tenant_id, "", ""), "viewer")
    with listening(portal.web.url, token_of(user)[0], devices=[device.uid]) as connected:
        yield connected


def test_the_stream_is_killed_in_the_middle(portal: Portal, device: factories.DeviceRow, listener: Listener) -> None:
    with storing(device) as source:
        for _ in range(3):
            eventually(lambda: listener.readings)
            portal.stream.kill()
            source.more()
            portal.stream.start()
            source.more()
    eventually(lambda: listener.readings.keys() >= source.everything, 30)
    assert not listener.gone.is_set()


def test_two_streams_share_the_work(portal: Portal, device: factories.DeviceRow, listener: Listener) -> None:
    second = Process(["-m", "iiot", "stream"])
    second.start()
    try:
        with storing(device) as source:
            portal.stream.kill()
            source.more()
            eventually(lambda: listener.readings.keys() >= source.everything, 30)
    finally:
        portal.stream.start()
        second.stop()


def test_valkey_is_killed_and_comes_back(
    portal: Portal, device: factories.DeviceRow, listener: Listener, valkey: ValkeyServer
) -> None:
    with storing(device) as source:
        eventually(lambda: listener.readings)
        valkey.kill()
        try:
            source.more(100)
            # What needs no Redis goes on without it.
            eventually(lambda: _lag("latest") < 50)
        finally:
            valkey.start()
        source.more()
    eventually(lambda: listener.readings.keys() >= source.everything, 30)
    # The client did nothing: its worker read what it had missed from the log.
    assert not listener.gone.is_set()


def test_postgresql_is_killed_and_comes_back(
    portal: Portal, device: factories.DeviceRow, listener: Listener, postgres: PostgresServer
) -> None:
    with storing(device) as source:
        eventually(lambda: listener.readings)
        postgres.kill()
        postgres.start()
        source.more()
    eventually(lambda: listener.readings.keys() >= source.everything, 30)


def test_what_redis_brought_no_more_comes_in_order_although_the_database_is_away_as_well(
    portal: Portal, device: factories.DeviceRow, listener: Listener, valkey: ValkeyServer, postgres: PostgresServer
) -> None:
    with storing(device) as source:
        eventually(lambda: listener.readings)
        before = portal.web.output.count("catching up failed")
        valkey.kill()
        source.more()
        postgres.kill()
        try:
            valkey.start()
            eventually(lambda: portal.web.output.count("catching up failed") >= before + 6, 30)
        finally:
            postgres.start()
        source.more()
    eventually(lambda: listener.readings.keys() >= source.everything, 30)
    first = list(dict.fromkeys(listener.order))
    assert first == sorted(first)
    assert not listener.gone.is_set()


def test_a_web_worker_is_killed_and_its_client_resumes(
    portal: Portal, device: factories.DeviceRow, listener: Listener
) -> None:
    assert portal.web.popen is not None
    with storing(device) as source:
        eventually(lambda: listener.readings)
        for child in psutil.Process(portal.web.popen.pid).children():
            os.kill(child.pid, signal.SIGKILL)
        assert listener.gone.wait(10)
        listener.close()
        since = listener.cursor
        source.more()
        eventually(lambda: _reconnects(listener), 30)
        assert listener.ask("subscribe", {"devices": [device.uid]})["ok"]
        source.more()
        assert listener.ask("resume", {"cursor": since})["ok"]
    eventually(lambda: listener.readings.keys() >= source.everything, 30)


def _reconnects(listener: Listener) -> bool:
    try:
        listener.connect()
    except Exception:
        listener.close()
        return False
    return True


def test_the_stream_ends_within_five_seconds(module_settings: Settings) -> None:
    process = stream()
    process.start()
    eventually(lambda: "stream started" in process.output, 20)
    assert process.stop() < 5
