"""Gateways: devices below them, homes, entities, and the inbox of what was discovered.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op
from rls import limit_members, protect
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ALL = "SELECT, INSERT, UPDATE, DELETE"
OF_VISIBLE_DEVICE = "device_id IN (SELECT d.id FROM iiot.device d)"


def _text(name: str, default: str | None = None, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), server_default=default, nullable=nullable)


def _moment(name: str, default: str | None = "now()") -> sa.Column[object]:
    return sa.Column(
        name, sa.DateTime(timezone=True), server_default=sa.text(default) if default else None, nullable=False
    )


def _table(name: str, *columns: sa.schema.SchemaItem) -> None:
    """A table of things of a device."""
    op.create_table(
        name,
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        _text("uid"),
        sa.Column("device_id", sa.Integer(), nullable=False),
        *columns,
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            name=f"fk_{name}_device",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f(f"pk_{name}")),
        sa.UniqueConstraint("uid", name=op.f(f"uq_{name}_uid")),
        schema="iiot",
    )


def _columns() -> None:
    op.add_column("tenant", _text("discovery", "inbox"), schema="iiot")
    op.create_check_constraint(op.f("ck_tenant_discovery"), "tenant", "discovery IN ('inbox', 'auto')", schema="iiot")
    op.add_column("device", sa.Column("gateway_id", sa.Integer(), nullable=True), schema="iiot")
    op.add_column("device", _text("child_name", nullable=True), schema="iiot")
    op.create_unique_constraint(
        op.f("uq_device_tenant_id_gateway_id_child_name"),
        "device",
        ["tenant_id", "gateway_id", "child_name"],
        schema="iiot",
    )
    _link("device", "gateway", "device")


def _link(table: str, name: str, other: str) -> None:
    op.create_foreign_key(
        f"fk_{table}_{name}",
        table,
        other,
        ["tenant_id", f"{name}_id"],
        ["tenant_id", "id"],
        source_schema="iiot",
        referent_schema="iiot",
        ondelete=f"SET NULL ({name}_id)",
    )


def upgrade() -> None:
    _columns()
    _table(
        "home",
        _text("name"),
        _moment("created_at"),
        sa.UniqueConstraint("name", name=op.f("uq_home_name")),
    )
    op.create_index("ix_home_tenant_id_device_id", "home", ["tenant_id", "device_id"], unique=False, schema="iiot")
    _table(
        "entity",
        _text("kind"),
        _text("name"),
        _text("address", nullable=True),
        _moment("created_at"),
        sa.UniqueConstraint(
            "tenant_id", "device_id", "kind", "name", name=op.f("uq_entity_tenant_id_device_id_kind_name")
        ),
    )
    _table(
        "discovery",
        _text("kind"),
        _text("name"),
        _text("state", "waiting"),
        _text("reason", ""),
        sa.Column("messages", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("entities", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        _text("protocol", ""),
        _text("topic", ""),
        sa.Column("payload", sa.LargeBinary(), nullable=True),
        _moment("first_seen_at"),
        _moment("last_seen_at", None),
        sa.CheckConstraint("kind IN ('device', 'entity')", name=op.f("ck_discovery_kind")),
        sa.CheckConstraint("state IN ('waiting', 'ignored')", name=op.f("ck_discovery_state")),
        sa.UniqueConstraint(
            "tenant_id", "device_id", "kind", "name", name=op.f("uq_discovery_tenant_id_device_id_kind_name")
        ),
    )
    op.add_column("command", sa.Column("entity_id", sa.Integer(), nullable=True), schema="iiot")
    _link("command", "entity", "entity")
    _security()


def _security() -> None:
    # The broker's roles are compared with the homes by the stream process; the adapters look up whom a topic belongs to.
    protect("home", {"app": ALL, "ingest": "SELECT", "stream": "SELECT", "auth": "SELECT"})
    protect("entity", {"app": ALL, "ingest": "SELECT", "stream": "SELECT"})
    protect("discovery", {"app": ALL, "ingest": "SELECT"})
    for table in ("home", "entity", "discovery"):
        limit_members(table, "SELECT", OF_VISIBLE_DEVICE)


def downgrade() -> None:
    op.drop_constraint("fk_command_entity", "command", schema="iiot", type_="foreignkey")
    op.drop_column("command", "entity_id", schema="iiot")
    op.drop_table("discovery", schema="iiot")
    op.drop_table("entity", schema="iiot")
    op.drop_table("home", schema="iiot")
    op.drop_constraint("fk_device_gateway", "device", schema="iiot", type_="foreignkey")
    op.drop_constraint(op.f("uq_device_tenant_id_gateway_id_child_name"), "device", schema="iiot")
    op.drop_column("device", "child_name", schema="iiot")
    op.drop_column("device", "gateway_id", schema="iiot")
    op.drop_constraint(op.f("ck_tenant_discovery"), "tenant", schema="iiot")
    op.drop_column("tenant", "discovery", schema="iiot")
