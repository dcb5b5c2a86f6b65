"""The same behaviour over Mosquitto and over amqtt, and the list of what amqtt does not do: the table in docs/adapters.md."""

import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from iiot import broker, clock, tenancy
from iiot.config import Settings
from iiot.services import commands, credentials, devices, tenants
from tests import factories, services
from tests.integration.mqtt_brokers import KINDS, V311, Options, Peer, UnderTest, running
from tests.integration.mqtt_devices import Device, adapter
from tests.services import eventually

SLOW = 30.0


@pytest.fixture(scope="module", params=KINDS)
def under(request: pytest.FixtureRequest, module_settings: Settings, workspace: Path) -> Iterator[UnderTest]:
    """A broker with an adapter at it."""
    with (
        running(request.param, module_settings, workspace / f"behaviour {request.param}") as found,
        adapter(found.settings),
    ):
        yield found


@pytest.fixture
def pump(under: UnderTest) -> Device:
    return Device(factories.make_tenant())


def online(under: UnderTest, device: Device, **options: Any) -> Peer:
    """The device, logged in with its token and listening."""
    peer = Peer(under, device.uid, device.token, device.uid, Options(**options))
    assert peer.admitted, peer.codes
    assert peer.subscribe(f"iiot/{device.uid}/down/#")
    return peer


def telemetry(device: Device) -> str:
    return f"iiot/{device.uid}/up/telemetry"


def state(device: Device) -> str:
    return str(factories.rows("SELECT status FROM iiot.device WHERE id = %s", device.device_id)[0][0])


def test_readings_are_stored_at_every_quality_of_service(under: UnderTest, pump: Device) -> None:
    expected = set()
    for number, (version, qos) in enumerate(itertools.product(under.versions, (0, 1, 2))):
        peer = online(under, pump, version=version)
        peer.publish(telemetry(pump), json.dumps({"a": number}), qos)
        expected.add(float(number))
        eventually(lambda: pump.values == expected, SLOW)
        peer.close()


@pytest.mark.parametrize("way", [{"tls": True}, {"transport": "websockets"}], ids=["TLS", "WebSocket"])
def test_a_token_works_over_every_listener(under: UnderTest, pump: Device, way: dict[str, Any]) -> None:
    for version in under.versions:
        peer = online(under, pump, version=version, **way)
        peer.publish(telemetry(pump), b'{"a": 1}')
        eventually(lambda: pump.values == {1.0}, SLOW)
        peer.close()
        stranger = Peer(under, pump.uid, "wrong", pump.uid, Options(version, **way))
        assert not stranger.admitted
        stranger.close()


def test_the_device_is_told_what_was_refused_and_what_was_stored(under: UnderTest, pump: Device) -> None:
    for version in under.versions:
        _is_told(online(under, pump, version=version), pump)


def _is_told(peer: Peer, pump: Device) -> None:
    now = clock.now_ms()
    peer.publish(telemetry(pump), json.dumps({"ts": now, "values": {"a": 1}, "ack": True}))
    eventually(lambda: [json.loads(each) for each in peer.on("/down/ack")] == [{"ts": now}], SLOW)
    peer.publish(telemetry(pump), b"{")
    peer.publish(f"iiot/{pump.uid}/up/nowhere", b"{}")
    peer.publish(f"iiot/{pump.uid}/up", b"{}")
    eventually(lambda: len(peer.on("/down/error")) == 3, SLOW)
    notices = [json.loads(each) for each in peer.on("/down/error")]
    assert [each["code"] for each in notices] == ["not-json", "unknown-topic", "unknown-topic"]
    assert all({"code", "reason", "limit", "retry_after", "topic"} <= each.keys() for each in notices)
    peer.close()


def test_unknown_devices_and_wrong_tokens_do_not_get_in(under: UnderTest, pump: Device) -> None:
    for version in under.versions:
        for uid, token in ((pump.uid, "wrong"), ("a" * 26, pump.token), (pump.uid, "")):
            peer = Peer(under, uid, token, uid, Options(version))
            assert not peer.admitted
            peer.close()


