"""The smart-home scheme over a real broker: from a node's state to an entity, its control and back; who may speak for a home."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from iiot import broker as broker_module
from iiot import broker_homes, tenancy
from iiot.config import Settings
from iiot.errors import Conflict
from iiot.services import devices, discoveries, entities, homes, provisioning
from iiot.services.entities import Change, View
from iiot.services.listing import Wanted
from iiot.stream.latest import LatestEffect
from iiot.stream.log import Tailer
from tests import factories, services
from tests.integration.mqtt_brokers import KINDS, Broker
from tests.integration.mqtt_devices import Connected, Device, connection, online, served
from tests.integration.test_gateway import Gateway, notices, take_all
from tests.services import MosquittoServer, eventually


@pytest.fixture(scope="module", params=KINDS)
def broker(request: pytest.FixtureRequest, module_settings: Settings, workspace: Any) -> Iterator[Broker]:
    """A broker of either kind and one adapter for all of these tests."""
    with served(request.param, module_settings, workspace / f"{request.param} for homes") as server:
        yield server


class Hub(Gateway):
    """A gateway with a home."""

    def __init__(self, tenant: factories.TenantRow, home: str) -> None:
        super().__init__(tenant)
        self.home = home
        with tenancy.work(tenancy.of(tenant)) as db:
            self.home_uid = homes.claim(db, home, self.uid).uid

    def say(self, connected: Connected, rest: str, payload: bytes | str, retain: bool = False) -> None:
        connected.publish(f"home/{self.home}/{rest}", payload, retain=retain)

    def entities(self) -> dict[str, View]:
        """`<kind>/<name>` → the entity as people see it, after the tailer has done its work."""
        tailer = Tailer("latest", LatestEffect())
        while tailer.step().outcome == "stepped":
            pass
        with tenancy.work(tenancy.of(self.tenant)) as db:
            found = entities.search(db, None, None, Wanted("name", 100))
            return {f"{each.kind}/{each.name}": each for each in found.items}

    def control(self, uid: str, **change: Any) -> str:
        with tenancy.work(tenancy.of(self.tenant)) as db:
            return entities.control(db, uid, Change(**change)).uid


_numbers = iter(range(1, 1000))


@pytest.fixture
def hub(broker: Broker) -> Hub:
    return Hub(factories.make_tenant(), f"home-{next(_numbers)}")


def state_of(uid: str) -> str:
    return str(factories.rows("SELECT state FROM iiot.command WHERE uid = %s", uid)[0][0])


def asked(connected: Connected) -> list[tuple[str, Any]]:
    return [(topic, content) for topic, content in connected.messages if topic.endswith("/set")]


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        services.missing(f"{name} (apt-get install mosquitto-clients)")
    return found


@pytest.mark.parametrize("version", ["311", "5"])
def test_with_mosquittos_own_programs_from_the_state_to_the_control_and_back(
    broker: Broker, hub: Hub, version: str
) -> None:
    if version == "5" and broker.newest < 5:
        pytest.skip("amqtt speaks 3.1.1 alone")
    login = ["-h", broker.host, "-p", str(broker.port), "-V", version, "-i", hub.uid, "-u", hub.uid, "-P", hub.token]
    lamp = f"home/{hub.home}/hall/light/ceiling"

    def publish(topic: str, text: str) -> None:
        subprocess.run([tool("mosquitto_pub"), *login, "-q", "1", "-t", topic, "-m", text], check=True, timeout=30)

    publish(f"home/{hub.home}/hall/status", "online")
    publish(f"{lamp}/state", '{"state": "OFF", "brightness": 0}')
    name = f"{hub.home}/hall"
    eventually(lambda: name in hub.inbox() and hub.inbox()[name].entities == ["light/ceiling"], 30)
    child = hub.approve(f"{hub.home}/hall")
    eventually(lambda: hub.entities()["light/ceiling"].state == "OFF", 30)
    entity = hub.entities()["light/ceiling"]
    assert (entity.state, entity.brightness, entity.device_uid, entity.is_controllable) == ("OFF", 0, child, True)
    # A session at the broker, so that it does not matter when the ear is there.
    listening = [tool("mosquitto_sub"), *login, "-c", "-q", "1", "-t", f"home/{hub.home}/+/+/+/set", "-v"]
    subprocess.run([*listening, "-E"], check=True, timeout=30)
    command = hub.control(entity.uid, state="ON", brightness=40)
    eventually(lambda: state_of(command) == "sent", 30)
    heard = subprocess.run(
        [*listening, "-C", "1", "-W", "60"], check=True, timeout=90, stdout=subprocess.PIPE, text=True
    ).stdout
    topic, _, payload = heard.strip().partition(" ")
    assert (topic, json.loads(payload)) == (f"{lamp}/set", {"state": "ON", "brightness": 40})
    publish(f"{lamp}/state", '{"state": "ON", "brightness": 10}')
    publish(f"{lamp}/state", '{"state": "ON", "brightness": 40}')
    eventually(lambda: state_of(command) == "done", 30)
    eventually(
        lambda: (hub.entities()["light/ceiling"].state, hub.entities()["light/ceiling"].brightness) == ("ON", 40), 30
    )


def test_a_node_waits_with_all_that_it_has_shown_and_new_entities_wait_again(broker: Broker, hub: Hub) -> None:
    with online(broker, hub) as device:
        hub.say(device, "hall/status", "online")
        hub.say(device, "hall/light/ceiling/state", "on")
        hub.say(device, "hall/sensor/temperature/state", "21.5")
        name = f"{hub.home}/hall"
        eventually(lambda: name in hub.inbox() and hub.inbox()[name].messages == 3, 30)
        assert hub.inbox()[name].entities == ["light/ceiling", "sensor/temperature"]
        hub.approve(name)
        assert hub.child(name)[2] == "hall"
        assert set(hub.entities()) == {"light/ceiling", "sensor/temperature"}
        eventually(lambda: hub.entities()["sensor/temperature"].state == 21.5, 30)
        hub.say(device, "hall/switch/fan/state", "OFF")
        entity = eventually(lambda: hub.inbox().get(f"{name}/switch/fan"), 30)
        assert entity.kind == "entity"
        assert set(hub.entities()) == {"light/ceiling", "sensor/temperature"}
        hub.approve(f"{name}/switch/fan")
        eventually(lambda: hub.entities().get("switch/fan") and hub.entities()["switch/fan"].state == "OFF", 30)
        hub.say(device, "hall/status", "offline")
        eventually(lambda: hub.child(name)[3] == "offline", 30)
        hub.say(device, "hall/status", "online")
        eventually(lambda: hub.child(name)[3] == "online", 30)


def test_a_tenant_that_takes_all_has_node_and_entity_at_once(broker: Broker, hub: Hub) -> None:
    take_all(hub.tenant)
    with online(broker, hub) as device:
        hub.say(device, "hall/light/ceiling/state", '{"state": "ON", "brightness": 40, "color": {"r": 1}}')
        shown = {"state": "ON", "brightness": 40, "color": {"r": 1}}
        eventually(lambda: [each.attributes for each in hub.entities().values()] == [shown], 30)
        assert hub.inbox() == {}


NONSENSE = {
    "hall/light/ceiling/state": (b"banana", "state-invalid"),
    "hall/light/two/state": (b'{"state": "ON", "brightness": 400}', "state-invalid"),
    "hall/light/three/state": (b'{"state": ', "not-json"),
    "hall/sensor/four/state": (b"\xff\xfe", "not-utf8"),
    "hall/sensor/five/state": (b"x" * 300, "string-too-long"),
    "hall/sensor/with blank/state": (b"1", "topic-invalid"),
    "hall/status": (b"sleeping", "status-invalid"),
}


def test_nonsense_is_kept_with_the_gateway_and_makes_nothing(broker: Broker, hub: Hub) -> None:
    take_all(hub.tenant)
    with online(broker, hub) as device:
        for rest, (payload, _) in NONSENSE.items():
            hub.say(device, rest, payload)
        told = eventually(lambda: len(notices(device)) == len(NONSENSE) and notices(device), 30)
    assert {each["topic"]: each["code"] for each in told} == {
        f"home/{hub.home}/{rest}": code for rest, (_, code) in NONSENSE.items()
    }
    # One of them has a good state beside its bad brightness: that is the node's, with what was wrong.
    half = NONSENSE["hall/light/two/state"][1]
    assert sorted([*hub.rejections, half]) == sorted(code for _, code in NONSENSE.values())
    assert set(hub.entities()) == {"light/two"}
    kept = factories.rows(
        "SELECT code FROM iiot.rejected_message WHERE device_id = %s", hub.child(f"{hub.home}/hall")[1]
    )
    assert kept == [(half,)]


def test_a_control_of_another_device_goes_the_way_of_all_commands(broker: Broker, hub: Hub) -> None:
    plain = Device(hub.tenant, "plain")
    with tenancy.work(tenancy.of(hub.tenant)) as db:
        entity = entities.create(db, plain.uid, "light", "desk").uid
    with online(broker, plain) as device:
        device.publish(f"iiot/{plain.uid}/up/telemetry", '{"light/desk/state": "OFF", "light/desk/brightness": 7}')
        command = hub.control(entity, brightness=9)
        [given] = eventually(lambda: notices(device, "command"), 30)
        assert (given["name"], given["params"]) == ("control", {"entity": "light/desk", "brightness": 9})
        device.publish(f"iiot/{plain.uid}/up/result/{command}", '{"status": "done"}')
        eventually(lambda: state_of(command) == "done", 30)
    eventually(lambda: hub.entities()["light/desk"].attributes == {"state": "OFF", "brightness": 7}, 30)


def test_what_the_broker_repeats_makes_nothing_new_and_is_not_stored(broker: Broker, hub: Hub) -> None:
    """A home that was given up may leave retained states behind: they are nobody's news."""
    from protocols import gateways, translate
    from protocols.base import Message

    def message(topic: str, payload: bytes) -> Message:
        return Message("home/x/y", "home", payload, topic, lambda *_: None, retained=True)

    assert translate.is_no_news(message(f"home/{hub.home}/hall/light/a/state", b"ON"))
    status = message(f"home/{hub.home}/hall/status", b"online")
    assert not translate.is_no_news(status)
    status.prepared = gateways.prepare(status)
    through = gateways.Through("mqtt", {0: status})
    assert (through.incoming, through.events) == ([], [])
    through.finish([], [None])  # type: ignore[list-item]
    assert hub.inbox() == {}


