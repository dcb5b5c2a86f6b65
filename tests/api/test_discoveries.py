"""The inbox and homes over REST and as a page's forms: approve, merge, ignore, restore, many at once, the tenant's choice, and who may."""

from typing import Any

import pytest

from iiot import tenancy
from iiot.ids import new_uid
from iiot.models import Discovery
from tests import factories
from tests.api.conftest import Make, Person, check_problem

HALL = {"topic": "home/x/hall/light/a/state", "entities": ["light/a", "sensor/b"], "payload": b'{"state": "ON"}'}


@pytest.fixture
def gateway(admin: Person) -> factories.DeviceRow:
    return factories.make_device(admin.tenant, "gateway", is_gateway=True)


def found(gateway: factories.DeviceRow, name: str, **columns: Any) -> str:
    """Something in the inbox, as the adapter leaves it there; its id."""
    values = {"kind": "device", "protocol": "mqtt", "topic": f"iiot/{gateway.uid}/up/gateway/telemetry"} | columns
    with tenancy.work(tenancy.of(gateway)) as db:
        row = Discovery(uid=new_uid(), device_id=gateway.device_id, name=name, last_seen_at=factories.now(), **values)
        db.add(row)
        return row.uid


def inbox(person: Person, query: str = "") -> dict[str, str]:
    """Name → id of what waits."""
    answer = person.get(f"/discoveries?state=waiting{query}")
    assert answer.status_code == 200
    return {each["name"]: each["id"] for each in answer.get_json()["items"]}


def acts(person: Person) -> list[str]:
    query = "SELECT action FROM iiot.audit WHERE tenant_id = %s AND action LIKE 'discovery.%%' ORDER BY seq"
    return [action for (action,) in factories.rows(query, person.tenant.tenant_id)]


def test_it_is_listed_with_its_newest_message(admin: Person, gateway: factories.DeviceRow) -> None:
    uid = found(gateway, "pump", payload=b'{"flow": 1}\xff', messages=7)
    [item] = admin.get(f"/discoveries?gateway={gateway.uid}").get_json()["items"]
    assert item | {"first_seen_at": "", "last_seen_at": ""} == {
        "id": uid,
        "gateway_id": gateway.uid,
        "kind": "device",
        "name": "pump",
        "state": "waiting",
        "reason": "",
        "messages": 7,
        "entities": [],
        "protocol": "mqtt",
        "topic": f"iiot/{gateway.uid}/up/gateway/telemetry",
        "payload": '{"flow": 1}\\xff',
        "first_seen_at": "",
        "last_seen_at": "",
    }
    assert admin.get(f"/discoveries?gateway={new_uid()}").get_json()["items"] == []


def test_approve_as_it_is_and_under_another_name(admin: Person, gateway: factories.DeviceRow) -> None:
    site = admin.post("/sites", json={"name": "Hall 1"}).get_json()["id"]
    plain = admin.post(f"/discoveries/{found(gateway, 'pump', payload=b'[]')}/approve")
    assert plain.status_code == 200
    assert [plain.get_json()[name] for name in ("name", "type", "gateway", "child_name")] == [
        "pump",
        "default",
        gateway.uid,
        "pump",
    ]
    named = admin.post(
        f"/discoveries/{found(gateway, 'x9')}/approve", json={"name": "Pump 9", "type": "pump", "site": site}
    ).get_json()
    assert [named[name] for name in ("name", "type", "site", "child_name")] == ["Pump 9", "pump", site, "x9"]
    assert inbox(admin) == {}
    below = admin.get(f"/devices?gateway={gateway.uid}").get_json()["items"]
    assert [each["name"] for each in below] == ["pump", "Pump 9"]
    assert admin.get(f"/devices/{named['id']}").get_json()["gateway"] == gateway.uid
    assert acts(admin) == ["discovery.approve"] * 2
    # A device below a gateway has no token until somebody makes one.
    assert admin.get(f"/devices/{named['id']}/credentials").get_json()["items"] == []


def test_a_node_brings_its_entities_along(admin: Person, gateway: factories.DeviceRow) -> None:
    device = admin.post(f"/discoveries/{found(gateway, 'x/hall', **HALL)}/approve").get_json()
    assert (device["name"], device["child_name"]) == ("hall", "x/hall")
    entities = admin.get(f"/entities?device_id={device['id']}").get_json()["items"]
    assert [(each["kind"], each["name"]) for each in entities] == [("light", "a"), ("sensor", "b")]
    more = found(gateway, "x/hall/switch/fan", kind="entity", topic="home/x/hall/switch/fan/state")
    check_problem(admin.post(f"/discoveries/{more}/approve", json={"name": "Fan"}), 409, "not-a-device")
    check_problem(admin.post(f"/discoveries/{more}/merge", json={"device_id": device["id"]}), 409, "not-a-device")
    assert admin.post(f"/discoveries/{more}/approve").get_json()["id"] == device["id"]
    assert len(admin.get(f"/entities?device_id={device['id']}").get_json()["items"]) == 3


