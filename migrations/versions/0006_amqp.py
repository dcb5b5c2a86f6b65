"""Credentials keep what RabbitMQ needs to check a token.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Empty for credentials that were made before: their tokens are known to nobody, so they do not open AMQP.
    op.add_column("credential", sa.Column("amqp_hash", sa.LargeBinary(), nullable=True), schema="iiot")


def downgrade() -> None:
    op.drop_column("credential", "amqp_hash", schema="iiot")
