"""Tenants: who sees which, settings, the life from active to deleting and back, and figures."""

import itertools
from datetime import datetime, timedelta
from typing import Any

import pytest

from iiot import clock, tenancy
from iiot.services import users
from tests import factories
from tests.api.conftest import Make, Person, check_problem, make_thing

_names = itertools.count(1)


@pytest.fixture
def chief(person: Make) -> Person:
    """A platform administrator with a tenant of his own."""
    return person(is_platform_admin=True)


def entries(tenant: factories.TenantRow, action: str) -> list[tuple[Any, ...]]:
    """(actor, before, after) of the tenant's trail."""
    return factories.rows(
        "SELECT actor_label, before, after FROM iiot.audit WHERE tenant_id = %s AND action = %s ORDER BY seq",
        tenant.tenant_id,
        action,
    )


def test_a_member_sees_his_tenants_alone(person: Make) -> None:
    one, foreign = person("viewer"), factories.make_tenant()
    second = factories.make_tenant()
    with tenancy.work(tenancy.system("sign-in")) as db:
        users.add_member(db, second.tenant_id, one.user.user_id, "viewer")
    page = one.get("/tenants?sort=-created_at").get_json()
    assert [each["id"] for each in page["items"]] == [second.uid, one.tenant.uid]
    assert page["total"] == 2
    assert one.get(f"/tenants/{second.uid}").get_json().keys() == {
        "id", "name", "slug", "status", "status_reason", "delete_at", "timezone", "require_mfa", "discovery", "colour", "plan",
        "created_at",
    }  # fmt: skip
    for path in ("", "/quota", "/stats"):
        assert one.get(f"/tenants/{second.uid}{path}").status_code == 200
        check_problem(one.get(f"/tenants/{foreign.uid}{path}"), 404, "not-found")


def test_a_platform_admin_sees_all_and_finds_them(chief: Person) -> None:
    other = factories.make_tenant("Zum Goldenen Öhr")
    factories.make_device(other)
    assert other.uid in {each["id"] for each in chief.get("/tenants?limit=500").get_json()["items"]}
    assert [each["id"] for each in chief.get("/tenants?q=goldenen").get_json()["items"]] == [other.uid]
    assert chief.get("/tenants?q=100%25").get_json()["items"] == []
    assert chief.get(f"/tenants?q={other.uid}&status=suspended").get_json()["total"] == 0
    assert chief.get(f"/tenants/{other.uid}").get_json()["name"] == other.name
    assert chief.get(f"/tenants/{other.uid}/quota").get_json()["devices"]["used"] == 1


def test_only_platform_admins_create_tenants(chief: Person, admin: Person) -> None:
    check_problem(admin.post("/tenants", json={"name": "Mine"}), 403, "not-platform-admin")
    name = f"Nordwind Werke {next(_names)}"
    made = chief.post("/tenants", json={"name": name, "timezone": "Europe/Berlin"})
    assert made.status_code == 201
    body = made.get_json()
    assert body["slug"] == name.lower().replace(" ", "-")
    assert body["timezone"] == "Europe/Berlin"
    assert made.headers["Location"] == f"/api/v1/tenants/{body['id']}"
    assert chief.get(made.headers["Location"]).headers["ETag"] == made.headers["ETag"]
    assert chief.get(f"/tenants/{body['id']}/quota").get_json()["devices"] == {"limit": 1000, "used": 0, "forecast": 0}
    trail = factories.rows(
        "SELECT tenant_id, actor_label, after->>'name' FROM iiot.audit WHERE object_uid = %s", body["id"]
    )
    assert trail == [(0, chief.user.email, name)], "in the platform's chain, where no tenant reads of another"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "  "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "x", "timezone": "Mars/Olympus"}, "timezone"),
        ({"name": "x", "plan": "unknown"}, "plan"),
        ({"name": "x", "status": "active"}, "status"),
    ],
)
def test_a_poor_tenant_is_refused_with_the_field(chief: Person, body: dict[str, Any], field: str) -> None:
    problem = check_problem(chief.post("/tenants", json=body), 422, "invalid")
    assert problem["errors"][0]["loc"][-1] == field


