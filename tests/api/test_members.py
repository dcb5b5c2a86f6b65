"""Members of a tenant: listed, given roles, removed; the last admin stays, whatever happens at the same moment."""

import json
import threading

import pytest
from click.testing import CliRunner

from iiot import tenancy
from iiot.commands.user import user as command
from iiot.errors import Problem
from iiot.services import members
from tests import factories
from tests.api.conftest import Make, Person, check_problem
from tests.api.test_roles import give, make_role


def members_path(person: Person, user: Person | None = None) -> str:
    path = f"/tenants/{person.tenant.uid}/users"
    return path if user is None else f"{path}/{user.user.uid}"


def test_the_list_shows_who_is_who(person: Make, admin: Person) -> None:
    other = person("operator", admin.tenant, name="Olga", has_mfa=True)
    person("viewer")
    page = admin.get(members_path(admin) + "?sort=joined_at").get_json()
    assert [each["id"] for each in page["items"]] == [admin.user.uid, other.user.uid]
    assert page["total"] == 2
    olga = page["items"][1]
    assert olga.keys() == {
        "id", "email", "name", "role", "role_name", "status", "has_mfa", "last_login_at", "limited_to", "joined_at",
    }  # fmt: skip
    assert (olga["name"], olga["role"], olga["role_name"], olga["has_mfa"]) == ("Olga", "operator", "operator", True)
    assert olga["limited_to"] is None
    assert olga["last_login_at"] is not None
    role = make_role(admin, "device:read", name="Night shift")
    give(admin, other, role)
    found = admin.get(members_path(admin) + "?q=olg").get_json()["items"]
    assert [(each["role"], each["role_name"]) for each in found] == [(role, "Night shift")]


def test_pages_follow_each_other_without_a_gap(person: Make, admin: Person) -> None:
    people = [admin, *[person("viewer", admin.tenant) for _ in range(3)]]
    first = admin.get(members_path(admin) + "?limit=2").get_json()
    second = admin.get(members_path(admin) + f"?limit=2&cursor={first['next_cursor']}").get_json()
    assert second["next_cursor"] is None
    listed = [each["email"] for each in first["items"] + second["items"]]
    assert listed == sorted(each.user.email for each in people)


def test_a_new_role_counts_at_once(person: Make, admin: Person) -> None:
    other = person("viewer", admin.tenant)
    check_problem(other.post("/devices", json={"name": "x"}), 403, "forbidden")
    give(admin, other, "engineer")
    assert other.post("/devices", json={"name": "x"}).status_code == 201
    give(admin, other, "viewer")
    check_problem(other.post("/devices", json={"name": "y"}), 403, "forbidden")


def test_removing_a_member_ends_sessions_here_and_nowhere_else(person: Make, admin: Person) -> None:
    other = person("viewer", admin.tenant)
    elsewhere = factories.make_tenant()
    factories.rows(
        "INSERT INTO iiot.membership (tenant_id, user_id, role) VALUES (%s, %s, 'viewer')",
        elsewhere.tenant_id,
        other.user.user_id,
    )
    factories.rows(
        "INSERT INTO iiot.api_key (tenant_id, uid, name, prefix, key_hash, user_id) VALUES (%s, %s, 'k', 'p', %s, %s)",
        admin.tenant.tenant_id,
        f"key-{other.user.uid}",
        f"hash-{other.user.uid}",
        other.user.user_id,
    )
    assert other.get("/devices").status_code == 200
    assert admin.delete(members_path(admin, other)).status_code == 204
    assert other.get("/devices").status_code == 401
    assert not factories.rows("SELECT 1 FROM iiot.api_key WHERE user_id = %s", other.user.user_id)
    assert not factories.rows("SELECT 1 FROM iiot.session WHERE user_id = %s", other.user.user_id)
    assert factories.rows("SELECT tenant_id FROM iiot.membership WHERE user_id = %s", other.user.user_id) == [
        (elsewhere.tenant_id,)
    ]
    check_problem(admin.delete(members_path(admin, other)), 404, "not-found")


def test_the_last_admin_stays(person: Make, admin: Person) -> None:
    person("admin", admin.tenant, status="disabled")
    person("engineer", admin.tenant)
    check_problem(admin.delete(members_path(admin, admin)), 409, "last-admin")
    check_problem(admin.patch(members_path(admin, admin), json={"role": "viewer"}), 409, "last-admin")
    second = person("admin", admin.tenant)
    assert admin.patch(members_path(admin, admin), json={"role": "viewer"}).status_code == 200
    check_problem(second.delete(members_path(admin, second)), 409, "last-admin")


