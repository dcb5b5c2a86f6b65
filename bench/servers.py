"""The servers of a bench: the ones `python -m iiot up` starts, on free ports in a temporary folder, with durable settings."""

import base64
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from bench.wire import Login
from iiot import config
from tests.services import MosquittoServer, PostgresServer, ValkeyServer, active, environment, eventually

BENCH_USER = "bench"


@dataclass
class Servers:
    """What is running, and the settings that name it (active for this process)."""

    settings: config.Settings
    postgres: PostgresServer
    broker: MosquittoServer
    folder: Path

    @property
    def login(self) -> Login:
        """The publisher's and the bare reader's login."""
        return Login(self.broker.host, self.broker.port, BENCH_USER, BENCH_USER)

    def superuser(self) -> Any:
        """An autocommit connection past row-level security, for counting."""
        connection = psycopg2.connect(self.postgres.postgres.url(str(self.settings.database_url).rpartition("/")[2]))
        connection.autocommit = True
        return connection

    @contextlib.contextmanager
    def process(self, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process of the product with these settings; SIGTERM at the end. Its output is in a file of the folder, made anew."""
        path = self.folder / f"{'-'.join(arguments[1:3]).replace('/', '_')}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment(self.settings) | variables,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
            try:
                yield process
            except BaseException:
                sys.stderr.write("".join(path.read_text(errors="replace").splitlines(keepends=True)[-20:]))
                raise
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextlib.contextmanager
def servers(**flags: str) -> Iterator[Servers]:
    """PostgreSQL (fsync on), Valkey and Mosquitto; a fresh migrated database. `flags` are PostgreSQL's."""
    with tempfile.TemporaryDirectory(prefix="iiot-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = PostgresServer(folder / "postgres", **{"fsync": "on", "shared_buffers": "128MB", **flags})
        valkey = ValkeyServer(folder / "valkey")
        broker = MosquittoServer(folder / "broker")
        _let_the_bench_in(broker)
        for server in (postgres, valkey, broker):
            server.start()
            stack.callback(server.stop)
        settings = postgres.database(redis_url=valkey.url(0), data_dir=folder / "data", **broker.fields)
        (folder / "data").mkdir()
        stack.enter_context(active(settings))
        yield Servers(settings, postgres, broker, folder)


def _let_the_bench_in(broker: MosquittoServer) -> None:
    """One more client in the broker's file: it may publish for every device, and read as the adapter does."""
    from iiot import broker as security

    files = dict(broker.mosquitto.files())
    document = json.loads(files["dynamic-security.json"])
    salt, hashed, iterations = security.verifier(BENCH_USER)
    client = {
        "username": BENCH_USER,
        "password": base64.b64encode(hashed).decode(),
        "salt": base64.b64encode(salt).decode(),
        "iterations": iterations,
        "roles": [{"rolename": BENCH_USER}],
    }
    acls = [
        {"acltype": kind, "topic": "iiot/+/up/#", "priority": 0, "allow": True}
        for kind in ("publishClientSend", "publishClientReceive", "subscribePattern")
    ]
    document["clients"].append(client)
    document["roles"].append({"rolename": BENCH_USER, "acls": acls})
    broker.mosquitto.account.make_dir(broker.mosquitto.folder)
    files["dynamic-security.json"] = json.dumps(document)
    for name, content in files.items():
        broker.mosquitto.account.write(broker.mosquitto.folder / name, content)


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of processes and their living children."""
    import psutil

    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    total += times.user + times.system
    return total


__all__ = ["BENCH_USER", "Servers", "cpu_seconds", "eventually", "servers"]
