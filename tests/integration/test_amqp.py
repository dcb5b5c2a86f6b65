"""From a device's basic.publish to the row in the database, over a real RabbitMQ."""

import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker, ProbableAuthenticationError

from iiot import clock, tenancy
from iiot.config import Settings
from iiot.ids import new_token
from iiot.services import credentials, devices
from protocols import amqp
from protocols.__main__ import adapters
from protocols.base import AdapterError
from tests import factories
from tests.integration.mqtt_devices import AdapterProcess, Device, adapter
from tests.rabbit import RabbitServer, publish
from tests.services import PostgresServer, eventually


@pytest.fixture
def pump(rabbit: RabbitServer, settings: Settings) -> Device:
    return Device(factories.make_tenant())


@pytest.fixture
def running(rabbit: RabbitServer, settings: Settings) -> Iterator[AdapterProcess]:
    with adapter(settings, "amqp") as process:
        yield process


def readings(number: int, start: int) -> bytes:
    return b'{"ts":%d,"values":{"n":%d}}' % (start + number, number)


def test_a_reading_is_stored_and_then_acknowledged(running: AdapterProcess, rabbit: RabbitServer, pump: Device) -> None:
    with rabbit.online(pump) as channel:
        publish(channel, pump.uid, '{"temperature": 21.5}')
        publish(channel, pump.uid, '{"temperature": 22.5}', user_id=pump.uid, content_type="application/json")
    eventually(lambda: pump.values == {21.5, 22.5}, 30)
    assert running.stop() == 0
    assert rabbit.waiting("telemetry") == 0


def test_100_of_100_arrive(running: AdapterProcess, rabbit: RabbitServer, pump: Device) -> None:
    start = clock.now_ms() - 1000
    with rabbit.online(pump) as channel:
        for number in range(100):
            publish(channel, pump.uid, readings(number, start))
    eventually(lambda: pump.readings == 100, 30)
    assert pump.values == {float(number) for number in range(100)}


def test_it_waits_for_the_adapter(rabbit: RabbitServer, settings: Settings, pump: Device) -> None:
    with adapter(settings, "amqp"):
        pass
    with rabbit.online(pump) as channel:
        publish(channel, pump.uid, '{"a": 1}')
    assert pump.readings == 0
    with adapter(settings, "amqp"):
        eventually(lambda: pump.readings == 1, 30)


BAD = {
    "oversized": (b'{"a":"' + b"x" * 300_000 + b'"}', "too-large"),
    "not JSON": (b"temperature=5", "not-json"),
    "NaN": (b'{"a":NaN}', "not-finite"),
    "the ancient past": (b'{"ts":86400000,"values":{"a":1}}', "ts-too-old"),
    "NUL": (b'{"a":"\\u0000"}', "string-invalid"),
    "nothing": (b"", "empty"),
}


def test_what_is_refused_is_kept_and_goes_to_the_dead_with_its_reason(
    running: AdapterProcess, rabbit: RabbitServer, pump: Device
) -> None:
    with rabbit.online(pump) as channel:
        publish(channel, pump.uid, '{"good": 1}')
        for payload, _ in BAD.values():
            publish(channel, pump.uid, payload)
        publish(channel, pump.uid, '{"good": 2, "worse": null}')
    eventually(lambda: pump.values == {1.0, 2.0}, 30)
    codes = [code for _, code in BAD.values()]
    assert pump.rejections == [*codes, "value-null"]
    dead = rabbit.dead(len(BAD) + 1)
    assert [properties.headers["code"] for properties, _ in dead] == [*codes, "value-null"]
    assert [body for _, body in dead[:-1]] == [payload for payload, _ in BAD.values()]
    headers: Any = dead[0][0].headers
    assert headers["uid"] == pump.uid
    assert headers["routing-key"] == f"telemetry.{pump.uid}"
    assert "256" in headers["reason"] or headers["limit"]
    assert headers.keys() >= {"code", "reason", "limit", "retry-after"}
    assert (dead[-1][0].headers["accepted"], dead[-1][0].headers["key"]) == (1, "worse")


