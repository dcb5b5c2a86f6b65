"""The second wall, read from PostgreSQL's own catalogue: what a migration forgets, one of these tests names.

Every list of exceptions carries its reason, and an exception that is no longer needed fails too.
"""

from typing import Any

import pytest

from iiot.config import ROLES, Settings
from tests import factories

pytestmark = pytest.mark.usefixtures("module_settings")

RUNTIME_ROLES = [f"iiot_{role}" for role in ROLES if role != "owner"]

# Tables that belong to no tenant, and what guards them instead.
NO_TENANT_COLUMN = {
    "tenant": "is the tenant: its policy compares id",
    "user_account": "a person may be a member of several tenants: its policy asks membership",
    "stream_cursor": "how far the portal has read its own log; says nothing about a tenant",
    "alembic_version": "the schema's revision",
}
WITHOUT_ROW_SECURITY = {
    "stream_cursor": "no tenant's data",
    "alembic_version": "no tenant's data; nobody but the owner may read it",
}
# Keys that do not begin with tenant_id.
KEYS_OF_THE_PORTAL = {
    "pk_tenant": "the tenant's own number",
    "uq_tenant_uid": "random, 130 bits: a collision tells nothing",
    "uq_tenant_slug": "only sign-in and platform administration may write it",
    "pk_user_account": "people stand above tenants",
    "uq_user_account_uid": "random, 130 bits",
    "uq_user_account_email": "people stand above tenants; registration answers alike for known and unknown addresses",
    "uq_device_uid": "random, 130 bits: the address of a device before its tenant is known",
    "uq_credential_token_hash": "a keyed hash of 256 random bits: found before the tenant is known",
    "pk_session": "closed to the tenants' role; a platform administrator's session has no tenant",
    "uq_session_uid": "random, 130 bits",
    "uq_session_current_hash": "a hash of 256 random bits: found before the tenant is known",
    "uq_session_previous_hash": "a hash of 256 random bits: found before the tenant is known",
    "pk_stream_cursor": "belongs to the portal",
    "alembic_version_pkc": "the schema's revision",
}
LINKS_TO_PEOPLE = {
    "fk_membership_user_id": "a person stands above tenants; only sign-in creates members",
    "fk_session_user_id": "a person stands above tenants; closed to the tenants' role",
}
SECURITY_DEFINER = {
    "ensure_partitions": "creates empty tables by dates alone; only stream may call it",
    "drop_partitions": "retention drops whole days; only stream may call it",
}


def test_every_table_has_a_tenant_or_a_reason() -> None:
    without = factories.rows(
        """SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'iiot'::regnamespace AND c.relkind IN ('r', 'p', 'm', 'f')
           AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped)"""
    )
    assert {name for (name,) in without} == set(NO_TENANT_COLUMN)


def test_every_table_and_partition_has_row_security_enabled_and_forced() -> None:
    tables = factories.rows(
        "SELECT relname, relrowsecurity, relforcerowsecurity, relispartition FROM pg_class "
        "WHERE relnamespace = 'iiot'::regnamespace AND relkind IN ('r', 'p')"
    )
    assert sum(partition for *_, partition in tables) > 40, "the partitions are part of what is checked"
    unguarded = {name for name, enabled, forced, _ in tables if not (enabled and forced)}
    assert unguarded == set(WITHOUT_ROW_SECURITY)


def test_every_guarded_table_has_a_policy_and_partitions_have_none() -> None:
    tables = factories.rows(
        """SELECT c.relname, c.relispartition, count(p.oid) FROM pg_class c LEFT JOIN pg_policy p ON p.polrelid = c.oid
           WHERE c.relnamespace = 'iiot'::regnamespace AND c.relkind IN ('r', 'p') AND c.relrowsecurity GROUP BY 1, 2"""
    )
    assert {name for name, partition, policies in tables if not partition and not policies} == set()
    assert {name for name, partition, policies in tables if partition and policies} == set()


def test_a_grant_to_a_role_always_has_its_policy() -> None:
    missing = factories.rows(
        """SELECT DISTINCT g.table_name, g.grantee FROM (
               SELECT table_name, grantee FROM information_schema.table_privileges WHERE table_schema = 'iiot'
               UNION SELECT table_name, grantee FROM information_schema.column_privileges WHERE table_schema = 'iiot') g
           JOIN pg_class c ON c.relname = g.table_name AND c.relnamespace = 'iiot'::regnamespace AND c.relrowsecurity
           WHERE g.grantee NOT IN ('iiot_owner', 'iiot_backup')
           AND NOT EXISTS (SELECT FROM pg_policies p WHERE p.schemaname = 'iiot' AND p.tablename = g.table_name AND g.grantee = ANY (p.roles))"""
    )
    assert missing == []