def test_the_last_will_and_retained_states_are_followed(under: UnderTest, pump: Device) -> None:
    topic = f"iiot/{pump.uid}/up/status"
    for version in under.versions:
        peer = online(under, pump, version=version, will=topic)
        peer.publish(topic, "online", retain=True)
        eventually(lambda: state(pump) == "online", SLOW)
        peer.client.will_clear()
        peer.close()
        peer = Peer(under, pump.uid, pump.token, pump.uid, Options(version, will=topic))
        peer.drop()
        # The will of this test says "will", which is no state: it is refused, which shows that it came.
        eventually(lambda: "status-invalid" in pump.rejections, SLOW)


def test_commands_wait_for_a_device_with_a_session(under: UnderTest, pump: Device) -> None:
    for version in under.versions:
        _gets_what_waited(under, pump, version)


def _gets_what_waited(under: UnderTest, pump: Device, version: MQTTProtocolVersion) -> None:
    peer = online(under, pump, version=version, persistent=True)
    peer.publish(f"iiot/{pump.uid}/up/status", "online")
    query = "SELECT command_protocol FROM iiot.device WHERE id = %s"
    eventually(lambda: factories.rows(query, pump.device_id) == [("mqtt",)], SLOW)
    peer.close()
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        uid = commands.create(db, pump.uid, commands.NewCommand("restart", {}, 600)).uid
    eventually(lambda: _state(uid) == "sent", SLOW)
    peer = Peer(under, pump.uid, pump.token, pump.uid, Options(version, persistent=True))
    eventually(lambda: [json.loads(each)["id"] for each in peer.on("/down/command")] == [uid], SLOW)
    peer.publish(f"iiot/{pump.uid}/up/result/{uid}", b'{"status": "done", "result": null}')
    eventually(lambda: _state(uid) == "done", SLOW)
    peer.close()
    # The next version begins without this one's session.
    Peer(under, pump.uid, pump.token, pump.uid, Options(version)).close()


def _state(uid: str) -> str:
    return str(factories.rows("SELECT state FROM iiot.command WHERE uid = %s", uid)[0][0])


# --- revocation --------------------------------------------------------------------------------------------------------------------------------


def _replace_token(device: Device) -> None:
    with tenancy.work(tenancy.of(device.tenant)) as db:
        credentials.replace(db, devices.locked(db, device.uid), credentials.Wanted())


def _revoke_token(device: Device) -> None:
    with tenancy.work(tenancy.of(device.tenant)) as db:
        found = devices.locked(db, device.uid)
        credentials.revoke(db, found, credentials.list_all(db, found)[0].uid)


def _disable(device: Device) -> None:
    with tenancy.work(tenancy.of(device.tenant)) as db:
        devices.set_enabled(db, device.uid, False)


def _delete(device: Device) -> None:
    with tenancy.work(tenancy.of(device.tenant)) as db:
        devices.remove(db, device.uid)


def _suspend(device: Device) -> None:
    with tenancy.work(tenancy.system("platform", device.tenant.tenant_id)) as db:
        tenants.set_status(db, "suspended", "test", None)


WAYS: dict[str, Callable[[Device], None]] = {
    "token replaced": _replace_token,
    "token revoked": _revoke_token,
    "device disabled": _disable,
    "device deleted": _delete,
    "tenant suspended": _suspend,
}


class Talker(threading.Thread):
    """A device that sends a reading with its time fifty times a second, and comes back when it is thrown out."""

    def __init__(self, under: UnderTest, device: Device, version: Any) -> None:
        super().__init__(daemon=True)
        self.peer = online(under, device, version=version)
        self.peer.client._reconnect_on_failure = True
        self.peer.client.reconnect_delay_set(1, 1)
        self.device = device
        self.done = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.done.wait(0.02):
            self.peer.client.publish(telemetry(self.device), json.dumps({"ts": clock.now_ms(), "values": {"n": 1}}), 1)

    def end(self) -> None:
        self.done.set()
        self.join()
        self.peer.close()


