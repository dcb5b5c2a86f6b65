"""Entities over REST: declared, listed with their states, controlled; the order is a command with the same life as any other."""

from typing import Any

import pytest

from iiot.ids import new_uid
from iiot.stream.latest import LatestEffect
from iiot.stream.log import Tailer
from tests import factories
from tests.api.conftest import Make, Person, Thing, check_problem, make_thing


@pytest.fixture
def desk(admin: Person) -> Thing:
    return make_thing(admin.tenant, "desk")


def declare(admin: Person, thing: Thing, kind: str = "light", name: str = "lamp") -> dict[str, Any]:
    answer = admin.post("/entities", json={"device_id": thing.uid, "kind": kind, "name": name})
    assert answer.status_code == 201, answer.get_data(as_text=True)
    made: dict[str, Any] = answer.get_json()
    return made


def tail() -> None:
    """The stream process's part."""
    tailer = Tailer("latest", LatestEffect())
    while tailer.step().outcome == "stepped":
        pass


def test_an_entity_shows_the_newest_readings_of_its_signals(admin: Person, desk: Thing) -> None:
    made = declare(admin, desk)
    assert made | {"created_at": ""} == {
        "id": made["id"],
        "device_id": desk.uid,
        "kind": "light",
        "name": "lamp",
        "is_controllable": True,
        "state": None,
        "brightness": None,
        "attributes": {},
        "updated_at": None,
        "created_at": "",
    }
    values = {"light/lamp/state": "ON", "light/lamp/brightness": 40.0, "light/lamp2/state": "OFF", "state": "OFF"}
    factories.store(desk.uid, (factories.now_ms(), values))
    factories.store(desk.uid, (factories.now_ms() - 60_000, {"light/lamp/state": "OFF"}))
    tail()
    shown = admin.get(f"/entities/{made['id']}").get_json()
    assert (shown["state"], shown["brightness"]) == ("ON", 40)
    assert shown["attributes"] == {"state": "ON", "brightness": 40}
    assert shown["updated_at"]


def test_the_list_is_filtered(admin: Person, desk: Thing) -> None:
    other = make_thing(admin.tenant, "other")
    declare(admin, desk), declare(admin, desk, "sensor", "t"), declare(admin, other)

    def names(query: str) -> list[tuple[str, str]]:
        return [(each["kind"], each["name"]) for each in admin.get(f"/entities{query}").get_json()["items"]]

    assert names("") == [("light", "lamp"), ("light", "lamp"), ("sensor", "t")]
    assert names(f"?device_id={desk.uid}") == [("light", "lamp"), ("sensor", "t")]
    assert names("?kind=sensor") == [("sensor", "t")]
    assert names(f"?device_id={new_uid()}") == []
    page = admin.get("/entities?limit=2").get_json()
    assert (len(page["items"]), page["total"]) == (2, 3)
    assert len(admin.get(f"/entities?limit=2&cursor={page['next_cursor']}").get_json()["items"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"state": None, "brightness": None},
        {"state": "on"},
        {"state": True},
        {"state": "TOGGLE"},
        {"brightness": -1},
        {"brightness": 101},
        {"brightness": 40.5},
        {"brightness": "40"},
        {"brightness": True},
        {"state": "ON", "colour": "red"},
        {"state": "ON", "brightness": 101},
        {"state": "ON", "ttl": 0},
    ],
)
def test_what_is_no_control_is_refused(admin: Person, desk: Thing, body: dict[str, Any]) -> None:
    check_problem(admin.post(f"/entities/{declare(admin, desk)['id']}/control", json=body), 422, "invalid")


def test_a_switch_has_no_brightness(admin: Person, desk: Thing) -> None:
    entity = declare(admin, desk, "switch")
    for body in ({"brightness": 40}, {"state": "ON", "brightness": 40}):
        problem = check_problem(admin.post(f"/entities/{entity['id']}/control", json=body), 422, "invalid")
        assert "no brightness" in str(problem)
    assert admin.post(f"/entities/{entity['id']}/control", json={"state": "ON"}).status_code == 201


@pytest.mark.parametrize(
    "body", [{"state": "ON"}, {"state": "OFF"}, {"brightness": 0}, {"state": "ON", "brightness": 100}]
)
def test_a_control_becomes_a_command_of_the_device(admin: Person, desk: Thing, body: dict[str, Any]) -> None:
    entity = declare(admin, desk)
    answer = admin.post(f"/entities/{entity['id']}/control", json=body)
    assert answer.status_code == 201
    made = answer.get_json()
    assert (made["name"], made["device_id"], made["state"]) == ("control", desk.uid, "queued")
    assert made["params"] == {"entity": "light/lamp"} | body
    assert answer.headers["Location"].endswith(f"/devices/{desk.uid}/commands/{made['id']}")
    [given] = admin.client.get("/api/v1/commands", headers=desk.headers).get_json()["items"]
    assert (given["id"], given["params"]) == (made["id"], made["params"])
    said = admin.client.post(f"/api/v1/commands/{made['id']}/result", headers=desk.headers, json={"status": "done"})
    assert said.status_code == 204
    assert admin.get(f"/devices/{desk.uid}/commands/{made['id']}").get_json()["state"] == "done"


def test_the_same_key_orders_once(admin: Person, desk: Thing) -> None:
    path = f"/entities/{declare(admin, desk)['id']}/control"
    first = admin.post(path, json={"state": "ON", "idempotency_key": "k1"}).get_json()
    assert admin.post(path, json={"state": "ON", "idempotency_key": "k1"}).get_json()["id"] == first["id"]
    check_problem(admin.post(path, json={"state": "OFF", "idempotency_key": "k1"}), 409, "idempotency-key-reused")


def test_who_may_not_control_and_what_is_only_read(admin: Person, person: Make, desk: Thing) -> None:
    lamp, sensor = declare(admin, desk), declare(admin, desk, "sensor", "t")
    viewer, operator, stranger = person("viewer", admin.tenant), person("operator", admin.tenant), person()
    check_problem(viewer.post(f"/entities/{lamp['id']}/control", json={"state": "ON"}), 403, "forbidden")
    check_problem(stranger.post(f"/entities/{lamp['id']}/control", json={"state": "ON"}), 404, "not-found")
    assert operator.post(f"/entities/{lamp['id']}/control", json={"state": "ON"}).status_code == 201
    check_problem(admin.post(f"/entities/{sensor['id']}/control", json={"state": "ON"}), 409, "entity-read-only")
    check_problem(operator.delete(f"/entities/{lamp['id']}"), 403, "forbidden")


def test_a_device_has_no_two_alike_and_what_is_deleted_is_gone(admin: Person, desk: Thing) -> None:
    made = declare(admin, desk)
    body = {"device_id": desk.uid, "kind": "light", "name": "lamp"}
    check_problem(admin.post("/entities", json=body), 409, "entity-exists")
    check_problem(admin.post("/entities", json=body | {"name": "a/b"}), 422, "invalid")
    check_problem(admin.post("/entities", json=body | {"device_id": new_uid()}), 404, "not-found")
    order = admin.post(f"/entities/{made['id']}/control", json={"state": "ON"}).get_json()
    assert admin.delete(f"/entities/{made['id']}").status_code == 204
    check_problem(admin.get(f"/entities/{made['id']}"), 404, "not-found")
    # What was ordered stays a command of the device.
    assert admin.get(f"/devices/{desk.uid}/commands/{order['id']}").get_json()["state"] == "queued"