def test_merge_with_a_device_that_exists(admin: Person, gateway: factories.DeviceRow) -> None:
    old, foreign = factories.make_device(admin.tenant, "old"), factories.make_device(factories.make_tenant())
    uid = found(gateway, "x9")
    check_problem(admin.post(f"/discoveries/{uid}/merge", json={"device_id": foreign.uid}), 404, "not-found")
    check_problem(admin.post(f"/discoveries/{uid}/merge", json={"device_id": gateway.uid}), 409, "is-gateway")
    merged = admin.post(f"/discoveries/{uid}/merge", json={"device_id": old.uid}).get_json()
    assert (merged["id"], merged["name"], merged["child_name"]) == (old.uid, "old", "x9")
    assert acts(admin) == ["discovery.merge"]
    again = admin.post(f"/discoveries/{found(gateway, 'x10')}/merge", json={"device_id": old.uid})
    check_problem(again, 409, "has-gateway")


def test_ignored_is_remembered_and_restored(admin: Person, gateway: factories.DeviceRow) -> None:
    uid = found(gateway, "noise", payload=b"{}")
    ignored = admin.post(f"/discoveries/{uid}/ignore").get_json()
    assert (ignored["state"], ignored["payload"]) == ("ignored", None)
    assert inbox(admin) == {}
    assert admin.post(f"/discoveries/{uid}/restore").get_json()["state"] == "waiting"
    assert inbox(admin) == {"noise": uid}
    assert acts(admin) == ["discovery.ignore", "discovery.restore"]


def test_many_at_once_and_what_does_not_fit_says_why(person: Make) -> None:
    admin = person(tenant=factories.make_tenant(devices=3))
    gateway = factories.make_device(admin.tenant, "gateway", is_gateway=True)
    uids = [found(gateway, f"child {number}") for number in range(4)]
    answer = admin.post("/discoveries/approve", json={"ids": [*uids, new_uid()]}).get_json()
    assert [each["name"] for each in answer["approved"]] == ["child 0", "child 1"]
    assert [each["code"] for each in answer["failed"]] == ["quota-exceeded", "quota-exceeded", "not-found"]
    assert set(inbox(admin)) == {"child 2", "child 3"}
    check_problem(admin.post(f"/discoveries/{uids[2]}/approve"), 403, "quota-exceeded")
    assert acts(admin) == ["discovery.approve"] * 2
    made = "SELECT count(*) FROM iiot.audit WHERE tenant_id = %s AND action = 'device.create'"
    assert factories.rows(made, admin.tenant.tenant_id) == [(2,)]


def test_viewers_read_and_limited_members_approve_nothing(
    admin: Person, person: Make, gateway: factories.DeviceRow
) -> None:
    uid = found(gateway, "pump")
    viewer = person("viewer", admin.tenant)
    assert inbox(viewer) == {"pump": uid}
    check_problem(viewer.post(f"/discoveries/{uid}/approve"), 403, "forbidden")
    for answer in (viewer.post("/homes", json={"name": "x", "device_id": gateway.uid}),):
        check_problem(answer, 403, "forbidden")


def test_the_tenant_chooses_what_becomes_of_new_things(admin: Person) -> None:
    path = f"/tenants/{admin.tenant.uid}"
    assert admin.get(path).get_json()["discovery"] == "inbox"
    assert admin.patch(path, json={"discovery": "auto"}).get_json()["discovery"] == "auto"
    check_problem(admin.patch(path, json={"discovery": "never"}), 422, "invalid")


def test_homes_are_claimed_listed_and_given_up(admin: Person, gateway: factories.DeviceRow) -> None:
    answer = admin.post("/homes", json={"name": "villa", "device_id": gateway.uid})
    assert answer.status_code == 201
    made = answer.get_json()
    assert (made["name"], made["device_id"]) == ("villa", gateway.uid)
    assert admin.get("/homes").get_json()["items"] == [made]
    plain = factories.make_device(admin.tenant)
    check_problem(admin.post("/homes", json={"name": "hut", "device_id": plain.uid}), 409, "not-a-gateway")
    check_problem(admin.post("/homes", json={"name": "a/b", "device_id": gateway.uid}), 422, "invalid")
    check_problem(admin.post("/homes", json={"name": "+", "device_id": gateway.uid}), 422, "invalid")
    assert admin.delete(f"/homes/{made['id']}").status_code == 204
    assert admin.get("/homes").get_json()["items"] == []
    check_problem(admin.delete(f"/homes/{made['id']}"), 404, "not-found")


def test_a_taken_name_reads_alike_whoever_has_it(admin: Person, person: Make, gateway: factories.DeviceRow) -> None:
    assert admin.post("/homes", json={"name": "castle", "device_id": gateway.uid}).status_code == 201
    other = person()
    theirs = factories.make_device(other.tenant, is_gateway=True)
    answers = [
        check_problem(who.post("/homes", json={"name": "castle", "device_id": uid}), 409, "home-name-taken")
        for who, uid in ((admin, gateway.uid), (other, theirs.uid))
    ]
    assert answers[0] | {"request_id": ""} == answers[1] | {"request_id": ""}
