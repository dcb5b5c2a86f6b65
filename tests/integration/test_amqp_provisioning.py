"""RabbitMQ's users compared with the database, every difference mended."""

import base64
from urllib.parse import quote

import pytest

from iiot import rabbitmq, tenancy
from iiot.config import Settings
from iiot.dynsec import BrokerUnavailable
from iiot.ids import new_token, new_uid
from iiot.services import credentials, devices, provisioning_amqp
from tests import factories, services
from tests.integration.mqtt_devices import Device
from tests.rabbit import RabbitServer
from tests.services import eventually

pytestmark = [pytest.mark.usefixtures("settings"), pytest.mark.timeout(300)]


@pytest.fixture
def pump(rabbit: RabbitServer, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Device:
    # Devices count as missing at once.
    monkeypatch.setattr(provisioning_amqp, "GRACE", -provisioning_amqp.GRACE)
    return Device(factories.make_tenant())


def test_every_kind_of_drift_is_found_and_mended(rabbit: RabbitServer, pump: Device) -> None:
    assert not provisioning_amqp.reconcile()
    lost, open_to_all, raised, stranger = Device(pump.tenant), Device(pump.tenant), Device(pump.tenant), new_uid()
    vhost = quote(rabbit.vhost, safe="")
    rabbit.ask("DELETE", f"/api/users/{lost.uid}")
    # Without a topic permission every routing key is allowed.
    rabbit.ask("DELETE", f"/api/topic-permissions/{vhost}/{open_to_all.uid}")
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    rabbit.ask("PUT", f"/api/permissions/{vhost}/{raised.uid}", rights)
    rabbitmq.add_logins([rabbitmq.Login(stranger, 1, rabbitmq.password_hash(new_token()))])
    wrong = base64.b64encode(rabbitmq.password_hash(new_token())).decode()
    password = {"password_hash": wrong, "hashing_algorithm": rabbitmq.HASHING, "tags": "administrator"}
    rabbit.ask("PUT", f"/api/users/{pump.uid}", password)
    rabbit.ask("DELETE", f"/api/queues/{vhost}/command.{raised.uid}")

    found = provisioning_amqp.reconcile()
    assert set(found.missing) == {lost.uid, pump.uid}
    assert set(found.wrong_rights) == {open_to_all.uid, raised.uid}
    assert (found.extra, found.queues, found.unqueued) == ((stranger,), (stranger,), (raised.uid,))
    assert provisioning_amqp.amqp_drift.labels("missing")._value.get() == 2
    assert not provisioning_amqp.reconcile()
    for device in (pump, lost, open_to_all, raised):
        with rabbit.online(device):
            pass
    assert rabbitmq.list_queues() == {pump.uid, lost.uid, open_to_all.uid, raised.uid}


def test_all_users_are_made_anew_from_the_database(rabbit: RabbitServer, pump: Device) -> None:
    """As after the loss of RabbitMQ's disk: the tokens that devices have go on working."""
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        second = credentials.add(db, devices.locked(db, pump.uid), credentials.Wanted())
    for user in (pump.uid, second.user_name):
        rabbit.ask("DELETE", f"/api/users/{user}")
    assert provisioning_amqp.reconcile().missing == (pump.uid, second.user_name)
    for user, token in ((pump.uid, pump.token), (second.user_name, second.token)):
        rabbit.connect(user, token).close()


def test_an_expired_token_ends_with_the_next_comparison(rabbit: RabbitServer, pump: Device) -> None:
    with rabbit.online(pump) as channel:
        factories.rows("UPDATE iiot.credential SET expires_at = now() WHERE device_id = %s", pump.device_id)
        assert provisioning_amqp.reconcile().extra == (pump.uid,)
        eventually(lambda: _is_gone(channel), 5)


def _is_gone(channel: object) -> bool:
    try:
        channel.connection.process_data_events(0)  # type: ignore[attr-defined]
    except Exception:
        return True
    return False


def test_a_token_from_before_amqp_is_listed_without_a_user(rabbit: RabbitServer, pump: Device) -> None:
    factories.rows("UPDATE iiot.credential SET amqp_hash = NULL WHERE device_id = %s", pump.device_id)
    assert provisioning_amqp.reconcile().extra == (pump.uid,)
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        assert [each.amqp_username for each in credentials.list_all(db, devices.get(db, pump.uid))] == [None]
        token = credentials.replace(db, devices.locked(db, pump.uid), credentials.Wanted()).token
    rabbit.connect(pump.uid, token).close()


def test_a_removed_device_leaves_nothing_behind(rabbit: RabbitServer, pump: Device) -> None:
    assert rabbitmq.list_queues() == {pump.uid}
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        devices.remove(db, pump.uid)
    assert rabbitmq.list_logins() == {}
    assert rabbitmq.list_queues() == set()
    rabbitmq.remove_device(pump.uid)


def test_devices_are_made_while_rabbitmq_is_not_told(rabbit: RabbitServer, settings: Settings, pump: Device) -> None:
    away = settings.model_copy(update={"amqp_management_url": "http://iiot-admin:x@127.0.0.1:9"})
    with services.active(away):
        late = Device(pump.tenant)
        with pytest.raises(BrokerUnavailable):
            provisioning_amqp.reconcile()
    with services.active(settings):
        assert provisioning_amqp.reconcile().missing == (late.uid,)
        with rabbit.online(late):
            pass
    refused = str(settings.amqp_management_url).replace("iiot-admin:", "iiot-admin:x")
    with (
        services.active(settings.model_copy(update={"amqp_management_url": refused})),
        pytest.raises(BrokerUnavailable, match="administrator"),
    ):
        rabbitmq.list_logins()
    with services.active(settings.model_copy(update={"amqp_management_url": None})):
        assert not provisioning_amqp.reconcile()
        rabbitmq.remove_device(late.uid)