def newest(device: Device) -> int:
    """The time of the newest reading stored, in milliseconds; 0 when there is none. Readings outlive their device."""
    query = "SELECT coalesce(max(extract(epoch FROM ts) * 1000), 0)::bigint FROM iiot.telemetry WHERE tenant_id = %s"
    return int(factories.rows(query, device.tenant.tenant_id)[0][0])


@pytest.mark.parametrize("way", WAYS)
def test_a_revoked_device_is_mute_within_a_second(under: UnderTest, pump: Device, way: str) -> None:
    version = under.versions[-1]
    talker = Talker(under, pump, version)
    try:
        eventually(lambda: newest(pump) > 0, SLOW)
        WAYS[way](pump)
        revoked = clock.now_ms()
        # Two and a half seconds of further attempts, among them at least one to come back.
        eventually(lambda: clock.now_ms() - revoked > 2_500, SLOW)
    finally:
        talker.end()
    assert newest(pump) - revoked <= 1_000
    other = Device(factories.make_tenant())
    peer = online(under, other)
    peer.publish(telemetry(other), b'{"a": 1}')
    eventually(lambda: other.values == {1.0}, SLOW)
    peer.close()


# --- what amqtt does not do --------------------------------------------------------------------------------------------------------------------


def _speaks_five(under: UnderTest, device: Device) -> bool:
    """Whether it answers a CONNECT of version 5 (section 3.1) with a CONNACK that lets the device in."""
    texts = b"".join(len(each).to_bytes(2, "big") + each.encode() for each in (device.uid, device.uid, device.token))
    body = b"\x00\x04MQTT\x05\xc2\x00\x1e\x00" + texts
    with socket.create_connection(("127.0.0.1", under.server.port), timeout=5) as connection:
        connection.sendall(b"\x10" + len(body).to_bytes(1, "big") + body)
        try:
            answer = connection.recv(4)
        except TimeoutError:
            return False
    return answer[:1] == b"\x20" and answer[3:] == b"\x00"


def _takes_certificates(under: UnderTest, _device: Device) -> bool:
    return "mqtt_cert_bind" in under.server.ports


def _knows_devices_without_the_database(under: UnderTest, device: Device) -> bool:
    return any(broker.owner(login.user) == device.uid for login in broker.list_logins())


def _keeps_sessions(under: UnderTest, device: Device) -> bool:
    Peer(under, device.uid, device.token, device.uid, Options(V311, persistent=True)).subscribe(
        f"iiot/{device.uid}/down/#"
    )
    time_before = time.monotonic()
    eventually(lambda: time.monotonic() - time_before > 1.5)  # Mosquitto writes its file once a second.
    under.server.restart()
    witness = under.witness()
    witness.publish(f"iiot/{device.uid}/down/command", b"{}")
    witness.close()
    peer = Peer(under, device.uid, device.token, device.uid, Options(V311, persistent=True))
    try:
        return bool(_within(lambda: peer.on("/down/command"), 3))
    finally:
        peer.close()


def _within(check: Callable[[], Any], seconds: float) -> Any:
    try:
        return eventually(check, seconds)
    except AssertionError:
        return None


DIFFERENCES: dict[str, Callable[[UnderTest, Device], bool]] = {
    "MQTT 5: command expiry, response topic, reason codes": _speaks_five,
    "certificates of devices": _takes_certificates,
    "logins while the database is away": _knows_devices_without_the_database,
    "sessions, queued and retained messages over a restart": _keeps_sessions,
}


def test_the_differences_are_those_of_the_documents(under: UnderTest, pump: Device) -> None:
    text = (services.ROOT / "docs" / "adapters.md").read_text()
    table = text[text.index("### amqtt instead of Mosquitto") :]
    listed = re.findall(r"^\| ([^|]+?) \| yes \| no \|$", table, re.MULTILINE)
    assert listed == list(DIFFERENCES)
    for name, works in DIFFERENCES.items():
        assert works(under, pump) is (under.kind == "mosquitto"), name
