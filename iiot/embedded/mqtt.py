"""The MQTT broker of the embedded stack: Mosquitto with its dynamic-security plugin, or amqtt where that is not installed."""

import os
import secrets
import shutil
import socket
import string
import sys
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from iiot.embedded import EmbeddedError
from iiot.embedded.account import Account
from iiot.embedded.process import Program

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "config" / "mosquitto" / "embedded.conf"
PLUGIN = "mosquitto_dynamic_security.so"
ADAPTER = "iiot-adapter"
ADMIN = "iiot-admin"

# MQTT 3.1.1 CONNECT without user name (section 3.1): a living broker answers CONNACK, here a refusal.
_CONNECT = b"\x10\x17\x00\x04MQTT\x04\x02\x00\x0a\x00\x0biiot-doctor"


@dataclass(frozen=True)
class ServiceUsers:
    """The two logins that are not devices, with passwords made at the first start."""

    secrets_dir: Path

    def password(self, user: str) -> str:
        """The password of `iiot-adapter` or `iiot-admin`."""
        path = self.secrets_dir / f"{user}_password"
        if not path.exists():
            Account().make_dir(self.secrets_dir)
            Account().write(path, secrets.token_urlsafe(32))
        return path.read_text().strip()

    def passwords(self) -> dict[str, str]:
        """Both logins: user → password."""
        return {user: self.password(user) for user in (ADAPTER, ADMIN)}

    def url(self, user: str, host: str, port: int) -> str:
        """mqtt://user:password@host:port."""
        return f"mqtt://{user}:{urllib.parse.quote(self.password(user))}@{host}:{port}"


@dataclass(frozen=True)
class Mosquitto:
    """A private Mosquitto under `<base>/mosquitto`.

    `files` gives what lies in its folder beside the configuration, name → text: the dynamic-security file, made from the
    database, and what TLS needs (`bootstrap.broker_files`). It is called before every start. When it raises EmbeddedError
    (the database is away), the files of the last start serve. `binds`: what its listeners for devices bind to.
    """

    base: Path
    users: ServiceUsers
    logs: Path
    binds: Mapping[str, tuple[str, int]]
    service_port: int
    account: Account
    files: Callable[[], Mapping[str, str]]

    @property
    def folder(self) -> Path:
        """Configuration, dynamic-security file and persistence."""
        return self.base / "mosquitto"

    @property
    def host(self) -> str:
        """Where devices connect without TLS."""
        return self.binds["mqtt_bind"][0]

    @property
    def port(self) -> int:
        """Where devices connect without TLS."""
        return self.binds["mqtt_bind"][1]

    @property
    def crl_path(self) -> Path:
        """The list of revoked certificates that the broker reads at its start."""
        return self.folder / "devices.crl"

    @property
    def url(self) -> str:
        """The adapter's login."""
        return self.users.url(ADAPTER, "127.0.0.1", self.service_port)

    @property
    def admin_url(self) -> str:
        """The login that changes the dynamic-security settings."""
        return self.users.url(ADMIN, "127.0.0.1", self.service_port)

    def prepare(self) -> None:
        """Write the configuration and the clients with their roles."""
        programs = find_mosquitto()
        if programs is None:
            raise EmbeddedError("Mosquitto with its dynamic-security plugin is not installed.")
        self.account.make_dir(self.folder)
        try:
            for name, content in self.files().items():
                self.account.write(self.folder / name, content)
        except EmbeddedError:
            if not (self.folder / "dynamic-security.json").exists():
                raise
        values = {"plugin": programs[1], "folder": self.folder, "service_port": self.service_port}
        for name, (host, port) in self.binds.items():
            values |= {f"{name}_host": host, f"{name}_port": port}
        values["mqtt_ws_domain"] = "ipv6" if ":" in self.binds["mqtt_ws_bind"][0] else "ipv4"
        text = string.Template(TEMPLATE.read_text()).substitute(values)
        self.account.write(self.folder / "mosquitto.conf", text)

    def program(self) -> Program:
        """How to run the broker."""
        programs = find_mosquitto()
        if programs is None:
            raise EmbeddedError("Mosquitto with its dynamic-security plugin is not installed.")
        return Program(
            name="broker",
            argv=[str(programs[0]), "-c", str(self.folder / "mosquitto.conf")],
            log=self.logs / "broker.log",
            account=self.account,
            prepare=self.prepare,
            ready=lambda: answers("127.0.0.1", self.service_port),
        )


@dataclass(frozen=True)
class Amqtt:
    """The broker for machines where Mosquitto cannot be installed, and for who asks for it: MQTT 3.1.1, some hundred messages a second, in memory."""

    users: ServiceUsers
    logs: Path
    binds: Mapping[str, tuple[str, int]]
    environment: Mapping[str, str]

    @property
    def host(self) -> str:
        """Where devices connect without TLS."""
        return self.binds["mqtt_bind"][0]

    @property
    def port(self) -> int:
        """Where devices connect without TLS."""
        return self.binds["mqtt_bind"][1]

    @property
    def url(self) -> str:
        """The adapter's login, with the one version of MQTT that amqtt reads."""
        return f"{self.users.url(ADAPTER, reachable(self.host), self.port)}?version=3.1.1"

    def program(self) -> Program:
        """How to run the broker; it reads its devices from the database."""
        return Program(
            name="broker",
            argv=[sys.executable, "-m", "iiot.embedded.amqtt_broker"],
            log=self.logs / "broker.log",
            environment={
                **self.environment,
                **{f"IIOT_{name.upper()}": join(*bind) for name, bind in self.binds.items()},
            },
            folder=ROOT,
            ready=lambda: answers(reachable(self.host), self.port),
        )


def find_mosquitto() -> tuple[Path, Path] | None:
    """The broker and its dynamic-security plugin, or None."""
    program = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        return None
    for folder in ("/usr/lib", "/usr/local/lib"):
        plugins = [Path(folder) / PLUGIN, *Path(folder).glob(f"*/{PLUGIN}")]
        for plugin in plugins:
            if plugin.exists():
                return Path(program), plugin
    return None


def join(host: str, port: int) -> str:
    """host:port, the inverse of `config.split_bind`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str) -> str:
    """The address to connect to for a server that listens on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "") else "::1" if host == "::" else host  # noqa: S104


def answers(host: str, port: int) -> bool:
    """Whether an MQTT broker answers there; a refusal is an answer, no login is used."""
    try:
        with socket.create_connection((host, port), timeout=2) as connection:
            connection.sendall(_CONNECT)
            return connection.recv(4)[:1] == b"\x20"
    except OSError:
        return False
