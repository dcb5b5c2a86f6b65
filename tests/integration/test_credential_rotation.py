"""A token is replaced while the device goes on sending: at a real Mosquitto with mosquitto_pub, and at amqtt."""

import functools
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from iiot import broker, clock, tenancy
from iiot.config import Settings
from iiot.ids import new_token
from iiot.services import credentials, devices, provisioning
from tests import factories, services
from tests.integration.mqtt_devices import AdapterProcess, Device, connection, online
from tests.integration.test_amqtt_broker import Broker
from tests.services import MosquittoServer, eventually


@pytest.fixture
def tenant(settings: Settings) -> factories.TenantRow:
    return factories.make_tenant()


@pytest.fixture
def pump(mosquitto: MosquittoServer, tenant: factories.TenantRow) -> Device:
    return Device(tenant)


def add(tenant: tenancy.HasTenant, uid: str, **wanted: object) -> credentials.Issued:
    """A token beside the others."""
    with tenancy.work(tenancy.of(tenant)) as db:
        return credentials.add(db, devices.locked(db, uid), credentials.Wanted(**wanted))  # type: ignore[arg-type]


def revoke(tenant: tenancy.HasTenant, uid: str, slot: int) -> None:
    """Revoke the token of a slot."""
    with tenancy.work(tenancy.of(tenant)) as db:
        device = devices.locked(db, uid)
        [found] = [each.uid for each in credentials.list_all(db, device) if each.slot == slot]
        credentials.revoke(db, device, found)


def publish(mosquitto: MosquittoServer, uid: str, user: str, token: str, value: float) -> int:
    """The exit code of mosquitto_pub: 0 when the broker has confirmed the message."""
    program = shutil.which("mosquitto_pub")
    if program is None:
        services.missing("mosquitto_pub (apt-get install mosquitto-clients)")
    where = ["-h", mosquitto.host, "-p", str(mosquitto.port), "-q", "1"]
    who = ["-i", uid, "-u", user, "-P", token]
    what = ["-t", f"iiot/{uid}/up/telemetry", "-m", f'{{"value": {value}}}']
    return subprocess.run([program, *where, *who, *what], capture_output=True, timeout=20, check=False).returncode


def test_both_tokens_publish_during_the_overlap_and_the_revoked_one_no_more(
    mosquitto: MosquittoServer, pump: Device, settings: Settings
) -> None:
    adapter = AdapterProcess(settings)
    adapter.start()
    try:
        new = add(pump.tenant, pump.uid, name="new firmware")
        assert new.user_name == f"{pump.uid}.2"
        assert publish(mosquitto, pump.uid, pump.uid, pump.token, 1) == 0
        assert publish(mosquitto, pump.uid, new.user_name, new.token, 2) == 0
        revoke(pump.tenant, pump.uid, 1)
        assert publish(mosquitto, pump.uid, pump.uid, pump.token, 3) != 0
        assert publish(mosquitto, pump.uid, new.user_name, new.token, 4) == 0
        eventually(lambda: pump.values == {1.0, 2.0, 4.0})
    finally:
        adapter.stop()


def test_each_token_opens_its_own_name_alone(mosquitto: MosquittoServer, pump: Device) -> None:
    new = add(pump.tenant, pump.uid)
    for user, token, client_id in (
        (pump.uid, new.token, pump.uid),
        (new.user_name, pump.token, pump.uid),
        (new.user_name, new.token, new.user_name),
        (new.user_name, new.token, "anything"),
        (f"{pump.uid}.3", new.token, pump.uid),
    ):
        with connection(mosquitto, user, token, client_id) as device:
            assert device.codes == ["Not authorized"]


def test_a_second_name_has_the_topics_of_its_device_and_no_others(
    mosquitto: MosquittoServer, pump: Device, tenant: factories.TenantRow
) -> None:
    other, new = Device(tenant), add(pump.tenant, pump.uid)
    with connection(mosquitto, new.user_name, new.token, pump.uid) as device:
        assert device.codes == ["Success"]
        assert device.subscribe(f"iiot/{pump.uid}/down/#")
        for topic in ("#", f"iiot/{other.uid}/down/#", f"iiot/{new.user_name}/down/#", f"iiot/{pump.uid}/up/#"):
            assert not device.subscribe(topic), topic


def test_revoking_ends_the_connection_with_that_token_and_leaves_the_other(
    mosquitto: MosquittoServer, pump: Device
) -> None:
    new = add(pump.tenant, pump.uid)
    with online(mosquitto, pump) as old:
        revoke(pump.tenant, pump.uid, 1)
        eventually(lambda: old.gone, 1)
    with connection(mosquitto, new.user_name, new.token, pump.uid) as device:
        assert device.codes == ["Success"]
        again = add(pump.tenant, pump.uid)
        assert again.user_name == pump.uid
        revoke(pump.tenant, pump.uid, 1)
        device.publish(f"iiot/{pump.uid}/up/telemetry", b"{}")
        assert not device.gone
        revoke(pump.tenant, pump.uid, 2)
        eventually(lambda: device.gone, 1)
    assert broker.list_logins() == []


