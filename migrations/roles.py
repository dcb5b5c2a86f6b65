"""The PostgreSQL roles of DESIGN section 5. None is a superuser; only `iiot_backup` passes row-level security, and it may only read."""

import time

import structlog
from psycopg2.extensions import encrypt_password
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from iiot.config import ROLES, Settings

log = structlog.get_logger(__name__)
OLDEST = 150000
PLAIN = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT"


def bootstrap(connection: Connection, settings: Settings) -> None:
    """Create missing roles, set the logins' passwords and create the schema; commits. Safe to repeat and to run twice at once.

    Raises RuntimeError when PostgreSQL is older than 15 or the user of IIOT_DATABASE_URL may not create roles.
    """
    version = int(connection.scalar(text("SHOW server_version_num")) or 0)
    if version < OLDEST:
        raise RuntimeError(f"PostgreSQL 15 or newer is needed; this is {version // 10000}.")
    for attempt in range(5):
        try:
            _roles(connection, settings)
            connection.commit()
            break
        except DBAPIError as error:
            connection.rollback()
            # Roles belong to the whole cluster: another database's migration may be changing them at this moment.
            if attempt == 4 or not any(
                text_ in str(error.orig) for text_ in ("concurrently", "already exists", "duplicate key")
            ):
                raise RuntimeError(
                    f"The roles cannot be made: {error.orig}. The user of IIOT_DATABASE_URL needs CREATEROLE."
                ) from error
            time.sleep(0.2 * (attempt + 1))
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS iiot AUTHORIZATION iiot_owner"))
    connection.execute(text("REVOKE ALL ON SCHEMA public FROM PUBLIC"))
    connection.commit()


def _roles(connection: Connection, settings: Settings) -> None:
    found = connection.execute(
        text("SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname LIKE 'iiot\\_%'")
    ).all()
    existing = {row.rolname for row in found}
    # Only a superuser may take an attribute away again, or even name it in ALTER ROLE; anybody else must not go on with such a role.
    superuser = connection.scalar(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))
    mighty = [row.rolname for row in found if row.rolsuper or (row.rolbypassrls and row.rolname != "iiot_backup")]
    if mighty and not superuser:
        raise RuntimeError(
            f"{', '.join(mighty)} would pass row-level security. Run ALTER ROLE … NOSUPERUSER NOBYPASSRLS as a superuser."
        )
    if "iiot_owner" not in existing:
        connection.execute(text(f"CREATE ROLE iiot_owner NOLOGIN {PLAIN}"))
    for role in ROLES[1:]:
        name = f"iiot_{role}"
        verb = f"ALTER ROLE {name} {PLAIN if superuser else ''}" if name in existing else f"CREATE ROLE {name} {PLAIN}"
        if superuser and role != "backup":
            verb += " NOBYPASSRLS"
        connection.exec_driver_sql(
            f"{verb} LOGIN PASSWORD '{_verifier(connection, name, settings.database_password(role))}'"
        )
    if not any(row.rolname == "iiot_backup" and row.rolbypassrls for row in found):
        _let_backup_read_everything(connection)
    connection.execute(text("GRANT iiot_owner TO CURRENT_USER"))


def _verifier(connection: Connection, name: str, password: str) -> str:
    """What the server stores (RFC 5803), made here: the password itself never reaches the server's log."""
    return str(encrypt_password(password, name, connection.connection.dbapi_connection, "scram-sha-256"))


def _let_backup_read_everything(connection: Connection) -> None:
    """BYPASSRLS may be granted by a superuser alone before PostgreSQL 16; without it backups are made as another user."""
    try:
        with connection.begin_nested():
            connection.execute(text("ALTER ROLE iiot_backup BYPASSRLS"))
    except DBAPIError as error:
        log.warning(
            "backup role cannot bypass row-level security",
            reason=str(error.orig).strip(),
            hint="run ALTER ROLE iiot_backup BYPASSRLS as a superuser",
        )
