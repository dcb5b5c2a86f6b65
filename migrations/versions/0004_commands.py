"""Commands: orders to devices, with a life.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op
from rls import limit_members, protect
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

OF_VISIBLE_DEVICE = "device_id IN (SELECT d.id FROM iiot.device d)"
STATES = "'queued', 'sent', 'delivered', 'done', 'failed', 'expired', 'cancelled'"
# What changes in a command's life; who asked for what never does.
LIFE = "state, protocol, sent_at, delivered_at, finished_at, result, history"


def _json(name: str, default: str | None) -> sa.Column[object]:
    kind = postgresql.JSONB(none_as_null=default is None, astext_type=sa.Text())
    return sa.Column(name, kind, server_default=default, nullable=default is None)


def _moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.add_column("device", sa.Column("command_protocol", sa.Text(), nullable=True), schema="iiot")
    op.create_table(
        "command",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        _json("params", "{}"),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("protocol", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), server_default="", nullable=False),
        sa.Column("created_by_uid", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        _moment("expires_at", nullable=False),
        _moment("sent_at"),
        _moment("delivered_at"),
        _moment("finished_at"),
        _json("result", None),
        _json("history", "[]"),
        sa.CheckConstraint(f"state IN ({STATES})", name=op.f("ck_command_state")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            name="fk_command_device",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_command")),
        sa.UniqueConstraint("uid", name=op.f("uq_command_uid")),
        sa.UniqueConstraint("tenant_id", "device_id", "seq", name=op.f("uq_command_tenant_id_device_id_seq")),
        sa.UniqueConstraint(
            "tenant_id", "device_id", "idempotency_key", name=op.f("uq_command_tenant_id_device_id_idempotency_key")
        ),
        schema="iiot",
    )
    op.create_index(
        "ix_command_unfinished",
        "command",
        ["expires_at"],
        unique=False,
        schema="iiot",
        postgresql_where=sa.text("state IN ('queued', 'sent', 'delivered')"),
    )
    _security()


def _security() -> None:
    protect(
        "command",
        {
            "app": f"SELECT, INSERT, UPDATE ({LIFE})",
            # The adapters hand commands of all tenants over and take the answers.
            "ingest": f"SELECT, UPDATE ({LIFE})",
            # Housekeeping lets them expire and removes old ones.
            "stream": f"SELECT, UPDATE ({LIFE}), DELETE",
        },
    )
    limit_members("command", f"SELECT, INSERT, UPDATE ({LIFE})", OF_VISIBLE_DEVICE)
    op.execute("GRANT UPDATE (command_protocol) ON iiot.device TO iiot_ingest")


def downgrade() -> None:
    op.drop_table("command", schema="iiot")
    op.drop_column("device", "command_protocol", schema="iiot")
