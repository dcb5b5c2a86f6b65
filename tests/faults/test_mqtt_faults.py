"""Kill tests: QoS 1 messages, something dies in the middle, and every message is stored once.

As many as go: 10,000 in one burst while adapter, database or broker die or restart. Paced: 2,000 messages a second for IIOT_FAULT_SECONDS (6 unless
set, 120 at most) while broker and database are killed, with a ledger of what the broker acknowledged.
"""

import os
import threading

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from iiot import clock
from iiot.config import Settings
from tests import factories
from tests.faults.pace import RECOVERY_SECONDS, Pace
from tests.integration.mqtt_devices import AdapterProcess, Device
from tests.services import MosquittoServer, PostgresServer, eventually

MESSAGES = 10_000
RATE = int(os.environ.get("IIOT_FAULT_RATE", "2000"))
SECONDS = min(120, int(os.environ.get("IIOT_FAULT_SECONDS", "6")))


class Publisher(threading.Thread):
    """A device that sends MESSAGES readings at QoS 1 and, like a good one, repeats what the broker has not confirmed."""

    def __init__(self, broker: MosquittoServer, device: Device) -> None:
        super().__init__(daemon=True)
        self.device = device
        self.client = Client(CallbackAPIVersion.VERSION2, device.uid, clean_session=False)
        self.client.username_pw_set(device.uid, device.token)
        self.client.max_inflight_messages_set(200)
        self.client.reconnect_delay_set(1, 1)
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()
        self.start()

    def run(self) -> None:
        """Publish, then wait until the broker has confirmed the last one."""
        start = clock.now_ms() - MESSAGES
        topic = f"iiot/{self.device.uid}/up/telemetry"
        sent = [
            self.client.publish(topic, b'{"ts":%d,"values":{"n":%d}}' % (start + number, number), qos=1)
            for number in range(MESSAGES)
        ]
        for info in sent:
            info.wait_for_publish(60)
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def device(mosquitto: MosquittoServer, settings: Settings) -> Device:
    return Device(factories.make_tenant())


def stored_once(device: Device, publisher: Publisher) -> None:
    """Everything is there, nothing twice; the log of batches says the same."""
    publisher.join(60)
    assert not publisher.is_alive()
    eventually(lambda: device.readings == MESSAGES, 60, 0.2)
    assert device.values == {float(number) for number in range(MESSAGES)}
    assert device.rejections == []


def test_the_adapter_is_killed_in_the_middle_of_a_batch(
    running: AdapterProcess, mosquitto: MosquittoServer, device: Device
) -> None:
    publisher = Publisher(mosquitto, device)
    eventually(lambda: device.readings > 1_000, 30)
    running.kill()
    running.start()
    eventually(lambda: device.readings > 4_000, 30)
    running.kill()
    running.start()
    stored_once(device, publisher)


def test_the_database_is_killed(
    running: AdapterProcess, mosquitto: MosquittoServer, device: Device, postgres: PostgresServer
) -> None:
    publisher = Publisher(mosquitto, device)
    eventually(lambda: device.readings > 1_000, 30)
    postgres.kill()
    postgres.start()
    stored_once(device, publisher)


def test_the_broker_restarts(running: AdapterProcess, mosquitto: MosquittoServer, device: Device) -> None:
    publisher = Publisher(mosquitto, device)
    eventually(lambda: device.readings > 1_000, 30)
    before = running.connections
    mosquitto.restart()
    eventually(lambda: running.reconnected(before), 20)
    stored_once(device, publisher)


def test_the_adapter_is_stopped_and_started_in_the_middle(
    running: AdapterProcess, mosquitto: MosquittoServer, device: Device
) -> None:
    publisher = Publisher(mosquitto, device)
    eventually(lambda: device.readings > 1_000, 30)
    assert running.stop() == 0
    running.start()
    stored_once(device, publisher)


