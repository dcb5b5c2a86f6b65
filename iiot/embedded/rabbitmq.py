"""A private RabbitMQ node for the embedded stack, when rabbitmq-server is installed. The system's own service is never touched.

The node has everything of its own: name, cookie, database, ports and port mapper (epmd), all on loopback but the listener for devices. The port mapper
runs in the node's process group and ends with it, so that nothing is left behind. Source: rabbitmq.com/docs/configure, rabbitmq.com/docs/runtime.
"""

import base64
import http.client
import json
import os
import secrets
import shutil
import socket
import string
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from iiot import rabbitmq
from iiot.embedded import EmbeddedError
from iiot.embedded.account import Account
from iiot.embedded.mqtt import ADAPTER, ADMIN, ROOT, ServiceUsers, reachable
from iiot.embedded.process import Program

TEMPLATE = ROOT / "config" / "rabbitmq" / "embedded.conf"
SCRIPTS = ("/usr/lib/rabbitmq/bin", "/usr/local/lib/rabbitmq/bin", "/opt/rabbitmq/sbin")
VHOST = "/"
_HELLO = b"AMQP\x00\x00\x09\x01"
# The node takes over the shell's process; the kernel ends the port mapper with it.
_START = 'setpriv --pdeathsig KILL "$IIOT_EPMD" -address 127.0.0.1 -port "$ERL_EPMD_PORT" & exec "$IIOT_RABBITMQ"'
_OWN = r"(iiot|telemetry|telemetry\.dead|result|command\..+)"
# Administrator: (configure, write, read). The adapter also publishes to the default exchange.
RIGHTS = {
    ADAPTER: (f"^{_OWN}$", rf"^({_OWN}|amq\.default)$", f"^{_OWN}$"),
    ADMIN: (r"^command\..+$", "^$", "^$"),
}


@dataclass(frozen=True)
class InnerPorts:
    """Ports that only this machine uses: the management API, Erlang's distribution, the port mapper."""

    management: int
    distribution: int
    mapper: int


@dataclass(frozen=True)
class RabbitMQ:
    """A private node under `<base>/rabbitmq`; devices connect to `host` and `port`."""

    base: Path
    users: ServiceUsers
    logs: Path
    host: str
    port: int
    inner: InnerPorts
    account: Account

    @property
    def folder(self) -> Path:
        """Configuration and database."""
        return self.base / "rabbitmq"

    @property
    def address(self) -> str:
        """Where devices connect, without a login."""
        host = reachable(self.host)
        return f"amqp://[{host}]:{self.port}" if ":" in host else f"amqp://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The adapter's login."""
        return self.address.replace("://", f"://{ADAPTER}:{urllib.parse.quote(self.users.password(ADAPTER))}@")

    @property
    def management_url(self) -> str:
        """The administrator's login at the management API."""
        password = urllib.parse.quote(self.users.password(ADMIN))
        return f"http://{ADMIN}:{password}@127.0.0.1:{self.inner.management}"

    def prepare(self) -> None:
        """Write the configuration, the service users and the cookie."""
        self.account.make_dir(self.folder)
        values = {
            "host": f"[{self.host}]" if ":" in self.host else self.host,
            "port": self.port,
            "management_port": self.inner.management,
            "definitions": self.folder / "definitions.json",
        }
        text = string.Template(TEMPLATE.read_text()).substitute(values)
        self.account.write(self.folder / "rabbitmq.conf", text)
        self.account.write(self.folder / "enabled_plugins", "[rabbitmq_management].\n")
        self.account.write(self.folder / "definitions.json", json.dumps(definitions(self.users)))
        self._once(".erlang.cookie", secrets.token_hex(32))

    def _once(self, name: str, content: str) -> str:
        """What a file of the folder says, written at the first start."""
        path = self.folder / name
        if not path.exists():
            self.account.write(path, content)
        return path.read_text()

    def _environment(self, scripts: Path) -> dict[str, str]:
        """Everything that names a place or a port; the system's own settings are not read."""
        folder = str(self.folder)
        own = {
            "HOME": folder,
            "LANG": "C.UTF-8",
            "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
            "IIOT_RABBITMQ": str(scripts / "rabbitmq-server"),
            "IIOT_EPMD": str(find_mapper()),
            "RABBITMQ_NODENAME": self._once("node", f"iiot-{secrets.token_hex(6)}@localhost"),
            "RABBITMQ_DIST_PORT": str(self.inner.distribution),
            "ERL_EPMD_PORT": str(self.inner.mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": f"{folder}/db",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONFIG_FILES": f"{folder}/conf.d",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # The script then becomes the node instead of watching over it from a shell.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none "
            "-kernel inet_dist_use_interface {127,0,0,1} -noinput",
            "ERL_CRASH_DUMP_BYTES": "0",
        }
        return {name: value for name, value in os.environ.items() if name in ("TZ", "TMPDIR")} | own

    def program(self) -> Program:
        """How to run the node. A node that was installed seconds ago may need half a minute on a busy machine."""
        scripts = find_rabbitmq()
        if scripts is None:
            raise EmbeddedError("RabbitMQ is not installed.")
        self.account.make_dir(self.folder)
        return Program(
            name="rabbitmq",
            argv=["/bin/sh", "-c", _START],
            log=self.logs / "rabbitmq.log",
            account=self.account,
            environment=self._environment(scripts),
            folder=self.folder,
            # Within a tenth of a second its stores are closed; the rest is the management plugin waiting for nobody.
            stop_seconds=2.0,
            start_seconds=90.0,
            prepare=self.prepare,
            ready=self.ready,
        )

    def ready(self) -> bool:
        """Whether the node answers devices and its administrator."""
        return answers(reachable(self.host), self.port) and _manages(self.inner.management)


def find_rabbitmq() -> Path | None:
    """The folder of RabbitMQ's own scripts (those in /usr/sbin change the user), or None when it cannot be run here."""
    found = [Path(folder) for folder in SCRIPTS if (Path(folder) / "rabbitmq-server").exists()]
    return found[0] if found and find_mapper() and shutil.which("setpriv") else None


def find_mapper() -> str | None:
    """Erlang's port mapper."""
    found = shutil.which("epmd", path=os.environ.get("PATH", "") + ":/usr/bin")
    return found or next((str(path) for path in Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)


def definitions(users: ServiceUsers) -> dict[str, object]:
    """The service users with their rights, as RabbitMQ reads them at every start."""
    entries, permissions = [], []
    for user, (configure, write, read) in RIGHTS.items():
        hashed = base64.b64encode(rabbitmq.password_hash(users.password(user))).decode()
        tags = ["administrator"] if user == ADMIN else []
        entries.append({"name": user, "password_hash": hashed, "hashing_algorithm": rabbitmq.HASHING, "tags": tags})
        permissions.append({"user": user, "vhost": VHOST, "configure": configure, "write": write, "read": read})
    return {"vhosts": [{"name": VHOST}], "users": entries, "permissions": permissions}


def answers(host: str, port: int) -> bool:
    """Whether an AMQP 0-9-1 server answers there: a method frame (section 4.2.3), Connection.Start."""
    try:
        with socket.create_connection((host, port), timeout=2) as connection:
            connection.sendall(_HELLO)
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def _manages(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/api/whoami")
        return connection.getresponse().status == 401
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
