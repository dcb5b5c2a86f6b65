"""Tenants: who sees which, quotas and figures."""

from iiot import tenancy
from iiot.services import users
from tests import factories
from tests.api.conftest import Make, Person, check_problem, make_thing


def test_a_member_sees_his_tenants_alone(person: Make) -> None:
    one, foreign = person("viewer"), factories.make_tenant()
    second = factories.make_tenant()
    with tenancy.work(tenancy.system("sign-in")) as db:
        users.add_member(db, second.tenant_id, one.user.user_id, "viewer")
    page = one.get("/tenants?sort=-created_at").get_json()
    assert [each["id"] for each in page["items"]] == [second.uid, one.tenant.uid]
    assert page["total"] == 2
    assert one.get(f"/tenants/{second.uid}").get_json().keys() == {
        "id",
        "name",
        "slug",
        "status",
        "timezone",
        "created_at",
    }
    for path in ("", "/quota", "/stats"):
        assert one.get(f"/tenants/{second.uid}{path}").status_code == 200
        check_problem(one.get(f"/tenants/{foreign.uid}{path}"), 404, "not-found")


def test_a_platform_admin_sees_all(person: Make) -> None:
    chief, other = person(is_platform_admin=True), factories.make_tenant()
    factories.make_device(other)
    assert other.uid in {each["id"] for each in chief.get("/tenants?limit=500").get_json()["items"]}
    assert chief.get(f"/tenants/{other.uid}").get_json()["name"] == other.name
    assert chief.get(f"/tenants/{other.uid}/quota").get_json()["devices"]["used"] == 1


def test_quota_shows_limits_and_use(person: Make) -> None:
    one = person(tenant=factories.make_tenant(devices=5, users=2, signals_per_device=7))
    device = factories.make_device(one.tenant)
    for key in "abc":
        factories.make_signal(device, key)
    quota = one.get(f"/tenants/{one.tenant.uid}/quota").get_json()
    assert quota["devices"] == {"limit": 5, "used": 1}
    assert quota["users"] == {"limit": 2, "used": 1}
    assert quota["signals_per_device"] == {"limit": 7, "used": 3}
    assert quota["rules"]["used"] == quota["readings_per_day"]["used"] == 0


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
