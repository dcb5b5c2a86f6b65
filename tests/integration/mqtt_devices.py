"""Devices for MQTT tests: real paho clients, and the adapter as a real process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from iiot import tenancy
from iiot.config import Settings
from iiot.services import devices
from tests import factories, services
from tests.integration.mqtt_brokers import Broker, running
from tests.services import eventually


class Device:
    """A device: creates itself through the service, so that the broker knows it."""

    def __init__(self, tenant: factories.TenantRow, name: str = "pump") -> None:
        self.tenant = tenant
        with tenancy.work(tenancy.of(tenant)) as db:
            device, self.token = devices.create(db, devices.NewDevice(name=name))
            self.uid, self.device_id = device.uid, device.id

    @property
    def rejections(self) -> list[str]:
        """The codes in rejected_message, oldest first."""
        found = factories.rows(
            "SELECT code FROM iiot.rejected_message WHERE device_id = %s ORDER BY id", self.device_id
        )
        return [str(row[0]) for row in found]

    @property
    def readings(self) -> int:
        """Readings stored."""
        query = """SELECT count(*) FROM iiot.telemetry t JOIN iiot.signal s
            ON s.tenant_id = t.tenant_id AND s.id = t.signal_id WHERE s.device_id = %s"""
        return int(factories.rows(query, self.device_id)[0][0])

    @property
    def values(self) -> set[float]:
        """The numbers stored."""
        query = """SELECT t.num FROM iiot.telemetry t JOIN iiot.signal s
            ON s.tenant_id = t.tenant_id AND s.id = t.signal_id WHERE s.device_id = %s"""
        return {float(row[0]) for row in factories.rows(query, self.device_id)}


class Connected:
    """A connection with everything that happened to it."""

    def __init__(
        self, broker: Broker, username: str, password: str, client_id: str, version: int | None = None
    ) -> None:
        self.codes: list[str] = []
        self.granted: list[bool] = []
        self.gone = False
        self.messages: list[tuple[str, Any]] = []
        protocol = MQTTProtocolVersion.MQTTv5 if (version or broker.newest) == 5 else MQTTProtocolVersion.MQTTv311
        self.client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=protocol, reconnect_on_failure=False)
        self.client.username_pw_set(username, password)
        self.client.on_connect = lambda _c, _u, _f, code, _p: self.codes.append(str(code))
        self.client.on_subscribe = lambda _c, _u, _m, codes, _p: self.granted.append(not codes[0].is_failure)
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = self._on_message
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()
        eventually(lambda: self.codes)

    def _on_disconnect(self, *_: Any) -> None:
        self.gone = True

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        text = bytes(message.payload).decode()
        self.messages.append((message.topic, json.loads(text) if text.startswith("{") else text))

    def subscribe(self, topic: str) -> bool:
        """Whether the broker granted it."""
        before = len(self.granted)
        self.client.subscribe(topic, qos=1)
        eventually(lambda: len(self.granted) > before)
        return self.granted[-1]

    def publish(self, topic: str, payload: bytes | str, qos: int = 1, retain: bool = False) -> None:
        """Returns when the broker has confirmed it."""
        self.client.publish(topic, payload, qos=qos, retain=retain).wait_for_publish(10)


@contextlib.contextmanager
def connection(
    broker: Broker, username: str, password: str, client_id: str, version: int | None = None
) -> Iterator[Connected]:
    """A connection that is closed at the end."""
    connected = Connected(broker, username, password, client_id, version)
    try:
        yield connected
    finally:
        connected.client.disconnect()
        connected.client.loop_stop()


@contextlib.contextmanager
def online(broker: Broker, device: Device, version: int | None = None) -> Iterator[Connected]:
    """A device that is logged in and listens to what it is told."""
    with connection(broker, device.uid, device.token, device.uid, version) as connected:
        assert connected.codes == ["Success"]
        assert connected.subscribe(f"iiot/{device.uid}/down/#")
        yield connected


class AdapterProcess:
    """`python -m protocols run <name>`."""

    def __init__(self, settings: Settings, name: str = "mqtt") -> None:
        self.settings = settings
        self.name = name
        self.log = settings.data_dir / "adapter.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it has subscribed."""
        before = self._connections()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "protocols", "run", self.name],
                cwd=services.ROOT,
                env=services.environment(self.settings) | services.measured(),
                stdout=log,
                stderr=log,
            )
        eventually(lambda: self._connections() > before, 60)

    def _connections(self) -> int:
        return self.log.read_text().count('"connected"') if self.log.exists() else 0

    @property
    def said(self) -> str:
        """Its log."""
        return self.log.read_text()

    def reconnected(self, before: int) -> bool:
        """Whether it has connected more often than `before`."""
        return self._connections() > before

    @property
    def connections(self) -> int:
        """How often it has connected so far."""
        return self._connections()

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
        return self.process.wait(12)


@contextlib.contextmanager
def served(kind: str, settings: Settings, folder: Path) -> Iterator[Broker]:
    """A broker of a kind, and the adapter at it."""
    with running(kind, settings, folder) as under, adapter(under.settings):
        yield under.server


@contextlib.contextmanager
def adapter(settings: Settings, name: str = "mqtt") -> Iterator[AdapterProcess]:
    """A running adapter that is stopped at the end."""
    running = AdapterProcess(settings, name)
    running.start()
    try:
        yield running
    finally:
        running.stop()
