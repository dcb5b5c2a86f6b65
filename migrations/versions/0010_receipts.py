"""Refused messages that can be sent again, late data marked in the log, and a history of connections that tells more.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Random and unique, as new rows get them from the portal; 26 characters of a-z2-7.
_UID = "substr(translate(replace(gen_random_uuid()::text, '-', ''), '0189', 'ghij'), 1, 26)"
# What sending a message again changes of it; the message itself stays as it came.
REPLAY = "UPDATE (replayed_at, replayed_by, replay)"


def upgrade() -> None:
    add = op.add_column
    uid = sa.Column("uid", sa.Text(), server_default=sa.text(_UID), nullable=False)
    add("rejected_message", uid, schema="iiot")
    op.alter_column("rejected_message", "uid", server_default=None, schema="iiot")
    op.create_unique_constraint(op.f("uq_rejected_message_uid"), "rejected_message", ["uid"], schema="iiot")
    add("rejected_message", sa.Column("content_type", sa.Text(), nullable=True), schema="iiot")
    add("rejected_message", sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True), schema="iiot")
    add("rejected_message", sa.Column("replayed_by", sa.Text(), nullable=True), schema="iiot")
    replay = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
    add("rejected_message", sa.Column("replay", replay, nullable=True), schema="iiot")
    op.execute(f"GRANT {REPLAY} ON iiot.rejected_message TO iiot_app, iiot_limited")
    add("telemetry_batch", sa.Column("late", sa.Boolean(), server_default="false", nullable=False), schema="iiot")
    add("telemetry_batch", sa.Column("protocol", sa.Text(), nullable=True), schema="iiot")
    add("connection_event", sa.Column("kind", sa.Text(), server_default="state", nullable=False), schema="iiot")
    add("connection_event", sa.Column("protocol", sa.Text(), nullable=True), schema="iiot")
    add("connection_event", sa.Column("detail", sa.Text(), server_default="", nullable=False), schema="iiot")
    op.create_check_constraint(
        op.f("ck_connection_event_kind"), "connection_event", "kind IN ('state', 'refused', 'note')", schema="iiot"
    )


def downgrade() -> None:
    for name in ("kind", "protocol", "detail"):
        op.drop_column("connection_event", name, schema="iiot")
    for name in ("late", "protocol"):
        op.drop_column("telemetry_batch", name, schema="iiot")
    op.execute(f"REVOKE {REPLAY} ON iiot.rejected_message FROM iiot_app, iiot_limited")
    for name in ("uid", "content_type", "replayed_at", "replayed_by", "replay"):
        op.drop_column("rejected_message", name, schema="iiot")
