"""Service accounts: programs with a role of their own, whose keys follow it."""

from typing import Any

import pytest

from iiot import cache
from tests import factories
from tests.api.conftest import Make, Person, check_problem
from tests.api.test_api_keys import call, make_key


def make_account(person: Person, name: str = "exporter", role: str = "viewer") -> dict[str, Any]:
    answer = person.post("/service-accounts", json={"name": name, "role": role})
    assert answer.status_code == 201, answer.get_data(as_text=True)
    found: dict[str, Any] = answer.get_json()
    return found


def actions(person: Person) -> list[str]:
    found = factories.rows(
        "SELECT action FROM iiot.audit WHERE tenant_id = %s AND object_kind = 'service-account' ORDER BY seq",
        person.tenant.tenant_id,
    )
    return [str(row[0]) for row in found]


def test_a_program_gets_a_role_and_a_key(admin: Person) -> None:
    account = make_account(admin, role="engineer")
    assert (account["role"], account["enabled"], account["keys"]) == ("engineer", True, 0)
    made = make_key(admin, service_account=account["id"])
    assert (made["owner_kind"], made["owner"], made["owner_id"]) == ("service", "exporter", account["id"])
    created = call(admin.client, made["key"], "POST", "/devices", json={"name": "by program"})
    assert created.status_code == 201
    [(kind, uid, label)] = factories.rows(
        "SELECT actor_kind, actor_uid, actor_label FROM iiot.audit WHERE tenant_id = %s AND action = 'device.create'",
        admin.tenant.tenant_id,
    )
    assert (kind, uid, label) == ("service", account["id"], "service:exporter")
    [listed] = admin.get("/service-accounts").get_json()["items"]
    assert listed["keys"] == 1


def test_its_keys_follow_its_role_its_state_and_its_end(admin: Person) -> None:
    account = make_account(admin, role="engineer")
    key = make_key(admin, service_account=account["id"])["key"]
    path = f"/service-accounts/{account['id']}"
    assert call(admin.client, key, "POST", "/devices", json={"name": "x"}).status_code == 201
    changed = admin.patch(path, json={"role": "viewer", "name": "reader"})
    assert (changed.get_json()["role"], changed.get_json()["name"]) == ("viewer", "reader")
    check_problem(call(admin.client, key, "POST", "/devices", json={"name": "y"}), 403, "forbidden")
    assert admin.patch(path, json={"enabled": False}).get_json()["enabled"] is False
    check_problem(call(admin.client, key, "GET", "/devices"), 401, "unauthorized")
    assert admin.patch(path, json={"enabled": True}).status_code == 200
    assert call(admin.client, key, "GET", "/devices").status_code == 200
    assert admin.delete(path).status_code == 204
    check_problem(call(admin.client, key, "GET", "/devices"), 401, "unauthorized")
    assert factories.rows("SELECT 1 FROM iiot.api_key WHERE tenant_id = %s", admin.tenant.tenant_id) == []
    assert actions(admin) == [
        "service-account.create",
        "service-account.change",
        "service-account.change",
        "service-account.change",
        "service-account.delete",
    ]


def test_a_role_of_the_tenant_works_too(admin: Person) -> None:
    role = admin.post(f"/tenants/{admin.tenant.uid}/roles", json={"name": "reader", "permissions": ["device:read"]})
    account = make_account(admin, role=role.get_json()["id"])
    assert (account["role"], account["role_name"]) == (role.get_json()["id"], "reader")
    key = make_key(admin, service_account=account["id"])["key"]
    assert call(admin.client, key, "GET", "/devices").status_code == 200
    check_problem(call(admin.client, key, "POST", "/devices", json={"name": "x"}), 403, "forbidden")


def test_scopes_stay_within_the_accounts_role(admin: Person) -> None:
    account = make_account(admin)
    body = {"name": "x", "service_account": account["id"], "scopes": ["device:write"]}
    assert "device:write" in str(check_problem(admin.post("/api-keys", json=body), 422, "invalid")["errors"])


def _custom(boss: Person, person: Make, *permissions: str) -> Person:
    """A member with exactly these permissions."""
    helper = person("viewer", boss.tenant)
    factories.rows(
        "WITH made AS (INSERT INTO iiot.role (tenant_id, uid, name, permissions) VALUES (%s, %s, 'keeper', %s) RETURNING id) "
        "UPDATE iiot.membership SET role = 'custom', role_id = made.id FROM made WHERE user_id = %s",
        boss.tenant.tenant_id,
        "k" * 26 if not factories.rows("SELECT 1 FROM iiot.role WHERE uid = %s", "k" * 26) else "l" * 26,
        list(permissions),
        helper.user.user_id,
    )
    cache.forget_everywhere()
    return helper


