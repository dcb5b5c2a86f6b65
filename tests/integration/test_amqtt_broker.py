"""The broker for machines without Mosquitto: the same rules, and the defects of amqtt that are mended."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from iiot import tenancy
from iiot.config import Settings
from iiot.embedded import mqtt, ports
from iiot.services import devices, homes, tenants
from tests import services
from tests.services import eventually


@dataclass(frozen=True)
class Operator:
    """Acts for one tenant."""

    tenant_id: int


@dataclass
class Client:
    """A paho client that remembers what happened to it."""

    client: paho.Client
    answers: list[str] = field(default_factory=list)
    received: list[tuple[str, bytes]] = field(default_factory=list)
    granted: list[int] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Broker:
    """A running amqtt with one tenant's devices behind it."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.users = mqtt.ServiceUsers(folder / "secrets")
        self.port = ports.free_port()
        binds = {name: ("127.0.0.1", ports.free_port()) for name in ("mqtt_tls_bind", "mqtt_ws_bind")}
        url = self.users.url(mqtt.ADAPTER, "127.0.0.1", self.port)
        environment = services.environment(settings) | {"IIOT_MQTT_URL": url, "IIOT_MQTT_BROKER": "amqtt"}
        self.server = services.Server(
            mqtt.Amqtt(self.users, folder / "logs", {"mqtt_bind": ("127.0.0.1", self.port), **binds}, environment)
        )
        self.server.start()
        self._clients: list[Client] = []
        with tenancy.work(tenancy.system("operator")) as db:
            self.operator = Operator(tenants.create(db, "Works").id)

    def device(self) -> tuple[str, str]:
        with tenancy.work(tenancy.of(self.operator)) as db:
            made, token = devices.create(db, devices.NewDevice(name="pump"))
            return made.uid, token

    def connect(self, user: str, password: str, client_id: str | None = None, will: str | None = None) -> Client:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id or user, clean_session=False)
        it = Client(client)
        client.username_pw_set(user, password)
        if will:
            client.will_set(will, b"offline", qos=1)
        client.on_connect = lambda _c, _u, _f, reason, _p: it.answers.append(str(reason))
        client.on_disconnect = lambda _c, _u, _f, _r, _p: it.gone.set()
        client.on_message = lambda _c, _u, message: it.received.append((message.topic, message.payload))
        client.on_subscribe = lambda _c, _u, _m, codes, _p: it.granted.extend(code.value for code in codes)
        client.reconnect_delay_set(60, 60)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        self._clients.append(it)
        eventually(lambda: it.answers or it.gone.is_set())
        return it

    def adapter(self) -> Client:
        it = self.connect(mqtt.ADAPTER, self.users.password(mqtt.ADAPTER))
        it.client.subscribe("iiot/+/up/#", 1)
        eventually(lambda: it.granted == [1])
        return it

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.server.stop()


@pytest.fixture
def broker(folder: Path, settings: Settings) -> Iterator[Broker]:
    running = Broker(folder, settings)
    yield running
    running.close()


def test_a_device_reaches_its_own_topics_and_no_other(broker: Broker) -> None:
    (uid, token), (other, _) = broker.device(), broker.device()
    adapter, device = broker.adapter(), broker.connect(uid, token)
    assert device.answers == ["Success"]
    device.client.publish(f"iiot/{other}/up/telemetry", b"forged", 1)
    device.client.publish(f"iiot/{uid}/down/command", b"forged", 1)
    device.client.publish(f"iiot/{uid}/up/telemetry", b"own", 1)
    eventually(lambda: (f"iiot/{uid}/up/telemetry", b"own") in adapter.received)
    assert adapter.received == [(f"iiot/{uid}/up/telemetry", b"own")]
    device.client.subscribe([(f"iiot/{uid}/down/#", 1), (f"iiot/{other}/down/#", 1), ("#", 1)])
    eventually(lambda: len(device.granted) == 3)
    assert device.granted == [1, 0x80, 0x80]
    adapter.client.publish(f"iiot/{uid}/down/command", b"go", 1)
    eventually(lambda: device.received == [(f"iiot/{uid}/down/command", b"go")])