def test_replacing_disabling_and_deleting_reach_every_name(mosquitto: MosquittoServer, pump: Device) -> None:
    new = add(pump.tenant, pump.uid)
    with connection(mosquitto, new.user_name, new.token, pump.uid) as device:
        with tenancy.work(tenancy.of(pump.tenant)) as db:
            devices.set_enabled(db, pump.uid, False)
        eventually(lambda: device.gone, 1)
    assert publish(mosquitto, pump.uid, new.user_name, new.token, 1) != 0
    assert [login.enabled for login in broker.list_logins()] == [False, False]
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        devices.set_enabled(db, pump.uid, True)
    with connection(mosquitto, new.user_name, new.token, pump.uid) as device:
        with tenancy.work(tenancy.of(pump.tenant)) as db:
            issued = credentials.replace(db, devices.locked(db, pump.uid), credentials.Wanted())
        eventually(lambda: device.gone, 1)
    assert publish(mosquitto, pump.uid, new.user_name, new.token, 1) != 0
    assert publish(mosquitto, pump.uid, pump.uid, issued.token, 1) == 0
    add(pump.tenant, pump.uid)
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        devices.remove(db, pump.uid)
    assert broker.list_logins() == []


def test_a_token_of_a_disabled_device_waits_until_it_is_enabled(mosquitto: MosquittoServer, pump: Device) -> None:
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        devices.set_enabled(db, pump.uid, False)
    new = add(pump.tenant, pump.uid)
    assert publish(mosquitto, pump.uid, new.user_name, new.token, 1) != 0
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        devices.set_enabled(db, pump.uid, True)
    assert publish(mosquitto, pump.uid, new.user_name, new.token, 1) == 0


def test_the_reconciler_removes_what_has_expired(mosquitto: MosquittoServer, pump: Device) -> None:
    new = add(pump.tenant, pump.uid, expires_at=clock.now() + timedelta(hours=1))
    with connection(mosquitto, new.user_name, new.token, pump.uid) as device:
        assert not provisioning.reconcile()
        factories.rows("UPDATE iiot.credential SET expires_at = now() WHERE uid = %s", new.credential.uid)
        assert provisioning.reconcile().extra == (new.user_name,)
        eventually(lambda: device.gone, 1)
    assert publish(mosquitto, pump.uid, pump.uid, pump.token, 1) == 0
    factories.rows("UPDATE iiot.credential SET expires_at = now() WHERE slot = 1")
    assert provisioning.reconcile().extra == (pump.uid,)
    assert broker.list_logins() == []


def test_the_reconciler_knows_every_name_by_itself(
    mosquitto: MosquittoServer, pump: Device, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = add(pump.tenant, pump.uid)
    broker.add_login(pump.uid, new_token(), 3)
    assert provisioning.reconcile().extra == (f"{pump.uid}.3",)
    monkeypatch.setattr(provisioning, "GRACE", -provisioning.GRACE)
    broker.add_login(pump.uid, new_token(), 2)
    (settings.data_dir / "mosquitto").mkdir()
    assert provisioning.reconcile().missing == (new.user_name,)
    assert [login.user for login in broker.list_logins()] == [pump.uid]


@pytest.mark.parametrize(
    ("user", "read"),
    [
        ("a" * 26, ("a" * 26, 1)),
        ("a" * 26 + ".2", ("a" * 26, 2)),
        ("a" * 26 + ".5", ("a" * 26, 5)),
        ("a" * 26 + ".1", None),
        ("a" * 26 + ".0", None),
        ("a" * 26 + ".6", None),
        ("a" * 26 + ".02", None),
        ("a" * 26 + ".²", None),
        ("a" * 26 + ".", None),
        ("a" * 26 + ".2.2", None),
        ("a" * 25 + ".2", None),
        ("iiot-adapter", None),
        ("", None),
    ],
)
def test_a_user_name_is_read_in_one_way(user: str, read: tuple[str, int] | None) -> None:
    assert broker.read_user_name(user) == read


@pytest.fixture
def small_broker(folder: Path, settings: Settings) -> Iterator[Broker]:
    running = Broker(folder, settings)
    yield running
    running.close()


def test_amqtt_takes_both_tokens_and_ends_the_revoked_one(small_broker: Broker) -> None:
    (uid, token), (other, _) = small_broker.device(), small_broker.device()
    new = add(small_broker.operator, uid)
    adapter = small_broker.adapter()
    for user, password in ((uid, token), (new.user_name, new.token)):
        device = small_broker.connect(user, password, client_id=uid)
        assert device.answers == ["Success"]
        device.client.publish(f"iiot/{other}/up/telemetry", b"forged", 1)
        device.client.publish(f"iiot/{uid}/up/telemetry", user.encode(), 1)
        sent = (f"iiot/{uid}/up/telemetry", user.encode())
        eventually(functools.partial(adapter.received.__contains__, sent))
    assert len(adapter.received) == 2
    assert "Success" not in small_broker.connect(uid, new.token).answers
    assert "Success" not in small_broker.connect(new.user_name, token, client_id=uid).answers
    assert "Success" not in small_broker.connect(new.user_name, new.token, client_id=new.user_name).answers
    assert not device.gone.is_set()
    revoke(small_broker.operator, uid, 2)
    assert device.gone.wait(10)
    assert "Success" not in small_broker.connect(new.user_name, new.token, client_id=uid).answers
    assert small_broker.connect(uid, token).answers == ["Success"]
    # Here the portal checks the login itself, so it knows when a token was used.
    assert factories.rows("SELECT count(*) FROM iiot.credential WHERE last_used_at IS NOT NULL") == [(2,)]
