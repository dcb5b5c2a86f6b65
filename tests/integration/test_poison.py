"""The poison corpus through every protocol: nothing crashes, nothing is forgotten, and nobody else waits for it."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from iiot.config import Settings
from protocols.__main__ import names
from tests import factories, services
from tests.drivers import Driver, Send, driver, kind
from tests.integration.mqtt_devices import AdapterProcess, Device
from tests.poison.corpus import CORPUS
from tests.poison.item import Item
from tests.poison.partly import TYPED
from tests.services import eventually

# What the issue allows a neighbour's message to be later than without the poison.
DELAY_SECONDS = 1.0
# A rejected message is kept with its beginning, at least so much of it.
KEPT_BYTES = 64 * 1024
# Messages a second: what they do to others is asked, not how many of them a machine takes.
RATE = 100


def test_the_corpus_is_large_and_without_twins() -> None:
    assert len(CORPUS) >= 200
    assert len({item.payload[:KEPT_BYTES] for item in CORPUS}) == len(CORPUS)
    assert len({item.name for item in CORPUS}) == len(CORPUS)


class Running:
    """A protocol with its server, and the processes that must not die."""

    def __init__(self, made: Driver) -> None:
        self.driver = made
        self.adapter: AdapterProcess | None = None
        if made.name in names():
            self.adapter = AdapterProcess(made.settings, made.name)
            self.adapter.start()

    def processes(self) -> tuple[object, ...]:
        """What changes when something has crashed."""
        if self.adapter is None:
            return tuple(self.driver.processes())  # type: ignore[attr-defined]
        assert self.adapter.process is not None
        return self.adapter.process.pid, self.adapter.process.poll(), self.adapter.connections

    def stop(self) -> None:
        if self.adapter is not None:
            self.adapter.stop()


@pytest.fixture(scope="module", params=[*(name for name in names() if kind(name).takes_messages), "http"])
def running(
    request: pytest.FixtureRequest, module_settings: Settings, workspace: Path, unmeasured: None
) -> Iterator[Running]:
    """Every protocol that takes messages."""
    folder = workspace / f"poison {request.param}"
    folder.mkdir(mode=0o755)
    made = driver(request.param, module_settings, folder)
    try:
        made.start(request)
        with services.active(made.settings):
            one = Running(made)
            yield one
            one.stop()
    finally:
        made.stop()


class Neighbour(threading.Thread):
    """A device of another tenant that sends a number, waits until it is stored, and sends the next one."""

    def __init__(self, send: Send, device: Device) -> None:
        super().__init__(daemon=True)
        self._send = send
        self._device = device
        self.waits: list[float] = []
        self.stop = threading.Event()

    def run(self) -> None:
        """Until `stop`; each wait is the time from sending to the committed row."""
        query = """SELECT count(*) FROM iiot.telemetry t JOIN iiot.signal s
            ON s.tenant_id = t.tenant_id AND s.id = t.signal_id WHERE s.device_id = %s"""
        with closing(factories.connect()) as connection, connection.cursor() as cursor:
            while not self.stop.wait(0.02):
                began = time.monotonic()
                self._send(b'{"n":%d}' % len(self.waits), None)
                stored = 0
                while stored <= len(self.waits) and time.monotonic() - began < 30:
                    cursor.execute(query, (self._device.device_id,))
                    [(stored,)] = cursor.fetchall()
                self.waits.append(time.monotonic() - began)


@contextmanager
def waiting(send: Send, device: Device) -> Iterator[Neighbour]:
    """A neighbour that sends meanwhile."""
    neighbour = Neighbour(send, device)
    neighbour.start()
    try:
        yield neighbour
    finally:
        neighbour.stop.set()
        neighbour.join(60)


def kept(device: Device) -> dict[bytes, str]:
    """Beginning of the payload → code, of every rejected message; each has a reason."""
    query = "SELECT payload, code, reason FROM iiot.rejected_message WHERE device_id = %s"
    found = factories.rows(query, device.device_id)
    assert all(reason for _, _, reason in found)
    return {bytes(payload)[:KEPT_BYTES]: code for payload, code, _ in found}


def stored_keys(device: Device) -> set[str]:
    """The signals that have a reading."""
    query = """SELECT DISTINCT s.key FROM iiot.telemetry t JOIN iiot.signal s
        ON s.tenant_id = t.tenant_id AND s.id = t.signal_id WHERE s.device_id = %s"""
    return {str(key) for (key,) in factories.rows(query, device.device_id)}


def wrong(item: Item, found: dict[bytes, str]) -> str | None:
    """What is wrong about what was kept of an item; None when nothing is."""
    code = found.get(item.payload[:KEPT_BYTES])
    return None if item.code in (code, "?") else f"{item.name}: {item.code} was expected, kept is {code}"


def poison(send: Send, corpus: list[Item]) -> None:
    """Send all of it, one after the other, at RATE."""
    pace, began = threading.Event(), time.monotonic()
    for number, item in enumerate(corpus):
        pace.wait(began + number / RATE - time.monotonic())
        send(item.payload, item.content_type)
    send(b'{"the.last":1}', None)


@pytest.mark.timeout(240)
def test_the_poison_harms_nobody(running: Running) -> None:
    poisoned, neighbour = (Device(factories.make_tenant(signals_per_device=1_000)) for _ in range(2))
    corpus = [item for item in CORPUS if item.content_type is None or running.driver.content_types]
    use = running.driver.device
    with use(poisoned.uid, poisoned.token) as send, use(neighbour.uid, neighbour.token) as send_too:
        send(b'{"%s":1}' % TYPED.encode(), None)
        eventually(lambda: poisoned.readings == 1, 30)
        alive = running.processes()
        with waiting(send_too, neighbour) as other:
            eventually(lambda: len(other.waits) >= 10, 60)
            usual, calm = statistics.median(other.waits), len(other.waits)
            poison(send, corpus)
            eventually(lambda: "the.last" in stored_keys(poisoned), 60)
    assert running.processes() == alive
    if running.adapter is not None:
        assert "Traceback" not in running.adapter.said
    found = kept(poisoned)
    problems = [problem for item in corpus if (problem := wrong(item, found))]
    assert not problems, "\n".join(problems)
    assert {item.key for item in corpus if item.key} - stored_keys(poisoned) == set()
    assert max(other.waits[calm:]) - usual <= DELAY_SECONDS, (usual, sorted(other.waits)[-5:])
