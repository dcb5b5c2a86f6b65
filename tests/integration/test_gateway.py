"""Gateways that send for their children, over a real broker: the inbox, what is made at once, commands to children, and what is refused."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from iiot import tenancy
from iiot.config import Settings
from iiot.models import Device as DeviceRow
from iiot.models import Tenant
from iiot.services import children, command_delivery, commands, devices, discoveries
from iiot.services.listing import Wanted
from protocols.base import Proved
from protocols.devices import Devices
from tests import factories
from tests.integration.mqtt_brokers import KINDS, Broker
from tests.integration.mqtt_devices import Connected, Device, online, served
from tests.services import MosquittoServer, eventually


class Gateway(Device):
    """A device that is a gateway."""

    def __init__(self, tenant: factories.TenantRow) -> None:
        super().__init__(tenant, "gateway")
        with tenancy.work(tenancy.of(tenant)) as db:
            devices.change(db, self.uid, {"is_gateway": True})

    @property
    def topic(self) -> str:
        return f"iiot/{self.uid}/up/gateway/telemetry"

    def inbox(self, state: str = "waiting") -> dict[str, Any]:
        """Name → what is in the inbox."""
        with tenancy.work(tenancy.of(self.tenant)) as db:
            found = discoveries.search(db, discoveries.Filters(state, self.uid), Wanted("name", 500))
            return {row.name: row for row in found.items}

    def child(self, name: str) -> Any:
        """The row of a child; None while there is none."""
        found = factories.rows(
            "SELECT uid, id, name, status FROM iiot.device WHERE gateway_id = %s AND child_name = %s",
            self.device_id,
            name,
        )
        return found[0] if found else None

    def values(self, name: str) -> set[float]:  # type: ignore[override]
        """The numbers stored for a child."""
        query = """SELECT t.num FROM iiot.telemetry t JOIN iiot.signal s ON s.tenant_id = t.tenant_id AND s.id = t.signal_id
            JOIN iiot.device d ON d.tenant_id = s.tenant_id AND d.id = s.device_id WHERE d.gateway_id = %s AND d.child_name = %s"""
        return {float(row[0]) for row in factories.rows(query, self.device_id, name)}

    def approve(self, name: str) -> str:
        """The uid of the child."""
        row = eventually(lambda: self.inbox().get(name), 30)
        with tenancy.work(tenancy.of(self.tenant)) as db:
            return discoveries.approve(db, row.uid).uid


def take_all(tenant: factories.TenantRow) -> None:
    """The tenant takes new children without asking."""
    with tenancy.work(tenancy.system("platform")) as db:
        db.execute(update(Tenant).where(Tenant.id == tenant.tenant_id).values(discovery="auto"))


def notices(connected: Connected, word: str = "error") -> list[Any]:
    return [content for topic, content in connected.messages if topic.endswith(f"/down/{word}")]


@pytest.fixture(scope="module", params=KINDS)
def broker(request: pytest.FixtureRequest, module_settings: Settings, workspace: Any) -> Iterator[Broker]:
    """A broker of either kind and one adapter for all of these tests."""
    with served(request.param, module_settings, workspace / f"{request.param} for gateways") as server:
        yield server


@pytest.fixture
def gateway(broker: Broker) -> Gateway:
    return Gateway(factories.make_tenant())


def test_an_unknown_child_waits_is_approved_and_its_newest_message_is_stored(broker: Broker, gateway: Gateway) -> None:
    with online(broker, gateway) as device:
        device.publish(gateway.topic, json.dumps({"pump 1": [{"flow": 1.5}]}))
        device.publish(gateway.topic, json.dumps({"pump 1": {"flow": 2.5}}))
        [first, _] = eventually(lambda: len(notices(device)) == 2 and notices(device), 30)
        assert (first["code"], first["device"], first["topic"]) == ("child-waiting", "pump 1", gateway.topic)
        row = gateway.inbox()["pump 1"]
        assert (row.kind, row.messages, json.loads(row.payload)) == ("device", 2, {"flow": 2.5})
        assert gateway.child("pump 1") is None
        gateway.approve("pump 1")
        assert gateway.values("pump 1") == {2.5}
        assert gateway.inbox() == {}
        device.publish(
            gateway.topic, json.dumps({"pump 1": [{"flow": 3.5}, {"flow": 4.5, "ts": factories.now_ms() - 9}]})
        )
        eventually(lambda: gateway.values("pump 1") == {2.5, 3.5, 4.5}, 30)
        assert len(notices(device)) == 2
    assert gateway.rejections == []


def test_a_tenant_that_takes_all_has_the_child_at_once_and_quotas_hold(broker: Broker) -> None:
    gateway = Gateway(factories.make_tenant(devices=2))
    take_all(gateway.tenant)
    with online(broker, gateway) as device:
        message = {"a": {"t": 1}, "b": {"t": 2}}
        device.publish(gateway.topic, json.dumps(message))
        [notice] = eventually(lambda: notices(device), 30)
        assert (notice["code"], notice["device"]) == ("child-waiting", "b")
        assert gateway.values("a") == {1.0}
        assert "devices" in gateway.inbox()["b"].reason
        factories.rows("UPDATE iiot.quota SET devices = 5 WHERE tenant_id = %s", gateway.tenant.tenant_id)
        device.publish(gateway.topic, json.dumps({"b": {"t": 3}}))
        eventually(lambda: gateway.values("b") == {3.0}, 30)
        assert gateway.inbox() == {}


def test_what_is_ignored_stays_away_until_it_is_restored(broker: Broker, gateway: Gateway) -> None:
    with online(broker, gateway) as device:
        device.publish(gateway.topic, '{"noise": {"t": 1}}')
        row = eventually(lambda: gateway.inbox().get("noise"), 30)
        with tenancy.work(tenancy.of(gateway.tenant)) as db:
            discoveries.ignore(db, row.uid)
        device.publish(gateway.topic, '{"noise": {"t": 2}}')
        eventually(lambda: [each["code"] for each in notices(device)] == ["child-waiting", "child-ignored"], 30)
        assert gateway.inbox() == {}
        assert gateway.inbox("ignored")["noise"].messages == 1
        with tenancy.work(tenancy.of(gateway.tenant)) as db:
            discoveries.restore(db, row.uid)
        device.publish(gateway.topic, '{"noise": {"t": 3}}')
        eventually(lambda: gateway.inbox()["noise"].messages == 2, 30)


def test_a_child_is_merged_with_a_device_that_exists(broker: Broker, gateway: Gateway) -> None:
    old = factories.make_device(gateway.tenant, "the old one")
    with online(broker, gateway) as device:
        device.publish(gateway.topic, '{"x9": {"t": 1}}')
        row = eventually(lambda: gateway.inbox().get("x9"), 30)
        with tenancy.work(tenancy.of(gateway.tenant)) as db:
            assert discoveries.merge(db, row.uid, old.uid).uid == old.uid
        device.publish(gateway.topic, '{"x9": {"t": 2}}')
        eventually(lambda: gateway.values("x9") == {1.0, 2.0}, 30)
    assert gateway.child("x9")[:3] == (old.uid, old.device_id, "the old one")


BAD = {
    "not JSON": (b"{", "not-json", None),
    "no object": (b"[1]", "not-an-object", None),
    "nothing": (b"{}", "empty", None),
    "a child without readings": (b'{"a": []}', "empty", "a"),
    "a child that is a number": (b'{"a": 1}', "not-an-object", "a"),
    "a name with a line feed": (b'{"a\\nb": {"t": 1}}', "child-name-invalid", "a\ufffdb"),
    "no name": (b'{"": {"t": 1}}', "child-name-invalid", ""),
}


GHOSTS = {
    "no value": (b'{"ghost": {}}', "empty"),
    "a bad key": (b'{"ghost": {"bad key": 1}}', "key-invalid"),
    "null": (b'{"ghost": {"x": null}}', "value-null"),
    "too old": (b'{"ghost": {"ts": 1000, "values": {"x": 1}}}', "ts-too-old"),
}


@pytest.mark.parametrize("takes_all", [True, False])
def test_what_holds_no_good_reading_makes_nothing_new(broker: Broker, gateway: Gateway, takes_all: bool) -> None:
    if takes_all:
        take_all(gateway.tenant)
    with online(broker, gateway) as device:
        for payload, _ in GHOSTS.values():
            device.publish(gateway.topic, payload)
        told = eventually(lambda: len(notices(device)) == len(GHOSTS) and notices(device), 30)
    assert [(each["code"], each["device"]) for each in told] == [(code, "ghost") for _, code in GHOSTS.values()]
    assert gateway.rejections == [code for _, code in GHOSTS.values()]
    assert gateway.child("ghost") is None
    assert gateway.inbox() == {}


@pytest.mark.parametrize("name", BAD)
def test_nonsense_is_kept_with_the_gateway_and_told(broker: Broker, gateway: Gateway, name: str) -> None:
    payload, code, child = BAD[name]
    take_all(gateway.tenant)
    with online(broker, gateway) as device:
        device.publish(gateway.topic, payload)
        device.publish(gateway.topic, '{"good": {"t": 1}}')
        eventually(lambda: gateway.values("good") == {1.0}, 30)
        [notice] = eventually(lambda: notices(device), 30)
    assert (notice["code"], notice.get("device")) == (code, child)
    assert gateway.rejections == [code]
    assert [
        row[0] for row in factories.rows("SELECT child_name FROM iiot.device WHERE gateway_id = %s", gateway.device_id)
    ] == ["good"]


def test_a_bad_reading_names_its_child_and_the_others_are_stored(broker: Broker, gateway: Gateway) -> None:
    take_all(gateway.tenant)
    with online(broker, gateway) as device:
        device.publish(gateway.topic, '{"a": {"t": 1}, "b": {"t": 2}}')
        eventually(lambda: gateway.values("b") == {2.0}, 30)
        device.publish(gateway.topic, '{"a": {"t": "warm"}, "b": {"t": 3}}')
        eventually(lambda: gateway.values("b") == {2.0, 3.0}, 30)
        [notice] = eventually(lambda: notices(device), 30)
    assert (notice["code"], notice["device"], notice["key"]) == ("wrong-type", "a", "t")
    kept = factories.rows("SELECT code, payload FROM iiot.rejected_message WHERE device_id = %s", gateway.child("a")[1])
    assert [(code, bytes(payload)) for code, payload in kept] == [("wrong-type", b'{"t":"warm"}')]


def test_a_device_that_is_no_gateway_sends_for_nobody(broker: Broker) -> None:
    device = Device(factories.make_tenant())
    take_all(device.tenant)
    with online(broker, device) as connected:
        connected.publish(f"iiot/{device.uid}/up/gateway/telemetry", '{"a": {"t": 1}, "b": {"t": 1}}')
        [notice] = eventually(lambda: notices(connected), 30)
    assert notice["code"] == "not-a-gateway"
    assert device.rejections == ["not-a-gateway"]
    assert factories.rows("SELECT 1 FROM iiot.device WHERE gateway_id = %s", device.device_id) == []


def test_nothing_comes_from_a_tenant_that_is_suspended(broker: Broker, gateway: Gateway) -> None:
    take_all(gateway.tenant)
    with online(broker, gateway) as device:
        factories.rows("UPDATE iiot.tenant SET status = 'suspended' WHERE id = %s", gateway.tenant.tenant_id)
        device.publish(gateway.topic, '{"a": {"t": 1}}')
        eventually(lambda: gateway.rejections == ["tenant-suspended"], 30)
        # amqtt looks into the database itself and may have ended the connection by now.
        if isinstance(broker, MosquittoServer):
            [notice] = eventually(lambda: notices(device), 30)
            assert notice["code"] == "tenant-suspended"
    assert gateway.child("a") is None
    assert gateway.inbox() == {}


def test_the_inbox_of_a_gateway_is_bounded_and_says_so(
    broker: Broker, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"child {number}" for number in range(children.MOST_WAITING + 3)]
    with online(broker, gateway) as device:
        device.publish(gateway.topic, json.dumps({name: {"t": 1} for name in names}))
        eventually(lambda: len(gateway.rejections) == 3, 30)
        device.publish(gateway.topic, json.dumps({"another": {"t": 1}, "child 0": {"t": 2}}))
        eventually(lambda: gateway.rejections == ["inbox-full"] * 4, 30)
        told = [each for each in eventually(lambda: notices(device), 30) if each["code"] == "inbox-full"]
        assert {(each["limit"], each["allowed"]) for each in told} <= {("things_waiting", children.MOST_WAITING)}
        # What is refused is kept in a commit before that of what waits.
        eventually(lambda: gateway.inbox()["child 0"].messages == 2, 30)
    assert len(gateway.inbox()) == children.MOST_WAITING
    with tenancy.work(tenancy.of(gateway.tenant)) as db:
        assert discoveries.full_gateways(db) == ["gateway"]


def test_the_gateway_gets_its_childrens_commands_and_answers_for_them(broker: Broker, gateway: Gateway) -> None:
    with online(broker, gateway) as device:
        device.publish(gateway.topic, '{"valve": {"open": true}}')
        child = gateway.approve("valve")
        with tenancy.work(tenancy.of(gateway.tenant)) as db:
            uid = commands.create(db, child, commands.NewCommand("close", {"slowly": True})).uid
        [given] = eventually(lambda: notices(device, "command"), 30)
        assert given == {
            "id": uid,
            "name": "close",
            "params": {"slowly": True},
            "device": "valve",
            "expires_at": given["expires_at"],
        }
        device.publish(f"iiot/{gateway.uid}/up/result/{uid}", '{"status": "done", "result": {"open": false}}')

        def state() -> list[tuple[Any, ...]]:
            return factories.rows("SELECT state, result FROM iiot.command WHERE uid = %s", uid)

        eventually(lambda: state() == [("done", {"open": False})], 30)


def test_a_stranger_gateway_answers_for_nobody_elses_children(broker: Broker, gateway: Gateway) -> None:
    take_all(gateway.tenant)
    neighbour = Gateway(gateway.tenant)
    with online(broker, gateway) as device:
        device.publish(gateway.topic, '{"valve": {"t": 1}}')
        child = eventually(lambda: gateway.child("valve"), 30)[0]
    with tenancy.work(tenancy.of(gateway.tenant)) as db:
        uid = commands.create(db, child, commands.NewCommand("close")).uid
    with online(broker, neighbour) as device:
        device.publish(f"iiot/{neighbour.uid}/up/result/{uid}", '{"status": "done"}')
        eventually(lambda: neighbour.rejections == ["unknown-command"], 30)


def test_a_gateway_is_online_while_it_sends_for_others(broker: Broker, gateway: Gateway) -> None:
    state = "SELECT status, tells_status, last_seen_at IS NOT NULL FROM iiot.device WHERE id = %s"
    assert factories.rows(state, gateway.device_id) == [("new", False, False)]
    with online(broker, gateway) as device:
        device.publish(gateway.topic, json.dumps({"unknown": {"a": 1}}))
        eventually(lambda: factories.rows(state, gateway.device_id) == [("online", False, True)], 30)
    said = Gateway(gateway.tenant)
    with online(broker, said) as device:
        device.publish(f"iiot/{said.uid}/up/status", "offline")
        device.publish(said.topic, json.dumps({"unknown": {"a": 1}}))
        eventually(lambda: "unknown" in said.inbox(), 30)
        assert factories.rows(state, said.device_id) == [("offline", True, True)]


def test_a_gateway_that_asks_over_http_gets_them_there(broker: Broker, gateway: Gateway) -> None:
    with tenancy.work(tenancy.of(gateway.tenant)) as db:
        child = devices.create_child(db, devices.NewDevice("valve"), gateway.device_id, "valve").uid
    with tenancy.work(tenancy.of(gateway.tenant)) as db:
        uid = commands.create(db, child, commands.NewCommand("close")).uid
    scope = tenancy.of_device(factories.DeviceRow(gateway.tenant.tenant_id, gateway.device_id, gateway.uid, ""))
    order = command_delivery.poll(scope, gateway.device_id)
    assert order is not None
    assert (order.uid, order.device_uid, order.child) == (uid, gateway.uid, "valve")
    with tenancy.work(scope) as db:
        assert command_delivery.take(db, command_delivery.Answer(gateway.uid, uid, "done")) is None


def test_a_gateway_sees_its_children(broker: Broker, gateway: Gateway) -> None:
    with tenancy.work(tenancy.of(gateway.tenant)) as db:
        made = devices.create_child(db, devices.NewDevice("Valve of hall 3"), gateway.device_id, "valve")
    asking = Devices("test")
    proved = asking.authenticate(gateway.uid, gateway.token, "127.0.0.1")
    assert isinstance(proved, Proved)
    whole = asking.describe(proved)
    assert isinstance(whole, dict)
    assert [(each["id"], each["child_name"], each["name"]) for each in whole["children"]] == [
        (made.uid, "valve", "Valve of hall 3")
    ]


def test_children_outlive_their_gateway(broker: Broker, gateway: Gateway) -> None:
    with tenancy.work(tenancy.of(gateway.tenant)) as db:
        made = devices.create_child(db, devices.NewDevice("valve"), gateway.device_id, "valve")
    with tenancy.work(tenancy.of(gateway.tenant)) as db:
        devices.remove(db, gateway.uid)
    with tenancy.work(tenancy.of(gateway.tenant)) as db:
        left = devices.get(db, made.uid)
        assert (left.gateway_id, left.gateway_uid) == (None, None)


def test_an_approval_while_a_message_is_looked_at_loses_nothing(broker: Broker, gateway: Gateway) -> None:
    """Between looking and noting somebody approves: nothing is noted, the batch is looked at anew."""
    sighting = children.Sighting("late", gateway_uid=gateway.uid, payload=b"{}", received_ms=factories.now_ms())
    [place] = children.resolve([sighting])
    with tenancy.work(tenancy.of(gateway.tenant)) as db:
        devices.create_child(db, devices.NewDevice("late"), gateway.device_id, "late")
    with pytest.raises(children.Changed):
        children.note([(sighting, place)])
    assert gateway.inbox() == {}
    assert children.resolve([sighting])[0].state == "known"


def test_two_processes_make_a_child_once(broker: Broker, gateway: Gateway) -> None:
    take_all(gateway.tenant)
    ready = threading.Barrier(4)
    places: list[children.Place] = []

    def look() -> None:
        ready.wait(30)
        places.extend(children.resolve([children.Sighting("twin", gateway_uid=gateway.uid)]))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {place.child_uid for place in places} == {gateway.child("twin")[0]}
    with tenancy.work(tenancy.of(gateway.tenant)) as db:
        assert db.query(DeviceRow).filter(DeviceRow.child_name == "twin").count() == 1
