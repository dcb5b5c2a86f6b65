"""Kill tests: 10,000 QoS 1 messages, something dies in the middle, and every message is stored once."""

import threading

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from iiot import clock
from iiot.config import Settings
from tests import factories
from tests.integration.mqtt_devices import AdapterProcess, Device
from tests.services import MosquittoServer, PostgresServer, eventually

MESSAGES = 10_000


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
