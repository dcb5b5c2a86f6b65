"""A second person approves commands of devices that need it.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

COLUMNS = ("approval", "approved_by", "approved_by_uid")


def upgrade() -> None:
    needed = sa.Column("needs_approval", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    op.add_column("device", needed, schema="iiot")
    for name in COLUMNS:
        op.add_column("command", sa.Column(name, sa.Text(), nullable=True), schema="iiot")
    op.add_column("command", sa.Column("approved_at", sa.DateTime(timezone=True), nullable=True), schema="iiot")
    op.create_check_constraint(
        op.f("ck_command_approval"), "command", "approval IN ('waiting', 'approved')", schema="iiot"
    )
    # Who approved stands for good once it is written; the place in the line is taken at the approval.
    for role in ("iiot_app", "iiot_limited"):
        op.execute(f"GRANT UPDATE (seq, {', '.join(COLUMNS)}, approved_at) ON iiot.command TO {role}")


def downgrade() -> None:
    for name in (*COLUMNS, "approved_at"):
        op.drop_column("command", name, schema="iiot")
    op.drop_column("device", "needs_approval", schema="iiot")
