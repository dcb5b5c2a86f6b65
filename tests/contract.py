"""One adapter with everything around it, for the suite that every adapter passes (tests/integration/test_protocols.py)."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from iiot import clock
from protocols.base import AdapterError, Message, Outcome
from protocols.runner import Runner
from tests import factories, services
from tests.drivers import Driver
from tests.integration.mqtt_devices import AdapterProcess, Device
from tests.metrics import metric
from tests.services import eventually

NOT_STORED = "batch not stored, nothing acknowledged"
WRITER_WAITS = """SELECT 1 FROM pg_stat_activity
    WHERE usename = 'iiot_ingest' AND datname = current_database() AND wait_event_type = 'Lock'"""


def reading(number: int) -> bytes:
    """A message with a time of its own: however often it comes, it is stored once."""
    return b'{"ts":%d,"values":{"n":%d}}' % (clock.now_ms(), number)


class Side:
    """An adapter as `python -m protocols` runs it, its tenant, and devices that use its own `send`."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.metrics = driver.folder / "metrics"
        self.metrics.mkdir()
        self.process = AdapterProcess(driver.settings, driver.name)
        self.tenant = factories.make_tenant()

    @property
    def name(self) -> str:
        """The protocol."""
        return self.driver.name

    def start(self) -> "Side":
        """Start the process unless it runs; its metrics go to a folder of this module."""
        if self.process.process is None or self.process.process.poll() is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.metrics)
            try:
                self.process.start()
            finally:
                del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        return self

    def stop(self) -> None:
        """SIGTERM, if it runs."""
        if self.process.process is not None:
            self.process.stop()

    def terminate(self) -> None:
        """SIGTERM without waiting for the end."""
        assert self.process.process is not None
        os.kill(self.process.process.pid, signal.SIGTERM)

    @contextmanager
    def away(self) -> Iterator[None]:
        """kill -9 of what devices talk to, the broker or the adapter itself, which is back at the end."""
        broker = self.driver.broker
        if broker is not None:
            before = self.process.connections
            broker.kill()
            yield
            broker.start()
            eventually(lambda: self.process.reconnected(before), 60)
        else:
            self.process.kill()
            yield
            self.start()

    def device(self) -> Device:
        """A new device of this side's tenant."""
        return Device(self.tenant)

    def send(self, device: Device, payload: bytes, token: str | None = None) -> None:
        """Send once, as the adapter's own client does; raises AdapterError."""
        self.driver.module.make(self.driver.settings).send(
            device.uid, device.token if token is None else token, payload
        )

    def insist(self, device: Device, number: int, seconds: float = 60) -> None:
        """Send one reading like a device that must know: again, until it is there."""
        payload = reading(number)

        def is_stored() -> bool:
            with suppress(AdapterError, AssertionError):
                self.send(device, payload)
                return self.driver.commits or eventually(lambda: float(number) in device.values, 5)
            return False

        eventually(is_stored, seconds, 0.1)

    def said(self, word: str, before: int) -> bool:
        """Whether the process has said it since its log had `before` characters."""
        return word in self.process.said[before:]

    def command(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """`python -m protocols <arguments>`."""
        return subprocess.run(
            [sys.executable, "-m", "protocols", *arguments],
            cwd=services.ROOT,
            env=services.environment(self.driver.settings),
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def metric(self, name: str, **labels: str) -> float:
        """A metric of this protocol, summed up over its processes; 0 when there is none yet."""
        alive = self.process.process
        return metric(self.metrics, alive.pid if alive else None, name, protocol=self.name, **labels)


class Counting(Runner):
    """A runner that knows how many messages it has taken and not settled, at most."""

    taken = settled = most = 0

    def deliver(self, message: Message) -> None:
        settle = message.settle

        def count(settled: Message, outcome: Outcome) -> None:
            self.settled += 1
            settle(settled, outcome)

        message.settle = count
        super().deliver(message)
        self.taken += 1
        self.most = max(self.most, self.taken - self.settled)


@contextmanager
def locked() -> Iterator[None]:
    """Nothing can be written to the table of readings."""
    connection = factories.connect(autocommit=False)
    try:
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE iiot.telemetry IN ACCESS EXCLUSIVE MODE")
        yield
    finally:
        connection.close()
