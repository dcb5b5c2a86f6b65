"""From a device's PUBLISH to the row in the database, and back to the device, over real servers."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from iiot import clock
from iiot.config import Settings
from protocols import mqtt, mqtt_stream
from protocols.base import AdapterError, ConnectionLost, Message, Outcome
from tests import factories, services
from tests.integration.mqtt_devices import AdapterProcess, Device, adapter, connection, online
from tests.services import MosquittoServer, eventually


@pytest.fixture
def pump(mosquitto: MosquittoServer, settings: Settings) -> Device:
    return Device(factories.make_tenant())


def notices(connected: Any, word: str) -> list[Any]:
    return [content for topic, content in connected.messages if topic.endswith(f"/down/{word}")]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_reading_is_stored_at_every_quality_of_service(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device, version: int, qos: int
) -> None:
    with online(mosquitto, pump, version) as device:
        device.publish(f"iiot/{pump.uid}/up/telemetry", b'{"temperature":21.5}', qos)
        eventually(lambda: pump.values == {21.5})


@pytest.mark.parametrize("version", ["311", "5"])
def test_mosquitto_pub_works(running: AdapterProcess, mosquitto: MosquittoServer, pump: Device, version: str) -> None:
    program = shutil.which("mosquitto_pub")
    if program is None:
        services.missing("mosquitto_pub (apt-get install mosquitto-clients)")
    address = [
        "-h",
        mosquitto.host,
        "-p",
        str(mosquitto.port),
        "-V",
        version,
        "-i",
        pump.uid,
        "-u",
        pump.uid,
        "-P",
        pump.token,
    ]
    topic = f"iiot/{pump.uid}/up/telemetry"
    subprocess.run([program, *address, "-q", "1", "-t", topic, "-m", '{"temperature": 19.25}'], check=True, timeout=10)
    eventually(lambda: pump.values == {19.25})


def test_the_device_is_told_the_newest_stored_time_when_it_asks(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device
) -> None:
    now = clock.now_ms()
    with online(mosquitto, pump) as device:
        payload = [{"ts": now - 1, "values": {"a": 1}}, {"ts": now, "values": {"a": 2}, "ack": True}]
        device.publish(f"iiot/{pump.uid}/up/telemetry", json.dumps(payload))
        eventually(lambda: notices(device, "ack") == [{"ts": now}])
        assert pump.readings == 2
        device.publish(f"iiot/{pump.uid}/up/telemetry", json.dumps(payload))
        eventually(lambda: notices(device, "ack") == [{"ts": now}] * 2)
        assert pump.readings == 2


BAD = {
    "oversized": (b'{"a":"' + b"x" * 300_000 + b'"}', "too-large"),
    "not UTF-8": (b'{"a":"\xff"}', "not-utf8"),
    "not JSON": (b"temperature=5", "not-json"),
    "deep": (b"[" * 10_000, "too-deep"),
    "NaN": (b'{"a":NaN}', "not-finite"),
    "1e400": (b'{"a":1e400}', "number-out-of-range"),
    "a number as a string": (b'{"good":"21.5"}', "wrong-type"),
    "the future": (b'{"ts":%d,"values":{"a":1}}' % (clock.now_ms() + 3_600_000), "ts-too-new"),
    "the ancient past": (b'{"ts":86400000,"values":{"a":1}}', "ts-too-old"),
    "SQL as a key": (b'{"a\'; DROP TABLE device; --":1}', "key-invalid"),
    "HTML as a key": (b'{"<script>alert(1)</script>":1}', "key-invalid"),
    "NUL": (b'{"a":"\\u0000"}', "string-invalid"),
    "nothing": (b"", "empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_kept_and_told_and_the_next_message_is_stored(
    module_adapter: tuple[MosquittoServer, factories.TenantRow], name: str
) -> None:
    broker, tenant = module_adapter
    payload, code = BAD[name]
    device = Device(tenant, name=f"'; DROP TABLE iiot.device; -- <b>{name}</b>"[:60])
    topic = f"iiot/{device.uid}/up/telemetry"
    with online(broker, device) as connected:
        connected.publish(topic, b'{"good":1}')
        connected.publish(topic, payload)
        connected.publish(topic, b'{"good":2}')
        eventually(lambda: device.values == {1.0, 2.0})
        [notice] = eventually(lambda: notices(connected, "error"))
    assert notice["code"] == code
    assert notice["topic"] == topic
    assert notice["reason"]
    assert {"limit", "retry_after"} <= notice.keys()
    assert device.rejections == [code]


@pytest.fixture(scope="module")
def module_adapter(module_settings: Settings, workspace: Any) -> Iterator[tuple[MosquittoServer, factories.TenantRow]]:
    """One broker and one adapter for many small tests."""
    server = MosquittoServer(workspace / "broker for bad input")
    server.start()
    try:
        settings = module_settings.model_copy(update=server.fields)
        with services.active(settings), adapter(settings):
            yield server, factories.make_tenant()
    finally:
        server.stop()


def test_signals_beyond_the_quota_are_refused(
    running: AdapterProcess, mosquitto: MosquittoServer, settings: Settings
) -> None:
    device = Device(factories.make_tenant(signals_per_device=2))
    with online(mosquitto, device) as connected:
        connected.publish(f"iiot/{device.uid}/up/telemetry", b'{"a":1,"b":2,"c":3}')
        [notice] = eventually(lambda: notices(connected, "error"))
        assert (notice["code"], notice["limit"], notice["allowed"]) == ("signal-quota", "signals_per_device", 2)
        assert device.readings == 2


def test_unknown_topics_and_states_are_refused(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device
) -> None:
    with online(mosquitto, pump) as device:
        device.publish(f"iiot/{pump.uid}/up/nowhere", b"{}")
        device.publish(f"iiot/{pump.uid}/up/status", b"dancing")
        eventually(lambda: len(notices(device, "error")) == 2)
    assert pump.rejections == ["unknown-topic", "status-invalid"]


def state(device: Device) -> str:
    return str(factories.rows("SELECT status FROM iiot.device WHERE id = %s", device.device_id)[0][0])


def test_status_and_last_will_are_followed(running: AdapterProcess, mosquitto: MosquittoServer, pump: Device) -> None:
    topic = f"iiot/{pump.uid}/up/status"
    client = Client(CallbackAPIVersion.VERSION2, pump.uid, reconnect_on_failure=False)
    client.username_pw_set(pump.uid, pump.token)
    client.will_set(topic, "offline", qos=1, retain=True)
    client.connect(mosquitto.host, mosquitto.port)
    client.loop_start()
    client.publish(topic, "online", qos=1, retain=True).wait_for_publish(10)
    eventually(lambda: state(pump) == "online")
    client.loop_stop()
    sock = client.socket()
    assert sock is not None
    sock.close()  # without DISCONNECT: the broker sends the last will
    eventually(lambda: state(pump) == "offline")


def test_a_retained_state_reaches_an_adapter_that_starts_later(
    mosquitto: MosquittoServer, pump: Device, settings: Settings
) -> None:
    with online(mosquitto, pump) as device:
        device.publish(f"iiot/{pump.uid}/up/status", "online", retain=True)
        device.publish(f"iiot/{pump.uid}/up/telemetry", b'{"a":1}', retain=True)
        with adapter(settings):
            eventually(lambda: state(pump) == "online")
            device.publish(f"iiot/{pump.uid}/up/telemetry", b'{"a":2}')
            eventually(lambda: 2.0 in pump.values)
        assert pump.values == {2.0}, "a retained reading without a time is no reading of now"


def test_the_portal_talks_tls_to_a_broker_of_its_own_authority(mosquitto: MosquittoServer, settings: Settings) -> None:
    port = mosquitto.ports["mqtt_tls_bind"]
    urls = {
        name: mosquitto.mosquitto.users.url(user, "localhost", port).replace("mqtt:", "mqtts:")
        for name, user in (("mqtt_url", "iiot-adapter"), ("mqtt_admin_url", "iiot-admin"))
    }
    authority = mosquitto.pki.folder / "server-ca.crt"
    with services.active(settings.model_copy(update=urls | {"mqtt_ca_path": authority})) as changed:
        pump = Device(factories.make_tenant())
        with adapter(changed), online(mosquitto, pump) as device:
            device.publish(f"iiot/{pump.uid}/up/telemetry", b'{"a":1}')
            eventually(lambda: pump.values == {1.0})
        mqtt.make(changed).check()
        other = changed.model_copy(update={"mqtt_ca_path": mosquitto.pki.folder / "device-ca.crt"})
        done = subprocess.run(
            [sys.executable, "-m", "protocols", "check", "mqtt"],
            cwd=services.ROOT,
            env=services.environment(other),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, "certificate" in done.stderr) == (1, True), done.stderr


def test_messages_wait_while_the_adapter_is_away(mosquitto: MosquittoServer, pump: Device, settings: Settings) -> None:
    with adapter(settings):
        pass
    start = clock.now_ms()
    with online(mosquitto, pump) as device:
        for number in range(500):
            payload = b'{"ts":%d,"values":{"a":%d}}' % (start - number, number)
            device.client.publish(f"iiot/{pump.uid}/up/telemetry", payload, qos=1)
        device.publish(f"iiot/{pump.uid}/up/telemetry", b'{"a":500}')
    with adapter(settings):
        eventually(lambda: pump.values == {float(number) for number in range(501)})


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_the_adapter_leaves_in_an_orderly_way(
    mosquitto: MosquittoServer, pump: Device, settings: Settings, version: str
) -> None:
    with services.active(settings.model_copy(update={"mqtt_url": f"{settings.mqtt_url}?version={version}"})) as changed:
        process = AdapterProcess(changed)
        process.start()
        with online(mosquitto, pump) as device:
            device.publish(f"iiot/{pump.uid}/up/telemetry", b'{"a":1}')
            eventually(lambda: pump.values == {1.0})
        started = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - started < 5
    password = mosquitto.users.password("iiot-admin")
    with connection(mosquitto, "iiot-admin", password, "observer") as admin:
        assert not admin.subscribe(mqtt.STATUS_TOPIC), "devices and administrators need not see it"


class Collector:
    """An inbox that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.up = threading.Event()

    def deliver(self, message: Message) -> None:
        self.messages.append(message)

    def connected(self) -> None:
        self.up.set()

    def finish(self) -> None:
        for message in self.messages:
            message.settle(message, Outcome(accepted=1))