def test_policies_name_one_role_and_the_tenants_role_is_always_limited() -> None:
    policies = factories.rows(
        "SELECT tablename, policyname, permissive, roles::text[], cmd, qual, with_check FROM pg_policies WHERE schemaname = 'iiot'"
    )
    assert policies
    for table, name, permissive, roles, command, using, check in policies:
        assert permissive == "PERMISSIVE", table
        assert command == "ALL", f"{table}: one policy for every command leaves none out"
        assert len(roles) == 1, f"{table}: {name}"
        assert roles[0] in RUNTIME_ROLES, f"{table}: {name} is for {roles}"
        if roles == ["iiot_app"]:
            assert name == "tenant_isolation", table
            assert using == check, f"{table}: what may be read and what may be written are the same rows"
            # The sub-select is evaluated once per statement; a bare call once per row, six times as dear.
            assert "( SELECT iiot.tid() AS tid)" in using, f"{table}: {using}"
        else:
            assert name == f"portal_{roles[0].removeprefix('iiot_')}", table


def test_every_table_of_a_tenant_is_limited_by_its_own_tenant_id() -> None:
    policies = factories.rows(
        "SELECT tablename, qual FROM pg_policies WHERE schemaname = 'iiot' AND roles = '{iiot_app}'"
    )
    by_table = dict(policies)
    for table, using in by_table.items():
        if table not in NO_TENANT_COLUMN:
            assert using == "(tenant_id = ( SELECT iiot.tid() AS tid))", table
    assert set(by_table) & set(NO_TENANT_COLUMN) == {"tenant", "user_account"}


def test_primary_and_unique_keys_begin_with_the_tenant() -> None:
    keys = factories.rows(
        """SELECT i.relname, (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = x.indrelid AND a.attnum = x.indkey[0])
           FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
           WHERE t.relnamespace = 'iiot'::regnamespace AND x.indisunique AND NOT t.relispartition"""
    )
    assert {name for name, first in keys if first != "tenant_id"} == set(KEYS_OF_THE_PORTAL)


def test_foreign_keys_carry_the_tenant() -> None:
    links = factories.rows(
        """SELECT c.conname,
                  (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = c.conkey[1]),
                  (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.confrelid AND a.attnum = c.confkey[1]), c.confrelid::regclass::text
           FROM pg_constraint c WHERE c.contype = 'f' AND c.connamespace = 'iiot'::regnamespace"""
    )
    assert len(links) > 8
    for name, column, target, table in links:
        if name not in LINKS_TO_PEOPLE:
            assert (column, target) in {("tenant_id", "tenant_id"), ("tenant_id", "id")}, name
            assert target == "tenant_id" or table == "iiot.tenant", name
    assert set(LINKS_TO_PEOPLE) <= {name for name, *_ in links}


def test_indexes_of_tenant_tables_lead_with_the_tenant_or_have_a_reason() -> None:
    allowed = {
        "ix_telemetry_batch_xid_id": "the log is read for all tenants, in its order",
        "ix_membership_user_id": "sign-in finds the tenants of a person",
        "ix_session_user_id": "sign-in revokes the sessions of a person",
        "ix_session_expires_at": "housekeeping removes old sessions",
        "ix_rollup_1h_changed": "the hours that changed are summed up for all tenants",
    }
    found = factories.rows(
        """SELECT i.relname, (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = x.indrelid AND a.attnum = x.indkey[0])
           FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
           WHERE t.relnamespace = 'iiot'::regnamespace AND NOT x.indisunique AND NOT t.relispartition"""
    )
    assert {name for name, first in found if first != "tenant_id"} == set(allowed)


def test_nobody_but_backup_has_a_grant_on_a_partition() -> None:
    granted = factories.rows(
        """SELECT c.relname, coalesce(r.rolname, 'PUBLIC'), a.privilege_type FROM pg_class c, aclexplode(c.relacl) a
           LEFT JOIN pg_roles r ON r.oid = a.grantee
           WHERE c.relispartition AND c.relnamespace = 'iiot'::regnamespace AND coalesce(r.rolname, '') <> 'iiot_owner'"""
    )
    assert {(role, privilege) for _, role, privilege in granted} == {("iiot_backup", "SELECT")}


@pytest.mark.parametrize("role", RUNTIME_ROLES)
def test_a_runtime_role_is_nobody_special(role: str) -> None:
    ((superuser, bypass, create_role, create_database, replication, inherits),) = factories.rows(
        "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolinherit FROM pg_roles WHERE rolname = %s",
        role,
    )
    assert (superuser, create_role, create_database, replication, inherits) == (False,) * 5
    assert bypass == (role == "iiot_backup")
    assert (
        factories.rows("SELECT 1 FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = %s", role)
        == []
    )
    assert _owned_by(role) == []


def test_the_owner_may_not_log_in_and_is_no_superuser() -> None:
    assert factories.rows(
        "SELECT rolcanlogin, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = 'iiot_owner'"
    ) == [(False,) * 5]