def test_nobody_makes_a_program_that_may_do_more_than_they(person: Make) -> None:
    boss = person()
    strong = make_account(boss, "strong", "admin")
    keeper = _custom(boss, person, "api-key:write", "device:read")
    for refused in (
        keeper.post("/service-accounts", json={"name": "x", "role": "viewer"}),
        keeper.patch(f"/service-accounts/{strong['id']}", json={"enabled": False}),
        keeper.delete(f"/service-accounts/{strong['id']}"),
        keeper.post("/api-keys", json={"name": "x", "service_account": strong["id"]}),
        keeper.post("/api-keys", json={"name": "x", "service_account": strong["id"], "scopes": ["device:write"]}),
    ):
        check_problem(refused, 403, "more-than-you-hold")
    narrow = keeper.post("/api-keys", json={"name": "x", "service_account": strong["id"], "scopes": ["device:read"]})
    assert narrow.status_code == 201


def test_a_limited_member_makes_no_programs(person: Make) -> None:
    boss = person()
    account = make_account(boss)
    limited = _custom(boss, person, "api-key:write", "device:read")
    factories.rows("UPDATE iiot.membership SET is_limited = true WHERE user_id = %s", limited.user.user_id)
    cache.forget_everywhere()
    for refused in (
        limited.post("/service-accounts", json={"name": "x", "role": "viewer"}),
        limited.post("/api-keys", json={"name": "x", "service_account": account["id"], "scopes": ["device:read"]}),
    ):
        assert refused.status_code == 403, refused.get_data(as_text=True)


@pytest.mark.parametrize("role", ["engineer", "operator", "viewer"])
def test_others_than_admins_do_not_see_them(person: Make, role: str) -> None:
    someone = person(role)
    check_problem(someone.get("/service-accounts"), 403, "forbidden")
    check_problem(someone.post("/service-accounts", json={"name": "x", "role": "viewer"}), 403, "forbidden")


def test_a_program_with_the_right_makes_keys_for_programs_alone(admin: Person) -> None:
    account = make_account(admin, role="admin")
    other = make_account(admin, "other")
    key = make_key(admin, service_account=account["id"])["key"]
    own = make_key(admin)
    check_problem(call(admin.client, key, "POST", "/api-keys", json={"name": "x"}), 422, "invalid")
    made = call(admin.client, key, "POST", "/api-keys", json={"name": "x", "service_account": other["id"]})
    assert made.status_code == 201
    mine = call(admin.client, key, "GET", "/api-keys?mine=true").get_json()["items"]
    assert [each["owner_id"] for each in mine] == [account["id"]]
    assert call(admin.client, key, "DELETE", f"/api-keys/{own['id']}").status_code == 204


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x"},
        {"name": "", "role": "viewer"},
        {"name": "x", "role": "owner"},
        {"name": "x", "role": "a" * 26},
        {"name": "x", "role": "viewer", "enabled": True},
    ],
)
def test_bad_accounts_are_refused(admin: Person, body: dict[str, Any]) -> None:
    assert check_problem(admin.post("/service-accounts", json=body), 422, "invalid")["errors"]


def test_names_are_taken_once(admin: Person) -> None:
    make_account(admin, "Exporter")
    other = make_account(admin, "importer")
    check_problem(admin.post("/service-accounts", json={"name": "exporter", "role": "viewer"}), 409, "name-taken")
    check_problem(admin.patch(f"/service-accounts/{other['id']}", json={"name": "EXPORTER"}), 409, "name-taken")


def test_accounts_of_another_tenant_are_not_there(person: Make) -> None:
    owner, stranger = person(), person()
    account = make_account(owner)
    for uid in (account["id"], "a" * 26, "'--"):
        check_problem(stranger.patch(f"/service-accounts/{uid}", json={"name": "mine"}), 404, "not-found")
        check_problem(stranger.delete(f"/service-accounts/{uid}"), 404, "not-found")
        check_problem(stranger.post("/api-keys", json={"name": "x", "service_account": uid}), 404, "not-found")
    assert stranger.get("/service-accounts").get_json()["items"] == []
