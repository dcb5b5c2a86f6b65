"""Certificates of devices.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from rls import limit_members, protect

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

OF_VISIBLE_DEVICE = "device_id IN (SELECT d.id FROM iiot.device d)"
# What was signed never changes; it can only be revoked.
OF_TENANTS = "SELECT, INSERT, UPDATE (revoked_at)"


def upgrade() -> None:
    op.create_table(
        "device_certificate",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Integer(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            name="fk_device_certificate_device",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_device_certificate")),
        sa.UniqueConstraint("uid", name=op.f("uq_device_certificate_uid")),
        sa.UniqueConstraint("serial", name=op.f("uq_device_certificate_serial")),
        schema="iiot",
    )
    op.create_index(
        "ix_device_certificate_tenant_id_device_id",
        "device_certificate",
        ["tenant_id", "device_id"],
        unique=False,
        schema="iiot",
    )
    protect("device_certificate", {"app": OF_TENANTS, "stream": "SELECT"})
    limit_members("device_certificate", OF_TENANTS, OF_VISIBLE_DEVICE)


def downgrade() -> None:
    op.drop_table("device_certificate", schema="iiot")