def _owned_by(role: str) -> list[Any]:
    return factories.rows(
        """SELECT c.relname FROM pg_class c WHERE c.relowner = to_regrole(%(role)s)
           UNION ALL SELECT p.proname FROM pg_proc p WHERE p.proowner = to_regrole(%(role)s)
           UNION ALL SELECT n.nspname FROM pg_namespace n WHERE n.nspowner = to_regrole(%(role)s)""".replace(
            "%(role)s", f"'{role}'"
        )
    )


def test_everything_in_the_schema_belongs_to_the_owner() -> None:
    owners = factories.rows(
        """SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'iiot'::regnamespace
           UNION SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE pronamespace = 'iiot'::regnamespace
           UNION SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'iiot'"""
    )
    assert owners == [("iiot_owner",)]


def test_the_runtime_roles_may_not_truncate_reference_trigger_or_create() -> None:
    privileges = factories.rows(
        "SELECT DISTINCT grantee, privilege_type FROM information_schema.table_privileges WHERE table_schema = 'iiot' AND grantee <> 'iiot_owner'"
    )
    assert {kind for _, kind in privileges} <= {"SELECT", "INSERT", "UPDATE", "DELETE"}
    assert {role for role, _ in privileges} <= set(RUNTIME_ROLES)
    assert {kind for role, kind in privileges if role == "iiot_backup"} == {"SELECT"}
    for role in RUNTIME_ROLES:
        ((schema, public, temporary),) = factories.rows(
            "SELECT has_schema_privilege(%s, 'iiot', 'CREATE'), has_schema_privilege(%s, 'public', 'CREATE'), "
            "has_database_privilege(%s, current_database(), 'CREATE')",
            role, role, role,
        )  # fmt: skip
        assert (schema, public, temporary) == (False,) * 3, role


def test_telemetry_is_write_only_for_ingest_and_read_only_for_tenants() -> None:
    for table in ("telemetry", "telemetry_batch"):
        granted = factories.rows(
            "SELECT grantee, privilege_type FROM information_schema.table_privileges WHERE table_schema = 'iiot' AND table_name = %s",
            table,
        )
        assert {kind for role, kind in granted if role == "iiot_ingest"} == {"INSERT"}
        assert {kind for role, kind in granted if role == "iiot_app"} == {"SELECT"}


def test_tenants_never_read_password_hashes() -> None:
    for column in ("password_hash", "epoch", "is_platform_admin"):
        assert factories.rows(
            f"SELECT has_column_privilege('iiot_app', 'iiot.user_account', '{column}', 'SELECT')"
        ) == [(False,)]
    assert factories.rows("SELECT has_table_privilege('iiot_app', 'iiot.session', 'SELECT')") == [(False,)]


def test_functions_run_as_the_caller_with_a_fixed_path_or_have_a_reason() -> None:
    functions = factories.rows(
        "SELECT proname, prosecdef, coalesce(proconfig, '{}') FROM pg_proc WHERE pronamespace = 'iiot'::regnamespace"
    )
    assert {name for name, definer, _ in functions if definer} == set(SECURITY_DEFINER)
    for name, _, setting in functions:
        assert 'search_path=""' in setting, name
    everybody = factories.rows(
        "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'iiot'::regnamespace "
        "AND (p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0))"
    )
    assert everybody == [], "functions that everybody may call"
    callers = factories.rows(
        """SELECT p.proname, r.rolname FROM pg_proc p, aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee
           WHERE p.pronamespace = 'iiot'::regnamespace AND p.prosecdef AND r.rolname <> 'iiot_owner'"""
    )
    assert set(callers) == {(name, "iiot_stream") for name in SECURITY_DEFINER}


def test_views_see_what_their_reader_may_see() -> None:
    views = factories.rows(
        """SELECT c.relname, pg_get_userbyid(c.relowner), coalesce('security_invoker=true' = ANY (c.reloptions), false)
           FROM pg_class c WHERE c.relnamespace = 'iiot'::regnamespace AND c.relkind IN ('v', 'm')"""
    )
    assert [name for name, owner, invoker in views if owner != "iiot_owner" or not invoker] == []


def test_partitions_hold_nothing_that_their_parent_does_not_guard(module_settings: Settings) -> None:
    """A partition's policies would be another wall to keep; it has row security without one, so whoever names it reads nothing."""
    connection = factories.connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT iiot.ensure_partitions(current_date + 20, current_date + 20)")
            cursor.execute(
                "SELECT relrowsecurity, relforcerowsecurity, pg_get_userbyid(relowner) FROM pg_class "
                "WHERE relname = 'telemetry_p' || to_char(current_date + 20, 'YYYYMMDD')"
            )
            assert cursor.fetchall() == [(True, True, "iiot_owner")], "partitions made later are guarded alike"
    finally:
        connection.close()
