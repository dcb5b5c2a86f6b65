"""A test of the tests: every policy is broken on purpose, in each way that matters, and a named isolation check has to notice.

The mutants are made from the database's own list of policies, so a table that a later migration adds is included by itself.
"""

from collections.abc import Iterator

import psycopg2
import pytest

from iiot.config import Settings
from tests import factories
from tests.integration.isolation_checks import LIMITED, Checks, Side, fill

Connections = tuple["psycopg2.extensions.connection", "psycopg2.extensions.connection"]

# Every table with a policy for the tenants' role. A new one belongs here, and a row for it in isolation_checks.fill.
TABLES = (
    "api_key", "audit", "command", "connection_event", "credential", "device", "discovery", "entity", "home", "invitation",
    "latest", "membership", "membership_limit", "quota", "rejected_message", "role", "rollup_1h", "service_account", "signal", "site", "telemetry",
    "telemetry_batch", "tenant", "usage_day", "user_account",
)  # fmt: skip
# The tenants' role may insert here; on the others no right exists that WITH CHECK could limit, which a test proves.
INSERTABLE = (
    "api_key", "audit", "command", "connection_event", "credential", "device", "discovery", "entity", "home", "invitation",
    "membership", "membership_limit", "role", "service_account", "site",
)  # fmt: skip
# Closed to the tenants' role: a policy for it would limit nothing, as it holds no right, which a test proves.
CLOSED = ("audit_head", "password_reset", "pending_registration", "plan", "recovery_code", "second_factor", "session")


@pytest.fixture(scope="module")
def sides(module_settings: Settings) -> tuple[Side, Side]:
    return fill("A"), fill("B")


@pytest.fixture(scope="module")
def connections(module_settings: Settings) -> Iterator[Connections]:
    """Bare connections as the tenants' role and as the superuser."""
    app, superuser = factories.connect("app", autocommit=False), factories.connect(autocommit=False)
    yield app, superuser
    app.close()
    superuser.close()


# Tables whose checks held after the last mutant was taken back: they need not be run once more before the next.
_known_good: set[str] = set()


@pytest.fixture
def checks(request: pytest.FixtureRequest, sides: tuple[Side, Side], connections: Connections) -> Iterator[Checks]:
    """The checks of a table, which hold before a mutant is made and again after it was restored."""
    table = str(request.getfixturevalue("table"))
    found = Checks(table, *sides, *connections)
    before = _state(table)
    if table not in _known_good:
        assert found.run() == set()
    _known_good.discard(table)
    yield found
    assert _state(table) == before, "the test must restore what it broke"
    assert found.run() == set()
    _known_good.add(table)


def _state(table: str) -> list[tuple[object, ...]]:
    return factories.rows(
        "SELECT policyname, permissive, roles::text, cmd, qual, with_check, relrowsecurity, relforcerowsecurity FROM pg_policies p "
        "JOIN pg_class c ON c.oid = ('iiot.' || p.tablename)::regclass WHERE p.schemaname = 'iiot' AND p.tablename = %s ORDER BY 1",
        table,
    )


def test_every_policy_of_tenants_is_in_the_list(module_settings: Settings) -> None:
    found = factories.rows(
        "SELECT tablename FROM pg_policies WHERE schemaname = 'iiot' AND policyname = 'tenant_isolation' ORDER BY 1"
    )
    assert tuple(name for (name,) in found) == TABLES


def test_tables_without_a_policy_for_the_tenants_role_are_closed_to_it(module_settings: Settings) -> None:
    """Mutants of these are equivalent: no policy can show rows to a role without a right."""
    closed = factories.rows(
        """SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'iiot'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
           AND c.relrowsecurity AND NOT has_any_column_privilege('iiot_app', c.oid, 'SELECT, INSERT, UPDATE')
           AND NOT has_table_privilege('iiot_app', c.oid, 'DELETE, TRUNCATE') ORDER BY 1"""
    )
    assert tuple(name for (name,) in closed) == CLOSED
    guarded = factories.rows(
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'iiot'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition AND relrowsecurity"
    )
    assert guarded == [(len(TABLES) + len(CLOSED),)], "a table is either open through its policy or closed"


