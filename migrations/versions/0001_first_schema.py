"""The first schema: tables, keys, partitions, grants and row-level security.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from rls import protect
from sqlalchemy.dialects import postgresql

from iiot.models.telemetry import Xid8

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


MEMBERS = "id IN (SELECT m.user_id FROM iiot.membership m WHERE m.tenant_id = (SELECT iiot.tid()))"
ALL = "SELECT, INSERT, UPDATE, DELETE"

TENANT_ID = """
CREATE FUNCTION iiot.tid() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE SET search_path = ''
AS $$ SELECT nullif(current_setting('app.tenant_id', true), '')::integer $$
"""

# A partition has no grants, and row-level security without a policy: whoever names it directly reads nothing.
ENSURE_PARTITIONS = """
CREATE FUNCTION iiot.ensure_partitions(first date, last date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET timezone = 'UTC' AS $$
DECLARE parent text; day date; child text; made integer := 0;
BEGIN
    IF last - first > 1000 THEN RAISE EXCEPTION 'more than 1000 days asked for'; END IF;
    FOREACH parent IN ARRAY ARRAY['telemetry', 'telemetry_batch'] LOOP
        day := first;
        IF parent = 'telemetry_batch' AND day < current_date - 1 THEN day := current_date - 1; END IF;
        WHILE day <= last LOOP
            child := parent || '_p' || to_char(day, 'YYYYMMDD');
            IF to_regclass('iiot.' || child) IS NULL THEN
                EXECUTE format('CREATE TABLE iiot.%I PARTITION OF iiot.%I FOR VALUES FROM (%L) TO (%L)',
                               child, parent, day::timestamptz, (day + 1)::timestamptz);
                EXECUTE format('ALTER TABLE iiot.%I ENABLE ROW LEVEL SECURITY', child);
                EXECUTE format('ALTER TABLE iiot.%I FORCE ROW LEVEL SECURITY', child);
                EXECUTE format('GRANT SELECT ON iiot.%I TO iiot_backup', child);
                made := made + 1;
            END IF;
            day := day + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END $$
"""

DROP_PARTITIONS = """
CREATE FUNCTION iiot.drop_partitions(before_telemetry date, before_log date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE child record; dropped integer := 0;
BEGIN
    FOR child IN
        SELECT c.relname::text AS name, p.relname::text AS parent, right(c.relname::text, 8)::date AS day
        FROM pg_catalog.pg_inherits i
        JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
        JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
        JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace AND n.nspname = 'iiot'
        WHERE c.relkind = 'r' AND p.relname IN ('telemetry', 'telemetry_batch')
    LOOP
        IF child.day < (CASE child.parent WHEN 'telemetry' THEN before_telemetry ELSE before_log END) THEN
            EXECUTE format('DROP TABLE iiot.%I', child.name);
            dropped := dropped + 1;
        END IF;
    END LOOP;
    RETURN dropped;
END $$
"""


def _functions() -> None:
    for statement in (TENANT_ID, ENSURE_PARTITIONS, DROP_PARTITIONS):
        op.execute(statement)
    op.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA iiot FROM PUBLIC")
    op.execute("GRANT USAGE ON SCHEMA iiot TO iiot_app, iiot_ingest, iiot_stream, iiot_auth, iiot_backup")
    op.execute("GRANT EXECUTE ON FUNCTION iiot.tid() TO iiot_app, iiot_ingest, iiot_stream, iiot_auth, iiot_backup")
    op.execute(
        "GRANT EXECUTE ON FUNCTION iiot.ensure_partitions(date, date), iiot.drop_partitions(date, date) TO iiot_stream"
    )


def _security() -> None:
    protect(
        "tenant",
        {
            "app": "SELECT, UPDATE (name, timezone)",
            "ingest": "SELECT",
            "stream": "SELECT",
            "auth": "SELECT, INSERT, UPDATE",
        },
        own="id = (SELECT iiot.tid())",
    )
    protect("quota", {"app": "SELECT", "ingest": "SELECT", "stream": "SELECT", "auth": "SELECT, INSERT, UPDATE"})
    protect(
        "user_account",
        {
            "app": "SELECT (id, uid, email, name, must_change_password, status, created_at, last_login_at)",
            "auth": "SELECT, INSERT, UPDATE",
        },
        own=MEMBERS,
    )
    protect("membership", {"app": ALL, "auth": ALL})
    protect("session", {"auth": ALL, "stream": "SELECT, DELETE"}, own=None)
    protect(
        "device",
        {
            "app": ALL,
            "ingest": "SELECT, UPDATE (status, tells_status, last_seen_at)",
            "stream": "SELECT, UPDATE (status, last_seen_at)",
            "auth": "SELECT",
        },
    )
    protect(
        "credential", {"app": "SELECT, INSERT, UPDATE", "stream": "SELECT", "auth": "SELECT, UPDATE (last_used_at)"}
    )
    protect(
        "signal", {"app": "SELECT, UPDATE (unit, minimum, maximum)", "ingest": "SELECT, INSERT", "stream": "SELECT"}
    )
    protect("telemetry", {"app": "SELECT", "ingest": "INSERT", "stream": "SELECT, DELETE"})
    protect("telemetry_batch", {"app": "SELECT", "ingest": "INSERT", "stream": "SELECT"})
    protect("latest", {"app": "SELECT", "stream": ALL})
    protect("rollup_1h", {"app": "SELECT", "stream": ALL})
    protect("usage_day", {"app": "SELECT", "stream": ALL})
    protect("rejected_message", {"app": "SELECT, DELETE", "ingest": "INSERT", "stream": "SELECT, DELETE"})
    protect("connection_event", {"app": "SELECT, INSERT", "ingest": "INSERT", "stream": "SELECT, INSERT, DELETE"})
    # Cursors belong to the portal and say nothing about a tenant.
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON iiot.stream_cursor TO iiot_stream")
    op.execute("GRANT SELECT ON iiot.stream_cursor TO iiot_app, iiot_backup")


def upgrade() -> None:
    op.create_table(
        "latest",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("signal_id", sa.Integer(), nullable=False),
        sa.Column("ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("num", sa.Double(), nullable=True),
        sa.Column("txt", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "signal_id", name=op.f("pk_latest")),
        schema="iiot",
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "rollup_1h",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("signal_id", sa.Integer(), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("minimum", sa.Double(), nullable=False),
        sa.Column("maximum", sa.Double(), nullable=False),
        sa.Column("total", sa.Double(), nullable=False),
        sa.Column("sumsq", sa.Double(), nullable=False),
        sa.Column("first", sa.Double(), nullable=False),
        sa.Column("last", sa.Double(), nullable=False),
        sa.Column("first_ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_ts", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "signal_id", "hour", name=op.f("pk_rollup_1h")),
        schema="iiot",
    )
    op.create_index(
        "ix_rollup_1h_changed", "rollup_1h", ["hour"], unique=False, schema="iiot", postgresql_where=sa.text("n = 0")
    )
    op.create_table(
        "stream_cursor",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("xid", Xid8(), server_default=sa.text("'0'::xid8"), nullable=False),
        sa.Column("id", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_stream_cursor")),
        schema="iiot",
    )
    op.create_table(
        "telemetry",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("signal_id", sa.Integer(), nullable=False),
        sa.Column("ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("num", sa.Double(), nullable=True),
        sa.Column("txt", sa.Text(), nullable=True),
        sa.Column("quality", sa.SmallInteger(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "signal_id", "ts", name=op.f("pk_telemetry")),
        schema="iiot",
        postgresql_partition_by="RANGE (ts)",
    )
    op.create_table(
        "telemetry_batch",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column("signal_ids", sa.ARRAY(sa.Integer()), nullable=False),
        sa.Column("ts", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("num", sa.ARRAY(sa.Double()), nullable=False),
        sa.Column("txt", sa.ARRAY(sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "created_at", "id", name=op.f("pk_telemetry_batch")),
        schema="iiot",
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_index("ix_telemetry_batch_xid_id", "telemetry_batch", ["xid", "id"], unique=False, schema="iiot")
    op.create_table(
        "tenant",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("timezone", sa.Text(), server_default="UTC", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('active', 'suspended', 'deleting')", name=op.f("ck_tenant_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenant")),
        sa.UniqueConstraint("slug", name=op.f("uq_tenant_slug")),
        sa.UniqueConstraint("uid", name=op.f("uq_tenant_uid")),
        schema="iiot",
    )
    op.create_table(
        "user_account",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("must_change_password", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("is_platform_admin", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_login_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('active', 'disabled')", name=op.f("ck_user_account_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_account")),
        sa.UniqueConstraint("uid", name=op.f("uq_user_account_uid")),
        schema="iiot",
    )
    op.create_index(
        "uq_user_account_email", "user_account", [sa.literal_column("lower(email)")], unique=True, schema="iiot"
    )
    op.create_table(
        "device",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), server_default="default", nullable=False),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("is_gateway", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("status", sa.Text(), server_default="new", nullable=False),
        sa.Column("tells_status", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('new', 'online', 'offline')", name=op.f("ck_device_status")),
        sa.ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], name="fk_device_tenant", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_device")),
        sa.UniqueConstraint("tenant_id", "external_id", name=op.f("uq_device_tenant_id_external_id")),
        sa.UniqueConstraint("uid", name=op.f("uq_device_uid")),
        schema="iiot",
    )
    op.create_index(
        "ix_device_tenant_id_created_at_id", "device", ["tenant_id", "created_at", "id"], unique=False, schema="iiot"
    )
    op.create_index(
        "ix_device_tenant_id_name",
        "device",
        ["tenant_id", sa.literal_column("lower(name)")],
        unique=False,
        schema="iiot",
    )
    op.create_index("ix_device_tenant_id_status", "device", ["tenant_id", "status"], unique=False, schema="iiot")
    op.create_table(
        "membership",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('admin', 'engineer', 'operator', 'viewer')", name=op.f("ck_membership_role")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["iiot.tenant.id"], name=op.f("fk_membership_tenant_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["iiot.user_account.id"], name=op.f("fk_membership_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "user_id", name=op.f("pk_membership")),
        schema="iiot",
    )
    op.create_index("ix_membership_user_id", "membership", ["user_id"], unique=False, schema="iiot")
    op.create_table(
        "quota",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("devices", sa.Integer(), server_default="1000", nullable=False),
        sa.Column("users", sa.Integer(), server_default="100", nullable=False),
        sa.Column("rules", sa.Integer(), server_default="200", nullable=False),
        sa.Column("signals_per_device", sa.Integer(), server_default="500", nullable=False),
        sa.Column("readings_per_day", sa.BigInteger(), server_default="10000000000", nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], name=op.f("fk_quota_tenant_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_quota")),
        schema="iiot",
    )
    op.create_table(
        "usage_day",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("day", sa.DateTime(timezone=True), nullable=False),
        sa.Column("readings", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("messages", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], name="fk_usage_day_tenant", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "day", name=op.f("pk_usage_day")),
        schema="iiot",
    )
    op.create_table(
        "connection_event",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            name="fk_connection_event_device",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_connection_event")),
        schema="iiot",
    )
    op.create_index(
        "ix_connection_event_tenant_id_device_id_id",
        "connection_event",
        ["tenant_id", "device_id", "id"],
        unique=False,
        schema="iiot",
    )
    op.create_table(
        "credential",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("mqtt_salt", sa.LargeBinary(), nullable=False),
        sa.Column("mqtt_hash", sa.LargeBinary(), nullable=False),
        sa.Column("mqtt_iterations", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            name="fk_credential_device",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_credential")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_credential_token_hash")),
        schema="iiot",
    )
    op.create_index(
        "ix_credential_tenant_id_device_id", "credential", ["tenant_id", "device_id"], unique=False, schema="iiot"
    )
    op.create_table(
        "rejected_message",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("protocol", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            name="fk_rejected_message_device",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_rejected_message")),
        schema="iiot",
    )
    op.create_index(
        "ix_rejected_message_tenant_id_device_id_id",
        "rejected_message",
        ["tenant_id", "device_id", "id"],
        unique=False,
        schema="iiot",
    )
    op.create_table(
        "session",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=True),
        sa.Column("current_hash", sa.Text(), nullable=False),
        sa.Column("previous_hash", sa.Text(), nullable=True),
        sa.Column("rotated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fingerprint", sa.Text(), server_default="", nullable=False),
        sa.Column("user_agent", sa.Text(), server_default="", nullable=False),
        sa.Column("address", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_why", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id"],
            ["iiot.membership.tenant_id", "iiot.membership.user_id"],
            name="fk_session_membership",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["iiot.user_account.id"], name=op.f("fk_session_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_session")),
        sa.UniqueConstraint("current_hash", name=op.f("uq_session_current_hash")),
        sa.UniqueConstraint("previous_hash", name=op.f("uq_session_previous_hash")),
        sa.UniqueConstraint("uid", name=op.f("uq_session_uid")),
        schema="iiot",
    )
    op.create_index("ix_session_expires_at", "session", ["expires_at"], unique=False, schema="iiot")
    op.create_index("ix_session_tenant_id_user_id", "session", ["tenant_id", "user_id"], unique=False, schema="iiot")
    op.create_index("ix_session_user_id", "session", ["user_id"], unique=False, schema="iiot")
    op.create_table(
        "signal",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=True),
        sa.Column("minimum", sa.Double(), nullable=True),
        sa.Column("maximum", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("type IN ('number', 'boolean', 'string', 'json')", name=op.f("ck_signal_type")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            name="fk_signal_device",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_signal")),
        sa.UniqueConstraint("tenant_id", "device_id", "key", name=op.f("uq_signal_tenant_id_device_id_key")),
        schema="iiot",
    )
    _functions()
    _security()
    op.execute("SELECT iiot.ensure_partitions((current_date - 31)::date, (current_date + 7)::date)")


def downgrade() -> None:
    op.execute("DROP POLICY tenant_isolation ON iiot.user_account")
    op.drop_table("signal", schema="iiot")
    op.drop_table("session", schema="iiot")
    op.drop_table("rejected_message", schema="iiot")
    op.drop_table("credential", schema="iiot")
    op.drop_table("connection_event", schema="iiot")
    op.drop_table("usage_day", schema="iiot")
    op.drop_table("quota", schema="iiot")
    op.drop_table("membership", schema="iiot")
    op.drop_table("device", schema="iiot")
    op.drop_table("user_account", schema="iiot")
    op.drop_table("tenant", schema="iiot")
    op.drop_table("telemetry_batch", schema="iiot")
    op.drop_table("telemetry", schema="iiot")
    op.drop_table("stream_cursor", schema="iiot")
    op.drop_table("rollup_1h", schema="iiot")
    op.drop_table("latest", schema="iiot")
    for function in ("drop_partitions(date, date)", "ensure_partitions(date, date)", "tid()"):
        op.execute(f"DROP FUNCTION iiot.{function}")
    op.execute("REVOKE ALL ON SCHEMA iiot FROM iiot_app, iiot_ingest, iiot_stream, iiot_auth, iiot_backup")
