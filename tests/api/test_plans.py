"""Plans: templates of limits, for platform administrators alone."""

import itertools
from typing import Any

import pytest

from iiot.services import quotas
from tests import factories
from tests.api.conftest import Make, Person, check_problem

_numbers = itertools.count(1)


@pytest.fixture
def chief(person: Make) -> Person:
    """A platform administrator with a tenant of his own."""
    return person(is_platform_admin=True)


def make_plan(chief: Person, **limits: int) -> dict[str, Any]:
    answer = chief.post("/plans", json={"name": f"Plan {next(_numbers)}", **limits})
    assert answer.status_code == 201, answer.get_data(as_text=True)
    made: dict[str, Any] = answer.get_json()
    return made


def test_a_plan_is_made_changed_listed_and_deleted(chief: Person) -> None:
    plan = make_plan(chief, devices=5)
    assert plan.keys() == {"id", "name", "created_at", *quotas.NAMES}
    assert (plan["devices"], plan["users"]) == (5, 100)
    changed = chief.patch(f"/plans/{plan['id']}", json={"users": 3, "name": f"{plan['name']} small"}).get_json()
    assert (changed["users"], changed["devices"]) == (3, 5)
    assert changed["id"] in {each["id"] for each in chief.get("/plans?sort=-created_at").get_json()["items"]}
    assert chief.delete(f"/plans/{plan['id']}").status_code == 204
    check_problem(chief.patch(f"/plans/{plan['id']}", json={"users": 1}), 404, "not-found")
    check_problem(chief.delete(f"/plans/{plan['id']}"), 404, "not-found")
    trail = factories.rows("SELECT tenant_id, action FROM iiot.audit WHERE object_uid = %s ORDER BY seq", plan["id"])
    assert trail == [(0, "plan.create"), (0, "plan.change"), (0, "plan.delete")]


def test_plans_are_for_platform_admins(chief: Person, admin: Person) -> None:
    plan = make_plan(chief)
    for answer in (
        admin.get("/plans"),
        admin.post("/plans", json={"name": "x"}),
        admin.patch(f"/plans/{plan['id']}", json={"name": "x"}),
        admin.delete(f"/plans/{plan['id']}"),
    ):
        check_problem(answer, 403, "not-platform-admin")


def test_names_are_given_once(chief: Person) -> None:
    plan, other = make_plan(chief), make_plan(chief)
    check_problem(chief.post("/plans", json={"name": plan["name"].upper()}), 409, "name-taken")
    check_problem(chief.patch(f"/plans/{other['id']}", json={"name": plan["name"]}), 409, "name-taken")
    for body in ({"name": ""}, {"name": "x", "devices": -1}, {"name": "x", "devices": "1"}, {"devices": 1}):
        check_problem(chief.post("/plans", json=body), 422, "invalid")


def test_giving_a_plan_sets_all_limits_and_changing_it_later_does_not(chief: Person) -> None:
    plan = make_plan(chief, devices=5, connections=2)
    made = chief.post("/tenants", json={"name": f"Planned {next(_numbers)}", "plan": plan["id"]}).get_json()
    assert made["plan"] == {"id": plan["id"], "name": plan["name"]}
    path = f"/tenants/{made['id']}"
    assert chief.get(f"{path}/quota").get_json()["devices"]["limit"] == 5
    chief.patch(f"/plans/{plan['id']}", json={"devices": 6})
    assert chief.get(f"{path}/quota").get_json()["devices"]["limit"] == 5
    chief.call("PUT", f"{path}/quota", json={"devices": 1, "users": 1})
    given = chief.call("PUT", f"{path}/quota", json={"plan": plan["id"]}).get_json()
    assert {name: given[name]["limit"] for name in ("devices", "users", "connections")} == {
        "devices": 6, "users": 100, "connections": 2,
    }  # fmt: skip
    assert chief.delete(f"/plans/{plan['id']}").status_code == 204
    assert chief.get(path).get_json()["plan"] is None
    assert chief.get(f"{path}/quota").get_json()["devices"]["limit"] == 6
