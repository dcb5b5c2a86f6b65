"""Quotas: shown with use and forecast, changed by platform administrators, enforced with an error that names the limit."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from iiot import clock, tenancy
from iiot.errors import Problem, QuotaExceeded
from iiot.live import guard
from iiot.live.clients import Client
from iiot.models import UsageDay
from iiot.services import metering, quotas, usage
from protocols import translate
from tests import factories
from tests.api.conftest import Make, Person, check_problem, make_thing


@pytest.fixture
def chief(person: Make) -> Person:
    """A platform administrator with a tenant of his own."""
    return person(is_platform_admin=True)


def midnight() -> datetime:
    return clock.now().replace(hour=0, minute=0, second=0, microsecond=0)


def quota(one: Person, tenant: factories.TenantRow | None = None) -> dict[str, dict[str, int]]:
    answer: dict[str, dict[str, int]] = one.get(f"/tenants/{(tenant or one.tenant).uid}/quota").get_json()
    return answer


def test_quota_shows_the_seven_limits_with_use_and_forecast(person: Make) -> None:
    one = person(tenant=factories.make_tenant(devices=5, users=2, signals_per_device=7, connections=3))
    old, new = factories.make_device(one.tenant), factories.make_device(one.tenant)
    factories.rows(
        "UPDATE iiot.device SET created_at = now() - interval '90 days' WHERE id = %s RETURNING 1", old.device_id
    )
    for key in "abc":
        factories.make_signal(new, key)
    with tenancy.work(tenancy.system("stream")) as db:
        db.add(UsageDay(tenant_id=one.tenant.tenant_id, day=midnight(), readings=50, api_requests=7))
    shown = quota(one)
    assert tuple(shown) == quotas.NAMES
    assert shown["devices"] == {"limit": 5, "used": 2, "forecast": 3}, "one of two came in the last 30 days"
    assert shown["users"] == {"limit": 2, "used": 1, "forecast": 2}
    assert shown["signals_per_device"] == {"limit": 7, "used": 3, "forecast": 6}
    assert shown["connections"] == {"limit": 3, "used": 0, "forecast": 0}
    assert shown["rules"]["used"] == 0
    assert shown["readings_per_day"]["used"] == 50
    assert shown["readings_per_day"]["forecast"] >= 50
    assert shown["api_requests_per_day"]["used"] >= 7


def test_the_forecast_of_a_day_goes_on_like_the_last_24_hours() -> None:
    noon = datetime(2026, 5, 4, 12, tzinfo=UTC)
    assert usage.at_end_of_day(100, 200, noon) == 200, "100 so far, 200 in 24 hours, half of them to come"
    assert usage.at_end_of_day(100, 0, noon) == 150
    assert usage.at_end_of_day(0, 100, noon.replace(hour=0)) == 100
    assert usage.at_end_of_day(7, 1000, noon.replace(hour=23, minute=59, second=59)) == 7


def test_the_last_thirty_days_are_listed_with_those_without_any_use(admin: Person) -> None:
    with tenancy.work(tenancy.system("stream")) as db:
        db.add(UsageDay(tenant_id=admin.tenant.tenant_id, day=midnight() - timedelta(days=3), readings=5))
        db.add(UsageDay(tenant_id=admin.tenant.tenant_id, day=midnight() - timedelta(days=30), readings=9))
    with tenancy.work(tenancy.of(admin.tenant)) as db:
        found = usage.days(db)
    assert [each.readings for each in found] == [0] * 26 + [5, 0, 0, 0]
    assert found[-1].day == midnight()


def test_a_member_limited_to_some_devices_may_read_the_quota(admin: Person, person: Make) -> None:
    member = person("viewer", admin.tenant)
    device, _hidden = factories.make_device(admin.tenant), factories.make_device(admin.tenant)
    path = f"/tenants/{admin.tenant.uid}/users/{member.user.uid}"
    assert admin.patch(path, json={"limited_to": {"devices": [device.uid]}}).status_code == 200
    assert quota(member)["devices"] == {"limit": 1000, "used": 1, "forecast": 2}
    assert member.get(f"/tenants/{admin.tenant.uid}/stats").get_json()["devices"] == 1


def test_only_platform_admins_set_quotas(chief: Person, admin: Person) -> None:
    path = f"/tenants/{admin.tenant.uid}/quota"
    check_problem(admin.call("PUT", path, json={"devices": 10**6}), 403, "not-platform-admin")
    changed = chief.call("PUT", path, json={"devices": 3, "readings_per_day": 10**12})
    assert changed.status_code == 200
    assert changed.get_json()["devices"]["limit"] == 3
    shown = quota(admin)
    assert (shown["devices"]["limit"], shown["readings_per_day"]["limit"], shown["users"]["limit"]) == (3, 10**12, 100)
    trail = factories.rows(
        "SELECT actor_label, before, after FROM iiot.audit WHERE tenant_id = %s AND action = 'quota.change'",
        admin.tenant.tenant_id,
    )
    assert trail == [
        (
            chief.user.email,
            {"devices": 1000, "readings_per_day": 10**10},
            {"devices": 3, "readings_per_day": 10**12},
        )
    ]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"devices": -1},
        {"devices": "5"},
        {"devices": True},
        {"devices": 2**31},
        {"devices": 1.5},
        {"devices": None},
        {"pumps": 1},
        {"plan": "unknown"},
        {"plan": "unknown", "devices": 1},
    ],
)
def test_poor_limits_are_refused(chief: Person, body: dict[str, Any]) -> None:
    before = quota(chief)
    check_problem(chief.call("PUT", f"/tenants/{chief.tenant.uid}/quota", json=body), 422, "invalid")
    assert quota(chief)["devices"]["limit"] == before["devices"]["limit"]


def test_a_claim_over_the_limit_names_limit_and_use(person: Make) -> None:
    one = person(tenant=factories.make_tenant(devices=1))
    assert one.post("/devices", json={"name": "first"}).status_code == 201
    problem = check_problem(one.post("/devices", json={"name": "second"}), 403, "quota-exceeded")
    assert (problem["quota"], problem["limit"], problem["used"]) == ("devices", 1, 1)
    assert quota(one)["devices"]["used"] == 1


def test_a_limit_below_the_use_takes_nothing_away(chief: Person, admin: Person) -> None:
    made = admin.post("/devices", json={"name": "first"}).get_json()
    chief.call("PUT", f"/tenants/{admin.tenant.uid}/quota", json={"devices": 0})
    assert admin.get(f"/devices/{made['id']}").status_code == 200
    check_problem(admin.post("/devices", json={"name": "second"}), 403, "quota-exceeded")


def test_claims_need_a_tenant_and_one_without_a_quota_may_have_nothing(admin: Person) -> None:
    with tenancy.work(tenancy.system("platform")) as db, pytest.raises(tenancy.NoTenant):
        quotas.claim(db, "devices")
    factories.rows("DELETE FROM iiot.quota WHERE tenant_id = %s RETURNING 1", admin.tenant.tenant_id)
    with tenancy.work(tenancy.of(admin.tenant)) as db, pytest.raises(QuotaExceeded):
        quotas.claim(db, "devices")
    problem = check_problem(admin.post("/devices", json={"name": "x"}), 429, "quota-exceeded")
    assert problem["limit"] == 0


def test_readings_over_the_days_quota_are_refused_until_midnight(person: Make) -> None:
    one = person(tenant=factories.make_tenant(readings_per_day=5))
    thing = make_thing(one.tenant)
    url = "/api/v1/telemetry"
    assert one.client.post(url, json={"a": 1, "b": 2, "c": 3}, headers=thing.headers).get_json()["stored"] == 3
    # One message may pass the limit: it is judged as a whole.
    assert one.client.post(url, json={"a": 1, "b": 2, "c": 3}, headers=thing.headers).get_json()["stored"] == 3
    answer = one.client.post(url, json={"a": 2}, headers=thing.headers)
    problem = check_problem(answer, 429, "quota-exceeded")
    assert (problem["quota"], problem["limit"]) == ("readings_per_day", 5)
    assert 0 < int(answer.headers["Retry-After"]) <= 86_401
    outcome = factories.store(thing.uid, d=1.0)[0]
    told_of = (outcome.status, outcome.code, outcome.limit, outcome.allowed)
    assert told_of == ("rejected", "readings-quota", "readings_per_day", 5)
    told = translate.outcome(outcome).refusals[0]
    assert told.code == "readings-quota", "what MQTT tells"
    assert (told.limit, told.allowed, told.retry_after) == ("readings_per_day", 5, outcome.retry_after)
    assert factories.rows("SELECT count(*) FROM iiot.signal WHERE tenant_id = %s", one.tenant.tenant_id) == [(3,)]

    for number in range(20):
        factories.store(thing.uid, d=float(number))
    kept = factories.rows("SELECT count(*) FROM iiot.rejected_message WHERE tenant_id = %s", one.tenant.tenant_id)
    assert kept[0][0] <= 20, "not every refused message is kept"
    as_person = one.post("/telemetry", json={"device_id": thing.uid, "data": {"a": 3}})
    check_problem(as_person, 429, "quota-exceeded")


def test_what_other_processes_stored_counts_too(admin: Person, person: Make) -> None:
    one = person(tenant=factories.make_tenant(readings_per_day=5))
    thing = make_thing(one.tenant)
    with tenancy.work(tenancy.system("stream")) as db:
        db.add(UsageDay(tenant_id=one.tenant.tenant_id, day=midnight(), readings=5))
    assert factories.store(thing.uid, a=1.0)[0].code == "readings-quota"
    other = make_thing(admin.tenant)
    assert factories.store(other.uid, a=1.0)[0].status == "stored"


def test_a_failed_batch_costs_nothing(person: Make) -> None:
    one = person(tenant=factories.make_tenant(readings_per_day=2))
    thing = make_thing(one.tenant)
    long_ago = (0, {"a": 1.0})
    for _ in range(3):
        with pytest.raises(Exception, match="partition"):
            factories.store(thing.uid, long_ago, (0, {"b": 1.0}))
    assert factories.store(thing.uid, a=1.0)[0].status == "stored"


def test_signals_per_device_are_limited(person: Make) -> None:
    one = person(tenant=factories.make_tenant(signals_per_device=2))
    thing = make_thing(one.tenant)
    outcome = factories.store(thing.uid, a=1.0, b=2.0, c=3.0)[0]
    assert outcome.accepted == 2
    told = [(each.code, each.limit, each.allowed) for each in outcome.rejected]
    assert told == [("signal-quota", "signals_per_device", 2)]


def test_requests_over_the_days_quota_are_refused(person: Make) -> None:
    one = person(tenant=factories.make_tenant(api_requests_per_day=3))
    assert [one.get("/devices").status_code for _ in range(3)] == [200] * 3
    answer = one.get("/devices")
    problem = check_problem(answer, 429, "quota-exceeded")
    assert (problem["quota"], problem["limit"], problem["used"]) == ("api_requests_per_day", 3, 3)
    assert 0 < int(answer.headers["Retry-After"]) <= 86_401


def test_requests_are_copied_to_the_table_of_use_and_survive_redis(person: Make) -> None:
    one = person(tenant=factories.make_tenant(api_requests_per_day=1000))
    for _ in range(4):
        one.get("/devices")
    meter = metering._meters[one.tenant.uid]
    meter.sync_at = 0.0
    one.get("/devices")
    assert metering.requests_today(one.tenant.uid) == 4, "the fifth waits for the next exchange"
    for _ in range(2):
        with tenancy.work(tenancy.system("stream")) as db:
            metering.store(db)
    stored = factories.rows("SELECT api_requests FROM iiot.usage_day WHERE tenant_id = %s", one.tenant.tenant_id)
    assert stored == [(4,)], "copied, not added"
    assert quota(one)["api_requests_per_day"]["used"] == 4


def test_live_connections_over_the_quota_are_refused(person: Make) -> None:
    one = person(tenant=factories.make_tenant(connections=2))
    clients: dict[str, Client] = {}
    for number in range(2):
        client = Client(f"sid-{one.tenant.uid}-{number}", one.opened.principal, 0)
        guard.admit(clients, client)
        clients[client.sid] = client
    assert quota(one)["connections"] == {"limit": 2, "used": 2, "forecast": 2}
    # The worker that asks has none of them: they are counted over all of them.
    for known in (clients, {}):
        with pytest.raises(Problem) as refused:
            guard.admit(known, Client("one-more", one.opened.principal, 0))
        assert (refused.value.status, refused.value.extra["quota"], refused.value.extra["limit"]) == (
            429,
            "connections",
            2,
        )
    guard.leave(clients.popitem()[1])
    guard.admit(clients, Client("another", one.opened.principal, 0))
