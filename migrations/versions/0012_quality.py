"""The quality of a reading travels with it: through the batch log, and to the newest readings.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("telemetry_batch", sa.Column("quality", sa.ARRAY(sa.SmallInteger()), nullable=True), schema="iiot")
    op.add_column("latest", sa.Column("quality", sa.SmallInteger(), nullable=True), schema="iiot")


def downgrade() -> None:
    op.drop_column("latest", "quality", schema="iiot")
    op.drop_column("telemetry_batch", "quality", schema="iiot")
