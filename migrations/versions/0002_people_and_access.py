"""People and access: roles, limits, invitations, keys, second factors, sites, plans, the audit trail.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from rls import limit_members, protect
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


ALL = "SELECT, INSERT, UPDATE, DELETE"

# Parsed when they are made (SQL-standard bodies), so no search path can mislead them, and the planner can put them in place: a function with a
# setting of its own cost every statement 40 µs.
TENANT_ID = """
CREATE OR REPLACE FUNCTION iiot.tid() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('app.tenant_id', true), '')::integer
"""
TENANT_ID_BEFORE = """
CREATE OR REPLACE FUNCTION iiot.tid() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE SET search_path = ''
AS $$ SELECT nullif(current_setting('app.tenant_id', true), '')::integer $$
"""
LIMITED_USER = """
CREATE FUNCTION iiot.limited_user() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('app.limited_user', true), '')::integer
"""

AUDIT_COLUMNS = "tenant_id, actor_kind, actor_uid, actor_label, address, user_agent, request_id, action, object_kind, object_uid, before, after"

# What a limited member may see. The sub-selects are under the policies of the tables that they read.
DEVICE_IN_LIMITS = (
    "EXISTS (SELECT 1 FROM iiot.membership_limit l WHERE l.tenant_id = device.tenant_id "
    "AND l.user_id = (SELECT iiot.limited_user()) "
    "AND (l.device_id = device.id OR l.site_id = device.site_id OR l.tag = ANY (device.tags)))"
)
OF_VISIBLE_DEVICE = "device_id IN (SELECT d.id FROM iiot.device d)"
OF_VISIBLE_SIGNAL = "signal_id IN (SELECT s.id FROM iiot.signal s)"
SITE_IN_LIMITS = (
    "EXISTS (SELECT 1 FROM iiot.membership_limit l WHERE l.tenant_id = site.tenant_id "
    "AND l.user_id = (SELECT iiot.limited_user()) AND l.site_id = site.id) "
    "OR EXISTS (SELECT 1 FROM iiot.device d WHERE d.site_id = site.id)"
)
# Table → privileges, and what a row must satisfy. They make no devices, and manage nothing.
LIMITED = {
    "device": ("SELECT, UPDATE, DELETE", DEVICE_IN_LIMITS),
    "site": ("SELECT", SITE_IN_LIMITS),
    "credential": ("SELECT, INSERT, UPDATE", OF_VISIBLE_DEVICE),
    "signal": ("SELECT, UPDATE (unit, minimum, maximum)", OF_VISIBLE_DEVICE),
    "rejected_message": ("SELECT, DELETE", OF_VISIBLE_DEVICE),
    "connection_event": ("SELECT, INSERT", OF_VISIBLE_DEVICE),
    "latest": ("SELECT", OF_VISIBLE_SIGNAL),
    "telemetry": ("SELECT", OF_VISIBLE_SIGNAL),
    "rollup_1h": ("SELECT", OF_VISIBLE_SIGNAL),
    # Many devices in one row: what is sent on is chosen by the rooms of the devices that they may see.
    "telemetry_batch": ("SELECT", None),
    "tenant": ("SELECT", None),
    "quota": ("SELECT", None),
    "usage_day": ("SELECT", None),
    "membership": ("SELECT", None),
    "membership_limit": ("SELECT", None),
    "role": ("SELECT", None),
    "api_key": ("SELECT, INSERT, UPDATE (revoked_at)", "user_id = (SELECT iiot.limited_user())"),
    "audit": (f"INSERT ({AUDIT_COLUMNS})", None),
    "user_account": (
        "SELECT (id, uid, email, name, must_change_password, status, created_at, last_login_at, has_mfa)",
        None,
    ),
}

# The order of the columns is part of every hash: a column that is added later needs a new version of this function.
DIGEST = """
CREATE FUNCTION iiot.audit_digest(entry iiot.audit) RETURNS bytea
LANGUAGE sql STABLE SET search_path = '' SET timezone = 'UTC' AS $$
    SELECT sha256(entry.previous_hash || convert_to(jsonb_build_array(
        entry.tenant_id, entry.seq, entry.at, entry.actor_kind, entry.actor_uid, entry.actor_label, entry.address, entry.user_agent,
        entry.request_id, entry.action, entry.object_kind, entry.object_uid, entry.before, entry.after)::text, 'UTF8'))