# --- who may ---------------------------------------------------------------------------------------------------------------------------------


def test_nobody_else_speaks_or_listens_in_a_home(broker: Broker, hub: Hub) -> None:
    stranger = Hub(factories.make_tenant(), f"{hub.home}-other")
    sibling = Gateway(hub.tenant)
    foreign = [f"home/{hub.home}/+/+/+/set", "home/+/+/+/+/set", "home/#", f"home/{hub.home}/#", "home/+/+/status"]
    as_adapter = connection(broker, "iiot-adapter", broker.users.password("iiot-adapter"), "observer")
    with as_adapter as observer, online(broker, hub) as owner:
        assert observer.subscribe("home/+/+/+/+/state")
        assert observer.subscribe("home/+/+/status")
        assert owner.subscribe(f"home/{hub.home}/+/+/+/set")
        for other in (stranger, sibling):
            with online(broker, other) as device:
                for topic in foreign:
                    assert not device.subscribe(topic), topic
                for rest in ("hall/light/a/state", "hall/status", "hall/light/a/set"):
                    device.publish(f"home/{hub.home}/{rest}", "ON")
        owner.publish(f"home/{hub.home}/hall/light/a/set", "ON")
        owner.publish(f"home/{hub.home}/hall/light/a/state", "ON")
        eventually(lambda: observer.messages, 30)
    assert observer.messages == [(f"home/{hub.home}/hall/light/a/state", "ON")]
    assert asked(owner) == []


