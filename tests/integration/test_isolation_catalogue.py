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
    "plan": "a template of quotas, of the platform; closed to the tenants' role",
    "password_reset": "of a person; closed to the tenants' role",
    "pending_registration": "before there is a tenant; closed to the tenants' role",
    "second_factor": "of a person; closed to the tenants' role",
    "recovery_code": "of a person; closed to the tenants' role",
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
    "uq_credential_uid": "random, 130 bits",
    "uq_credential_token_hash": "a keyed hash of 256 random bits: found before the tenant is known",
    "pk_session": "closed to the tenants' role; a platform administrator's session has no tenant",
    "uq_session_uid": "random, 130 bits",
    "uq_session_current_hash": "a hash of 256 random bits: found before the tenant is known",
    "uq_session_previous_hash": "a hash of 256 random bits: found before the tenant is known",
    "pk_plan": "a template of quotas, of the platform",
    "uq_plan_uid": "random, 130 bits",
    "uq_plan_name": "of the platform; closed to the tenants' role",
    "uq_command_uid": "random, 130 bits",
    "uq_rejected_message_uid": "random, 130 bits",
    "uq_device_certificate_uid": "random, 130 bits",
    "uq_device_certificate_serial": "random, 159 bits, of the portal's own choice",
    "uq_oscore_context_uid": "random, 130 bits",
    "uq_oscore_context_kid": "random, 56 bits: the key that a device names before its tenant is known",
    "uq_discovery_uid": "random, 130 bits",
    "uq_entity_uid": "random, 130 bits",
    "uq_home_uid": "random, 130 bits",
    "uq_home_name": "topics do not name the tenant; claiming a taken one answers alike whoever has it, and is limited per person",
    "uq_site_uid": "random, 130 bits: a collision tells nothing",
    "uq_role_uid": "random, 130 bits",
    "uq_invitation_uid": "random, 130 bits",
    "uq_invitation_token_hash": "a hash of 256 random bits: found before the tenant is known",
    "uq_service_account_uid": "random, 130 bits",
    "uq_api_key_uid": "random, 130 bits",
    "uq_api_key_key_hash": "a hash of 256 random bits: found before the tenant is known",
    "pk_password_reset": "of a person; closed to the tenants' role",
    "uq_password_reset_token_hash": "a hash of 256 random bits; closed to the tenants' role",
    "pk_pending_registration": "before there is a tenant; closed to the tenants' role",
    "uq_pending_registration_token_hash": "a hash of 256 random bits; closed to the tenants' role",
    "pk_second_factor": "of a person; closed to the tenants' role",
    "pk_recovery_code": "of a person; closed to the tenants' role",
    "pk_stream_cursor": "belongs to the portal",
    "alembic_version_pkc": "the schema's revision",
}
LINKS_TO_PEOPLE = {
    "fk_membership_user_id": "a person stands above tenants; only sign-in creates members",
    "fk_session_user_id": "a person stands above tenants; closed to the tenants' role",
    "fk_password_reset_user_id": "of a person; closed to the tenants' role",
    "fk_second_factor_user_id": "of a person; closed to the tenants' role",
    "fk_recovery_code_user_id": "of a person; closed to the tenants' role",
    "fk_tenant_plan_id": "a plan is of the platform; the tenants' role may not write the column",
}
# Who may call them (a trigger's function is called by nobody), and why they may do more than their caller.
SECURITY_DEFINER = {
    "ensure_partitions": ("iiot_stream", "creates empty tables by dates alone"),
    "drop_partitions": ("iiot_stream", "retention drops whole days"),
    "chain_audit": (None, "numbers and chains the entries of the audit trail; nobody else may write their hashes"),
}
# The second wall inside a tenant: a restrictive policy for members who see some devices alone.
MEMBER_LIMITS = {
    "api_key", "command", "connection_event", "credential", "device", "device_certificate", "discovery", "entity", "home",
    "latest", "oscore_context", "rejected_message", "rollup_1h", "signal", "site", "telemetry",
}  # fmt: skip
# What holds something of a device without that wall, and why a limited member reads nothing of other devices there.
DEVICE_DATA_WITHOUT_LIMIT = {
    "membership_limit": "says which devices members may see; the policy of `device` itself reads it",
    "telemetry_batch": "many devices in one row; replayed to clients by the rooms of the devices that they may see",
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
        assert command == "ALL", f"{table}: one policy for every command leaves none out"
        if name != "tenant_isolation":
            assert len(roles) == 1, f"{table}: {name}"
        if name == "member_limit":
            assert (permissive, roles) == ("RESTRICTIVE", ["iiot_limited"]), table
            assert using == check, f"{table}: what may be read and what may be written are the same rows"
            continue
        assert permissive == "PERMISSIVE", table
        if name == "tenant_isolation":
            assert roles in (["iiot_app"], ["iiot_app", "iiot_limited"]), table
            assert using == check, f"{table}: what may be read and what may be written are the same rows"
            # The sub-select is evaluated once per statement; a bare call once per row, six times as dear.
            assert "( SELECT iiot.tid() AS tid)" in using, f"{table}: {using}"
        else:
            assert name == f"portal_{roles[0].removeprefix('iiot_')}", table
            # The trigger of the audit trail acts as the owner; nothing else needs a policy for it.
            assert roles[0] in RUNTIME_ROLES or (table, roles[0]) == ("audit_head", "iiot_owner"), f"{table}: {name}"


def test_every_table_of_a_tenant_is_limited_by_its_own_tenant_id() -> None:
    policies = factories.rows(
        "SELECT tablename, qual FROM pg_policies WHERE schemaname = 'iiot' AND policyname = 'tenant_isolation'"
    )
    by_table = dict(policies)
    for table, using in by_table.items():
        if table not in NO_TENANT_COLUMN:
            assert using == "(tenant_id = ( SELECT iiot.tid() AS tid))", table
    assert set(by_table) & set(NO_TENANT_COLUMN) == {"tenant", "user_account"}


def test_what_belongs_to_a_device_is_hidden_from_limited_members() -> None:
    """A table with something of a device that the tenants' role may read has the second wall, or is reached through one that has."""
    limited = factories.rows(
        "SELECT tablename FROM pg_policies WHERE schemaname = 'iiot' AND policyname = 'member_limit'"
    )
    assert {name for (name,) in limited} == MEMBER_LIMITS
    of_devices = factories.rows(
        """SELECT DISTINCT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
           WHERE c.relnamespace = 'iiot'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND (c.relname IN ('device', 'site')
           OR a.attname IN ('device_id', 'signal_id', 'device_ids', 'signal_ids')) AND has_any_column_privilege('iiot_app', c.oid, 'SELECT')"""
    )
    assert {name for (name,) in of_devices} == MEMBER_LIMITS - {"api_key"} | set(DEVICE_DATA_WITHOUT_LIMIT)


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
        "ix_command_unfinished": "adapters and housekeeping look at what is unfinished in all tenants",
        "ix_rollup_1h_changed": "the hours that changed are summed up for all tenants",
        "ix_password_reset_user_id": "sign-in ends the other links of a person",
        "ix_password_reset_expires_at": "housekeeping removes old links",
        "ix_pending_registration_expires_at": "housekeeping removes old registrations",
        "ix_recovery_code_user_id": "sign-in finds the codes of a person",
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
        assert {kind for role, kind in granted if role in ("iiot_app", "iiot_limited")} == {"SELECT"}


def test_limited_members_may_do_nothing_that_others_may_not() -> None:
    more = factories.rows(
        """SELECT c.relname, a.attname, kind FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped,
           unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS kind WHERE c.relnamespace = 'iiot'::regnamespace AND c.relkind IN ('r', 'p')
           AND has_column_privilege('iiot_limited', c.oid, a.attnum, kind) AND NOT has_column_privilege('iiot_app', c.oid, a.attnum, kind)"""
    )
    assert more == []


@pytest.mark.parametrize("role", ["iiot_app", "iiot_limited"])
def test_tenants_never_read_password_hashes(role: str) -> None:
    for column in ("password_hash", "epoch", "is_platform_admin"):
        assert factories.rows(f"SELECT has_column_privilege('{role}', 'iiot.user_account', '{column}', 'SELECT')") == [
            (False,)
        ]
    assert factories.rows(f"SELECT has_table_privilege('{role}', 'iiot.session', 'SELECT')") == [(False,)]


def test_the_audit_trail_is_append_only_by_grant() -> None:
    """Nobody may change, remove or number an entry; what chains it, and the heads of the chains, the trigger alone writes."""
    granted = factories.rows(
        "SELECT table_name, grantee, privilege_type, column_name FROM information_schema.column_privileges "
        "WHERE table_schema = 'iiot' AND table_name IN ('audit', 'audit_head') AND grantee <> 'iiot_owner'"
    )
    entries = {(role, kind) for table, role, kind, _ in granted if table == "audit"}
    readers = ("iiot_app", "iiot_auth", "iiot_backup")
    writers = ("iiot_app", "iiot_limited", "iiot_auth", "iiot_stream")
    assert entries == {(role, "SELECT") for role in readers} | {(role, "INSERT") for role in writers}
    given = {column for table, _, kind, column in granted if (table, kind) == ("audit", "INSERT")}
    assert given.isdisjoint({"seq", "at", "previous_hash", "hash"})
    heads = {(role, kind) for table, role, kind, _ in granted if table == "audit_head"}
    assert heads == {("iiot_auth", "SELECT"), ("iiot_backup", "SELECT")}
    triggers = factories.rows("SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'iiot.audit'::regclass")
    assert set(triggers) == {("chain", "O"), ("append_only", "O"), ("never_emptied", "O")}


def test_functions_run_as_the_caller_with_a_fixed_path_or_have_a_reason() -> None:
    functions = factories.rows(
        "SELECT proname, prosecdef, coalesce(proconfig, '{}'), prosqlbody IS NOT NULL FROM pg_proc WHERE pronamespace = 'iiot'::regnamespace"
    )
    assert {name for name, definer, *_ in functions if definer} == set(SECURITY_DEFINER)
    for name, _, setting, is_bound in functions:
        # A body after RETURN was bound to its objects when it was made; any other looks names up when it runs.
        assert is_bound or 'search_path=""' in setting, name
    everybody = factories.rows(
        "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'iiot'::regnamespace "
        "AND (p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0))"
    )
    assert everybody == [], "functions that everybody may call"
    callers = factories.rows(
        """SELECT p.proname, r.rolname FROM pg_proc p, aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee
           WHERE p.pronamespace = 'iiot'::regnamespace AND p.prosecdef AND r.rolname <> 'iiot_owner'"""
    )
    assert set(callers) == {(name, caller) for name, (caller, _) in SECURITY_DEFINER.items() if caller}


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
