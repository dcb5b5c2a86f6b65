"""Commands over MQTT, from the order to the answer, over real servers."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from iiot import tenancy
from iiot.config import Settings
from iiot.services import command_delivery, commands
from iiot.stream import housekeeping
from tests import factories
from tests.integration.mqtt_devices import AdapterProcess, Connected, Device, adapter, online
from tests.services import MosquittoServer, eventually


@pytest.fixture
def pump(mosquitto: MosquittoServer, settings: Settings) -> Device:
    return Device(factories.make_tenant())


@pytest.fixture
def housekeeper(settings: Settings) -> Iterator[None]:
    """The duty of the stream process that lets commands expire."""
    stop = threading.Event()

    def work() -> None:
        duty = housekeeping.Duty("commands", 1, commands.expire)
        while not stop.wait(0.1):
            housekeeping.perform(duty)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


def order(device: Device, name: str = "restart", ttl: int = 60, **params: Any) -> str:
    """A command; its id."""
    with tenancy.work(tenancy.of(device.tenant)) as db:
        return commands.create(db, device.uid, commands.NewCommand(name, params, ttl)).uid


def states(uid: str) -> list[str]:
    """The command's states so far."""
    ((history,),) = factories.rows("SELECT history FROM iiot.command WHERE uid = %s", uid)
    return [step["state"] for step in history]


def given(connected: Connected) -> list[Any]:
    """The commands that the device has got."""
    return [content for topic, content in connected.messages if topic.endswith("/down/command")]


def seen(device: Device, connected: Connected) -> None:
    """Let the portal know that the device is on MQTT."""
    connected.publish(f"iiot/{device.uid}/up/status", "online")
    query = "SELECT command_protocol FROM iiot.device WHERE id = %s"
    eventually(lambda: factories.rows(query, device.device_id) == [("mqtt",)])


def say(device: Device, connected: Connected, uid: str, status: str = "done", result: Any = None) -> None:
    connected.publish(f"iiot/{device.uid}/up/result/{uid}", json.dumps({"status": status, "result": result}))


@pytest.mark.parametrize("version", [4, 5])
def test_a_command_goes_to_the_device_and_its_answer_comes_back(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device, version: int
) -> None:
    with online(mosquitto, pump, version) as device:
        seen(pump, device)
        uid = order(pump, "set-speed", rpm=1500)
        [command] = eventually(lambda: given(device))
        assert command == {"id": uid, "name": "set-speed", "params": {"rpm": 1500}, "expires_at": command["expires_at"]}
        eventually(lambda: states(uid) == ["queued", "sent"])
        say(pump, device, uid, "done", {"rpm": 1498})
        eventually(lambda: states(uid) == ["queued", "sent", "delivered", "done"])
        say(pump, device, uid, "done", {"rpm": 1498})
        say(pump, device, uid, "failed")
        eventually(lambda: pump.rejections == ["command-finished"])
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        found = commands.get(db, pump.uid, uid)
        assert (found.result, found.protocol) == ({"rpm": 1498}, "mqtt")


def test_a_device_that_only_answers_is_online(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device
) -> None:
    state = "SELECT status, tells_status, last_seen_at IS NOT NULL FROM iiot.device WHERE id = %s"
    with online(mosquitto, pump) as device:
        uid = order(pump, "restart")
        eventually(lambda: given(device), 30)
        assert factories.rows(state, pump.device_id) == [("new", False, False)]
        say(pump, device, "a" * 26, "done")
        eventually(lambda: pump.rejections == ["unknown-command"])
        assert factories.rows(state, pump.device_id) == [("new", False, False)]
        say(pump, device, uid, "done")
        eventually(lambda: factories.rows(state, pump.device_id) == [("online", False, True)])
    event = "SELECT online, reason, protocol FROM iiot.connection_event WHERE device_id = %s"
    assert factories.rows(event, pump.device_id) == [(True, "answer", "mqtt")]


def test_the_second_goes_out_after_the_first_has_ended(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device
) -> None:
    with online(mosquitto, pump) as device:
        seen(pump, device)
        first, second, third = (order(pump, name) for name in ("first", "second", "third"))
        eventually(lambda: states(first)[-1] == "sent")
        assert states(second) == states(third) == ["queued"]
        say(pump, device, first, "failed", "too hot")
        eventually(lambda: states(second)[-1] == "sent")
        assert states(third) == ["queued"]
        with tenancy.work(tenancy.of(pump.tenant)) as db:
            commands.cancel(db, pump.uid, second)
        eventually(lambda: states(third)[-1] == "sent")
        eventually(lambda: [each["id"] for each in given(device)] == [first, second, third])