def test_a_home_belongs_to_one_tenant_and_can_be_given_up(broker: Broker, hub: Hub) -> None:
    other = Gateway(factories.make_tenant())
    plain = Device(hub.tenant, "plain")
    answers = []
    for tenant, device in ((other.tenant, other), (hub.tenant, hub)):
        with tenancy.work(tenancy.of(tenant)) as db, pytest.raises(Conflict) as refused:
            homes.claim(db, hub.home, device.uid)
        answers.append((refused.value.code, refused.value.detail))
    assert answers[0] == answers[1]
    with tenancy.work(tenancy.of(hub.tenant)) as db, pytest.raises(Conflict, match="no gateway"):
        homes.claim(db, "elsewhere", plain.uid)
    with tenancy.work(tenancy.of(hub.tenant)) as db:
        homes.release(db, hub.home_uid)
    with online(broker, hub) as device:
        assert not device.subscribe(f"home/{hub.home}/+/+/+/set")
    with tenancy.work(tenancy.of(other.tenant)) as db:
        homes.claim(db, hub.home, other.uid)
    with online(broker, other) as device:
        assert device.subscribe(f"home/{hub.home}/+/+/+/set")
        device.publish(f"home/{hub.home}/hall/light/a/state", "ON")
        eventually(lambda: list(other.inbox()) == [f"{hub.home}/hall"], 30)
    assert hub.inbox() == {}


