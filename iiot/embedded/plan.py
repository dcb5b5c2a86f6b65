"""What `up` runs for given settings: which services are embedded, on which ports, and how the portal's own processes start."""

import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iiot import config
from iiot.config import Settings, split_bind
from iiot.embedded import EmbeddedError, ports
from iiot.embedded.account import Account, current, service_dir
from iiot.embedded.console import Console
from iiot.embedded.datadir import DataDir
from iiot.embedded.mqtt import ROOT, Amqtt, Mosquitto, ServiceUsers, find_mosquitto, join, reachable
from iiot.embedded.postgres import Postgres
from iiot.embedded.process import Program, always
from iiot.embedded.rabbitmq import InnerPorts, RabbitMQ, find_rabbitmq
from iiot.embedded.valkey import Valkey

# What the portal itself listens on; a default port that is taken is replaced, a chosen one is not.
BINDS = (
    "http_bind", "mqtt_bind", "mqtt_tls_bind", "mqtt_cert_bind", "mqtt_ws_bind", "coap_bind", "amqp_bind", "opcua_bind",
    "metrics_bind",
)  # fmt: skip
UDP = ("coap_bind",)


@dataclass
class Plan:
    """The embedded services (None: an outside one is configured) and the values for embedded.json."""

    data: DataDir
    account: Account
    postgres: Postgres | None = None
    valkey: Valkey | None = None
    broker: Mosquitto | Amqtt | None = None
    rabbitmq: RabbitMQ | None = None
    # Whether the AMQP adapter runs, with that RabbitMQ or with another one.
    has_amqp: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def bind(self, name: str) -> tuple[str, int]:
        """Host and port of one of BINDS."""
        return split_bind(self.values[name])

    @property
    def http(self) -> str:
        """The portal's address on this machine."""
        host, port = self.bind("http_bind")
        shown = reachable(host)
        return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"

    def without_amqp(self) -> None:
        """RabbitMQ does not start: nothing names it any more."""
        self.rabbitmq, self.has_amqp = None, False
        for name in ("amqp_bind", "amqp_url", "amqp_management_url"):
            self.values.pop(name, None)

    def python(self, name: str, arguments: list[str], ready: Callable[[], bool] = always) -> Program:
        """One of the portal's own processes: `python -m <arguments>` from the checkout."""
        return Program(
            name=name,
            argv=[sys.executable, "-m", *arguments],
            log=self.data.path / "logs" / f"{name}.log",
            environment=self.environment,
            folder=ROOT,
            stop_seconds=5.0,
            start_seconds=60.0,
            ready=ready,
        )


def _is_wanted(name: str, settings: Settings, wants_rabbitmq: bool) -> bool:
    """Whether `up` listens on this address."""
    if name == "amqp_bind":
        return wants_rabbitmq
    if name.startswith("mqtt_"):
        return settings.mqtt_url is None and (name != "mqtt_cert_bind" or _takes_mosquitto(settings))
    return True


def _takes_mosquitto(settings: Settings) -> bool:
    """Whether the embedded broker is Mosquitto: it is installed, and nobody asked for the other one."""
    return settings.mqtt_broker == "mosquitto" and find_mosquitto() is not None


def make(
    settings: Settings,
    data: DataDir,
    console: Console,
    files: Callable[[], Mapping[str, str]],
    old: Mapping[str, Any],
) -> Plan:
    """Decide ports and make the launchers; raises EmbeddedError when a port that was asked for is taken.

    `old` is the embedded.json of the last run, `files` gives the broker's files (see mqtt.Mosquitto).
    """
    wants_rabbitmq = settings.amqp_url is None and find_rabbitmq() is not None
    needs_servers = wants_rabbitmq or not (settings.database_url and settings.redis_url and settings.mqtt_url)
    account = current() if needs_servers else Account()
    plan = Plan(data, account, has_amqp=wants_rabbitmq or settings.amqp_is_on)
    if not plan.has_amqp:
        installs = "" if settings.amqp_url else ": RabbitMQ is not installed; `make run WITH_AMQP=1` installs it"
        console.warn("amqp", f"off{installs}")
    taken: set[int] = set()
    for name in BINDS:
        if _is_wanted(name, settings, wants_rabbitmq):
            plan.values[name] = _bind(settings, name, taken, console)
    if not settings.secret_key.get_secret_value():
        plan.values["secret_key"] = data.secret_key()
    plan.environment = _environment(data, plan.values) | {"IIOT_WEB_WORKERS": str(settings.web_workers)}
    if needs_servers:
        base = service_dir(data.path, account)
        if base != data.path:
            console.warn("data", f"other users cannot enter {data.path}; the databases are in {base}")
        inner = _inner_ports(old, taken)
        _databases(plan, settings, base, inner)
        if settings.mqtt_url is None:
            _broker(plan, settings, base, console, files)
        if wants_rabbitmq:
            _rabbitmq(plan, base, inner)
    return plan