class Properly:
    """A device with MQTT 5 or 3.1.1 that keeps a session at the broker, and what came with each message."""

    def __init__(self, broker: MosquittoServer, device: Device, version: int = 5) -> None:
        self.five = version == 5
        self.broker = broker
        self.device = device
        self.got: list[MQTTMessage] = []

    def __enter__(self) -> "Properly":
        subscribed = threading.Event()
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            self.device.uid,
            clean_session=None if self.five else False,
            protocol=MQTTProtocolVersion.MQTTv5 if self.five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self.client.username_pw_set(self.device.uid, self.device.token)
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.on_message = lambda _client, _data, message: self.got.append(message)
        if self.five:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 3600
            self.client.connect(self.broker.host, self.broker.port, clean_start=False, properties=properties)
        else:
            self.client.connect(self.broker.host, self.broker.port)
        self.client.loop_start()
        self.client.subscribe(f"iiot/{self.device.uid}/down/#", qos=1)
        assert subscribed.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def say(self, word: str, payload: str) -> None:
        self.client.publish(f"iiot/{self.device.uid}/up/{word}", payload, qos=1).wait_for_publish(10)


def known(device: Device) -> bool:
    return factories.rows("SELECT command_protocol FROM iiot.device WHERE id = %s", device.device_id) == [("mqtt",)]


@pytest.mark.parametrize("version", [4, 5])
def test_a_device_that_was_away_gets_it_when_it_is_back(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device, version: int
) -> None:
    away = Properly(mosquitto, pump, version)
    with away:
        away.say("status", "online")
        eventually(lambda: known(pump))
    uid = order(pump)
    eventually(lambda: states(uid) == ["queued", "sent"])
    assert away.got == []
    with away:
        eventually(lambda: [json.loads(message.payload)["id"] for message in away.got] == [uid])
        away.say(f"result/{uid}", '{"status": "done"}')
        eventually(lambda: states(uid)[-1] == "done")


def test_with_mqtt_5_the_command_says_how_long_it_counts_and_where_the_answer_goes(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device
) -> None:
    with Properly(mosquitto, pump) as device:
        device.say("telemetry", '{"a": 1}')
        eventually(lambda: known(pump))
        uid = order(pump, ttl=120)
        [message] = eventually(lambda: device.got)
    properties: Any = message.properties
    assert 110 <= properties.MessageExpiryInterval <= 120
    assert properties.ResponseTopic == f"iiot/{pump.uid}/up/result/{uid}"
    assert properties.CorrelationData == uid.encode()


@pytest.mark.parametrize("version", [4, 5])
def test_what_has_expired_is_never_delivered_and_the_next_one_goes_out(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device, housekeeper: None, version: int
) -> None:
    away = Properly(mosquitto, pump, version)
    with away:
        away.say("status", "online")
        eventually(lambda: known(pump))
    late, following = order(pump, "late", ttl=2), order(pump, "next")
    eventually(lambda: states(late) == ["queued", "sent"])
    eventually(lambda: states(late) == ["queued", "sent", "expired"])
    eventually(lambda: states(following) == ["queued", "sent"])
    with away:
        eventually(lambda: away.got)
        assert [json.loads(message.payload)["name"] for message in away.got] == ["next"]
        away.say(f"result/{late}", '{"status": "done"}')
        eventually(lambda: pump.rejections == ["command-finished"])
        away.say(f"result/{following}", '{"status": "done"}')
        eventually(lambda: states(following)[-1] == "done")


@pytest.mark.parametrize("version", [4, 5])
def test_a_device_that_has_sent_nothing_gets_its_commands(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device, version: int
) -> None:
    with online(mosquitto, pump, version) as device:
        uid = order(pump)
        eventually(lambda: [content["id"] for content in given(device)] == [uid])
        eventually(lambda: states(uid) == ["queued", "sent"])


def test_a_command_waits_until_somebody_listens_and_holds_up_no_other_device(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device
) -> None:
    absent = [Device(pump.tenant) for _ in range(5)]
    waiting = [order(device) for device in absent]
    with online(mosquitto, pump) as device:
        uid = order(pump)
        eventually(lambda: states(uid)[-1] == "sent")
        assert len(given(device)) == 1
    assert [states(each) for each in waiting] == [["queued"]] * 5
    # It says nothing, so nobody knows that it is there but the broker.
    with online(mosquitto, absent[3]) as device:
        eventually(lambda: [content["id"] for content in given(device)] == [waiting[3]])
    assert states(waiting[4]) == ["queued"]


