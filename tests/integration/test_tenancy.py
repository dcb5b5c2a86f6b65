"""The door to a session, `tenancy.work`, against a real PostgreSQL."""

# ruff: noqa: PT012  The block of the door is what raises, so it stands whole in pytest.raises.

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session, aliased

from iiot import auth, tenancy
from iiot import db as engines
from iiot.config import Settings
from iiot.ids import new_uid
from iiot.models import Device, Membership, MembershipLimit, Quota, Signal, Tenant, User, telemetry
from tests import factories, services
from tests.factories import DeviceRow, TenantRow

pytestmark = pytest.mark.usefixtures("module_settings")

TENANT_SETTING = tenancy.sql("SELECT current_setting('app.tenant_id', true)")


@pytest.fixture(scope="module")
def two(module_settings: Settings) -> tuple[TenantRow, TenantRow]:
    """Two tenants with one device each, `a` and `b`."""
    tenants = factories.make_tenant("A"), factories.make_tenant("B")
    for tenant, name in zip(tenants, "ab", strict=True):
        device = factories.make_device(tenant, name)
        factories.make_user(tenant)
        factories.store(device.uid, temperature=20.0)
    return tenants


@pytest.fixture
def a(two: tuple[TenantRow, TenantRow]) -> TenantRow:
    return two[0]


@pytest.fixture
def b(two: tuple[TenantRow, TenantRow]) -> TenantRow:
    return two[1]


@pytest.fixture
def fresh_pools(module_settings: Settings) -> Iterator[None]:
    engines.dispose()
    yield
    engines.dispose()


def names(db: Session) -> list[str]:
    return sorted(db.scalars(select(Device.name)))


# --- what a session sees ------------------------------------------------------------------------------------------------------------


def test_a_scope_sees_its_tenant_alone(a: TenantRow, b: TenantRow) -> None:
    with tenancy.work(tenancy.of(a)) as db:
        assert names(db) == ["a"]
    with tenancy.work(tenancy.of(b)) as db:
        assert names(db) == ["b"]


def test_without_a_tenant_the_tenants_role_sees_no_rows(a: TenantRow) -> None:
    with tenancy.work(tenancy.system("health")) as db:
        assert names(db) == []
        assert db.scalars(select(Tenant)).all() == []
        assert db.scalars(select(User.id)).all() == []


def test_a_system_scope_with_a_tenant_is_filtered_although_its_role_is_not(a: TenantRow) -> None:
    with tenancy.work(tenancy.system("stream", a.tenant_id)) as db:
        assert names(db) == ["a"]
    with tenancy.work(tenancy.system("stream")) as db:
        assert names(db) == ["a", "b"]


def test_reads_are_filtered_in_every_form(a: TenantRow) -> None:
    """The role `auth` is not limited by row-level security, so what is filtered here was filtered by this module."""
    other = aliased(Device)
    with tenancy.work(tenancy.system("sign-in", a.tenant_id)) as db:
        assert names(db) == ["a"]
        assert db.scalars(select(other.name)).all() == ["a"]
        assert db.query(Device.name).all() == [("a",)]
        assert db.query(Device).count() == 1
        assert db.scalars(select(Device.name).where(Device.id.in_(select(other.id)))).all() == ["a"]
        assert (
            len(db.execute(select(Device.name, Quota.devices).join(Quota, Quota.tenant_id == Device.tenant_id)).all())
            == 1
        )
        assert len(db.execute(select(Device.name, Membership.role).join(Membership, text("true"))).all()) == 1
        assert db.scalars(select(Device.name).union_all(select(other.name))).all() == ["a", "a"]
        assert (
            db.scalars(
                select(Device.name).where(select(Quota.devices).where(Quota.tenant_id != a.tenant_id).exists())
            ).all()
            == []
        )


def test_a_row_of_another_tenant_cannot_be_fetched_by_its_key(a: TenantRow, b: TenantRow) -> None:
    with tenancy.work(tenancy.system("sign-in")) as db:
        key = db.execute(select(Device.tenant_id, Device.id).where(Device.tenant_id == b.tenant_id)).one()
    with tenancy.work(tenancy.system("sign-in", a.tenant_id)) as db:
        assert db.get(Device, tuple(key)) is None


def test_updates_and_deletes_reach_own_rows_alone(a: TenantRow, b: TenantRow) -> None:
    with tenancy.work(tenancy.of(a)) as db:
        assert db.execute(update(Device).values(type="pump").execution_options(synchronize_session=False)).rowcount == 1
        assert db.execute(delete(Device).where(Device.tenant_id == b.tenant_id)).rowcount == 0
    assert factories.rows("SELECT name, type FROM iiot.device ORDER BY name") == [("a", "pump"), ("b", "default")]