def _bind(settings: Settings, name: str, taken: set[int], console: Console) -> str:
    host, wanted = split_bind(getattr(settings, name))
    kind = socket.SOCK_DGRAM if name in UDP else socket.SOCK_STREAM
    if wanted and name in settings.model_fields_set:
        if wanted in taken or not ports.is_free(host, wanted, kind):
            raise EmbeddedError(f"Port {wanted} of {config.PREFIX}{name.upper()} is taken by another program.")
        port = wanted
    else:
        port = ports.choose(host, wanted, taken, kind)
        if wanted and port != wanted:
            console.warn(name.partition("_")[0], f"port {wanted} is taken; {port} is used instead")
    taken.add(port)
    return join(host, port)


def _inner_ports(old: Mapping[str, Any], taken: set[int]) -> Callable[[str], int]:
    """Ports that only the portal uses: those of the last run where they are free, so that open tools find them again."""

    def choose(url_name: str) -> int:
        try:
            wanted = urlsplit(str(old.get(url_name) or "")).port or 0
        except ValueError:
            wanted = 0
        port = ports.choose("127.0.0.1", wanted, taken)
        taken.add(port)
        return port

    return choose


def _databases(plan: Plan, settings: Settings, base: Path, port: Callable[[str], int]) -> None:
    secrets, logs = plan.data.secrets, plan.data.logs
    if settings.database_url is None:
        plan.postgres = Postgres(base, secrets, logs, port("database_url"), plan.account)
    if settings.redis_url is None:
        plan.valkey = Valkey(base, secrets, logs, port("redis_url"), plan.account)
        plan.values["redis_url"] = plan.valkey.url
    plan.values["service_port"] = port("mqtt_url")


def _broker(
    plan: Plan, settings: Settings, base: Path, console: Console, files: Callable[[], Mapping[str, str]]
) -> None:
    users = ServiceUsers(plan.data.secrets)
    service_port = int(plan.values["service_port"])
    binds = {name: plan.bind(name) for name in BINDS if name.startswith("mqtt_") and name in plan.values}
    if _takes_mosquitto(settings):
        broker = Mosquitto(base, users, plan.data.logs, binds, service_port, plan.account, files)
        plan.broker = broker
        plan.values |= {"mqtt_url": broker.url, "mqtt_admin_url": broker.admin_url, "mqtt_broker": "mosquitto"}
        plan.values["mqtt_crl_path"] = str(broker.crl_path)
        return
    why = "IIOT_MQTT_BROKER" if settings.mqtt_broker == "amqtt" else "Mosquitto is not installed"
    console.warn("broker", f"{why}: amqtt serves MQTT 3.1.1 to some hundred messages/s, in memory")
    plan.broker = Amqtt(users, plan.data.logs, binds, plan.environment)
    plan.values |= {"mqtt_url": plan.broker.url, "mqtt_admin_url": None, "mqtt_broker": "amqtt"}


def _rabbitmq(plan: Plan, base: Path, port: Callable[[str], int]) -> None:
    host, public = plan.bind("amqp_bind")
    inner = InnerPorts(port("amqp_management_url"), port(""), port(""))
    plan.rabbitmq = RabbitMQ(base, ServiceUsers(plan.data.secrets), plan.data.logs, host, public, inner, plan.account)
    plan.values |= {"amqp_url": plan.rabbitmq.url, "amqp_management_url": plan.rabbitmq.management_url}


def _environment(data: DataDir, values: Mapping[str, Any]) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    if not environment.get("IIOT_AMQP_URL"):
        # Empty means not set, and would hide the address of the embedded one.
        environment.pop("IIOT_AMQP_URL", None)
    for name in BINDS:
        if name in values:
            environment[f"{config.PREFIX}{name.upper()}"] = str(values[name])
    return environment | {
        "IIOT_DATA_DIR": str(data.path),
        "IIOT_SUPERVISED": "1",
        "PROMETHEUS_MULTIPROC_DIR": str(data.path / "metrics"),
        "PYTHONUNBUFFERED": "1",
    }