def test_a_device_that_was_seen_elsewhere_gets_what_it_does_not_fetch_there(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device
) -> None:
    command_delivery.poll(tenancy.of(pump.tenant), pump.device_id)
    fetched = order(pump, "fetched")
    with online(mosquitto, pump) as device:
        taken = command_delivery.poll(tenancy.of(pump.tenant), pump.device_id)
        assert taken is not None
        assert taken.uid == fetched
        waiting = order(pump, "waiting")
        say(pump, device, fetched)
        eventually(lambda: [content["id"] for content in given(device)] == [waiting])


BAD = {
    "not JSON": (b"done", "answer-invalid"),
    "no status": (b'{"result": 1}', "answer-invalid"),
    "another status": (b'{"status": "maybe"}', "answer-invalid"),
    "NUL": (b'{"status": "done", "result": "\\u0000"}', "answer-invalid"),
    "NaN": (b'{"status": "done", "result": NaN}', "answer-invalid"),
    "9 KiB": (b'{"status": "done", "result": "' + b"x" * 9000 + b'"}', "answer-invalid"),
    "20 KiB": (b'{"status": "done", "result": "' + b"x" * 20_000 + b'"}', "too-large"),
    "deep": (b'{"status": "done", "result": ' + b"[" * 4000 + b"]" * 4000 + b"}", "answer-invalid"),
    "not UTF-8": (b'{"status": "done", "result": "\xff"}', "answer-invalid"),
    "half a character": (b'{"status": "done", "result": "\\ud800"}', "answer-invalid"),
}


def test_an_answer_that_cannot_be_read_is_refused_kept_and_told_and_the_next_one_counts(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device
) -> None:
    with online(mosquitto, pump) as device:
        seen(pump, device)
        uid = order(pump)
        eventually(lambda: states(uid)[-1] == "sent")
        for payload, _ in BAD.values():
            device.publish(f"iiot/{pump.uid}/up/result/{uid}", payload)
        eventually(lambda: pump.rejections == [code for _, code in BAD.values()])
        eventually(lambda: len([topic for topic, _ in device.messages if topic.endswith("/down/error")]) == len(BAD))
        assert states(uid) == ["queued", "sent", "delivered"]
        say(pump, device, uid)
        eventually(lambda: states(uid)[-1] == "done")


def test_nobody_answers_the_commands_of_others(
    running: AdapterProcess, mosquitto: MosquittoServer, pump: Device
) -> None:
    neighbour, stranger = Device(pump.tenant), Device(factories.make_tenant())
    uid = order(pump)
    for other in (neighbour, stranger):
        with online(mosquitto, other) as device:
            say(other, device, uid)
            say(other, device, "no-such-command")
            eventually(lambda other=other: other.rejections == ["unknown-command"] * 2)  # type: ignore[misc]
    assert states(uid) == ["queued"]


def test_commands_survive_the_end_of_the_adapter(mosquitto: MosquittoServer, settings: Settings, pump: Device) -> None:
    """Made while it was away they wait; an answer that came meanwhile is kept by the broker."""
    with adapter(settings) as process, online(mosquitto, pump) as device:
        seen(pump, device)
        first, second = order(pump, "first"), order(pump, "second")
        eventually(lambda: states(first)[-1] == "sent")
        process.kill()
        say(pump, device, first)
        assert states(first)[-1] == "sent"
        process.start()
        eventually(lambda: states(first)[-1] == "done")
        eventually(lambda: states(second)[-1] == "sent")
        eventually(lambda: [each["name"] for each in given(device)] == ["first", "second"])


def test_without_redis_commands_go_out_within_seconds(
    mosquitto: MosquittoServer, settings: Settings, pump: Device
) -> None:
    deaf = settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"})
    with adapter(deaf), online(mosquitto, pump) as device:
        seen(pump, device)
        uid = order(pump)
        eventually(lambda: states(uid)[-1] == "sent")


def test_a_suspended_tenant_and_a_disabled_device_get_nothing(pump: Device) -> None:
    from iiot.services import command_delivery

    with tenancy.work(tenancy.of(pump.tenant)) as db:
        commands.create(db, pump.uid, commands.NewCommand("restart"))
    command_delivery.reached("mqtt", [pump.uid])
    for statement in ("UPDATE iiot.device SET enabled = false", "UPDATE iiot.tenant SET status = 'suspended'"):
        factories.rows(statement)
        assert not command_delivery.deliver("mqtt", lambda order: True)
        factories.rows("UPDATE iiot.device SET enabled = true")
    factories.rows("UPDATE iiot.tenant SET status = 'active'")
    assert command_delivery.deliver("mqtt", lambda order: True)
