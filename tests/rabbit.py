"""RabbitMQ for the tests: the embedded launcher's node, a virtual host per test, devices with pika."""

import base64
import contextlib
import http.client
import itertools
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pika

from iiot.config import Settings
from iiot.embedded import account, mqtt, ports, rabbitmq
from tests import factories, services
from tests.integration.mqtt_devices import AdapterProcess, Device, adapter
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

    def dead(self, count: int = 1, uid: str = "") -> list[tuple[pika.BasicProperties, bytes]]:
        """The next `count` messages of telemetry.dead, of the device if it is named; they are taken out."""
        found: list[tuple[pika.BasicProperties, bytes]] = []
        with self.adapter_login() as channel:

            def one() -> bool:
                # Those of others go back when the channel ends.
                method, properties, body = channel.basic_get("telemetry.dead")
                if method is not None and uid in (properties.headers or {}).get("uid", ""):
                    found.append((properties, body))
                    channel.basic_ack(method.delivery_tag)
                return len(found) >= count

            eventually(one, 30)
        return found

    def knows_its_queue(self) -> bool:
        """Whether the node has written down its quorum queue. RabbitMQ 3.10 does so within three seconds; one that is killed before forgets the queue."""
        files = list(self.node.folder.glob("db/*/quorum/*/names.dets"))
        return bool(files) and f"{self.vhost}_telemetry".encode() in files[0].read_bytes()

    def unsettled(self, queue: str) -> int:
        """Messages in a queue, those that somebody has been handed among them."""
        found = self.ask("GET", f"/api/queues/{quote(self.vhost, safe='')}?disable_stats=true&enable_queue_totals=true")
        return sum(int(each["messages"]) for each in found if each["name"] == queue)

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


@dataclass
class Site:
    """What the tests of a module share."""

    rabbit: RabbitServer
    settings: Settings
    adapter: AdapterProcess
    tenant: factories.TenantRow

    def device(self, name: str = "pump") -> Device:
        """A new device."""
        return Device(self.tenant, name)


@contextlib.contextmanager
def site(node: RabbitServer, settings: Settings) -> Iterator[Site]:
    """The adapter over `settings` and a virtual host of the node; active for `config.load()`."""
    with node.virtual_host():
        own = settings.model_copy(update=node.fields)
        (own.data_dir / "adapter.log").unlink(missing_ok=True)
        with services.active(own), adapter(own, "amqp") as process:
            yield Site(node, own, process, factories.make_tenant())
