"""Daily partitions: there before they are needed, unreadable by name, gone with retention."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest

from iiot import tenancy
from iiot.clock import now, to_ms
from iiot.config import Settings
from iiot.stream import housekeeping
from tests import factories, services

shared = pytest.mark.usefixtures("module_settings")
alone = pytest.mark.usefixtures("settings")


def _partitions(parent: str) -> list[str]:
    found = factories.rows(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass ORDER BY 1", f"iiot.{parent}"
    )
    return [name.removeprefix(f"iiot.{parent}_p") for (name,) in found]


def _days(first: int, last: int) -> list[str]:
    return [f"{(now() + timedelta(days=day)):%Y%m%d}" for day in range(first, last + 1)]


def _stream(duty: Any) -> None:
    with tenancy.work(tenancy.system("stream")) as db:
        duty(db)


def _ensure(first: object, last: object) -> int:
    statement = tenancy.sql("SELECT iiot.ensure_partitions(CAST(:first AS date), CAST(:last AS date))")
    with tenancy.work(tenancy.system("stream")) as db:
        return int(db.execute(statement, {"first": first, "last": last}).scalar_one())


@shared
def test_a_new_schema_has_the_accepted_past_and_a_week_ahead() -> None:
    assert _partitions("telemetry") == _days(-31, 7)
    assert _partitions("telemetry_batch") == _days(-1, 7)


@alone
def test_missing_partitions_are_made_again_and_repeating_makes_none() -> None:
    today = now().date()
    name = f"{today + timedelta(days=7):%Y%m%d}"
    factories.rows(f"DROP TABLE iiot.telemetry_p{name}")
    _stream(housekeeping.ensure_partitions)
    assert name in _partitions("telemetry")
    assert _ensure(today, today + timedelta(days=7)) == 0


@shared
def test_more_than_a_thousand_days_are_refused() -> None:
    with pytest.raises(Exception, match="more than 1000 days"):
        _ensure("2026-01-01", "2036-01-01")


@shared
def test_the_tenants_role_may_neither_make_nor_drop_partitions() -> None:
    tenant = factories.make_tenant()
    for call in ("ensure_partitions", "drop_partitions"):
        with pytest.raises(Exception, match="permission denied for function"), tenancy.work(tenancy.of(tenant)) as db:
            db.execute(tenancy.sql(f"SELECT iiot.{call}(current_date, current_date)"))


@shared
@pytest.mark.parametrize("role", ["app", "ingest", "stream", "auth"])
@pytest.mark.parametrize("parent", ["telemetry", "telemetry_batch"])
def test_a_partition_cannot_be_read_by_its_name(role: str, parent: str) -> None:
    device = factories.make_device(factories.make_tenant())
    factories.store(device.uid, temperature=20.0)
    connection = factories.connect(role)
    try:
        with connection.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(f"SELECT count(*) FROM iiot.{parent}_p{now():%Y%m%d}")
    finally:
        connection.close()


@alone
def test_a_partition_with_a_forgotten_grant_still_shows_nothing() -> None:
    device = factories.make_device(factories.make_tenant())
    factories.store(device.uid, temperature=20.0)
    partition = f"iiot.telemetry_p{now():%Y%m%d}"
    factories.rows(f"GRANT SELECT ON {partition} TO iiot_app")
    connection = factories.connect("app")
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('app.tenant_id', %s, false)", (str(device.tenant_id),))
            cursor.execute(f"SELECT count(*) FROM {partition}")
            assert cursor.fetchone() == (0,)
    finally:
        connection.close()


@shared
def test_readings_around_midnight_land_in_the_day_they_belong_to() -> None:
    device = factories.make_device(factories.make_tenant())
    midnight = datetime.combine(now().date(), datetime.min.time(), UTC)
    moments = [to_ms(midnight) + offset for offset in (-86_400_000, -1, 0, 1)]
    outcomes = factories.store(device.uid, *((ts, {"temperature": float(index)}) for index, ts in enumerate(moments)))
    assert (outcomes.stored, outcomes.duplicate) == (4, 0)
    stored = factories.rows(
        "SELECT tableoid::regclass::text, num FROM iiot.telemetry WHERE tenant_id = %s ORDER BY ts", device.tenant_id
    )
    yesterday, today = (f"iiot.telemetry_p{day:%Y%m%d}" for day in (midnight - timedelta(days=1), midnight))
    assert stored == [(yesterday, 0.0), (yesterday, 1.0), (today, 2.0), (today, 3.0)]


@shared
def test_the_whole_accepted_window_has_partitions() -> None:
    device = factories.make_device(factories.make_tenant())
    edges = [now() - timedelta(days=30), now() + timedelta(minutes=10)]
    outcomes = factories.store(device.uid, *((to_ms(edge), {"temperature": 1.0}) for edge in edges))
    assert outcomes.stored == 2


@alone
def test_retention_drops_whole_days_and_keeps_what_may_still_arrive(settings: Settings) -> None:
    _ensure(
        now().date() - timedelta(days=settings.telemetry_retention_days + 3),
        now().date() - timedelta(days=settings.telemetry_retention_days),
    )
    oldest = _partitions("telemetry")[0]
    device = factories.make_device(factories.make_tenant())
    day = datetime.strptime(oldest, "%Y%m%d").replace(tzinfo=UTC, hour=12)
    factories.store(device.uid, (to_ms(day), {"temperature": 1.0}), (to_ms(now()), {"temperature": 2.0}))
    _stream(housekeeping.drop_partitions)
    assert _partitions("telemetry") == _days(
        -settings.telemetry_retention_days, -settings.telemetry_retention_days
    ) + _days(-31, 7)
    assert factories.rows("SELECT num FROM iiot.telemetry") == [(2.0,)]


@alone
def test_a_short_retention_keeps_the_accepted_window(settings: Settings) -> None:
    before = _partitions("telemetry")
    with services.active(settings.model_copy(update={"telemetry_retention_days": 2})):
        _stream(housekeeping.drop_partitions)
    assert _partitions("telemetry") == before


@alone
def test_the_log_is_dropped_after_its_own_retention(settings: Settings) -> None:
    """Its partitions are made for yesterday and later alone, so the test makes an old one by hand, as time would."""
    day = now().date() - timedelta(days=settings.log_retention_days + 1)
    factories.rows(
        f"CREATE TABLE iiot.telemetry_batch_p{day:%Y%m%d} PARTITION OF iiot.telemetry_batch FOR VALUES FROM ('{day}Z') TO ('{day + timedelta(days=1)}Z')"
    )
    factories.rows(f"ALTER TABLE iiot.telemetry_batch_p{day:%Y%m%d} OWNER TO iiot_owner")
    _stream(housekeeping.drop_partitions)
    assert _partitions("telemetry_batch") == _days(-1, 7)