def test_rights_in_homes_are_compared_and_mended(broker: Broker, hub: Hub) -> None:
    if not isinstance(broker, MosquittoServer):
        pytest.skip("amqtt reads the rights from the database itself")
    broker_homes.set_homes(hub.uid, [])
    assert provisioning.reconcile().wrong_role == (broker_module.role_of(hub.uid),)
    assert provisioning.reconcile().wrong_role == ()
    with online(broker, hub) as device:
        assert device.subscribe(f"home/{hub.home}/+/+/+/set")


def test_the_brokers_file_holds_the_homes(broker: Broker, hub: Hub) -> None:
    with tenancy.work(tenancy.system("provision")) as db:
        stored = broker_homes.stored(db)
        document = broker_module.dynsec_document(broker_module.stored_logins(db), {}, homes=stored)
    [role] = [role for role in document["roles"] if role["rolename"] == broker_module.role_of(hub.uid)]
    assert {acl["topic"] for acl in role["acls"]} == {
        f"iiot/{hub.uid}/up/#",
        f"iiot/{hub.uid}/down/#",
        f"home/{hub.home}/+/+/+/state",
        f"home/{hub.home}/+/status",
        f"home/{hub.home}/+/+/+/set",
    }


def test_a_node_is_not_approved_twice_and_an_entity_without_its_node_not_at_all(broker: Broker, hub: Hub) -> None:
    with online(broker, hub) as device:
        hub.say(device, "hall/light/a/state", "ON")
        uid = hub.approve(f"{hub.home}/hall")
        hub.say(device, "hall/light/b/state", "ON")
        row = eventually(lambda: hub.inbox().get(f"{hub.home}/hall/light/b"), 30)
    with tenancy.work(tenancy.of(hub.tenant)) as db:
        devices.remove(db, uid)
    with tenancy.work(tenancy.of(hub.tenant)) as db, pytest.raises(Conflict, match="no longer there"):
        discoveries.approve(db, row.uid)


def test_nothing_is_told_in_a_home_that_is_somebody_elses_by_now(broker: Broker, hub: Hub) -> None:
    take_all(hub.tenant)
    with online(broker, hub) as device:
        hub.say(device, "hall/light/a/state", "OFF")
        entity = eventually(lambda: hub.entities().get("light/a"), 30)
    other = Gateway(factories.make_tenant())
    with tenancy.work(tenancy.of(hub.tenant)) as db:
        homes.release(db, hub.home_uid)
    with tenancy.work(tenancy.of(other.tenant)) as db:
        homes.claim(db, hub.home, other.uid)
    with online(broker, hub) as device, online(broker, other) as stranger:
        assert stranger.subscribe(f"home/{hub.home}/+/+/+/set")
        command = hub.control(entity.uid, state="ON")
        [given] = eventually(lambda: notices(device, "command"), 30)
        assert (given["id"], given["device"]) == (command, f"{hub.home}/hall")
        assert given["params"] == {"entity": "light/a", "state": "ON"}
        eventually(lambda: state_of(command) == "sent", 30)
    assert asked(stranger) == []
