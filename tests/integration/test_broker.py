"""Who may do what at a real Mosquitto with dynamic security."""

import json
import threading
import time

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from iiot import broker, tenancy
from iiot.config import Settings
from iiot.dynsec import BrokerUnavailable
from iiot.ids import new_token, new_uid
from iiot.services import credentials, devices, provisioning
from tests import factories, services
from tests.integration.mqtt_devices import Device, connection, online
from tests.services import MosquittoServer, eventually

pytestmark = pytest.mark.usefixtures("settings")


@pytest.fixture
def tenant(settings: Settings) -> factories.TenantRow:
    return factories.make_tenant()


@pytest.fixture
def pump(mosquitto: MosquittoServer, tenant: factories.TenantRow) -> Device:
    return Device(tenant)


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices count as missing at once."""
    monkeypatch.setattr(provisioning, "GRACE", -provisioning.GRACE)


@pytest.mark.parametrize("version", [4, 5])
def test_a_new_device_is_known_at_once(mosquitto: MosquittoServer, pump: Device, version: int) -> None:
    with online(mosquitto, pump, version) as device:
        device.publish(f"iiot/{pump.uid}/up/telemetry", b"{}")


def test_a_wrong_password_is_refused(mosquitto: MosquittoServer, pump: Device) -> None:
    with connection(mosquitto, pump.uid, new_token(), pump.uid) as device:
        assert device.codes == ["Not authorized"]


def test_a_foreign_client_id_is_refused(mosquitto: MosquittoServer, pump: Device, tenant: factories.TenantRow) -> None:
    other = Device(tenant)
    for client_id in (other.uid, "iiot-adapter", "anything"):
        with connection(mosquitto, pump.uid, pump.token, client_id) as device:
            assert device.codes == ["Not authorized"]


def test_nobody_gets_in_without_a_name(mosquitto: MosquittoServer) -> None:
    with connection(mosquitto, "", "", "anonymous") as device:
        assert device.codes == ["Not authorized"]


def test_a_device_reads_only_what_is_sent_to_it(
    mosquitto: MosquittoServer, pump: Device, tenant: factories.TenantRow
) -> None:
    other = Device(tenant)
    with online(mosquitto, pump) as device:
        foreign = ["#", "+/+/+/#", "iiot/#", f"iiot/{other.uid}/down/#", "iiot/+/down/#", f"iiot/{pump.uid}/up/#"]
        for topic in [*foreign, "$SYS/#", "$CONTROL/#", f"$share/g/iiot/{other.uid}/down/#"]:
            assert not device.subscribe(topic), topic


def test_a_foreign_topic_reaches_nobody(mosquitto: MosquittoServer, pump: Device, tenant: factories.TenantRow) -> None:
    other = Device(tenant)
    with online(mosquitto, pump) as device, online(mosquitto, other) as victim:
        for topic in (
            f"iiot/{other.uid}/up/telemetry",
            f"iiot/{other.uid}/down/command",
            f"iiot/{pump.uid}/down/command",
        ):
            device.publish(topic, b'{"id":1}')
        broker_view = connection(mosquitto, "iiot-adapter", mosquitto.users.password("iiot-adapter"), "observer")
        with broker_view as adapter:
            assert adapter.subscribe("iiot/+/up/#")
            device.publish(f"iiot/{other.uid}/up/telemetry", b"{}")
            device.publish(f"iiot/{pump.uid}/up/telemetry", b"{}")
            eventually(lambda: adapter.messages)
            assert {topic for topic, _ in adapter.messages} == {f"iiot/{pump.uid}/up/telemetry"}
        assert victim.messages == []


def test_a_disabled_device_is_thrown_out_within_a_second(mosquitto: MosquittoServer, pump: Device) -> None:
    with online(mosquitto, pump) as device:
        with tenancy.work(tenancy.of(pump.tenant)) as db:
            devices.set_enabled(db, pump.uid, False)
        eventually(lambda: device.gone, 1)
    with connection(mosquitto, pump.uid, pump.token, pump.uid) as device:
        assert device.codes == ["Not authorized"]
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        devices.set_enabled(db, pump.uid, True)
    with online(mosquitto, pump):
        pass


def test_a_new_token_ends_the_old_one(mosquitto: MosquittoServer, pump: Device) -> None:
    with online(mosquitto, pump) as device:
        with tenancy.work(tenancy.of(pump.tenant)) as db:
            token = credentials.replace(db, devices.locked(db, pump.uid), credentials.Wanted()).token
        eventually(lambda: device.gone, 1)
    with connection(mosquitto, pump.uid, pump.token, pump.uid) as device:
        assert device.codes == ["Not authorized"]
    with connection(mosquitto, pump.uid, token, pump.uid) as device:
        assert device.codes == ["Success"]


@pytest.mark.parametrize("revokes_first", [False, True])
def test_a_replaced_token_does_not_speak_by_a_delayed_last_will(
    mosquitto: MosquittoServer, pump: Device, revokes_first: bool
) -> None:
    will = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
    will.WillDelayInterval = 2
    lasting = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    lasting.SessionExpiryInterval = 300
    topic, accepted = f"iiot/{pump.uid}/up/telemetry", threading.Event()
    device = Client(CallbackAPIVersion.VERSION2, pump.uid, protocol=MQTTProtocolVersion.MQTTv5)
    device.username_pw_set(pump.uid, pump.token)
    device.will_set(topic, b'{"a": 1}', qos=1, properties=will)
    device.on_connect = lambda *_: accepted.set()
    device.connect(mosquitto.host, mosquitto.port, clean_start=False, properties=lasting)
    while not accepted.is_set():
        device.loop(1)
    with connection(mosquitto, "iiot-adapter", mosquitto.users.password("iiot-adapter"), "observer") as adapter:
        assert adapter.subscribe("iiot/+/up/#")
        device.socket().close()  # type: ignore[union-attr]
        cut = time.monotonic()
        with tenancy.work(tenancy.of(pump.tenant)) as db:
            locked = devices.locked(db, pump.uid)
            if revokes_first:
                for each in credentials.list_all(db, locked):
                    credentials.revoke(db, locked, each.uid)
        with tenancy.work(tenancy.of(pump.tenant)) as db:
            replace = credentials.add if revokes_first else credentials.replace
            token = replace(db, devices.locked(db, pump.uid), credentials.Wanted()).token
        eventually(lambda: time.monotonic() - cut > 5, 6)
        with connection(mosquitto, pump.uid, token, pump.uid) as renewed:
            renewed.publish(topic, b'{"a": 2}')
        eventually(lambda: adapter.messages)
        assert adapter.messages == [(topic, {"a": 2})]


def test_a_removed_device_leaves_nothing_behind(mosquitto: MosquittoServer, pump: Device) -> None:
    with online(mosquitto, pump) as device:
        device.publish(f"iiot/{pump.uid}/up/status", "online", retain=True)
        with tenancy.work(tenancy.of(pump.tenant)) as db:
            devices.remove(db, pump.uid)
        eventually(lambda: device.gone, 1)
    assert broker.list_logins() == []
    with connection(mosquitto, "iiot-adapter", mosquitto.users.password("iiot-adapter"), "observer") as adapter:
        assert adapter.subscribe("iiot/+/up/#")
        assert adapter.subscribe("iiot/+/up/status")
        assert adapter.messages == []
    broker.remove_device(pump.uid)


def test_the_file_made_from_the_database_lets_devices_in(
    mosquitto: MosquittoServer, tenant: factories.TenantRow
) -> None:
    pump, still = Device(tenant), Device(tenant)
    with tenancy.work(tenancy.of(tenant)) as db:
        devices.set_enabled(db, still.uid, False)
    with tenancy.work(tenancy.system("provision")) as db:
        stored = broker.stored_logins(db)
    mosquitto.stop()
    path = mosquitto.mosquitto.folder / "dynamic-security.json"
    path.write_text(json.dumps(broker.dynsec_document(stored, mosquitto.users.passwords())))
    mosquitto.start()
    with online(mosquitto, pump) as device:
        assert not device.subscribe("#")
    with connection(mosquitto, still.uid, still.token, still.uid) as refused:
        assert refused.codes == ["Not authorized"]
    assert not provisioning.reconcile()


def test_reconciliation_finds_nothing_when_all_is_well(
    mosquitto: MosquittoServer, pump: Device, no_grace: None
) -> None:
    assert not provisioning.reconcile()


def test_reconciliation_removes_strangers(mosquitto: MosquittoServer, pump: Device) -> None:
    stranger = new_uid()
    broker.add_login(stranger, new_token())
    assert provisioning.reconcile().extra == (stranger,)
    assert [client.user for client in broker.list_logins()] == [pump.uid]


def test_reconciliation_sets_the_state_right(mosquitto: MosquittoServer, pump: Device) -> None:
    broker.set_enabled(pump.uid, False)
    assert provisioning.reconcile().wrong_state == (pump.uid,)
    assert [client.enabled for client in broker.list_logins()] == [True]


def test_reconciliation_asks_for_a_new_file_when_a_device_is_missing(
    mosquitto: MosquittoServer, pump: Device, settings: Settings, no_grace: None
) -> None:
    broker.remove_device(pump.uid)
    (settings.data_dir / "mosquitto").mkdir()
    assert provisioning.reconcile().missing == (pump.uid,)
    assert (settings.data_dir / "mosquitto" / "rebuild").exists()


def test_reconciliation_shuts_out_a_revoked_token(mosquitto: MosquittoServer, pump: Device, no_grace: None) -> None:
    broker.add_login(pump.uid, new_token())
    assert provisioning.reconcile().missing == (pump.uid,)
    assert broker.list_logins() == []


def test_a_young_device_is_not_missed(mosquitto: MosquittoServer, pump: Device) -> None:
    broker.remove_device(pump.uid)
    assert not provisioning.reconcile()


def test_open_defaults_are_closed(mosquitto: MosquittoServer) -> None:
    assert broker.secure_defaults() is False
    broker.ask([{"command": "setDefaultACLAccess", "acls": [{"acltype": "publishClientReceive", "allow": True}]}])
    assert broker.secure_defaults() is True
    assert broker.secure_defaults() is False


def test_many_devices_are_listed_page_by_page(mosquitto: MosquittoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "PAGE", 2)
    uids = sorted(new_uid() for _ in range(5))
    for uid in uids:
        broker.add_login(uid, new_token())
    assert sorted(client.user for client in broker.list_logins()) == uids


def test_a_device_is_created_while_the_broker_is_down(
    mosquitto: MosquittoServer, tenant: factories.TenantRow, settings: Settings, no_grace: None
) -> None:
    mosquitto.stop()
    pump = Device(tenant)
    with pytest.raises(BrokerUnavailable):
        broker.list_logins()
    mosquitto.start()
    (settings.data_dir / "mosquitto").mkdir()
    assert provisioning.reconcile().missing == (pump.uid,)


def test_wrong_administrators_are_told_apart(mosquitto: MosquittoServer, settings: Settings) -> None:
    for url in (mosquitto.mosquitto.url, f"mqtt://iiot-admin:wrong@127.0.0.1:{mosquitto.mosquitto.service_port}"):
        with services.active(settings.model_copy(update={"mqtt_admin_url": url})), pytest.raises(BrokerUnavailable):
            broker.list_logins()


def test_without_an_administrator_nothing_is_told(settings: Settings) -> None:
    assert not broker.is_managed()
    broker.add_login(new_uid(), new_token())
    assert broker.list_logins() == []
    assert not provisioning.reconcile()


def test_the_same_token_gives_the_same_verifier_and_another_another() -> None:
    token = new_token()
    assert broker.verifier(token) == broker.verifier(token)
    assert broker.verifier(token)[0] != broker.verifier(new_token())[0]
    assert broker.verifier(token)[0].hex() == broker.token_mark(token)
