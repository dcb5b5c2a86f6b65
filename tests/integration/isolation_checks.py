"""Isolation as somebody beneath the door would try it: bare SQL as a role of the portal, past the filters of `iiot.tenancy`.

Each check has a name, so that a test of the tests (policy mutants) can say which of them found a hole. They need two tenants full of rows.
"""

from dataclasses import dataclass
from datetime import timedelta

import psycopg2
from psycopg2 import errors, sql
from sqlalchemy import update
from sqlalchemy.orm import Session

from iiot import tenancy
from iiot.clock import now_ms
from iiot.ids import new_uid
from iiot.models import (
    ApiKey,
    Command,
    Device,
    Discovery,
    Entity,
    Home,
    Invitation,
    MembershipLimit,
    OscoreContext,
    Role,
    ServiceAccount,
    Site,
    UsageDay,
)
from iiot.services import audit
from tests import factories

# The column that says whose a row is, where it is not tenant_id; people are found through their membership.
OWNERS = {"tenant": "id", "user_account": "id"}
# What a limited member sees of other devices, of sites without a device of theirs, and of other people's keys: nothing.
LIMITED = (
    "api_key", "command", "connection_event", "credential", "device", "device_certificate", "discovery", "entity", "home",
    "latest", "oscore_context", "rejected_message", "rollup_1h", "signal", "site", "telemetry",
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """A tenant, and the value of the owner's column in its rows of each table."""

    tenant: factories.TenantRow
    user: factories.UserRow
    device: factories.DeviceRow

    def owner(self, table: str) -> int:
        """What the owner's column holds in this side's rows."""
        return self.user.user_id if table == "user_account" else self.tenant.tenant_id


def fill(name: str) -> Side:
    """A tenant with at least one row in every table that the tenants' role may read."""
    tenant = factories.make_tenant(name)
    side = Side(tenant, factories.make_user(tenant), factories.make_device(tenant))
    factories.store(side.device.uid, (now_ms(), {"temperature": 21.5, "note": "warm"}))
    factories.ingest([factories.refused(side.device.uid)])
    factories.status([factories.StatusEvent(side.device.uid, True, "test")])
    keys = {"tenant_id": tenant.tenant_id, "signal_id": factories.signal_id(side.device, "temperature")}
    with tenancy.work(tenancy.system("stream")) as db:
        db.execute(_LATEST, keys)
        db.execute(_ROLLUP, keys)
        db.add(UsageDay(tenant_id=tenant.tenant_id, day=factories.now(), readings=2, messages=1))
    with tenancy.work(tenancy.of(tenant)) as db:
        db.add(factories.credential(side.device))
        db.add(factories.certificate(side.device))
        later = factories.now() + timedelta(hours=1)
        db.add(_key(side.device.device_id))
        db.add(Command(uid=new_uid(), device_id=side.device.device_id, seq=1, name="restart", expires_at=later))
        own = {"device_id": side.device.device_id, "name": f"thing-{side.tenant.uid}"}
        db.add_all([Home(uid=new_uid(), **own), Entity(uid=new_uid(), kind="light", **own)])
        db.add(Discovery(uid=new_uid(), kind="device", last_seen_at=factories.now(), **own))
        audit.record(db, "test.fill", ("test", side.device.uid))
        _people(db, side)
    return side


def _key(device_id: int) -> OscoreContext:
    kid = new_uid().encode()[:7]
    return OscoreContext(uid=new_uid(), device_id=device_id, kid=kid, own_id=b"portal", secret=b"sealed", salt=b"salt")


def _people(db: Session, side: Side) -> None:
    """A row in every table of people and access; the member of the tenant is limited to its device."""
    role = Role(uid=new_uid(), name="watcher", permissions=["device:read"])
    site = Site(uid=new_uid(), name="Hall 1")
    account = ServiceAccount(uid=new_uid(), name="exporter", role="viewer")
    db.add_all([role, site, account])
    db.flush()
    db.execute(update(Device).where(Device.id == side.device.device_id).values(site_id=site.id))
    key = ApiKey(uid=new_uid(), name="nightly", prefix="iip_x", key_hash=new_uid(), service_account_id=account.id)
    later = factories.now() + timedelta(days=1)
    asked = Invitation(
        uid=new_uid(), email="x@example.com", role="viewer", token_hash=new_uid(), invited_by="x", expires_at=later
    )
    own = ApiKey(uid=new_uid(), name="mine", prefix="iip_y", key_hash=new_uid(), user_id=side.user.user_id)
    db.add_all([key, own, asked, MembershipLimit(user_id=side.user.user_id, device_id=side.device.device_id)])


_LATEST = tenancy.sql(
    "INSERT INTO iiot.latest (tenant_id, signal_id, ts, num) VALUES (:tenant_id, :signal_id, now(), 21.5)"
)
_ROLLUP = tenancy.sql(
    "INSERT INTO iiot.rollup_1h (tenant_id, signal_id, hour, n, minimum, maximum, total, sumsq, first, last, first_ts, last_ts) "
    "VALUES (:tenant_id, :signal_id, date_trunc('hour', now()), 1, 1, 1, 1, 1, 1, 1, now(), now())"
)


@dataclass(frozen=True)
class Checks:
    """The checks of one table, as tenant `own` against tenant `other`. `run` returns the names of those that fail."""

    table: str
    own: Side
    other: Side
    app: "psycopg2.extensions.connection"
    superuser: "psycopg2.extensions.connection"

    @property
    def column(self) -> str:
        """The owner's column."""
        return OWNERS.get(self.table, "tenant_id")

    def run(self) -> set[str]:
        """The names of the checks that found a hole; empty is good."""
        return {check.__name__ for check in CHECKS if not check(self)}

    def count(self, role: str, tenant: int | None, whose: Side | None) -> int:
        """How many rows `role` sees in a transaction of `tenant`; of one side alone when it is named."""
        statement = sql.SQL("SELECT count({}) FROM iiot.{}").format(
            sql.Identifier(self.column), sql.Identifier(self.table)
        )
        if whose is not None:
            statement += sql.SQL(" WHERE {} = {}").format(
                sql.Identifier(self.column), sql.Literal(whose.owner(self.table))
            )
        connection = self.superuser if role == "owner" else self.app
        try:
            with connection.cursor() as cursor:
                if role == "owner":
                    cursor.execute("SET LOCAL ROLE iiot_owner")
                _enter(cursor, tenant)
                cursor.execute(statement)
                return int(cursor.fetchone()[0])  # type: ignore[index]
        finally:
            connection.rollback()

    def limited(self, user_id: int) -> bool:
        """Whether a member with this id who is limited sees any row."""
        try:
            with self.superuser.cursor() as cursor:
                cursor.execute("SET LOCAL ROLE iiot_limited")
                _enter(cursor, self.own.tenant.tenant_id, user_id)
                cursor.execute(
                    sql.SQL("SELECT count({}) FROM iiot.{}").format(
                        sql.Identifier(self.column), sql.Identifier(self.table)
                    )
                )
                return int(cursor.fetchone()[0]) > 0  # type: ignore[index]
        except errors.InsufficientPrivilege:
            return False
        finally:
            self.superuser.rollback()

    def refused(self, statement: sql.Composable, limited_user: int | None = None) -> bool:
        """Whether row-level security or a missing right stops a write of `own`; what is not stopped is undone."""
        connection = self.app if limited_user is None else self.superuser
        try:
            with connection.cursor() as cursor:
                if limited_user is not None:
                    cursor.execute("SET LOCAL ROLE iiot_limited")
                _enter(cursor, self.own.tenant.tenant_id, limited_user)
                cursor.execute(statement)
                return cursor.rowcount == 0
        except errors.InsufficientPrivilege:
            return True
        except psycopg2.IntegrityError:
            # PostgreSQL asks the policies before any constraint: the row has passed them.
            return False
        finally:
            connection.rollback()

    def columns_with(self, privilege: str) -> list[str]:
        """Columns on which the tenants' role has INSERT or UPDATE."""
        with self.superuser.cursor() as cursor:
            cursor.execute(
                "SELECT column_name FROM information_schema.column_privileges WHERE table_schema = 'iiot' AND table_name = %s "
                "AND grantee = 'iiot_app' AND privilege_type = %s ORDER BY column_name DESC",
                (self.table, privilege),
            )
            return [name for (name,) in cursor.fetchall()]

    def new_row(self, side: Side) -> sql.Composable:
        """An INSERT of a row that belongs to `side`, with values from the catalogue."""
        columns = factories.rows(
            "SELECT column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'iiot' AND table_name = %s AND is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO'",
            self.table,
        )
        # A member of the one tenant may join the other; elsewhere a user must be a member already.
        user = self.own.user if self.table == "membership" else side.user
        known = {
            "tenant_id": side.tenant.tenant_id,
            "device_id": side.device.device_id,
            "user_id": user.user_id,
            "role": "admin",
        }
        values = {name: known.get(name, _SAMPLES[kind]) for name, kind in columns}
        return sql.SQL("INSERT INTO iiot.{} ({}) VALUES ({})").format(
            sql.Identifier(self.table),
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join(map(sql.Literal, values.values())),
        )


_SAMPLES = {
    "integer": 7,
    "bigint": 7,
    "text": "x",
    "boolean": True,
    "bytea": b"x",
    "timestamp with time zone": "2026-01-01Z",
    "ARRAY": [],
}


def _enter(cursor: "psycopg2.extensions.cursor", tenant: int | None, limited_user: int | None = None) -> None:
    if tenant is not None:
        cursor.execute("SELECT set_config('app.tenant_id', %s, true)", (str(tenant),))
    if limited_user is not None:
        cursor.execute("SELECT set_config('app.limited_user', %s, true)", (str(limited_user),))


def sees_its_own_rows(checks: Checks) -> bool:
    """A tenant reads its own rows: a dropped policy shows here."""
    return checks.count("app", checks.own.tenant.tenant_id, checks.own) > 0


def sees_no_foreign_rows(checks: Checks) -> bool:
    """A tenant reads none of another's rows."""
    return checks.count("app", checks.own.tenant.tenant_id, checks.other) == 0


def sees_nothing_without_a_tenant(checks: Checks) -> bool:
    """A forgotten tenant is no rows."""
    return checks.count("app", None, None) == 0


def changes_no_foreign_rows(checks: Checks) -> bool:
    """An UPDATE that names the other's rows finds none."""
    columns = [column for column in checks.columns_with("UPDATE") if column not in ("id", checks.column)]
    if not columns:
        return True
    assignment = sql.SQL("{0} = {0}").format(sql.Identifier(columns[0]))
    where = sql.SQL(" WHERE {} = {}").format(
        sql.Identifier(checks.column), sql.Literal(checks.other.owner(checks.table))
    )
    return checks.refused(sql.SQL("UPDATE iiot.{} SET ").format(sql.Identifier(checks.table)) + assignment + where)


def deletes_no_foreign_rows(checks: Checks) -> bool:
    """A DELETE that names the other's rows finds none."""
    where = sql.SQL(" WHERE {} = {}").format(
        sql.Identifier(checks.column), sql.Literal(checks.other.owner(checks.table))
    )
    return checks.refused(sql.SQL("DELETE FROM iiot.{}").format(sql.Identifier(checks.table)) + where)


def inserts_no_foreign_rows(checks: Checks) -> bool:
    """An INSERT in the other's name is refused."""
    if checks.column not in checks.columns_with("INSERT"):
        return True
    return checks.refused(checks.new_row(checks.other))


def shows_a_limited_member_their_own(checks: Checks) -> bool:
    """A member who is limited to the tenant's one device reads its rows, where the role of limited members may read at all."""
    ((may_read,),) = factories.rows(
        "SELECT has_any_column_privilege('iiot_limited', %s, 'SELECT')", f"iiot.{checks.table}"
    )
    return checks.limited(checks.own.user.user_id) == may_read


def hides_the_rest_from_a_limited_member(checks: Checks) -> bool:
    """A member who is limited to nothing reads no device, nothing of one, and no site."""
    return checks.table not in LIMITED or not checks.limited(0)


def writes_nothing_beyond_the_limits(checks: Checks) -> bool:
    """A member who is limited to nothing makes no device, nothing of one, and no site."""
    if checks.table not in LIMITED or checks.column not in checks.columns_with("INSERT"):
        return True
    return checks.refused(checks.new_row(checks.own), limited_user=0)


def hides_rows_from_the_owner(checks: Checks) -> bool:
    """The role that owns the table is under its policies too (FORCE): migrations never read a tenant's rows by accident."""
    return checks.count("owner", checks.own.tenant.tenant_id, None) == 0


CHECKS = (
    sees_its_own_rows,
    sees_no_foreign_rows,
    sees_nothing_without_a_tenant,
    changes_no_foreign_rows,
    deletes_no_foreign_rows,
    inserts_no_foreign_rows,
    shows_a_limited_member_their_own,
    hides_the_rest_from_a_limited_member,
    writes_nothing_beyond_the_limits,
    hides_rows_from_the_owner,
)