def test_over_quota_the_header_says_when_to_come_back(
    running: AdapterProcess, rabbit: RabbitServer, pump: Device
) -> None:
    factories.rows("UPDATE iiot.quota SET readings_per_day = 1 WHERE tenant_id = %s", pump.tenant.tenant_id)
    with rabbit.online(pump) as channel:
        publish(channel, pump.uid, '{"a": 1}')
        eventually(lambda: pump.readings == 1, 30)
        publish(channel, pump.uid, '{"a": 2}')
    [(properties, _)] = rabbit.dead()
    assert (properties.headers["code"], properties.headers["limit"]) == ("readings-quota", "1")
    assert 0 < properties.headers["retry-after"] <= 86400


def test_headers_that_pika_cannot_read_end_no_connection(
    running: AdapterProcess, rabbit: RabbitServer, pump: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A date beyond the year 9999: in a short message, in one of several frames, and in an answer."""
    whole = pika.BasicProperties.encode

    def broken(self: pika.BasicProperties) -> list[bytes]:
        pieces = b"".join(whole(self))
        return [pieces.replace(b"\x01dI\x00\x00\x00\x00", b"\x01dT\x7f\xff\xff\xff")]

    with rabbit.online(pump) as channel:
        monkeypatch.setattr(pika.BasicProperties, "encode", broken)
        for size, word in ((1, "telemetry"), (200_000, "telemetry"), (1, "result")):
            publish(channel, pump.uid, b'{"a":1,"b":"%s"}' % (b"x" * size), word, headers={"d": 0, "e": 5})
        monkeypatch.undo()
        publish(channel, pump.uid, '{"after": 5}')
    eventually(lambda: 5.0 in pump.values, 30)
    assert running.connections == 1


def test_a_wrong_password_and_a_stranger_are_refused_alike(rabbit: RabbitServer, pump: Device) -> None:
    for user, password in ((pump.uid, new_token()), ("a" * 26, new_token()), ("guest", "guest"), (pump.uid, "")):
        with pytest.raises((ProbableAuthenticationError, AMQPConnectionError)) as caught:
            rabbit.connect(user, password)
        assert "ACCESS_REFUSED" in repr(caught.value)


def test_a_foreign_routing_key_is_403_and_a_foreign_user_id_406(
    running: AdapterProcess, rabbit: RabbitServer, pump: Device
) -> None:
    other = Device(pump.tenant)
    for key, properties, code in (
        (f"telemetry.{other.uid}", {}, 403),
        (f"result.{other.uid}", {}, 403),
        (f"telemetry.{pump.uid}.x", {}, 403),
        (f"telemetry.{pump.uid}", {"user_id": other.uid}, 406),
    ):
        with rabbit.online(pump) as channel, pytest.raises(ChannelClosedByBroker) as caught:
            channel.basic_publish("iiot", key, b'{"a":1}', pika.BasicProperties(**properties), mandatory=True)
        assert caught.value.reply_code == code, key
    assert (pump.readings, other.readings) == (0, 0)


def test_what_an_administrator_sends_in_a_device_s_name_is_not_stored(
    running: AdapterProcess, rabbit: RabbitServer, pump: Device
) -> None:
    with rabbit.adapter_login() as channel:
        properties = pika.BasicProperties(delivery_mode=2, user_id="iiot-adapter")
        channel.basic_publish("iiot", f"telemetry.{pump.uid}", b'{"a":1}', properties)
        channel.basic_publish("iiot", "telemetry.a.b", b'{"a":1}')
    assert [properties.headers["code"] for properties, _ in rabbit.dead(2)] == ["wrong-sender"] * 2
    assert pump.readings == 0


def test_a_failed_commit_acknowledges_nothing_and_it_is_stored_once(
    running: AdapterProcess, rabbit: RabbitServer, pump: Device, postgres: PostgresServer
) -> None:
    now = clock.now_ms()
    with rabbit.online(pump) as channel:
        publish(channel, pump.uid, readings(0, now - 100))
        eventually(lambda: pump.readings == 1, 30)
        postgres.kill()
        publish(channel, pump.uid, readings(1, now - 100))
        eventually(lambda: "batch not stored" in running.said, 30)
        running.kill()
        # The message is handed out again to the next one, which waits for the database.
        eventually(lambda: rabbit.waiting("telemetry") == 1, 30)
        postgres.start()
        running.start()
        publish(channel, pump.uid, readings(2, now - 100))
    eventually(lambda: pump.values == {0.0, 1.0, 2.0}, 40)
    assert pump.readings == 3
    eventually(lambda: rabbit.waiting("telemetry") == 0, 30)


def test_a_term_signal_stores_and_acknowledges_what_was_taken(
    rabbit: RabbitServer, settings: Settings, pump: Device
) -> None:
    start = clock.now_ms() - 10_000
    with adapter(settings, "amqp") as process:
        with rabbit.online(pump) as channel:
            for number in range(500):
                channel.basic_publish("iiot", f"telemetry.{pump.uid}", readings(number, start))
        eventually(lambda: pump.readings > 0, 30)
        assert process.stop() == 0
        assert '"stopped"' in process.said
        stored, left = pump.readings, rabbit.waiting("telemetry")
        assert stored + left == 500
        process.start()
        eventually(lambda: pump.readings == 500, 30)


def test_a_revoked_device_is_mute_within_a_second(running: AdapterProcess, rabbit: RabbitServer, pump: Device) -> None:
    for shut_out in ("revoke", "disable", "replace", "remove"):
        device = Device(pump.tenant, shut_out)
        with rabbit.online(device) as channel:
            publish(channel, device.uid, '{"a": 1}')
            eventually(lambda device=device: device.readings == 1, 30)  # type: ignore[misc]
            _shut_out(device, shut_out)
            began = time.monotonic()
            with pytest.raises(AMQPConnectionError):
                while time.monotonic() - began < 5:
                    channel.connection.process_data_events(0.02)
                    publish(channel, device.uid, '{"a": 2}')
            assert time.monotonic() - began < 1, shut_out
        with pytest.raises(AMQPConnectionError):
            rabbit.connect(device.uid, device.token)


def _shut_out(device: Device, how: str) -> None:
    with tenancy.work(tenancy.of(device.tenant)) as db:
        row = devices.locked(db, device.uid)
        if how == "revoke":
            credentials.revoke(db, row, credentials.list_all(db, row)[0].uid)
        elif how == "disable":
            devices.set_enabled(db, device.uid, False)
        elif how == "replace":
            credentials.replace(db, row, credentials.Wanted())
        else:
            devices.remove(db, device.uid)


def test_every_token_of_a_device_logs_in_under_its_name(
    running: AdapterProcess, rabbit: RabbitServer, pump: Device
) -> None:
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        second = credentials.add(db, devices.locked(db, pump.uid), credentials.Wanted())
    with rabbit.login(second.user_name, second.token) as channel:
        publish(channel, pump.uid, '{"a": 2}', user_id=second.user_name)
        eventually(lambda: pump.values == {2.0}, 30)
        with tenancy.work(tenancy.of(pump.tenant)) as db:
            devices.set_enabled(db, pump.uid, False)
            devices.set_enabled(db, pump.uid, True)
    for user, token in ((pump.uid, pump.token), (second.user_name, second.token)):
        with rabbit.login(user, token) as channel:
            publish(channel, pump.uid, '{"a": 3}')
    with pytest.raises(AMQPConnectionError):
        rabbit.connect(pump.uid, second.token)


def test_check_and_send(running: AdapterProcess, rabbit: RabbitServer, settings: Settings, pump: Device) -> None:
    made = adapters()["amqp"].make(settings)
    made.check()
    made.send(pump.uid, pump.token, b'{"a": 7}')
    eventually(lambda: pump.values == {7.0}, 30)
    with pytest.raises(AdapterError, match="ACCESS_REFUSED"):
        made.send(pump.uid, "wrong", b"{}")
    with pytest.raises(AdapterError, match="IIOT_AMQP_URL"):
        amqp.parse_url("http://127.0.0.1")
    with pytest.raises(AdapterError, match="rabbitmq-server"):
        adapters()["amqp"].make(settings.model_copy(update={"amqp_url": None}))
    with pytest.raises(AdapterError):
        amqp.AmqpAdapter(amqp.parse_url("amqp://127.0.0.1:9")).check()
