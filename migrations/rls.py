"""The one helper that makes a table's grants and row-level security. Every migration that creates a table calls it."""

from alembic import op

OWN = "tenant_id = (SELECT iiot.tid())"


def protect(table: str, grants: dict[str, str], *, own: str | None = OWN) -> None:
    """Grant and guard a table of the schema `iiot`.

    grants: role without its prefix → privileges, e.g. {"app": "SELECT, INSERT", "stream": "SELECT"}; privileges may name columns.
    own: the condition under which a row is the tenant's own; it limits `app`. The other roles act for the portal itself and see every row
    that their grants allow. None: the table is closed to `app`.
    The sub-select in `OWN` makes PostgreSQL evaluate the tenant once per statement, six times cheaper than once per row.
    """
    name = f"iiot.{table}"
    op.execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY")
    for role, privileges in grants.items():
        op.execute(f"GRANT {privileges} ON {name} TO iiot_{role}")
        if role == "app":
            if own is None:
                raise ValueError(f"{table}: app needs a condition")
            op.execute(f"CREATE POLICY tenant_isolation ON {name} TO iiot_app USING ({own}) WITH CHECK ({own})")
        else:
            op.execute(f"CREATE POLICY portal_{role} ON {name} TO iiot_{role} USING (true) WITH CHECK (true)")
    op.execute(f"GRANT SELECT ON {name} TO iiot_backup")


def limit_members(table: str, privileges: str, condition: str | None = None) -> None:
    """What a member who is limited to some devices may do: their sessions are those of the role `iiot_limited`, `app.limited_user` says whose.

    The table's policy `tenant_isolation` guards that role, too. `condition`: a second wall inside the tenant, which rows that are read and rows
    that are written must satisfy; None for what says nothing about a device. Other members are of another role and pay nothing for it.
    """
    op.execute(f"GRANT {privileges} ON iiot.{table} TO iiot_limited")
    op.execute(f"ALTER POLICY tenant_isolation ON iiot.{table} TO iiot_app, iiot_limited")
    if condition is not None:
        op.execute(
            f"CREATE POLICY member_limit ON iiot.{table} AS RESTRICTIVE TO iiot_limited "
            f"USING ({condition}) WITH CHECK ({condition})"
        )