# --- what a session writes ----------------------------------------------------------------------------------------------------------


def test_an_insert_is_stamped_with_the_tenant(a: TenantRow) -> None:
    device = factories.make_device(a, "stamped")
    assert device.tenant_id == a.tenant_id
    _remove(device)


def _remove(device: DeviceRow) -> None:
    with tenancy.work(tenancy.of_device(device)) as db:
        db.execute(delete(Device).where(Device.id == device.device_id))


@pytest.mark.parametrize("reason", ["principal", "sign-in"])
def test_an_object_of_another_tenant_is_refused(reason: str, a: TenantRow, b: TenantRow) -> None:
    scope = tenancy.of(a) if reason == "principal" else tenancy.system(reason, a.tenant_id)
    with pytest.raises(tenancy.CrossTenant, match="another tenant"), tenancy.work(scope) as db:
        db.add(Device(tenant_id=b.tenant_id, uid="x", name="stolen"))


def test_a_row_cannot_be_moved_to_another_tenant(a: TenantRow, b: TenantRow) -> None:
    with pytest.raises(tenancy.CrossTenant), tenancy.work(tenancy.of(a)) as db:
        db.scalars(select(Device)).one().tenant_id = b.tenant_id
    with pytest.raises(ProgrammingError, match="row-level security"), tenancy.work(tenancy.of(a)) as db:
        db.execute(update(Device).values(tenant_id=b.tenant_id).execution_options(synchronize_session=False))


def test_a_loaded_object_of_another_tenant_cannot_be_deleted(a: TenantRow, b: TenantRow) -> None:
    with tenancy.work(tenancy.of(b)) as db:
        device = db.scalars(select(Device)).one()
    with pytest.raises(tenancy.CrossTenant), tenancy.work(tenancy.of(a)) as db:
        db.delete(device)


def test_bulk_inserts_must_name_the_own_tenant_in_every_row(a: TenantRow, b: TenantRow) -> None:
    own = {"tenant_id": a.tenant_id, "uid": "1", "name": "bulk"}
    foreign = own | {"tenant_id": b.tenant_id, "uid": "2"}
    for given in ([own, foreign], [{"uid": "3", "name": "none"}], []):
        with pytest.raises(tenancy.CrossTenant, match="bulk insert"), tenancy.work(tenancy.of(a)) as db:
            db.execute(insert(Device), given)
    with pytest.raises(tenancy.CrossTenant, match="bulk insert"), tenancy.work(tenancy.of(a)) as db:
        db.execute(insert(Device).values(foreign))
    with pytest.raises(tenancy.CrossTenant, match="bulk insert"), tenancy.work(tenancy.of(a)) as db:
        db.execute(
            insert(Device).from_select(
                ["tenant_id", "uid", "name"], select(Device.tenant_id, Device.uid + "x", Device.name)
            )
        )


def test_the_legacy_bulk_methods_meet_the_second_wall(a: TenantRow, b: TenantRow) -> None:
    foreign = {"tenant_id": b.tenant_id, "uid": "1", "name": "bulk"}
    with pytest.raises(DBAPIError, match="row-level security"), tenancy.work(tenancy.of(a)) as db:
        db.bulk_save_objects([Device(**foreign)])
    with pytest.raises((DBAPIError, tenancy.CrossTenant)), tenancy.work(tenancy.of(a)) as db:
        db.bulk_insert_mappings(Device, [foreign])  # type: ignore[arg-type]


def test_a_foreign_key_cannot_reach_into_another_tenant(a: TenantRow, b: TenantRow) -> None:
    foreign = factories.rows("SELECT id FROM iiot.device WHERE tenant_id = %s", b.tenant_id)[0][0]
    with pytest.raises(DBAPIError, match="fk_signal_device"), tenancy.work(tenancy.system("ingest")) as db:
        db.execute(insert(Signal).values(tenant_id=a.tenant_id, device_id=foreign, key="x", type="number"))


# --- raw SQL -------------------------------------------------------------------------------------------------------------------------


def test_raw_sql_is_refused_unless_it_was_reviewed(a: TenantRow) -> None:
    for statement in (text("SELECT 1"), select(telemetry.c.num), telemetry.insert(), text("SELECT 1").bindparams()):
        with pytest.raises(tenancy.CrossTenant, match="Raw SQL"), tenancy.work(tenancy.of(a)) as db:
            db.execute(statement)
    with tenancy.work(tenancy.of(a)) as db:
        assert db.scalar(tenancy.sql("SELECT count(*) FROM iiot.device")) == 1, (
            "row-level security decides over reviewed SQL"
        )
        reviewed = select(telemetry.c.num).execution_options(reviewed=True)
        assert db.scalars(reviewed).all() == [20.0]