def serve(settings: Settings) -> tuple[Collector, threading.Event, threading.Thread]:
    inbox, stop = Collector(), threading.Event()
    thread = threading.Thread(target=mqtt.make(settings).run, args=(inbox, stop))
    thread.start()
    assert inbox.up.wait(10)
    return inbox, stop, thread


def test_what_is_not_settled_comes_again_and_old_receipts_do_nothing(
    mosquitto: MosquittoServer, pump: Device, settings: Settings
) -> None:
    topic = f"iiot/{pump.uid}/up/telemetry"

    class Forgetful(Collector):
        def finish(self) -> None:
            pass

    inbox, stop = Forgetful(), threading.Event()
    thread = threading.Thread(target=mqtt.make(settings).run, args=(inbox, stop))
    thread.start()
    assert inbox.up.wait(10)
    with online(mosquitto, pump) as device:
        for number in range(3):
            device.publish(topic, b"%d" % number)
        eventually(lambda: len(inbox.messages) == 3)
        stop.set()
        thread.join(10)
        again, stop, thread = serve(settings)
        eventually(lambda: [message.payload for message in again.messages] == [b"0", b"1", b"2"])
        for message in inbox.messages:
            message.settle(message, Outcome(accepted=1))
        stop.set()
        thread.join(10)
    third, stop, thread = serve(settings)
    stop.set()
    thread.join(10)
    assert third.messages == []


