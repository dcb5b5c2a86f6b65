"""Fixtures that every kind of test shares: the servers, and settings that point at them."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import redis
from xdist.scheduler import LoadScopeScheduling

from iiot.config import Settings
from iiot.embedded import postgres as embedded_postgres
from tests import services
from tests.foreign_clients import ForeignClients
from tests.integration.mqtt_devices import AdapterProcess, adapter

if TYPE_CHECKING:
    from tests.rabbit import RabbitServer, Site

hypothesis.settings.register_profile("nightly", max_examples=10_000, deadline=None)


# Where the long tests are; processes that begin with them end at about the same time.
LONG = ("faults", "browser", "integration")


def pytest_configure(config: pytest.Config) -> None:
    """Count the foreign clients, here and in the process that hands the tests out."""
    config.pluginmanager.register(ForeignClients(), "foreign-clients")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long tests first."""
    items.sort(key=lambda item: LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG))


class _Together(LoadScopeScheduling):  # type: ignore[misc]
    """A file goes to one process, and all that share a running portal and a browser go to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "browser" if file.startswith("tests/browser/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Together:
    """Hook of pytest-xdist, in the process that hands the tests out."""
    return _Together(config, log)


@pytest.fixture(scope="session")
def workspace() -> Iterator[Path]:
    """A folder for servers; its name has a space on purpose, and the servers' own user can reach it."""
    path = Path(tempfile.mkdtemp(prefix="iiot tests "))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def folder(workspace: Path) -> Iterator[Path]:
    """An empty folder of the test's own, reachable by the servers' user (pytest's tmp_path is not)."""
    path = Path(tempfile.mkdtemp(prefix="one test ", dir=workspace))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(workspace: Path) -> Iterator[services.PostgresServer]:
    """PostgreSQL 18 from the wheel; `.database()` gives settings of a fresh migrated database."""
    server = services.PostgresServer(workspace / "postgres18")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres15(workspace: Path) -> Iterator[services.PostgresServer]:
    """The distribution's PostgreSQL: 15 on Debian 12, the oldest that the portal supports."""
    programs = embedded_postgres.system_programs()
    if programs is None:
        services.missing("PostgreSQL 15 (apt-get install postgresql-15)")
    server = services.PostgresServer(workspace / "postgres15", programs)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey(workspace: Path) -> Iterator[services.ValkeyServer]:
    """Valkey from the wheel; database 1 is emptied before every test that uses `settings`."""
    server = services.ValkeyServer(workspace / "valkey")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def mosquitto(folder: Path) -> Iterator[services.MosquittoServer]:
    """A Mosquitto of the test's own, so that no persistent session reaches into another test."""
    server = services.MosquittoServer(folder / "broker")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rabbit_node(workspace: Path) -> Iterator["RabbitServer"]:
    """RabbitMQ for all tests of the process, started when the first one asks for it."""
    from tests.rabbit import RabbitServer

    server = RabbitServer(workspace / "rabbit")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def rabbit(rabbit_node: "RabbitServer") -> Iterator["RabbitServer"]:
    """The shared RabbitMQ with a virtual host of the test's own."""
    with rabbit_node.virtual_host():
        yield rabbit_node


@pytest.fixture(scope="module")
def amqp_site(rabbit_node: "RabbitServer", module_settings: Settings) -> Iterator["Site"]:
    """RabbitMQ with a virtual host, a database and a running adapter for all tests of a module."""
    from tests.rabbit import site

    with site(rabbit_node, module_settings) as running:
        yield running


@pytest.fixture
def running(mosquitto: services.MosquittoServer, settings: Settings) -> Iterator[AdapterProcess]:
    """The MQTT adapter at that broker, as a process."""
    with adapter(settings) as process:
        yield process


def _fields(valkey: services.ValkeyServer, number: int, folder: Path) -> dict[str, Any]:
    url = valkey.url(number)
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        client.flushdb()
    return {"redis_url": url, "data_dir": folder}


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, postgres: services.PostgresServer, valkey: services.ValkeyServer, folder: Path
) -> Iterator[Settings]:
    """Settings of a fresh database and an empty Valkey, active for `config.load()`.

    The broker is among them when the test also asks for `mosquitto`.
    """
    fields = _fields(valkey, 1, folder)
    if "mosquitto" in request.fixturenames:
        fields |= request.getfixturevalue("mosquitto").fields
    if "rabbit" in request.fixturenames:
        fields |= request.getfixturevalue("rabbit").fields
    fresh = postgres.database(**fields)
    with services.active(fresh):
        yield fresh
    postgres.drop(fresh)


@pytest.fixture(scope="module")
def module_settings(
    postgres: services.PostgresServer, valkey: services.ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """Like `settings` without a broker, one for all tests of a module: for tests that make tenants of their own."""
    # One folder for all modules: what a process remembers is forgotten through the file in the folder that it saw first.
    folder = tmp_path_factory.getbasetemp() / "data of the modules"
    folder.mkdir(exist_ok=True)
    fresh = postgres.database(**_fields(valkey, 2, folder))
    with services.active(fresh):
        yield fresh
    postgres.drop(fresh)


@pytest.fixture(scope="module")
def unmeasured() -> Iterator[None]:
    """The processes under test at their own speed: measuring their coverage takes three times as long."""
    services.measures_children = False
    yield
    services.measures_children = True


@pytest.fixture(scope="session")
def stack(workspace: Path) -> Iterator[services.Stack]:
    """The real product, started once by `python -m iiot up` in an empty data dir; `.run` is its run.json."""
    running = services.Stack(workspace / "stack data")
    running.start()
    yield running
    running.stop()