def test_a_gateway_speaks_in_its_home_and_in_no_other(broker: Broker) -> None:
    (uid, token), (other, other_token) = broker.device(), broker.device()
    with tenancy.work(tenancy.of(broker.operator)) as db:
        devices.change(db, uid, {"is_gateway": True})
        homes.claim(db, "villa", uid)
    adapter, gateway, neighbour = broker.adapter(), broker.connect(uid, token), broker.connect(other, other_token)
    adapter.client.subscribe([("home/+/+/+/+/state", 1), ("home/+/+/status", 1)])
    gateway.client.subscribe([("home/villa/+/+/+/set", 1), ("home/villa/#", 1), ("home/+/+/+/+/set", 1)])
    neighbour.client.subscribe([("home/villa/+/+/+/set", 1), ("home/#", 1)])
    eventually(lambda: (len(adapter.granted), len(gateway.granted), len(neighbour.granted)) == (3, 3, 2))
    assert adapter.granted == [1, 1, 1]
    assert gateway.granted == [1, 0x80, 0x80]
    assert neighbour.granted == [0x80, 0x80]
    neighbour.client.publish("home/villa/hall/light/a/state", b"forged", 1)
    gateway.client.publish("home/hut/hall/light/a/state", b"forged", 1)
    gateway.client.publish("home/villa/hall/light/a/set", b"forged", 1)
    gateway.client.publish("home/villa/hall/light/a/state", b"ON", 1)
    eventually(lambda: adapter.received == [("home/villa/hall/light/a/state", b"ON")])
    adapter.client.publish("home/villa/hall/light/a/set", b"OFF", 1)
    eventually(lambda: gateway.received == [("home/villa/hall/light/a/set", b"OFF")])
    assert neighbour.received == []


def test_wrong_tokens_names_and_client_ids_are_refused(broker: Broker) -> None:
    (uid, token), (other, other_token) = broker.device(), broker.device()
    assert "Success" not in broker.connect(uid, "wrong").answers
    assert "Success" not in broker.connect(uid, other_token).answers
    assert "Success" not in broker.connect("a" * 26, token).answers
    assert "Success" not in broker.connect(mqtt.ADAPTER, "wrong").answers
    assert "Success" not in broker.connect(other, other_token, client_id=uid).answers


def test_a_stranger_with_a_devices_client_id_does_not_disturb_it(broker: Broker) -> None:
    uid, token = broker.device()
    adapter, device = broker.adapter(), broker.connect(uid, token)
    assert "Success" not in broker.connect(uid, "wrong", will=f"iiot/{uid}/up/status").answers
    device.client.publish(f"iiot/{uid}/up/telemetry", b"still here", 1)
    eventually(lambda: adapter.received == [(f"iiot/{uid}/up/telemetry", b"still here")])
    assert not device.gone.is_set()


def test_a_last_will_for_a_foreign_topic_is_refused(broker: Broker) -> None:
    (uid, token), (other, _) = broker.device(), broker.device()
    assert "Success" not in broker.connect(uid, token, will=f"iiot/{other}/up/status").answers
    assert broker.connect(uid, token, will=f"iiot/{uid}/up/status").answers == ["Success"]


def test_a_disabled_device_must_leave(broker: Broker) -> None:
    uid, token = broker.device()
    device = broker.connect(uid, token)
    assert device.answers == ["Success"]
    with tenancy.work(tenancy.of(broker.operator)) as db:
        devices.set_enabled(db, uid, False)
    assert device.gone.wait(10)
    assert "Success" not in broker.connect(uid, token).answers


def test_subscriptions_meanwhile_lose_no_message(broker: Broker) -> None:
    (uid, token), (other, other_token) = broker.device(), broker.device()
    adapter, device, restless = broker.adapter(), broker.connect(uid, token), broker.connect(other, other_token)
    for number in range(300):
        restless.client.subscribe(f"iiot/{other}/down/{number}", 1)
        device.client.publish(f"iiot/{uid}/up/telemetry", str(number).encode(), 1)
    eventually(lambda: len(adapter.received) == 300, 30)