@pytest.mark.parametrize("table", TABLES)
def test_the_policy_holds_in_both_directions(table: str, sides: tuple[Side, Side], connections: Connections) -> None:
    own, other = sides
    assert Checks(table, own, other, *connections).run() == set()
    assert Checks(table, other, own, *connections).run() == set()


@pytest.mark.parametrize("table", TABLES)
def test_a_policy_that_lets_all_rows_be_read_is_noticed(table: str, checks: Checks) -> None:
    condition = _condition(table)
    factories.rows(f"ALTER POLICY tenant_isolation ON iiot.{table} USING (true)")
    try:
        assert {"sees_no_foreign_rows", "sees_nothing_without_a_tenant"} <= checks.run()
    finally:
        factories.rows(f"ALTER POLICY tenant_isolation ON iiot.{table} USING ({condition})")


@pytest.mark.parametrize("table", INSERTABLE)
def test_a_policy_that_lets_all_rows_be_written_is_noticed(table: str, checks: Checks) -> None:
    condition = _condition(table)
    factories.rows(f"ALTER POLICY tenant_isolation ON iiot.{table} WITH CHECK (true)")
    try:
        assert checks.run() == {"inserts_no_foreign_rows"}
    finally:
        factories.rows(f"ALTER POLICY tenant_isolation ON iiot.{table} WITH CHECK ({condition})")


@pytest.mark.parametrize("table", sorted(set(TABLES) - set(INSERTABLE)))
def test_elsewhere_no_right_exists_that_could_write_a_foreign_row(table: str, module_settings: Settings) -> None:
    """The mutant WITH CHECK (true) is equivalent here: nothing may be inserted, and the owner's column may not be changed."""
    column = {"tenant": "id", "user_account": "id"}.get(table, "tenant_id")
    ((insert, update),) = factories.rows(
        "SELECT has_any_column_privilege('iiot_app', %s, 'INSERT'), has_column_privilege('iiot_app', %s, %s, 'UPDATE')",
        f"iiot.{table}", f"iiot.{table}", column,
    )  # fmt: skip
    assert (insert, update) == (False, False)


@pytest.mark.parametrize("table", TABLES)
def test_a_dropped_policy_is_noticed(table: str, checks: Checks) -> None:
    condition = _condition(table)
    ((roles,),) = factories.rows(
        "SELECT array_to_string(roles, ', ') FROM pg_policies WHERE policyname = 'tenant_isolation' AND tablename = %s",
        table,
    )
    factories.rows(f"DROP POLICY tenant_isolation ON iiot.{table}")
    try:
        assert "sees_its_own_rows" in checks.run()
    finally:
        factories.rows(
            f"CREATE POLICY tenant_isolation ON iiot.{table} TO {roles} USING ({condition}) WITH CHECK ({condition})"
        )


@pytest.mark.parametrize("table", TABLES)
def test_disabled_row_security_is_noticed(table: str, checks: Checks) -> None:
    factories.rows(f"ALTER TABLE iiot.{table} DISABLE ROW LEVEL SECURITY")
    try:
        assert {"sees_no_foreign_rows", "sees_nothing_without_a_tenant"} <= checks.run()
    finally:
        factories.rows(f"ALTER TABLE iiot.{table} ENABLE ROW LEVEL SECURITY")


@pytest.mark.parametrize("table", TABLES)
def test_row_security_that_spares_the_owner_is_noticed(table: str, checks: Checks) -> None:
    factories.rows(f"ALTER TABLE iiot.{table} NO FORCE ROW LEVEL SECURITY")
    try:
        assert checks.run() == {"hides_rows_from_the_owner"}
    finally:
        factories.rows(f"ALTER TABLE iiot.{table} FORCE ROW LEVEL SECURITY")


