"""Hourly sums keep the extremes of every ten seconds, for charts of dense signals.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rollup_1h", sa.Column("extremes", sa.LargeBinary(), nullable=True), schema="iiot")


def downgrade() -> None:
    op.drop_column("rollup_1h", "extremes", schema="iiot")