class Ledger(threading.Thread):
    """Four devices that send RATE readings a second together, and what the broker has acknowledged of them.

    Each reading has a number and a time of its own. What was not acknowledged when the broker died is sent again, as MQTT asks.
    """

    def __init__(self, broker: MosquittoServer, devices: list[Device]) -> None:
        super().__init__(daemon=True)
        self.sent: dict[int, list[int]] = {device.device_id: [] for device in devices}
        self.acknowledged: dict[int, set[int]] = {device.device_id: set() for device in devices}
        self.devices = devices
        self.pace = Pace(RATE)
        self._sleep = threading.Event()
        self.clients = [self._client(broker, device) for device in devices]
        self.start()

    def _client(self, broker: MosquittoServer, device: Device) -> Client:
        client = Client(CallbackAPIVersion.VERSION2, device.uid, clean_session=False)
        client.username_pw_set(device.uid, device.token)
        client.max_inflight_messages_set(1_000)
        client.max_queued_messages_set(0)
        client.reconnect_delay_set(1, 1)
        numbers, acknowledged = self.sent[device.device_id], self.acknowledged[device.device_id]
        # Message ids count up from one with what is published; a client here sends less than 65,536.
        client.on_publish = lambda _c, _u, mid, _code, _p: acknowledged.add(numbers[mid - 1])
        client.connect(broker.host, broker.port)
        client.loop_start()
        return client

    def run(self) -> None:
        """Publish at the pace, whatever happens to the broker."""
        moment = clock.now_ms() - 5 * 60_000
        self.pace.run()
        for number in range(RATE * SECONDS):
            place = number % len(self.devices)
            device, client = self.devices[place], self.clients[place]
            self.sent[device.device_id].append(number)
            payload = b'{"ts":%d,"values":{"n":%d}}' % (moment + number, number)
            client.publish(f"iiot/{device.uid}/up/telemetry", payload, qos=1)
            self.pace.offer()
            ahead = (self.pace.total - self.pace.due()) / RATE
            if ahead > 0.005:
                self._sleep.wait(ahead)

    @property
    def count(self) -> int:
        """How many were acknowledged so far."""
        return sum(len(each) for each in self.acknowledged.values())

    def is_stored(self, before: int) -> bool:
        """Whether a message that was sent after so many is stored, or the last one."""
        newest = max(max(device.values, default=-1.0) for device in self.devices)
        return newest >= min(before, RATE * SECONDS - 1)

    def finish(self) -> None:
        """Wait until all was sent and acknowledged."""
        self.join(SECONDS + 120)
        eventually(lambda: self.count == RATE * SECONDS, 60, 0.1)
        for client in self.clients:
            client.disconnect()
            client.loop_stop()


def _check(ledger: Ledger) -> None:
    """What was acknowledged is stored once, and soon."""
    ledger.finish()
    eventually(lambda: sum(device.readings for device in ledger.devices) >= RATE * SECONDS, RECOVERY_SECONDS, 0.2)
    ledger.pace.check()
    for device in ledger.devices:
        expected = {float(number) for number in ledger.acknowledged[device.device_id]}
        assert expected - device.values == set(), "lost"
        assert device.readings == len(expected), "twice"
        assert device.rejections == []


@pytest.fixture
def ledger(running: AdapterProcess, mosquitto: MosquittoServer, settings: Settings) -> Ledger:
    tenant = factories.make_tenant()
    return Ledger(mosquitto, [Device(tenant, f"pump {number}") for number in range(4)])


def test_the_broker_is_killed_under_two_thousand_messages_a_second(
    running: AdapterProcess, mosquitto: MosquittoServer, ledger: Ledger
) -> None:
    eventually(lambda: ledger.count > RATE, 30)
    with ledger.pace.fault(lambda: ledger.is_stored(before)):
        mosquitto.kill()
        before = ledger.pace.total
        mosquitto.start()
    _check(ledger)


def test_the_database_is_killed_under_two_thousand_messages_a_second(
    running: AdapterProcess, mosquitto: MosquittoServer, ledger: Ledger, postgres: PostgresServer
) -> None:
    eventually(lambda: ledger.count > RATE, 30)
    with ledger.pace.fault(lambda: ledger.is_stored(before)):
        postgres.kill()
        before = ledger.pace.total
        postgres.start()
    _check(ledger)