def test_raw_sql_dressed_as_an_object_query_meets_the_second_wall(a: TenantRow) -> None:
    disguised = select(Device).from_statement(text("SELECT * FROM iiot.device"))
    with tenancy.work(tenancy.of(a)) as db:
        assert [device.name for device in db.scalars(disguised)] == ["a"]


# --- scopes --------------------------------------------------------------------------------------------------------------------------


def test_every_reason_opens_a_session_as_its_role(module_settings: Settings) -> None:
    for reason, (role, _) in tenancy.REASONS.items():
        with tenancy.work(tenancy.system(reason)) as db:
            user = db.scalar(tenancy.sql("SELECT current_user"))
        assert user == (f"iiot_{role}" if role != "owner" else "iiot"), reason


# --- the transaction -----------------------------------------------------------------------------------------------------------------


def test_an_exception_rolls_back(a: TenantRow) -> None:
    with pytest.raises(ZeroDivisionError), tenancy.work(tenancy.of(a)) as db:
        db.add(Device(uid="rolled-back", name="x"))
        db.flush()
        raise ZeroDivisionError
    assert factories.rows("SELECT 1 FROM iiot.device WHERE uid = 'rolled-back'") == []


def test_after_commit_runs_in_order_and_only_after_the_commit(a: TenantRow) -> None:
    seen: list[object] = []

    def committed() -> None:
        seen.append(factories.rows("SELECT count(*) FROM iiot.device WHERE uid = 'told'")[0][0])

    with tenancy.work(tenancy.of(a)) as db:
        db.add(Device(uid="told", name="told"))
        tenancy.after_commit(db, committed)
        tenancy.after_commit(db, lambda: seen.append("second"))
        db.flush()
        assert seen == []
    assert seen == [1, "second"]
    factories.rows("DELETE FROM iiot.device WHERE uid = 'told'")


def test_after_commit_never_runs_when_the_block_or_the_commit_fails(a: TenantRow) -> None:
    seen: list[str] = []
    with pytest.raises(ZeroDivisionError), tenancy.work(tenancy.of(a)) as db:
        tenancy.after_commit(db, lambda: seen.append("block"))
        raise ZeroDivisionError
    with pytest.raises(DBAPIError), tenancy.work(tenancy.of(a)) as db:
        tenancy.after_commit(db, lambda: seen.append("commit"))
        db.add_all([Device(uid="twice", name="x"), Device(uid="twice", name="y")])
    assert seen == []


@pytest.mark.usefixtures("fresh_pools")
def test_the_tenant_does_not_stay_on_the_pooled_connection(a: TenantRow, b: TenantRow) -> None:
    backend = tenancy.sql("SELECT pg_backend_pid()")
    backends = set()
    with tenancy.work(tenancy.of(a)) as db:
        backends.add(db.scalar(backend))
        assert db.scalar(TENANT_SETTING) == str(a.tenant_id)
    with tenancy.work(tenancy.system("health")) as db:
        backends.add(db.scalar(backend))
        assert db.scalar(TENANT_SETTING) == ""
        assert names(db) == []
    with pytest.raises(ZeroDivisionError), tenancy.work(tenancy.of(b)) as db:
        backends.add(db.scalar(backend))
        raise ZeroDivisionError
    with tenancy.work(tenancy.system("health")) as db:
        backends.add(db.scalar(backend))
        assert names(db) == []
    assert len(backends) == 1, "it was one and the same connection"
    with tenancy.work(tenancy.of(a)):
        pass
    with engines.engine("app").connect() as beneath:
        setting = beneath.scalar(text("SELECT current_setting('app.tenant_id', true)"))
    assert not setting, "the door resets it at the beginning; it must be gone at the end already"


def test_a_commit_within_the_block_keeps_the_tenant(a: TenantRow) -> None:
    with tenancy.work(tenancy.of(a)) as db:
        assert names(db) == ["a"]
        db.commit()
        assert names(db) == ["a"]
        db.rollback()
        assert names(db) == ["a"]
        with db.begin_nested():
            assert names(db) == ["a"]


def test_a_savepoint_begins_no_second_transaction(a: TenantRow) -> None:
    with tenancy.work(tenancy.of(a)) as db:
        driver = db.connection().connection.dbapi_connection
        with db.begin_nested():
            db.execute(tenancy.sql("SELECT 1"))
        assert driver is not None
        assert driver.notices == []


