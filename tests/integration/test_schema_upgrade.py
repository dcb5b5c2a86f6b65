"""The schema's life on the newest and the oldest PostgreSQL that the portal supports."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from iiot import config, schema
from iiot.config import Settings
from tests import factories, services
from tests.services import PostgresServer


@pytest.fixture(params=["postgres", "postgres15"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found: PostgresServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def empty(server: PostgresServer) -> Any:
    settings = server.settings(server.empty_database())
    yield settings
    server.drop(settings)


def rows(settings: Settings, statement: str) -> list[tuple[Any, ...]]:
    with services.active(settings):
        return factories.rows(statement)


def _objects(settings: Settings) -> list[tuple[Any, ...]]:
    return rows(
        settings,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'iiot'::regnamespace AND relkind IN ('r', 'p', 'S', 'v') "
        "UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'iiot'::regnamespace ORDER BY 1",
    )


def test_up_and_down_and_up_again(empty: Settings) -> None:
    schema.upgrade(empty)
    schema.check(empty)
    current, newest = schema.revisions(empty)
    assert current == newest is not None
    first = _objects(empty)
    schema.downgrade(empty, "base")
    assert _objects(empty) == [("alembic_version",)], "nothing but alembic's own table is left"
    schema.upgrade(empty)
    schema.check(empty)
    assert _objects(empty) == first


def test_upgrading_twice_changes_nothing(empty: Settings) -> None:
    schema.upgrade(empty)
    before = _objects(empty)
    schema.upgrade(empty)
    assert _objects(empty) == before


def test_two_upgrades_at_once_both_succeed(empty: Settings) -> None:
    _run_at_once([empty, empty])
    assert schema.revisions(empty)[0] == schema.revisions(empty)[1]


def test_upgrades_of_two_databases_of_one_server_at_once_both_succeed(server: PostgresServer) -> None:
    """Roles belong to the whole server, so the two meet there."""
    both = [server.settings(server.empty_database()) for _ in range(2)]
    _run_at_once(both)
    for settings in both:
        assert schema.revisions(settings)[0] is not None
        server.drop(settings)


def _run_at_once(targets: list[Settings]) -> None:
    """Each in a process of its own, as alembic's context belongs to the process."""
    program = [sys.executable, "-W", "error", "-c", "from iiot import config, schema; schema.upgrade(config.load())"]
    started = [
        subprocess.Popen(
            program,
            cwd=services.ROOT,
            env=services.environment(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for settings in targets
    ]
    ended = [(process.communicate(timeout=90)[0], process.returncode) for process in started]
    assert [status for _, status in ended] == [0] * len(targets), ended


def test_a_database_that_is_missing_is_created_once(server: PostgresServer) -> None:
    settings = server.settings("made by the portal")
    assert schema.create_database(settings)
    assert not schema.create_database(settings)
    server.drop(settings)


def test_a_plain_owner_who_may_create_roles_can_migrate_again_and_again(server: PostgresServer, folder: Path) -> None:
    """Production: the login of IIOT_DATABASE_URL owns the database and has CREATEROLE; it is no superuser. A cluster of its own, for its roles."""
    own = PostgresServer(folder / "own", server.postgres.programs)
    own.start()
    try:
        own.execute("CREATE ROLE portal LOGIN CREATEROLE NOSUPERUSER PASSWORD 'plain'")
        own.execute("CREATE DATABASE production OWNER portal")
        url = make_url(own.postgres.url("production")).set(username="portal", password="plain")
        settings = config.read(
            _env_file=None, database_url=url.render_as_string(hide_password=False), secret_key=services.SECRET
        )
        for _ in range(2):
            schema.upgrade(settings)
        schema.check(settings)
        with services.active(settings):
            device = factories.make_device(factories.make_tenant())
            assert factories.store(device.uid, temperature=20.0).stored == 1
        # Only a superuser may let the backup role see everything; a warning has said so, and nothing else is missing.
        own.execute("ALTER ROLE iiot_backup BYPASSRLS")
        schema.upgrade(settings)
        bypass = "SELECT rolbypassrls FROM pg_roles WHERE rolname = 'iiot_backup'"
        assert rows(settings, bypass) == [(True,)], "what the superuser granted stays"
        schema.downgrade(settings, "base")
    finally:
        own.stop()


def test_the_roles_can_log_in_and_are_who_they_should_be(server: PostgresServer) -> None:
    settings = server.database()
    with services.active(settings):
        for role in config.ROLES[1:]:
            connection = factories.connect(role)
            with connection.cursor() as cursor:
                cursor.execute("SELECT current_user, count(*) FROM iiot.tenant")
                assert cursor.fetchone() == (f"iiot_{role}", 0)
            connection.close()
    server.drop(settings)


def test_a_wrong_password_is_refused(server: PostgresServer) -> None:
    settings = server.database()
    url = make_url(settings.database_url_for("app")).set(drivername="postgresql", password="wrong")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(url.render_as_string(hide_password=False))
    server.drop(settings)
