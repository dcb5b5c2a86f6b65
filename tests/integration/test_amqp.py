"""From a device's basic.publish to the row in the database, over a real RabbitMQ."""

import re
import socketserver
import threading
import time
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker, ProbableAuthenticationError

from iiot import clock, tenancy
from iiot.ids import new_token
from iiot.services import credentials, devices
from protocols import amqp
from protocols.__main__ import adapter
from protocols.base import AdapterError, ConnectionLost
from protocols.runner import Runner
from tests import factories
from tests.integration.mqtt_devices import AdapterProcess, Device
from tests.rabbit import RabbitServer, Site, publish
from tests.services import eventually

# RabbitMQ takes its time to start on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def rabbit(amqp_site: Site) -> RabbitServer:
    return amqp_site.rabbit


@pytest.fixture
def running(amqp_site: Site) -> AdapterProcess:
    return amqp_site.adapter


@pytest.fixture
def pump(amqp_site: Site) -> Device:
    return amqp_site.device()


def readings(number: int, start: int) -> bytes:
    return b'{"ts":%d,"values":{"n":%d}}' % (start + number, number)


def test_a_reading_is_stored_and_then_acknowledged(running: AdapterProcess, rabbit: RabbitServer, pump: Device) -> None:
    with rabbit.online(pump) as channel:
        publish(channel, pump.uid, '{"temperature": 21.5}')
        publish(channel, pump.uid, '{"temperature": 22.5}', user_id=pump.uid, content_type="application/json")
    eventually(lambda: pump.values == {21.5, 22.5}, 30)
    # Acknowledged: the queue has neither waiting nor unsettled messages.
    eventually(lambda: rabbit.unsettled("telemetry") == 0, 30)


def test_100_of_100_arrive(running: AdapterProcess, rabbit: RabbitServer, pump: Device) -> None:
    start = clock.now_ms() - 1000
    with rabbit.online(pump) as channel:
        for number in range(100):
            publish(channel, pump.uid, readings(number, start))
    eventually(lambda: pump.readings == 100, 30)
    assert pump.values == {float(number) for number in range(100)}


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
    dead = rabbit.dead(len(BAD) + 1, pump.uid)
    assert [properties.headers["code"] for properties, _ in dead] == [*codes, "value-null"]
    assert [body for _, body in dead[:-1]] == [payload for payload, _ in BAD.values()]
    headers: Any = dead[0][0].headers
    assert headers["uid"] == pump.uid
    assert headers["routing-key"] == f"telemetry.{pump.uid}"
    assert "256" in headers["reason"] or headers["limit"]
    assert headers.keys() >= {"code", "reason", "limit", "retry-after"}
    assert (dead[-1][0].headers["accepted"], dead[-1][0].headers["key"]) == (1, "worse")


def test_over_quota_the_header_says_when_to_come_back(running: AdapterProcess, rabbit: RabbitServer) -> None:
    pump = Device(factories.make_tenant())
    factories.rows("UPDATE iiot.quota SET readings_per_day = 1 WHERE tenant_id = %s", pump.tenant.tenant_id)
    with rabbit.online(pump) as channel:
        publish(channel, pump.uid, '{"a": 1}')
        eventually(lambda: pump.readings == 1, 30)
        publish(channel, pump.uid, '{"a": 2}')
    [(properties, _)] = rabbit.dead(1, pump.uid)
    told = {name: properties.headers[name] for name in ("code", "limit", "allowed")}
    assert told == {"code": "readings-quota", "limit": "readings_per_day", "allowed": 1}
    assert 0 < properties.headers["retry-after"] <= 86400


def test_headers_that_pika_cannot_read_end_no_connection(
    running: AdapterProcess, rabbit: RabbitServer, pump: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A date beyond the year 9999: in a short message, in one of several frames, and in an answer."""
    whole = pika.BasicProperties.encode

    def broken(self: pika.BasicProperties) -> list[bytes]:
        pieces = b"".join(whole(self))
        assert b"\x01dl" in pieces
        return [pieces.replace(b"\x01dl", b"\x01dT")]

    with rabbit.online(pump) as channel:
        monkeypatch.setattr(pika.BasicProperties, "encode", broken)
        for size, word in ((1, "telemetry"), (200_000, "telemetry"), (1, "result")):
            publish(channel, pump.uid, b'{"a":1}' + b" " * size, word, headers={"d": 2**62})
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
    for uid in (pump.uid, "a.b"):
        assert [properties.headers["code"] for properties, _ in rabbit.dead(1, uid)] == ["wrong-sender"]
    assert pump.readings == 0


def test_a_revoked_device_is_mute_within_a_second(running: AdapterProcess, rabbit: RabbitServer, pump: Device) -> None:
    for shut_out in ("revoke", "disable", "replace", "remove"):
        device = Device(pump.tenant, shut_out)
        with rabbit.online(device) as channel:
            publish(channel, device.uid, '{"a": 1}')
            eventually(lambda device=device: device.readings == 1, 30)  # type: ignore[misc]
            _shut_out(device, shut_out)
            began = time.monotonic()
            with pytest.raises(AMQPConnectionError):
                _publish_for_ever(channel, device)
            assert time.monotonic() - began < 1, shut_out
        with pytest.raises(AMQPConnectionError):
            rabbit.connect(device.uid, device.token)


def _publish_for_ever(channel: Any, device: Device) -> None:
    while True:
        channel.connection.process_data_events(0.02)
        publish(channel, device.uid, '{"a": 2}')


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


def test_check_and_send(amqp_site: Site, pump: Device) -> None:
    settings = amqp_site.settings
    made = adapter("amqp").make(settings)
    made.check()
    made.send(pump.uid, pump.token, b'{"a": 7}')
    eventually(lambda: pump.values == {7.0}, 30)
    with pytest.raises(AdapterError, match=r"ACCESS_REFUSED.*check the uid and the token"):
        made.send(pump.uid, "wrong", b"{}")
    with pytest.raises(AdapterError, match="IIOT_AMQP_URL"):
        amqp.parse_url("http://127.0.0.1")
    with pytest.raises(AdapterError, match="rabbitmq-server"):
        adapter("amqp").make(settings.model_copy(update={"amqp_url": None}))
    with pytest.raises(AdapterError):
        amqp.AmqpAdapter(amqp.parse_url("amqp://127.0.0.1:9")).check()


def test_a_refused_login_and_a_server_of_another_kind_are_told_as_lost_connections(amqp_site: Site) -> None:
    def run(url: str) -> None:
        amqp.AmqpAdapter(amqp.parse_url(url)).run(Runner("amqp"), threading.Event())

    wrong = re.sub(r"//[^:]+:[^@]+@", "//iiot-adapter:wrong@", str(amqp_site.settings.amqp_url))
    with pytest.raises(ConnectionLost, match=r"ACCESS_REFUSED.*check user, password and rights in IIOT_AMQP_URL"):
        run(wrong)

    class NotAmqp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(8)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), NotAmqp) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"127.0.0.1:{server.server_address[1]}"
        with pytest.raises(ConnectionLost, match=where):
            run(f"amqp://a:b@{where}")
        server.shutdown()
