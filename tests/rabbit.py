"""RabbitMQ for the tests: the embedded launcher's node, a virtual host per test, devices with pika."""

import base64
import contextlib
import http.client
import itertools
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pika

from iiot.embedded import account, mqtt, ports, rabbitmq
from tests import services
from tests.integration.mqtt_devices import Device
from tests.services import eventually


class RabbitServer(services.Server):
    """A private node. Starting takes seconds, so tests share one and have a virtual host each."""

    _numbers = itertools.count(1)

    def __init__(self, folder: Path) -> None:
        if rabbitmq.find_rabbitmq() is None:
            services.missing("RabbitMQ (apt-get install rabbitmq-server)")
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
        free: set[int] = set()
        while len(free) < 4:
            free.add(ports.free_port())
        port, *inner = free
        self.users = mqtt.ServiceUsers(folder / "secrets")
        self.node = rabbitmq.RabbitMQ(
            folder, self.users, folder / "logs", "127.0.0.1", port, rabbitmq.InnerPorts(*inner), account.current()
        )
        self.vhost = "/"
        super().__init__(self.node)

    @property
    def host(self) -> str:
        """Where devices connect."""
        return self.node.host

    @property
    def port(self) -> int:
        """Where devices connect."""
        return self.node.port

    @property
    def fields(self) -> dict[str, Any]:
        """The settings that name this node and the virtual host of the test."""
        return {
            "amqp_url": f"{self.node.url}/{quote(self.vhost, safe='')}",
            "amqp_management_url": self.node.management_url,
            "amqp_bind": f"{self.host}:{self.port}",
        }

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A call of the management API as the administrator."""
        parts = urlsplit(self.node.management_url)
        connection = http.client.HTTPConnection("127.0.0.1", parts.port or 0, timeout=30)
        try:
            login = f"{parts.username}:{parts.password}".encode()
            headers = {"Authorization": "Basic " + base64.b64encode(login).decode()}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 300 or answer.status == 404, (method, path, answer.status, content)
            return json.loads(content) if content and answer.status != 404 else None
        finally:
            connection.close()

    @contextlib.contextmanager
    def virtual_host(self) -> Iterator["RabbitServer"]:
        """A virtual host that is removed in the end, with the users of devices."""
        self.vhost = f"test {next(self._numbers)} {secrets.token_hex(4)}"
        path = quote(self.vhost, safe="")
        self.ask("PUT", f"/api/vhosts/{path}", {})
        for user, (configure, write, read) in rabbitmq.RIGHTS.items():
            rights = {"configure": configure, "write": write, "read": read}
            self.ask("PUT", f"/api/permissions/{path}/{user}", rights)
        try:
            yield self
        finally:
            if self.child is None:
                self.start()
            for user in self.ask("GET", "/api/users"):
                if not user["name"].startswith("iiot-"):
                    self.ask("DELETE", f"/api/users/{user['name']}")
            self.ask("DELETE", f"/api/vhosts/{path}")
            self.vhost = "/"

    def connect(self, user: str, password: str) -> Any:
        """A connection of pika's."""
        credentials = pika.PlainCredentials(user, password)
        return pika.BlockingConnection(
            pika.ConnectionParameters(
                self.host, self.port, self.vhost, credentials, socket_timeout=20, stack_timeout=30, heartbeat=60
            )
        )

    @contextlib.contextmanager
    def login(self, user: str, password: str) -> Iterator[Any]:
        """A channel with publisher confirms."""
        connection = self.connect(user, password)
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel
        finally:
            with contextlib.suppress(Exception):
                connection.close()

    @contextlib.contextmanager
    def online(self, device: Device) -> Iterator[Any]:
        """A device that is logged in."""
        with self.login(device.uid, device.token) as channel:
            yield channel

    @contextlib.contextmanager
    def adapter_login(self) -> Iterator[Any]:
        """A channel with the rights of the adapter."""
        with self.login(mqtt.ADAPTER, self.users.password(mqtt.ADAPTER)) as channel:
            yield channel

    def dead(self, count: int = 1) -> list[tuple[pika.BasicProperties, bytes]]:
        """The next `count` messages of telemetry.dead, which are taken out."""
        found: list[tuple[pika.BasicProperties, bytes]] = []
        with self.adapter_login() as channel:

            def one() -> bool:
                method, properties, body = channel.basic_get("telemetry.dead", auto_ack=True)
                if method is not None:
                    found.append((properties, body))
                return len(found) >= count

            eventually(one, 30)
        return found

    def waiting(self, queue: str) -> int:
        """Messages in a queue that nobody has been handed."""
        with self.adapter_login() as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)


def publish(channel: Any, uid: str, payload: bytes | str, word: str = "telemetry", **properties: Any) -> None:
    """Publish as a device does; returns when RabbitMQ has confirmed it."""
    body = payload.encode() if isinstance(payload, str) else payload
    channel.basic_publish(
        "iiot", f"{word}.{uid}", body, pika.BasicProperties(delivery_mode=2, **properties), mandatory=True
    )
