"""Security contexts of devices that speak CoAP with OSCORE.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op
from rls import limit_members, protect

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

OF_VISIBLE_DEVICE = "device_id IN (SELECT d.id FROM iiot.device d)"
PEOPLE = "SELECT, INSERT, UPDATE (revoked_at)"


def _moment(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=True)


def upgrade() -> None:
    op.create_table(
        "oscore_context",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("kid", sa.LargeBinary(), nullable=False),
        sa.Column("own_id", sa.LargeBinary(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        _moment("last_used_at"),
        _moment("revoked_at"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            name="fk_oscore_context_device",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_oscore_context")),
        sa.UniqueConstraint("uid", name=op.f("uq_oscore_context_uid")),
        sa.UniqueConstraint("kid", name=op.f("uq_oscore_context_kid")),
        schema="iiot",
    )
    op.create_index(
        "ix_oscore_context_tenant_id_device_id",
        "oscore_context",
        ["tenant_id", "device_id"],
        unique=False,
        schema="iiot",
    )
    # The adapter finds contexts before a tenant is known, and gives sequence numbers away; it never sees who made them.
    protect("oscore_context", {"app": PEOPLE, "auth": "SELECT, UPDATE (sequence, last_used_at)"})
    limit_members("oscore_context", PEOPLE, OF_VISIBLE_DEVICE)


def downgrade() -> None:
    op.drop_table("oscore_context", schema="iiot")