@pytest.mark.parametrize("table", TABLES)
def test_a_policy_for_everybody_is_noticed(table: str, checks: Checks) -> None:
    factories.rows(f"CREATE POLICY forgotten ON iiot.{table} USING (true)")
    try:
        assert {"sees_no_foreign_rows", "sees_nothing_without_a_tenant", "hides_rows_from_the_owner"} <= checks.run()
    finally:
        factories.rows(f"DROP POLICY forgotten ON iiot.{table}")


# The second wall, for members who see some devices alone: the same mutants of its restrictive policy.


@pytest.mark.parametrize("table", LIMITED)
def test_a_dropped_limit_of_members_is_noticed(table: str, checks: Checks) -> None:
    condition = _condition(table, "member_limit")
    factories.rows(f"DROP POLICY member_limit ON iiot.{table}")
    try:
        assert "hides_the_rest_from_a_limited_member" in checks.run()
    finally:
        _limit_again(table, condition)


@pytest.mark.parametrize("table", LIMITED)
def test_a_limit_of_members_that_shows_all_rows_is_noticed(table: str, checks: Checks) -> None:
    condition = _condition(table, "member_limit")
    factories.rows(f"ALTER POLICY member_limit ON iiot.{table} USING (true)")
    try:
        assert "hides_the_rest_from_a_limited_member" in checks.run()
    finally:
        factories.rows(f"ALTER POLICY member_limit ON iiot.{table} USING ({condition})")


@pytest.mark.parametrize("table", LIMITED)
def test_a_limit_of_members_that_shows_nothing_is_noticed(table: str, checks: Checks) -> None:
    condition = _condition(table, "member_limit")
    factories.rows(f"ALTER POLICY member_limit ON iiot.{table} USING (false)")
    try:
        assert checks.run() == {"shows_a_limited_member_their_own"}
    finally:
        factories.rows(f"ALTER POLICY member_limit ON iiot.{table} USING ({condition})")


@pytest.mark.parametrize("table", LIMITED)
def test_a_permissive_limit_of_members_is_noticed(table: str, checks: Checks) -> None:
    """PERMISSIVE is what CREATE POLICY makes unless told: it would open the whole tenant to them."""
    condition = _condition(table, "member_limit")
    factories.rows(f"DROP POLICY member_limit ON iiot.{table}")
    factories.rows(f"CREATE POLICY member_limit ON iiot.{table} TO iiot_limited USING ({condition})")
    try:
        assert "hides_the_rest_from_a_limited_member" in checks.run()
    finally:
        factories.rows(f"DROP POLICY member_limit ON iiot.{table}")
        _limit_again(table, condition)


@pytest.mark.parametrize("table", ["api_key", "connection_event", "credential"])
def test_a_limit_of_members_that_lets_all_rows_be_written_is_noticed(table: str, checks: Checks) -> None:
    condition = _condition(table, "member_limit")
    factories.rows(f"ALTER POLICY member_limit ON iiot.{table} WITH CHECK (true)")
    try:
        assert checks.run() == {"writes_nothing_beyond_the_limits"}
    finally:
        factories.rows(f"ALTER POLICY member_limit ON iiot.{table} WITH CHECK ({condition})")


def _limit_again(table: str, condition: str) -> None:
    factories.rows(
        f"CREATE POLICY member_limit ON iiot.{table} AS RESTRICTIVE TO iiot_limited USING ({condition}) WITH CHECK ({condition})"
    )


def _condition(table: str, policy: str = "tenant_isolation") -> str:
    ((condition,),) = factories.rows(
        "SELECT qual FROM pg_policies WHERE schemaname = 'iiot' AND policyname = %s AND tablename = %s", policy, table
    )
    return str(condition)
