"""Limits under fire: fifty threads with a connection each create at once, and none is made too many."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from iiot import db as engines
from iiot import tenancy
from iiot.config import Settings
from iiot.errors import QuotaExceeded
from iiot.services import devices, quotas
from tests import factories

THREADS = 50
LIMIT = 20


@pytest.fixture
def fifty_connections(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool in which nobody waits for a connection."""
    engines.dispose()
    monkeypatch.setitem(engines.POOLS, "app", (THREADS, 0, 30_000))


def test_fifty_parallel_creates_do_not_pass_the_limit(fifty_connections: None) -> None:
    tenant, other = factories.make_tenant(devices=LIMIT), factories.make_tenant(devices=LIMIT)
    factories.make_device(tenant)
    start = threading.Barrier(THREADS)

    def create(number: int) -> tuple[int, dict[str, Any] | None]:
        scope = tenancy.of(tenant)
        with tenancy.work(scope) as db:
            process = db.execute(text("SELECT pg_backend_pid()").execution_options(reviewed=True)).scalar_one()
            start.wait(timeout=30)
            try:
                devices.create(db, devices.NewDevice(f"device {number}"))
            except QuotaExceeded as refused:
                return process, refused.extra
        return process, None

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(create, range(THREADS)))
    assert len({process for process, _ in results}) == THREADS, "as many connections as threads"
    refusals = [extra for _, extra in results if extra is not None]
    assert refusals == [{"quota": "devices", "limit": LIMIT, "used": LIMIT}] * (THREADS - LIMIT + 1)
    assert factories.rows("SELECT count(*) FROM iiot.device WHERE tenant_id = %s", tenant.tenant_id) == [(LIMIT,)]
    with tenancy.work(tenancy.of(other)) as db:
        quotas.claim(db, "devices", LIMIT)


def test_a_claim_counts_what_its_own_transaction_made(settings: Settings) -> None:
    tenant = factories.make_tenant(devices=3)

    def create(number: int) -> None:
        with tenancy.work(tenancy.of(tenant)) as db:
            for each in range(number):
                devices.create(db, devices.NewDevice(f"device {each}"))

    with pytest.raises(QuotaExceeded):
        create(4)
    assert factories.rows("SELECT count(*) FROM iiot.device WHERE tenant_id = %s", tenant.tenant_id) == [(0,)]


def test_signals_of_a_device_are_not_made_too_many_by_two_processes(settings: Settings) -> None:
    """What the ingest of another process does at the same time: a resolver of its own, transactions that overlap."""
    from iiot.services.resolver import Resolver

    tenant = factories.make_tenant(signals_per_device=5)
    device = factories.make_device(tenant)
    start = threading.Barrier(8)

    def create(number: int) -> None:
        resolver = Resolver()
        with tenancy.work(tenancy.system("ingest")) as db:
            resolver.resolve(db, [device.uid])
            start.wait(timeout=30)
            resolver.create_signals(db, {device.uid: {f"s{number}-{each}": 0 for each in range(3)}})

    engines.dispose()
    size = engines.POOLS["ingest"]
    engines.POOLS["ingest"] = (8, 0, 30_000)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(create, range(8)))
    finally:
        engines.POOLS["ingest"] = size
    assert factories.rows("SELECT count(*) FROM iiot.signal WHERE tenant_id = %s", tenant.tenant_id) == [(5,)]
