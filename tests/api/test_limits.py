"""Rate limits: orders per user, requests per tenant, messages per device; with Retry-After, in every process, never open."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

import app_advanced
from iiot import config, web
from iiot.config import Settings
from iiot.services import metering
from tests import factories, services
from tests.api.conftest import Make, Person, check_problem, make_thing


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch, module_settings: Settings) -> Iterator[Settings]:
    """Small limits."""
    with config.load.changing():
        for name, value in (("TENANT_REQUESTS_PER_MINUTE", "6"), ("DEVICE_RATE", "2"), ("DEVICE_BURST", "5")):
            monkeypatch.setenv(f"IIOT_{name}", value)
    yield config.load()
    with config.load.changing():
        monkeypatch.undo()


@pytest.fixture
def away_from_the_end_of_a_minute() -> None:
    """Counts of a minute begin anew with the next one."""
    services.eventually(lambda: time.time() % 60 < 55, timeout=10)


@pytest.fixture(scope="module")
def app(module_settings: Settings) -> Flask:
    """The application with a route that spends the limit of orders."""
    app = app_advanced.create_app(module_settings)
    api = web.Api("orders")

    @api.route("POST", "/test-orders", permission="device:read", limit="control")
    def order(ctx: web.Context) -> None:
        """An order."""

    api.init_app(app)
    return app


def test_a_limit_that_does_not_exist_is_a_mistake_of_the_programmer() -> None:
    with pytest.raises(ValueError, match="no limit"):
        web.Api("x").route("GET", "/x", limit="contol")


def test_a_user_gives_a_hundred_orders_an_hour(admin: Person, person: Make) -> None:
    assert {admin.post("/test-orders").status_code for _ in range(100)} == {204}
    answer = admin.post("/test-orders")
    check_problem(answer, 429, "rate-limited")
    assert 0 < int(answer.headers["Retry-After"]) <= 3600
    colleague = person("operator", admin.tenant)
    assert colleague.post("/test-orders").status_code == 204, "the limit is the user's, not the tenant's"


def test_a_tenants_requests_of_a_minute_are_limited(
    strict: Settings, away_from_the_end_of_a_minute: None, admin: Person, person: Make
) -> None:
    colleague, other = person("viewer", admin.tenant), person()
    codes = [each.get("/devices").status_code for _ in range(3) for each in (admin, colleague)]
    assert codes == [200] * 6
    answer = colleague.get("/devices")
    problem = check_problem(answer, 429, "rate-limited")
    assert problem["limit"] == 6
    assert 0 < int(answer.headers["Retry-After"]) <= 61
    assert other.get("/devices").status_code == 200


def test_what_other_processes_answered_counts_within_a_second(
    strict: Settings, away_from_the_end_of_a_minute: None, admin: Person
) -> None:
    assert admin.get("/devices").status_code == 200
    # Another process, as seen from here: a meter of its own and the same Redis.
    mine = metering._meters.pop(admin.tenant.uid)
    for _ in range(4):
        metering.spend(admin.tenant.uid)
    metering._meters[admin.tenant.uid].sync_at = 0.0
    metering.spend(admin.tenant.uid)
    metering._meters[admin.tenant.uid] = mine
    mine.sync_at = 0.0
    codes = [admin.get("/devices").status_code for _ in range(3)]
    assert codes.count(200) in (1, 2), "one of the other's five has not been told yet"
    assert codes[-1] == 429


def test_a_request_costs_some_microseconds(admin: Person) -> None:
    admin.get("/devices")
    tenant = admin.tenant.uid

    def seconds() -> float:
        started = time.perf_counter()
        for _ in range(1000):
            metering.spend(tenant)
        return (time.perf_counter() - started) / 1000

    assert min(seconds() for _ in range(5)) < 20e-6


def test_a_device_has_a_bucket_of_messages(strict: Settings, admin: Person) -> None:
    thing, other = make_thing(admin.tenant), make_thing(admin.tenant)
    url = "/api/v1/telemetry"
    codes = [admin.client.post(url, json={"t": n}, headers=thing.headers).status_code for n in range(9)]
    assert codes[:5] == [200] * 5
    assert 429 in codes
    metering.take(f"device:{thing.uid}", 2, 5)
    refused = [admin.client.post(url, json={"t": 1}, headers=thing.headers) for _ in range(3)]
    answer = next(each for each in refused if each.status_code == 429)
    check_problem(answer, 429, "rate-limited")
    assert int(answer.headers["Retry-After"]) == 1
    assert admin.client.post(url, json={"t": 1}, headers=other.headers).status_code == 200
    services.eventually(
        lambda: admin.client.post(url, json={"t": 1}, headers=thing.headers).status_code == 200, timeout=3
    )


@pytest.fixture
def own_valkey(
    workspace: Path, folder: Path, postgres: services.PostgresServer
) -> Iterator[tuple[services.ValkeyServer, Settings]]:
    """A Valkey that may be killed, and settings that name it."""
    server = services.ValkeyServer(folder / "valkey")
    server.start()
    settings = postgres.database(
        redis_url=server.url(), data_dir=folder, tenant_requests_per_minute=6, device_burst=3, device_rate=1
    )
    with services.active(settings):
        yield server, settings
    postgres.drop(settings)
    server.stop()
    metering._down_until = 0.0


def test_without_redis_the_limits_hold_in_the_memory_of_the_process(
    own_valkey: tuple[services.ValkeyServer, Settings], away_from_the_end_of_a_minute: None
) -> None:
    server, _settings = own_valkey
    known, new = factories.make_tenant(api_requests_per_day=100).uid, factories.make_tenant().uid
    for _ in range(4):
        metering.spend(known)
    assert [metering.take("device:a", 1, 3) for _ in range(3)] == [0, 0, 0]
    server.kill()
    for tenant, left in ((known, 2), (new, 6)):
        if tenant == known:
            metering._meters[tenant].sync_at = 0.0
        for _ in range(left):
            metering.spend(tenant)
        with pytest.raises(web.limits.Problem) as refused:
            metering.spend(tenant)
        assert refused.value.status == 429
    assert [metering.take("device:b", 1, 3) for _ in range(3)] == [0, 0, 0]
    assert 0 < metering.take("device:b", 1, 3) <= 1
    assert metering.requests_today(new) == 0
    assert metering.connections("x") == 0
