"""Signals that may be written.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("writable", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    op.add_column("signal", column, schema="iiot")
    op.execute("GRANT UPDATE (writable) ON iiot.signal TO iiot_app, iiot_limited")


def downgrade() -> None:
    op.drop_column("signal", "writable", schema="iiot")