def test_an_admin_changes_settings_and_the_trail_tells_it(admin: Person) -> None:
    path = f"/tenants/{admin.tenant.uid}"
    changed = admin.patch(
        path, json={"name": "Renamed", "timezone": "Asia/Tokyo", "colour": "#AA3300", "require_mfa": False}
    ).get_json()
    assert (changed["name"], changed["timezone"], changed["colour"]) == ("Renamed", "Asia/Tokyo", "#aa3300")
    assert admin.patch(path, json={"colour": None}).get_json()["colour"] is None
    assert entries(admin.tenant, "tenant.change")[0] == (
        admin.user.email,
        {"name": admin.tenant.name, "timezone": "UTC", "colour": None},
        {"name": "Renamed", "timezone": "Asia/Tokyo", "colour": "#aa3300"},
    )
    for wrong in ({"colour": "red"}, {"colour": "#12345"}, {"timezone": "Berlin"}, {"name": ""}, {"slug": "x"}):
        check_problem(admin.patch(path, json=wrong), 422, "invalid")
    check_problem(admin.patch(path, json={"require_mfa": "yes"}), 422, "invalid")


def test_others_than_admins_change_nothing(person: Make, admin: Person) -> None:
    for role in ("viewer", "operator", "engineer"):
        member = person(role, admin.tenant)
        path = f"/tenants/{admin.tenant.uid}"
        for answer in (
            member.patch(path, json={"name": "x"}),
            member.patch(path, json={"status": "active"}),
            member.delete(path),
        ):
            check_problem(answer, 403, "forbidden")
    assert admin.get(f"/tenants/{admin.tenant.uid}").get_json()["name"] == admin.tenant.name


def test_two_people_do_not_overwrite_each_other(admin: Person) -> None:
    path = f"/tenants/{admin.tenant.uid}"
    read = admin.get(path).headers["ETag"]
    assert admin.patch(path, json={"name": "First"}, headers={"If-Match": read}).status_code == 200
    check_problem(admin.patch(path, json={"name": "Second"}, headers={"If-Match": read}), 412, "precondition-failed")
    check_problem(admin.delete(path, headers={"If-Match": read}), 412, "precondition-failed")
    assert admin.get(path).get_json()["name"] == "First"


def test_a_suspended_tenant_reads_and_its_devices_are_refused_with_a_reason(chief: Person, person: Make) -> None:
    admin = person()
    thing = make_thing(admin.tenant)
    path = f"/tenants/{admin.tenant.uid}"
    check_problem(admin.patch(path, json={"status": "suspended", "reason": "x"}), 403, "not-platform-admin")
    check_problem(chief.patch(path, json={"status": "suspended"}), 422, "invalid")
    answer = chief.patch(path, json={"status": "suspended", "reason": "Bill of May is open"}).get_json()
    assert (answer["status"], answer["status_reason"]) == ("suspended", "Bill of May is open")

    assert admin.get(path).get_json()["status_reason"] == "Bill of May is open"
    assert admin.get("/devices").get_json()["total"] == 1
    check_problem(admin.post("/devices", json={"name": "x"}), 403, "tenant-suspended")
    check_problem(admin.patch(path, json={"name": "x"}), 403, "tenant-suspended")
    check_problem(admin.delete(path), 403, "tenant-suspended")
    check_problem(admin.patch(path, json={"status": "active"}), 403, "not-platform-admin")
    check_problem(admin.patch(path, json={"status": "active", "name": "x"}), 403, "not-platform-admin")
    refused = admin.client.post("/api/v1/telemetry", json={"t": 1}, headers=thing.headers)
    check_problem(refused, 403, "tenant-suspended")
    outcome = factories.store(thing.uid, t=1.0)[0]
    assert (outcome.status, outcome.code) == ("rejected", "tenant-suspended")

    assert chief.patch(path, json={"status": "active"}).get_json()["status_reason"] == ""
    assert admin.post("/devices", json={"name": "x"}).status_code == 201
    assert entries(admin.tenant, "tenant.suspend")[0][2]["status_reason"] == "Bill of May is open"
    assert entries(admin.tenant, "tenant.activate")[0][0] == chief.user.email