@pytest.mark.parametrize("act", ["demote", "remove"])
def test_two_admins_cannot_take_each_other_out_at_the_same_moment(person: Make, admin: Person, act: str) -> None:
    second = person("admin", admin.tenant)
    start = threading.Barrier(2)
    ends: list[str] = []

    def take_out(actor: Person, victim: Person) -> None:
        start.wait()
        try:
            with tenancy.work(tenancy.of(actor.opened.principal)) as db:
                if act == "demote":
                    members.change(db, actor.opened.principal, victim.user.uid, members.Changes("viewer"))
                else:
                    members.remove(db, actor.opened.principal, victim.user.uid)
            ends.append("done")
        except Problem as problem:
            ends.append(problem.code)

    threads = [threading.Thread(target=take_out, args=pair) for pair in ((admin, second), (second, admin))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["done", "last-admin"]
    left = factories.rows(
        "SELECT count(*) FROM iiot.membership WHERE tenant_id = %s AND role = 'admin'", admin.tenant.tenant_id
    )
    assert left == [(1,)]


def test_nobody_gives_takes_or_removes_more_than_they_hold(person: Make, admin: Person) -> None:
    deputy, viewer = person("viewer", admin.tenant), person("viewer", admin.tenant)
    give(admin, deputy, make_role(admin, "member:read", "member:write", "device:read", name="Deputies"))
    for role in ("engineer", "admin"):
        check_problem(deputy.patch(members_path(admin, viewer), json={"role": role}), 403, "more-than-you-hold")
        check_problem(deputy.patch(members_path(admin, deputy), json={"role": role}), 403, "more-than-you-hold")
    check_problem(deputy.patch(members_path(admin, admin), json={"role": "viewer"}), 403, "more-than-you-hold")
    check_problem(deputy.delete(members_path(admin, admin)), 403, "more-than-you-hold")
    check_problem(viewer.patch(members_path(admin, deputy), json={"role": "viewer"}), 403, "forbidden")
    assert deputy.delete(members_path(admin, deputy)).status_code == 204


def test_a_platform_admin_manages_the_members_of_any_tenant(person: Make, admin: Person) -> None:
    chief, other = person(is_platform_admin=True), person("viewer", admin.tenant)
    path = members_path(admin, other)
    assert chief.patch(path, json={"role": "admin"}).get_json()["role"] == "admin"
    assert chief.delete(path).status_code == 204
    check_problem(chief.get("/devices?limit=1", headers={"Authorization": "Bearer x"}), 401, "unauthorized")


def test_poor_changes_are_refused_with_the_place(person: Make, admin: Person) -> None:
    other = person("viewer", admin.tenant)
    foreign = make_role(person(), "device:read")
    for body, place in (
        ({"role": "boss"}, ["body", "role"]),
        ({"role": foreign}, ["body", "role"]),
        ({"role": None}, ["body", "role"]),
        ({"limited_to": {}}, ["body", "limited_to", "tags"]),
        ({"limited_to": {"devices": ["a" * 26]}}, ["body", "limited_to", "devices"]),
        ({"limited_to": {"sites": ["a" * 26]}}, ["body", "limited_to", "sites"]),
        ({"role": "admin", "limited_to": {"tags": ["a"]}}, ["body", "limited_to"]),
    ):
        refused = check_problem(admin.patch(members_path(admin, other), json=body), 422, "invalid")
        assert refused["errors"][0]["loc"] == place
    assert admin.get(members_path(admin) + "?q=" + other.user.email).get_json()["items"][0]["role"] == "viewer"


def test_the_trail_tells_what_changed(person: Make, admin: Person) -> None:
    other = person("viewer", admin.tenant)
    admin.patch(members_path(admin, other), json={"role": "operator", "limited_to": {"tags": ["hall-a"]}})
    admin.patch(members_path(admin, other), json={"role": "operator"})
    admin.delete(members_path(admin, other))
    told = factories.rows(
        "SELECT action, actor_label, before, after FROM iiot.audit "
        "WHERE tenant_id = %s AND object_uid = %s AND action LIKE 'member%%' ORDER BY seq",
        admin.tenant.tenant_id,
        other.user.uid,
    )
    limits = {"devices": [], "sites": [], "tags": ["hall-a"]}
    assert [each[:2] for each in told] == [("member.change", admin.user.email), ("member.remove", admin.user.email)]
    assert told[0][2] == {"role": "viewer", "role_name": "viewer", "limited_to": None}
    assert told[0][3] == {"role": "operator", "role_name": "operator", "limited_to": limits}
    assert told[1][2]["email"] == other.user.email


def test_the_operator_disables_and_enables_people(person: Make, admin: Person) -> None:
    other = person("viewer", admin.tenant)
    give(admin, other, make_role(admin, "device:read", name="Night shift"))
    key = {"Authorization": f"Bearer {other.post('/api-keys', json={'name': 'mine'}).get_json()['key']}"}
    assert other.client.get("/api/v1/devices", headers=key).status_code == 200
    run = CliRunner()
    done = run.invoke(command, ["disable", other.user.email.upper(), "--json"])
    assert json.loads(done.output) == {"email": other.user.email, "status": "disabled"}
    assert other.get("/devices").status_code == 401
    assert other.client.get("/api/v1/devices", headers=key).status_code == 401
    listed = {each["email"]: each for each in json.loads(run.invoke(command, ["list", "--json"]).output)}
    assert listed[other.user.email]["status"] == "disabled"
    assert listed[other.user.email]["tenants"].endswith(":Night shift")
    assert run.invoke(command, ["enable", other.user.email]).exit_code == 0
    assert other.client.get("/api/v1/devices", headers=key).status_code == 200
    assert run.invoke(command, ["enable", "nobody@example.com"]).exit_code != 0