def test_two_threads_with_two_tenants_never_mix(a: TenantRow, b: TenantRow) -> None:
    wrong: list[object] = []
    barrier = threading.Barrier(8)

    def read(tenant: TenantRow, wanted: list[str]) -> None:
        barrier.wait()
        for _ in range(50):
            with tenancy.work(tenancy.of(tenant)) as db:
                if (found := names(db)) != wanted:
                    wrong.append(found)

    threads = [threading.Thread(target=read, args=((a, ["a"]) if i % 2 else (b, ["b"]))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- a database that goes away --------------------------------------------------------------------------------------------------------


def _end_all_backends(role: str) -> None:
    factories.rows(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s AND datname = current_database()",
        role,
    )


@pytest.mark.usefixtures("fresh_pools")
@pytest.mark.parametrize("reason", ["principal", "ingest", "sign-in", "stream"])
def test_a_connection_that_died_in_the_pool_is_replaced_unseen(reason: str, a: TenantRow) -> None:
    scope = tenancy.of(a) if reason == "principal" else tenancy.system(reason)
    outer = tenancy.work(scope)
    with outer, tenancy.work(scope):
        pass  # Two connections are in the pool now, and both die.
    _end_all_backends(f"iiot_{scope.role}")
    for _ in range(3):
        with tenancy.work(scope) as db:
            assert "a" in names(db)


def test_a_connection_that_dies_in_the_block_is_an_error_and_not_repeated(a: TenantRow) -> None:
    entered = 0
    with pytest.raises(OperationalError), tenancy.work(tenancy.of(a)) as db:
        entered += 1
        _end_all_backends("iiot_app")
        names(db)
    assert entered == 1
    with tenancy.work(tenancy.of(a)) as db:
        assert names(db) == ["a"]


@dataclass(frozen=True)
class LimitedMember:
    """What `tenancy.of` reads of a limited member."""

    tenant_id: int
    limited_user_id: int | None


def test_a_limited_member_sees_their_devices_alone(a: TenantRow) -> None:
    user = factories.make_user(a, "viewer")
    mine, other = factories.make_device(a), factories.make_device(a)
    with tenancy.work(tenancy.of(a)) as db:
        db.add(MembershipLimit(user_id=user.user_id, device_id=mine.device_id))
    with tenancy.work(tenancy.of(LimitedMember(a.tenant_id, user.user_id))) as db:
        assert db.scalars(select(Device.uid)).all() == [mine.uid]
        changed = db.execute(update(Device).where(Device.uid == other.uid).values(name="x").returning(Device.uid)).all()
        assert changed == []
    with tenancy.work(tenancy.of(LimitedMember(a.tenant_id, None))) as db:
        assert {mine.uid, other.uid} <= set(db.scalars(select(Device.uid)))
    with tenancy.work(tenancy.of(a)) as db:
        assert {mine.uid, other.uid} <= set(db.scalars(select(Device.uid))), "the limit does not stay on the connection"


def test_before_commit_runs_last_in_the_transaction(a: TenantRow) -> None:
    told: list[str] = []
    with tenancy.work(tenancy.of(a)) as db:
        tenancy.before_commit(db, lambda: told.append(str(db.scalar(select(Tenant.name)))))
        tenancy.after_commit(db, lambda: told.append("committed"))
        told.append("block")
    assert told == ["block", a.name, "committed"]


def test_a_failure_before_the_commit_rolls_back(a: TenantRow) -> None:
    with pytest.raises(ZeroDivisionError):
        _fail_before_commit(a)
    with tenancy.work(tenancy.of(a)) as db:
        assert db.scalar(select(Device.id).where(Device.name == "never")) is None


def _fail_before_commit(tenant: TenantRow) -> None:
    with tenancy.work(tenancy.of(tenant)) as db:
        db.add(Device(uid=new_uid(), name="never"))
        tenancy.before_commit(db, lambda: 1 // 0)


def test_a_device_without_a_tenant_opens_nothing() -> None:
    with pytest.raises(tenancy.NoTenant):
        tenancy.of_device(auth.Principal("device", None, None))
    with pytest.raises(tenancy.NoTenant):
        tenancy.of(auth.Principal("user", None, None))


def test_a_bulk_insert_of_the_own_tenant_and_a_reload_pass(a: TenantRow) -> None:
    device = factories.make_device(a)
    with tenancy.work(tenancy.of(a)) as db:
        row = {"tenant_id": a.tenant_id, "user_id": factories.make_user(a).user_id, "device_id": device.device_id}
        db.execute(insert(MembershipLimit), [row])
        found = db.scalars(select(Device).where(Device.uid == device.uid)).one()
        db.expire(found, ["name"])
        assert found.name == device.name


def test_a_database_that_is_not_there_is_an_error(module_settings: Settings) -> None:
    url = make_url(str(module_settings.database_url)).set(database="not there")
    gone = module_settings.model_copy(update={"database_url": url.render_as_string(hide_password=False)})
    with services.active(gone), pytest.raises(OperationalError), tenancy.work(tenancy.system("health")):
        raise AssertionError("unreachable")
