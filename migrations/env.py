"""Alembic's entry: makes the roles and the schema, then runs the migrations as the schema's owner."""

from alembic import context
from roles import bootstrap
from sqlalchemy import create_engine, text
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.pool import NullPool

from iiot import config, models
from iiot.models.telemetry import Xid8

settings = context.config.attributes.get("settings") or config.load()
ischema_names["xid8"] = Xid8
PARTITION_PARENTS = ("telemetry", "telemetry_batch")


def include_name(name: str | None, kind: str, parents: dict[str, str | None]) -> bool:
    """Compare the schema `iiot` alone, and of partitioned tables the parents alone."""
    if kind == "schema":
        return name == models.SCHEMA
    if kind == "table" and name is not None:
        return not any(name.startswith(f"{parent}_p") for parent in PARTITION_PARENTS)
    return True


def run() -> None:
    """Upgrade or downgrade in one transaction per migration, one process at a time; waits 10 s at most for a table."""
    # A fixed path: a login named like the schema would have it as its default schema, and alembic would compare it under another name.
    engine = create_engine(
        settings.database_url_for("owner"), poolclass=NullPool, connect_args={"options": "-c search_path=pg_catalog"}
    )
    with engine.connect() as connection:
        connection.execute(text("SET lock_timeout = '5min'"))
        # Held until the connection is closed; whoever waits here finds the work done.
        connection.execute(text("SELECT pg_advisory_lock(hashtextextended('iiot.migrate', 0))"))
        bootstrap(connection, settings)
        connection.execute(text("SET ROLE iiot_owner"))
        connection.execute(text("SET lock_timeout = '10s'"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=models.Base.metadata,
            version_table_schema=models.SCHEMA,
            include_schemas=True,
            include_name=include_name,
            compare_type=True,
            compare_server_default=False,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
