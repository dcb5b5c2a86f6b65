"""Whether the portal can do its work: the database, Redis, the broker and the adapters, each asked with a deadline."""

import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import unquote, urlsplit

import redis
from sqlalchemy import select

from iiot import config, ids, metrics, tenancy
from iiot.services import adapters

DEADLINE = 1.0
REMEMBER = 1.0


@dataclass(frozen=True)
class Report:
    """`checks`: name → "ok" or what is wrong. `optional`: the same of what is not needed, "off: …" when it does not run."""

    checks: dict[str, str]
    optional: dict[str, str] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        return all(text == "ok" for text in self.checks.values())


def check_database() -> None:
    """Raises when the database does not answer a query."""
    with tenancy.work(tenancy.system("health")) as db:
        db.execute(select(1))


def check_redis() -> None:
    """Raises when Redis does not answer a ping."""
    url = config.load().redis_url
    if not url:
        raise ConnectionError("not configured")
    with redis.Redis.from_url(url, socket_connect_timeout=DEADLINE, socket_timeout=DEADLINE) as client:
        client.ping()


def check_mqtt() -> None:
    """Raises when the broker does not accept the adapter's user: one MQTT 3.1.1 CONNECT and its answer (sections 3.1 and 3.2)."""
    url = urlsplit(config.load().mqtt_url or "")
    if not url.hostname:
        raise ConnectionError("not configured")
    secure = url.scheme in ("mqtts", "ssl")
    with socket.create_connection((url.hostname, url.port or (8883 if secure else 1883)), DEADLINE) as plain:
        plain.settimeout(DEADLINE)
        connection = ssl.create_default_context().wrap_socket(plain, server_hostname=url.hostname) if secure else plain
        connection.sendall(_connect_packet(unquote(url.username or ""), unquote(url.password or "")))
        answer = connection.recv(4)
        if len(answer) < 4 or answer[0] != 0x20:
            raise ConnectionError("the broker closed the connection")
        if answer[3]:
            raise ConnectionError(f"the broker refused the portal's user (code {answer[3]})")
        connection.sendall(b"\xe0\x00")


def _connect_packet(user: str, password: str) -> bytes:
    def text(value: str) -> bytes:
        encoded = value.encode()
        return struct.pack(">H", len(encoded)) + encoded

    flags = 0x02 | (0xC0 if user else 0)
    body = text("MQTT") + bytes((4, flags)) + struct.pack(">H", 10) + text("ready-" + ids.new_uid()[:12])
    if user:
        body += text(user) + text(password)
    return bytes((0x10, *_length(len(body)))) + body


def _length(number: int) -> list[int]:
    """The variable-length number of MQTT 3.1.1 section 2.2.3."""
    digits = []
    while True:
        number, digit = divmod(number, 128)
        digits.append(digit | (0x80 if number else 0))
        if not number:
            return digits


def check_opcua() -> None:
    """Raises when the OPC UA server does not answer a Hello with an Acknowledge (OPC UA Part 6 section 7.1.2)."""
    host, port = config.split_bind(config.load().opcua_bind)
    url = b"opc.tcp://localhost/iiot"
    hello = struct.pack("<IIIIIi", 0, 65_535, 65_535, 0, 0, len(url)) + url
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with
    with socket.create_connection((here, port), DEADLINE) as connection:
        connection.settimeout(DEADLINE)
        connection.sendall(b"HELF" + struct.pack("<I", len(hello) + 8) + hello)
        if connection.recv(4) != b"ACKF":
            raise ConnectionError("it is no OPC UA server")


# What the portal can do without: it is told, and does not make it unready.
OPTIONAL: dict[str, Callable[[], None]] = {
    "mqtt-adapter": partial(adapters.check, "mqtt"),
    "coap": partial(adapters.check, "coap"),
    "amqp": partial(adapters.check, "amqp"),
    "opcua": check_opcua,
}
CHECKS: dict[str, Callable[[], None]] = {"database": check_database, "redis": check_redis, "mqtt": check_mqtt}


class _Watch:
    """Runs the checks side by side; one that hangs is not started again before it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(len(CHECKS) + len(OPTIONAL), "ready")
        self._running: dict[str, Future[None]] = {}
        self._report: Report | None = None
        self._at = 0.0

    def report(self) -> Report:
        with self._lock:
            if self._report is None or time.monotonic() - self._at > REMEMBER:
                self._report = self._ask()
                self._at = time.monotonic()
            return self._report

    def _ask(self) -> Report:
        for name, check in (CHECKS | OPTIONAL).items():
            before = self._running.get(name)
            if before is None or before.done():
                self._running[name] = self._threads.submit(check)
        deadline = time.monotonic() + DEADLINE
        checks, optional = {}, {}
        for name, running in self._running.items():
            said = _outcome(running, deadline - time.monotonic())
            metrics.dependency_up.labels(name).set(said == "ok")
            if name in CHECKS:
                checks[name] = said
            else:
                optional[name] = said if said == "ok" else f"off: {said}"
        return Report(checks, optional)


def _outcome(running: "Future[None]", seconds: float) -> str:
    try:
        running.result(max(0.0, seconds))
    except Late:
        return f"no answer within {DEADLINE:g} s"
    except Exception as error:
        # Only the kind leaves the house: drivers put addresses and user names into their texts.
        text = str(error) if type(error) is ConnectionError else "cannot be reached"
        return f"{text} ({type(error).__name__})"
    return "ok"


_watches: dict[int, _Watch] = {}


def ready() -> Report:
    """What was found not longer than a second ago; threads do not survive a fork, so each process watches for itself."""
    return _watches.setdefault(os.getpid(), _Watch()).report()
