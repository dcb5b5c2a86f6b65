"""Removing a tenant for good: everything of it goes, nothing of others, and the trail stays."""

from datetime import timedelta
from typing import Any

import pytest

from iiot import broker, clock, tenancy
from iiot.config import Settings
from iiot.services import devices, erasure, provisioning, sessions, tenants
from iiot.stream import housekeeping
from tests import factories, services
from tests.integration import isolation_checks

KEPT = {"audit", "audit_head"}


def tables() -> list[str]:
    found = factories.rows(
        "SELECT c.table_name FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name) "
        "WHERE c.table_schema = 'iiot' AND c.column_name = 'tenant_id' AND t.table_type = 'BASE TABLE' AND c.table_name !~ '_p[0-9]{8}$'"
    )
    return sorted(row[0] for row in found)


def counts(tenant: factories.TenantRow) -> dict[str, int]:
    return {
        table: factories.rows(f"SELECT count(*) FROM iiot.{table} WHERE tenant_id = %s", tenant.tenant_id)[0][0]
        for table in tables()
    }


def digest(tenant: factories.TenantRow) -> dict[str, Any]:
    return {
        table: factories.rows(
            f"SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM iiot.{table} t WHERE tenant_id = %s",
            tenant.tenant_id,
        )[0][0]
        for table in tables()
    }


def delete(tenant: factories.TenantRow, ago: timedelta) -> None:
    """Delete a tenant so that its grace period ended `ago`."""
    with tenancy.work(tenancy.system("platform", tenant.tenant_id)) as db:
        tenants.start_deletion(db)
    factories.rows(
        "UPDATE iiot.tenant SET delete_at = %s WHERE id = %s RETURNING 1", clock.now() - ago, tenant.tenant_id
    )


def purge() -> bool:
    duty = next(each for each in housekeeping.duties() if each.name == "tenants")
    return housekeeping.perform(duty)


def test_all_of_a_tenant_goes_in_chunks_and_nothing_of_another(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, waiting, active = (isolation_checks.fill(f"purge {word}") for word in ("gone", "waiting", "active"))
    now = clock.now_ms()
    items = [(now - minute * 60_000, {"temperature": float(minute)}) for minute in range(2 * 24 * 60)]
    factories.store(gone.device.uid, *items)
    with tenancy.work(tenancy.system("sign-in")) as db:
        sessions.open_session(db, gone.user.user_id)
    full = counts(gone.tenant)
    assert [table for table, count in full.items() if not count] == [], "the test has a row in every table"
    assert full["telemetry"] > 2_000
    delete(gone.tenant, timedelta(seconds=1))
    delete(waiting.tenant, timedelta(days=-1))
    before = [digest(side.tenant) for side in (waiting, active)]
    trail = counts(gone.tenant)["audit"]

    monkeypatch.setattr(erasure, "CHUNK", 500)
    assert purge()
    left = counts(gone.tenant)
    assert {table for table, count in left.items() if count} == KEPT
    assert left["audit"] == trail
    assert factories.rows("SELECT id FROM iiot.tenant WHERE id = %s", gone.tenant.tenant_id) == []
    assert [digest(side.tenant) for side in (waiting, active)] == before
    last = factories.rows(
        "SELECT action, object_uid, before->>'name' FROM iiot.audit WHERE tenant_id = 0 ORDER BY seq DESC LIMIT 1"
    )
    assert last == [("tenant.remove", gone.tenant.uid, gone.tenant.name)]
    assert purge(), "and once more there is nothing to do"


def test_the_logins_of_its_devices_go_too(settings: Settings, mosquitto: services.MosquittoServer) -> None:
    tenant, other = factories.make_tenant(), factories.make_tenant()
    uids = []
    for each in (tenant, other):
        with tenancy.work(tenancy.of(each)) as db:
            uids.append(devices.create(db, devices.NewDevice("pump"))[0].uid)
    assert {login.user for login in broker.list_logins()} >= set(uids)
    delete(tenant, timedelta(seconds=1))
    assert purge()
    provisioning.reconcile()
    left = {login.user for login in broker.list_logins()}
    assert uids[0] not in left
    assert uids[1] in left