def test_a_refused_login_says_what_to_look_at(mosquitto: MosquittoServer, settings: Settings) -> None:
    wrong = settings.model_copy(update={"mqtt_url": f"mqtt://iiot-adapter:wrong@{mosquitto.host}:{mosquitto.port}"})
    with pytest.raises(AdapterError, match="IIOT_MQTT_URL"):
        mqtt.make(wrong).check()
    with pytest.raises(ConnectionLost, match="refused the login"):
        mqtt.make(wrong).run(Collector(), threading.Event())


def test_a_user_without_the_role_is_told(mosquitto: MosquittoServer, pump: Device, settings: Settings) -> None:
    url = f"mqtt://{pump.uid}:{pump.token}@{mosquitto.host}:{mosquitto.port}"
    device_as_adapter = mqtt.MqttAdapter(mqtt.parse_url(url), pump.uid)
    with pytest.raises(ConnectionLost, match="refused the subscription"):
        device_as_adapter.run(Collector(), threading.Event())


def test_check_and_send_work(mosquitto: MosquittoServer, pump: Device, settings: Settings) -> None:
    inbox, stop, thread = serve(settings)
    mqtt.make(settings).send(pump.uid, pump.token, b'{"a":1}')
    eventually(lambda: [message.uid for message in inbox.messages] == [pump.uid])
    stop.set()
    thread.join(10)
    mqtt.make(settings).check()
    with pytest.raises(AdapterError):
        mqtt.make(settings).send(pump.uid, "wrong", b"{}")


def test_the_seam_in_paho_is_where_the_stream_expects_it() -> None:
    assert "_create_socket" in Client.__dict__
    assert mqtt_stream.StreamClient._create_socket is not Client._create_socket