def test_a_tenant_is_deleted_in_thirty_days_and_its_admin_can_restore_it(admin: Person, person: Make) -> None:
    thing = make_thing(admin.tenant)
    path = f"/tenants/{admin.tenant.uid}"
    answer = admin.delete(path)
    assert answer.status_code == 202
    body = answer.get_json()
    assert body["status"] == "deleting"
    left = datetime.fromisoformat(body["delete_at"]) - clock.now()
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)

    check_problem(admin.patch(path, json={"name": "x"}), 403, "tenant-deleting")
    check_problem(admin.post("/devices", json={"name": "x"}), 403, "tenant-deleting")
    refused = admin.client.post("/api/v1/telemetry", json={"t": 1}, headers=thing.headers)
    check_problem(refused, 403, "tenant-deleting")
    assert factories.store(thing.uid, t=1.0)[0].code == "tenant-deleting"
    viewer = person("viewer", admin.tenant)
    check_problem(viewer.patch(path, json={"status": "active"}), 403, "forbidden")

    restored = admin.patch(path, json={"status": "active", "name": "Kept"}).get_json()
    assert (restored["status"], restored["delete_at"], restored["name"]) == ("active", None, "Kept")
    assert factories.store(thing.uid, t=1.0)[0].status in ("stored", "rejected")
    assert [len(entries(admin.tenant, each)) for each in ("tenant.delete", "tenant.restore")] == [1, 1]


def test_deletion_asked_twice_does_not_begin_anew(chief: Person, admin: Person) -> None:
    path = f"/tenants/{admin.tenant.uid}"
    first = chief.delete(path).get_json()
    assert chief.delete(path).get_json()["delete_at"] == first["delete_at"]
    check_problem(chief.patch(path, json={"status": "suspended", "reason": "x"}), 409, "tenant-deleting")


def test_restoring_does_not_lift_a_suspension(chief: Person, admin: Person) -> None:
    path = f"/tenants/{admin.tenant.uid}"
    chief.patch(path, json={"status": "suspended", "reason": "abuse"})
    assert chief.delete(path).status_code == 202
    check_problem(admin.patch(path, json={"status": "active", "name": "x"}), 403, "tenant-deleting")
    back = admin.patch(path, json={"status": "active"}).get_json()
    assert (back["status"], back["status_reason"]) == ("suspended", "abuse")


def test_after_the_grace_period_nobody_restores(chief: Person, admin: Person) -> None:
    admin.delete(f"/tenants/{admin.tenant.uid}")
    factories.rows("UPDATE iiot.tenant SET delete_at = now() WHERE id = %s RETURNING id", admin.tenant.tenant_id)
    for one in (admin, chief):
        check_problem(one.patch(f"/tenants/{admin.tenant.uid}", json={"status": "active"}), 409, "tenant-gone")


def test_another_tenant_is_not_there_whatever_is_asked(admin: Person) -> None:
    foreign = factories.make_tenant()
    for answer in (
        admin.patch(f"/tenants/{foreign.uid}", json={"name": "x"}),
        admin.patch(f"/tenants/{foreign.uid}", json={"status": "active"}),
        admin.delete(f"/tenants/{foreign.uid}"),
    ):
        check_problem(answer, 404, "not-found")


def test_stats_count(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    factories.make_device(admin.tenant, status="online")
    admin.client.post("/api/v1/telemetry", json={"a": 1, "b": 2}, headers=thing.headers)
    admin.client.post("/api/v1/telemetry", data="{", content_type="application/json", headers=thing.headers)
    stats = admin.get(f"/tenants/{admin.tenant.uid}/stats").get_json()
    assert stats["devices"] == 2
    assert stats["online"] == 1
    assert stats["signals"] == 2
    assert stats["rejected_today"] == 1
    assert stats["readings_per_second"] >= 0
