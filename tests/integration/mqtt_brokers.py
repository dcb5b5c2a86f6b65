"""Both brokers behind one face: Mosquitto with dynamic security, and amqtt, which stands in where that cannot be installed."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from iiot import broker
from iiot.config import Settings
from iiot.embedded import mqtt, ports
from iiot.services import authority
from tests import services
from tests.services import SECRET, MosquittoServer, eventually

KINDS = ("mosquitto", "amqtt")
WITNESS = "witness"
V311, V5 = MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5


class AmqttServer(services.Server):
    """amqtt as `up` starts it; it reads its devices from the database of the settings."""

    host = "127.0.0.1"
    newest = 4

    def __init__(self, folder: Path, settings: Settings) -> None:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.users = mqtt.ServiceUsers(folder / "secrets")
        self.ports = {name: ports.free_port() for name in ("mqtt_bind", "mqtt_tls_bind", "mqtt_ws_bind")}
        self.pki = authority.Pki(folder / "pki", settings.derived_key("authority"))
        binds = {name: (self.host, port) for name, port in self.ports.items()}
        amqtt = mqtt.Amqtt(self.users, folder / "logs", binds, {})
        self.fields: dict[str, Any] = {
            "mqtt_url": amqtt.url,
            "mqtt_broker": "amqtt",
            "pki_dir": self.pki.folder,
        } | {name: f"{self.host}:{port}" for name, port in self.ports.items()}
        environment = services.environment(settings.model_copy(update=self.fields))
        super().__init__(replace(amqtt, environment=environment))

    @property
    def port(self) -> int:
        """Where devices connect."""
        return self.ports["mqtt_bind"]


Broker = MosquittoServer | AmqttServer


@dataclass
class UnderTest:
    """A running broker, and what may be asked of it."""

    kind: str
    server: Broker
    settings: Settings

    @property
    def versions(self) -> tuple[MQTTProtocolVersion, ...]:
        """The versions of MQTT that it speaks."""
        return (V311, V5) if self.server.newest == 5 else (V311,)

    @property
    def ca(self) -> str:
        """The file of what its certificate is checked with."""
        return str(self.server.pki.path("server"))

    def witness(self) -> "Peer":
        """A connection that sees, and may send, what devices send and get: everything at Mosquitto, all below `iiot/` at amqtt."""
        if self.kind == "mosquitto":
            everything = [
                {"acltype": kind, "topic": topic, "priority": 0, "allow": True}
                for kind in ("publishClientSend", "publishClientReceive", "subscribePattern")
                for topic in ("#", "$SYS/#", "$CONTROL/#")
            ]
            broker.ask([
                {"command": "createRole", "rolename": WITNESS, "acls": everything},
                {"command": "createClient", "username": WITNESS, "password": SECRET, "roles": [{"rolename": WITNESS}]},
            ])  # fmt: skip
            found = Peer(self, WITNESS, SECRET, WITNESS)
            assert found.subscribe("#")
        else:
            found = Peer(self, mqtt.ADAPTER, self.server.users.password(mqtt.ADAPTER), WITNESS)
            assert found.subscribe("iiot/#")
        return found


@dataclass
class Options:
    """How a peer connects, when not plainly."""

    version: MQTTProtocolVersion = V311
    transport: str = "tcp"
    tls: bool = False
    persistent: bool = False
    will: str | None = None


@dataclass
class Peer:
    """A paho client with everything that happened to it; connected, or refused, when it is made."""

    under: UnderTest
    user: str
    password: str
    client_id: str
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        self.codes: list[str] = []
        self.messages: list[tuple[str, bytes, bool]] = []
        self.published: dict[int, bool] = {}
        self.granted: dict[int, bool] = {}
        self.gone = threading.Event()
        options = self.options
        five = options.version == V5
        self.client = client = Client(
            CallbackAPIVersion.VERSION2,
            self.client_id,
            clean_session=None if five else not options.persistent,
            protocol=options.version,
            transport=options.transport,  # type: ignore[arg-type]
            reconnect_on_failure=False,
        )
        client.username_pw_set(self.user, self.password)
        client.max_inflight_messages_set(1000)
        if options.will is not None:
            client.will_set(options.will, b"will", qos=1)
        if options.tls:
            client.tls_set(self.under.ca)
        client.on_connect = lambda _c, _u, _f, code, _p: self.codes.append(str(code))
        client.on_disconnect = lambda *_: self.gone.set()
        client.on_message = lambda _c, _u, m: self.messages.append((m.topic, bytes(m.payload), bool(m.retain)))
        client.on_publish = lambda _c, _u, mid, code, _p: self.published.update({mid: not code.is_failure})
        client.on_subscribe = lambda _c, _u, mid, codes, _p: self.granted.update({mid: not codes[0].is_failure})
        name = {"websockets": "mqtt_ws_bind"}.get(options.transport, "mqtt_tls_bind" if options.tls else "mqtt_bind")
        properties = None
        if five and options.persistent:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 3600
        kept = {"clean_start": not options.persistent, "properties": properties} if five else {}
        client.connect("127.0.0.1", self.under.server.ports[name], 30, **kept)  # type: ignore[arg-type]
        client.loop_start()
        eventually(lambda: self.codes or self.gone.is_set(), 30)

    @property
    def admitted(self) -> bool:
        """Whether the broker took the login."""
        return self.codes == ["Success"]

    def subscribe(self, topic: str) -> bool:
        """Whether it was granted."""
        mid = self.client.subscribe(topic, qos=1)[1]
        eventually(lambda: mid in self.granted, 30)
        return self.granted[mid]

    def publish(self, topic: str, payload: bytes | str, qos: int = 1, retain: bool = False) -> None:
        """Returns when the broker has confirmed it, whatever it said."""
        self.client.publish(topic, payload, qos=qos, retain=retain).wait_for_publish(30)

    def on(self, ending: str) -> list[bytes]:
        """The payloads that came on topics with this ending."""
        return [payload for topic, payload, _ in self.messages if topic.endswith(ending)]

    def drop(self) -> None:
        """End without a DISCONNECT: the broker sends the last will."""
        sock: Any = self.client.socket()
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)
        self.client.loop_stop()

    def close(self) -> None:
        """Leave in an orderly way."""
        self.client.disconnect()
        self.client.loop_stop()


@contextlib.contextmanager
def running(kind: str, settings: Settings, folder: Path) -> Iterator[UnderTest]:
    """A broker of a kind, with settings that name it active meanwhile."""
    server = MosquittoServer(folder) if kind == "mosquitto" else AmqttServer(folder, settings)
    server.start()
    try:
        with services.active(settings.model_copy(update=server.fields)) as changed:
            yield UnderTest(kind, server, changed)
    finally:
        server.stop()