$$
"""

CHAIN = """
CREATE FUNCTION iiot.chain_audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE head iiot.audit_head;
BEGIN
    INSERT INTO iiot.audit_head (tenant_id, seq, hash) VALUES (NEW.tenant_id, 0, sha256(''::bytea)) ON CONFLICT DO NOTHING;
    SELECT * INTO head FROM iiot.audit_head h WHERE h.tenant_id = NEW.tenant_id FOR UPDATE;
    NEW.seq := head.seq + 1;
    NEW.at := clock_timestamp();
    NEW.previous_hash := head.hash;
    NEW.hash := iiot.audit_digest(NEW);
    UPDATE iiot.audit_head SET seq = NEW.seq, hash = NEW.hash WHERE tenant_id = NEW.tenant_id;
    RETURN NEW;
END $$
"""

REFUSE = """
CREATE FUNCTION iiot.refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    RAISE EXCEPTION 'the audit trail is append-only' USING ERRCODE = 'insufficient_privilege';
END $$
"""


def _platform() -> None:
    op.create_table(
        "plan",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("devices", sa.Integer(), server_default="1000", nullable=False),
        sa.Column("users", sa.Integer(), server_default="100", nullable=False),
        sa.Column("rules", sa.Integer(), server_default="200", nullable=False),
        sa.Column("signals_per_device", sa.Integer(), server_default="500", nullable=False),
        sa.Column("readings_per_day", sa.BigInteger(), server_default="10000000000", nullable=False),
        sa.Column("api_requests_per_day", sa.BigInteger(), server_default="10000000", nullable=False),
        sa.Column("connections", sa.Integer(), server_default="1000", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan")),
        sa.UniqueConstraint("uid", name=op.f("uq_plan_uid")),
        schema="iiot",
    )
    op.create_index("uq_plan_name", "plan", [sa.literal_column("lower(name)")], unique=True, schema="iiot")
    op.create_table(
        "site",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], name="fk_site_tenant", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_site")),
        sa.UniqueConstraint("uid", name=op.f("uq_site_uid")),
        schema="iiot",
    )
    op.create_index(
        "uq_site_tenant_id_name", "site", ["tenant_id", sa.literal_column("lower(name)")], unique=True, schema="iiot"
    )


def _people() -> None:
    op.create_table(
        "role",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("permissions", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], name="fk_role_tenant", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_role")),
        sa.UniqueConstraint("uid", name=op.f("uq_role_uid")),
        schema="iiot",
    )
    op.create_index(
        "uq_role_tenant_id_name", "role", ["tenant_id", sa.literal_column("lower(name)")], unique=True, schema="iiot"
    )
    op.create_table(
        "invitation",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("role_id", sa.Integer(), nullable=True),
        sa.Column("limited_to", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("invited_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(role = 'custom') = (role_id IS NOT NULL)", name=op.f("ck_invitation_role_id")),
        sa.CheckConstraint(
            "role IN ('admin', 'engineer', 'operator', 'viewer', 'custom')", name=op.f("ck_invitation_role")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "role_id"], ["iiot.role.tenant_id", "iiot.role.id"], name="fk_invitation_role"
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], name="fk_invitation_tenant", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_invitation")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_invitation_token_hash")),
        sa.UniqueConstraint("uid", name=op.f("uq_invitation_uid")),
        schema="iiot",
    )
    op.create_index(
        "ix_invitation_tenant_id_email",
        "invitation",
        ["tenant_id", sa.literal_column("lower(email)")],
        unique=False,
        schema="iiot",
    )
    op.create_table(
        "service_account",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("role_id", sa.Integer(), nullable=True),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(role = 'custom') = (role_id IS NOT NULL)", name=op.f("ck_service_account_role_id")),
        sa.CheckConstraint(
            "role IN ('admin', 'engineer', 'operator', 'viewer', 'custom')", name=op.f("ck_service_account_role")
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "role_id"], ["iiot.role.tenant_id", "iiot.role.id"], name="fk_service_account_role"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["iiot.tenant.id"], name="fk_service_account_tenant", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_service_account")),
        sa.UniqueConstraint("uid", name=op.f("uq_service_account_uid")),
        schema="iiot",
    )
    op.create_index(
        "uq_service_account_tenant_id_name",
        "service_account",
        ["tenant_id", sa.literal_column("lower(name)")],
        unique=True,
        schema="iiot",
    )
    op.create_table(
        "api_key",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("service_account_id", sa.Integer(), nullable=True),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_address", sa.Text(), server_default="", nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("num_nonnulls(user_id, service_account_id) = 1", name=op.f("ck_api_key_owner")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "service_account_id"],
            ["iiot.service_account.tenant_id", "iiot.service_account.id"],
            name="fk_api_key_service_account",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id"],
            ["iiot.membership.tenant_id", "iiot.membership.user_id"],
            name="fk_api_key_membership",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], name="fk_api_key_tenant", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_key_key_hash")),
        sa.UniqueConstraint("uid", name=op.f("uq_api_key_uid")),
        schema="iiot",
    )
    op.create_index("ix_api_key_tenant_id_user_id", "api_key", ["tenant_id", "user_id"], unique=False, schema="iiot")
    op.create_table(
        "membership_limit",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=True),
        sa.Column("site_id", sa.Integer(), nullable=True),
        sa.Column("tag", sa.Text(), nullable=True),
        sa.CheckConstraint("num_nonnulls(device_id, site_id, tag) = 1", name=op.f("ck_membership_limit_one")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            name="fk_membership_limit_device",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "site_id"],
            ["iiot.site.tenant_id", "iiot.site.id"],
            name="fk_membership_limit_site",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "user_id"],
            ["iiot.membership.tenant_id", "iiot.membership.user_id"],
            name="fk_membership_limit_membership",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_membership_limit")),
        schema="iiot",
    )
    op.create_index(
        "ix_membership_limit_tenant_id_user_id",
        "membership_limit",
        ["tenant_id", "user_id"],
        unique=False,
        schema="iiot",
    )


def _secrets() -> None:
    op.create_table(
        "pending_registration",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tenant_name", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pending_registration")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_pending_registration_token_hash")),
        schema="iiot",
    )
    op.create_index(
        "ix_pending_registration_expires_at", "pending_registration", ["expires_at"], unique=False, schema="iiot"
    )
    op.create_table(
        "password_reset",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["iiot.user_account.id"], name=op.f("fk_password_reset_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_password_reset")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_password_reset_token_hash")),
        schema="iiot",
    )
    op.create_index("ix_password_reset_expires_at", "password_reset", ["expires_at"], unique=False, schema="iiot")
    op.create_index("ix_password_reset_user_id", "password_reset", ["user_id"], unique=False, schema="iiot")
    op.create_table(
        "recovery_code",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("code_hash", sa.Text(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["iiot.user_account.id"], name=op.f("fk_recovery_code_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recovery_code")),
        schema="iiot",
    )
    op.create_index("ix_recovery_code_user_id", "recovery_code", ["user_id"], unique=False, schema="iiot")
    op.create_table(
        "second_factor",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("seed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_step", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["iiot.user_account.id"], name=op.f("fk_second_factor_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_second_factor")),
        schema="iiot",
    )


def _trail() -> None:
    op.create_table(
        "audit",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default="0", autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("actor_uid", sa.Text(), nullable=False),
        sa.Column("actor_label", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("user_agent", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object_kind", sa.Text(), nullable=False),
        sa.Column("object_uid", sa.Text(), nullable=False),
        sa.Column("before", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("after", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("previous_hash", sa.LargeBinary(), server_default="", nullable=False),
        sa.Column("hash", sa.LargeBinary(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "seq", name=op.f("pk_audit")),
        schema="iiot",
    )
    op.create_index("ix_audit_tenant_id_at", "audit", ["tenant_id", "at"], unique=False, schema="iiot")
    op.create_index(
        "ix_audit_tenant_id_object_uid_seq", "audit", ["tenant_id", "object_uid", "seq"], unique=False, schema="iiot"
    )
    op.create_table(
        "audit_head",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_audit_head")),
        schema="iiot",
    )
    for statement in (DIGEST, CHAIN, REFUSE):
        op.execute(statement)
    op.execute(
        "REVOKE ALL ON FUNCTION iiot.audit_digest(iiot.audit), iiot.chain_audit(), iiot.refuse_change() FROM PUBLIC"
    )
    op.execute("GRANT EXECUTE ON FUNCTION iiot.audit_digest(iiot.audit) TO iiot_auth, iiot_backup")
    op.execute("CREATE TRIGGER chain BEFORE INSERT ON iiot.audit FOR EACH ROW EXECUTE FUNCTION iiot.chain_audit()")
    op.execute(
        "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON iiot.audit FOR EACH ROW EXECUTE FUNCTION iiot.refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER never_emptied BEFORE TRUNCATE ON iiot.audit FOR EACH STATEMENT EXECUTE FUNCTION iiot.refuse_change()"
    )


def _credentials() -> None:
    # An id as iiot.ids makes it, `a-z2-7`, for the credentials that are there already. A default fills them all in; an UPDATE would find none,
    # because the policies hide every row from the owner.
    op.add_column(
        "credential",
        sa.Column(
            "uid",
            sa.Text(),
            server_default=sa.text(
                "substr(translate(replace(gen_random_uuid()::text, '-', ''), '0189', 'ghij'), 1, 26)"
            ),
            nullable=False,
        ),
        schema="iiot",
    )
    op.alter_column("credential", "uid", server_default=None, schema="iiot")
    op.create_unique_constraint(op.f("uq_credential_uid"), "credential", ["uid"], schema="iiot")
    op.add_column("credential", sa.Column("slot", sa.Integer(), server_default="1", nullable=False), schema="iiot")
    op.add_column("credential", sa.Column("name", sa.Text(), server_default="", nullable=False), schema="iiot")
    op.add_column("credential", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True), schema="iiot")
    op.create_index(
        "uq_credential_tenant_id_device_id_slot",
        "credential",
        ["tenant_id", "device_id", "slot"],
        unique=True,
        schema="iiot",
        postgresql_where=sa.text("revoked_at IS NULL"),
    )


def _columns() -> None:
    op.add_column("device", sa.Column("site_id", sa.Integer(), nullable=True), schema="iiot")
    op.create_index("ix_device_tenant_id_site_id", "device", ["tenant_id", "site_id"], unique=False, schema="iiot")
    op.create_foreign_key(
        "fk_device_site",
        "device",
        "site",
        ["tenant_id", "site_id"],
        ["tenant_id", "id"],
        source_schema="iiot",
        referent_schema="iiot",
    )
    op.add_column("membership", sa.Column("role_id", sa.Integer(), nullable=True), schema="iiot")
    op.add_column(
        "membership",
        sa.Column("is_limited", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        schema="iiot",
    )
    op.create_foreign_key(
        "fk_membership_role",
        "membership",
        "role",
        ["tenant_id", "role_id"],
        ["tenant_id", "id"],
        source_schema="iiot",
        referent_schema="iiot",
    )
    op.add_column(
        "quota",
        sa.Column("api_requests_per_day", sa.BigInteger(), server_default="10000000", nullable=False),
        schema="iiot",
    )
    op.add_column("quota", sa.Column("connections", sa.Integer(), server_default="1000", nullable=False), schema="iiot")
    op.add_column("tenant", sa.Column("status_reason", sa.Text(), server_default="", nullable=False), schema="iiot")
    op.add_column("tenant", sa.Column("delete_at", sa.DateTime(timezone=True), nullable=True), schema="iiot")
    op.add_column("tenant", sa.Column("plan_id", sa.Integer(), nullable=True), schema="iiot")
    op.add_column(
        "tenant", sa.Column("require_mfa", sa.Boolean(), server_default=sa.text("false"), nullable=False), schema="iiot"
    )
    op.add_column("tenant", sa.Column("colour", sa.Text(), nullable=True), schema="iiot")
    op.add_column("tenant", sa.Column("logo", sa.LargeBinary(), nullable=True), schema="iiot")
    op.add_column("tenant", sa.Column("logo_type", sa.Text(), nullable=True), schema="iiot")
    op.add_column(
        "tenant",
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        schema="iiot",
    )
    op.create_foreign_key(
        op.f("fk_tenant_plan_id"),
        "tenant",
        "plan",
        ["plan_id"],
        ["id"],
        source_schema="iiot",
        referent_schema="iiot",
        ondelete="SET NULL",
    )
    op.add_column(
        "usage_day", sa.Column("api_requests", sa.BigInteger(), server_default="0", nullable=False), schema="iiot"
    )
    op.add_column(
        "user_account",
        sa.Column("has_mfa", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        schema="iiot",
    )
    op.create_check_constraint(
        op.f("ck_tenant_delete_at"), "tenant", "(status = 'deleting') = (delete_at IS NOT NULL)", schema="iiot"
    )
    op.drop_constraint(op.f("ck_membership_role"), "membership", schema="iiot")
    op.create_check_constraint(
        op.f("ck_membership_role"),
        "membership",
        "role IN ('admin', 'engineer', 'operator', 'viewer', 'custom')",
        schema="iiot",
    )
    op.create_check_constraint(
        op.f("ck_membership_role_id"), "membership", "(role = 'custom') = (role_id IS NOT NULL)", schema="iiot"
    )


def _security() -> None:
    op.execute(TENANT_ID)
    op.execute(LIMITED_USER)
    op.execute("REVOKE ALL ON FUNCTION iiot.limited_user() FROM PUBLIC")
    op.execute("GRANT USAGE ON SCHEMA iiot TO iiot_limited")
    op.execute("GRANT SELECT ON iiot.stream_cursor TO iiot_limited")
    op.execute("GRANT EXECUTE ON FUNCTION iiot.tid(), iiot.limited_user() TO iiot_limited")
    protect("plan", {"auth": ALL}, own=None)
    protect("site", {"app": ALL, "auth": "SELECT"})
    protect("role", {"app": ALL, "auth": "SELECT"})
    protect("membership_limit", {"app": ALL, "auth": "SELECT, INSERT"})
    protect("invitation", {"app": ALL, "auth": "SELECT, UPDATE"})
    protect("service_account", {"app": ALL, "auth": "SELECT"})
    protect(
        "api_key",
        {"app": "SELECT, INSERT, UPDATE (revoked_at)", "auth": "SELECT, UPDATE (last_used_at, last_used_address)"},
    )
    for table in ("password_reset", "pending_registration"):
        protect(table, {"auth": ALL, "stream": "SELECT, DELETE"}, own=None)
    for table in ("second_factor", "recovery_code"):
        protect(table, {"auth": ALL}, own=None)
    protect(
        "audit",
        {
            "app": f"SELECT, INSERT ({AUDIT_COLUMNS})",
            "auth": f"SELECT, INSERT ({AUDIT_COLUMNS})",
            "stream": f"INSERT ({AUDIT_COLUMNS})",
        },
    )
    protect("audit_head", {"auth": "SELECT"}, own=None)
    # The trigger runs as the owner, who is under the policies too.
    op.execute("CREATE POLICY portal_owner ON iiot.audit_head TO iiot_owner USING (true) WITH CHECK (true)")
    _more_grants()
    for table, (privileges, condition) in LIMITED.items():
        limit_members(table, privileges, condition)


def _more_grants() -> None:
    op.execute("GRANT UPDATE (require_mfa, colour, logo, logo_type, updated_at) ON iiot.tenant TO iiot_app")
    # Tenants whose time is up are removed for good.
    op.execute("GRANT DELETE ON iiot.tenant, iiot.telemetry_batch TO iiot_stream")
    op.execute("GRANT SELECT (has_mfa) ON iiot.user_account TO iiot_app")
    op.execute("GRANT UPDATE (api_requests), INSERT ON iiot.usage_day TO iiot_stream")
    op.execute("GRANT SELECT ON iiot.usage_day TO iiot_ingest")
    op.execute("CREATE POLICY portal_ingest ON iiot.usage_day TO iiot_ingest USING (true) WITH CHECK (true)")
    op.execute("GRANT SELECT ON iiot.usage_day TO iiot_auth")
    op.execute("CREATE POLICY portal_auth ON iiot.usage_day TO iiot_auth USING (true) WITH CHECK (true)")


def upgrade() -> None:
    _platform()
    _people()
    _secrets()
    _trail()
    _credentials()
    _columns()
    _security()


def _unlimit() -> None:
    for table, (_, condition) in LIMITED.items():
        if condition is not None:
            op.execute(f"DROP POLICY member_limit ON iiot.{table}")
        op.execute(f"ALTER POLICY tenant_isolation ON iiot.{table} TO iiot_app")
        op.execute(f"REVOKE ALL ON iiot.{table} FROM iiot_limited")
    op.execute("REVOKE SELECT ON iiot.stream_cursor FROM iiot_limited")
    op.execute("REVOKE ALL ON FUNCTION iiot.tid() FROM iiot_limited")
    op.execute("REVOKE ALL ON SCHEMA iiot FROM iiot_limited")


def downgrade() -> None:
    _unlimit()
    op.execute("DROP POLICY portal_auth ON iiot.usage_day")
    op.execute("DROP POLICY portal_ingest ON iiot.usage_day")
    op.execute("REVOKE SELECT ON iiot.usage_day FROM iiot_auth, iiot_ingest")
    op.execute("REVOKE DELETE ON iiot.tenant, iiot.telemetry_batch FROM iiot_stream")
    op.drop_constraint(op.f("ck_membership_role_id"), "membership", schema="iiot")
    op.drop_constraint(op.f("ck_membership_role"), "membership", schema="iiot")
    op.create_check_constraint(
        op.f("ck_membership_role"), "membership", "role IN ('admin', 'engineer', 'operator', 'viewer')", schema="iiot"
    )
    op.drop_constraint(op.f("ck_tenant_delete_at"), "tenant", schema="iiot")
    op.drop_column("user_account", "has_mfa", schema="iiot")
    op.drop_column("usage_day", "api_requests", schema="iiot")
    op.drop_constraint(op.f("fk_tenant_plan_id"), "tenant", schema="iiot", type_="foreignkey")
    op.drop_column("tenant", "updated_at", schema="iiot")
    op.drop_column("tenant", "logo_type", schema="iiot")
    op.drop_column("tenant", "logo", schema="iiot")
    op.drop_column("tenant", "colour", schema="iiot")
    op.drop_column("tenant", "require_mfa", schema="iiot")
    op.drop_column("tenant", "plan_id", schema="iiot")
    op.drop_column("tenant", "delete_at", schema="iiot")
    op.drop_column("tenant", "status_reason", schema="iiot")
    op.drop_column("quota", "connections", schema="iiot")
    op.drop_column("quota", "api_requests_per_day", schema="iiot")
    op.drop_constraint("fk_membership_role", "membership", schema="iiot", type_="foreignkey")
    op.drop_column("membership", "is_limited", schema="iiot")
    op.drop_column("membership", "role_id", schema="iiot")
    op.drop_constraint("fk_device_site", "device", schema="iiot", type_="foreignkey")
    op.drop_index("ix_device_tenant_id_site_id", table_name="device", schema="iiot")
    op.drop_column("device", "site_id", schema="iiot")
    op.drop_column("credential", "expires_at", schema="iiot")
    op.drop_column("credential", "name", schema="iiot")
    # PostgreSQL drops a column together with the indexes and constraints that name it.
    op.drop_column("credential", "slot", schema="iiot")
    op.drop_column("credential", "uid", schema="iiot")
    op.drop_table("membership_limit", schema="iiot")
    op.drop_table("api_key", schema="iiot")
    op.drop_table("service_account", schema="iiot")
    op.drop_table("invitation", schema="iiot")
    op.drop_table("site", schema="iiot")
    op.drop_table("role", schema="iiot")
    op.drop_table("second_factor", schema="iiot")
    op.drop_table("recovery_code", schema="iiot")
    op.drop_table("password_reset", schema="iiot")
    op.drop_table("plan", schema="iiot")
    op.drop_table("pending_registration", schema="iiot")
    op.execute("DROP FUNCTION iiot.audit_digest(iiot.audit)")
    op.drop_table("audit", schema="iiot")
    op.drop_table("audit_head", schema="iiot")
    op.execute("DROP FUNCTION iiot.chain_audit()")
    op.execute("DROP FUNCTION iiot.refuse_change()")
    op.execute("DROP FUNCTION iiot.limited_user()")
    op.execute(TENANT_ID_BEFORE)
