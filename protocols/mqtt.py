"""The MQTT adapter: subscribes to what devices send, acknowledges after the commit, tells devices what was refused.

One connection with a fixed client id and a session that survives it: what is not acknowledged comes again. MQTT 5 by
default, because there the client states how many unacknowledged messages it takes (Receive Maximum); with 3.1.1
Mosquitto's `max_inflight_messages` decides, 20 unless configured.

Subscribed at QoS 1, on purpose also for messages published at QoS 2: at QoS 2 the PUBREC, which has to be sent before
the commit, ends the broker's duty to send the message again, so a crash would lose it. At least once plus the primary
key of telemetry is exactly once.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from protocols import mqtt_commands
from protocols.base import AdapterError, ConnectionLost, Inbox, Kind, Message, Order, Outcome, Refusal
from protocols.mqtt_stream import Publish, StreamClient

NAME = "mqtt"
DESCRIPTION = "MQTT 5 and 3.1.1: iiot/<uid>/up/… from the broker of IIOT_MQTT_URL"

CLIENT_ID: Final = "iiot-adapter"
SUBSCRIPTION: Final = "iiot/+/up/#"
# What nodes of the smart-home scheme say.
HOMES: Final = ("home/+/+/+/+/state", "home/+/+/status")
STATUS_TOPIC: Final = "iiot/service/mqtt/status"
NEVER_EXPIRES: Final = 0xFFFFFFFF
# Room for acknowledgements of live data that wait for late data before it: see `mqtt_stream.Stream.acknowledge`.
RECEIVE_MAXIMUM: Final = 65_535
CONNECT_SECONDS: Final = 10.0
# How long the loop sleeps when nothing happens; also the longest time until it sees `stop`.
TICK_SECONDS: Final = 0.25
LEAVE_SECONDS: Final = 2.0
KINDS: Final[dict[str, Kind]] = {"telemetry": "telemetry", "status": "status", "gateway/telemetry": "gateway"}
TOPICS_KEPT: Final = 50_000
# Refusals told to a device per message; the full list is in rejected_message.
TOLD_PER_MESSAGE: Final = 5
# Notices to devices wait here while they are offline to us; beyond it they are dropped, as they are a courtesy.
NOTICES_QUEUED: Final = 10_000
# A device that is seen on another protocol, and does not take its command there, may listen here.
OTHERS_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the broker is and who connects. `version` 5 or 4 (which means 3.1.1). `authority`: a PEM file, None for those of the machine."""

    host: str
    port: int
    username: str | None
    password: str | None
    version: Literal[4, 5] = 5
    tls: bool = False
    authority: str | None = None


def parse_url(url: str) -> Address:
    """`mqtt://user:password@host:port`, `mqtts://` for TLS, `?version=3.1.1` for old brokers. Raises AdapterError."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0:
        raise AdapterError("IIOT_MQTT_URL must look like mqtt://user:password@host:1883 (mqtts:// for TLS)")
    if parts.query not in ("", "version=5", "version=3.1.1"):
        raise AdapterError("IIOT_MQTT_URL knows one option: ?version=5 or ?version=3.1.1")
    tls = parts.scheme == "mqtts"
    return Address(
        parts.hostname,
        port or (8883 if tls else 1883),
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        4 if parts.query.endswith("3.1.1") else 5,
        tls,
    )


def make(settings: Any) -> MqttAdapter:
    """Build the adapter from the portal's settings (`mqtt_url`)."""
    if not settings.mqtt_url:
        raise AdapterError("there is no MQTT broker: set IIOT_MQTT_URL, or start the embedded one: python -m iiot up")
    path = settings.mqtt_ca_path
    return MqttAdapter(replace(parse_url(settings.mqtt_url), authority=None if path is None else str(path)))


class MqttAdapter:
    """See `protocols.base.Adapter`."""

    any_order = True

    def __init__(self, address: Address, client_id: str = CLIENT_ID) -> None:
        self.address = address
        self.client_id = client_id
        self._connection: _Connection | None = None
        # With MQTT 5 the broker tells who listens, so devices may be tried that were never seen here.
        tells = address.version == 5
        self.strangers_after = 0.0 if tells else None
        self.others_after = OTHERS_SECONDS if tells else None

    def check(self) -> None:
        """Log in with a client id of our own kind and leave."""
        client = _client(self.address, self.client_id, persistent=True)
        try:
            _connect(client, self.address)
        except ConnectionLost as error:
            raise AdapterError(str(error)) from error
        client.disconnect()

    def run(self, inbox: Inbox, stop: threading.Event) -> None:
        """One connection, from CONNECT to its end."""
        self._connection = _Connection(self.address, self.client_id, inbox)
        self._connection.serve(stop)

    def command(self, order: Order) -> bool:
        """See `protocols.base.Commander`: confirmed by the broker, which keeps it for a device with a session."""
        connection = self._connection
        if connection is None or not (connection.alive and connection.subscribed):
            return False
        return mqtt_commands.publish(connection.client, order, connection.unheard, five=self.address.version == 5)

    def send(self, uid: str, token: str, payload: bytes) -> None:
        """Publish one telemetry message as the device, QoS 1; its PUBACK is the broker's, not yet the database's."""
        address = replace(self.address, username=uid, password=token)
        client = _client(address, uid, persistent=False)
        try:
            _connect(client, address)
            info = client.publish(f"iiot/{uid}/up/telemetry", payload, qos=1)
            _loop_until(client, info.is_published)
        except ConnectionLost as error:
            raise AdapterError(str(error)) from error
        client.disconnect()


class _Connection:
    """One connection and the loop that serves it, in the runner's main thread; `settle` is called by its writer."""

    def __init__(self, address: Address, client_id: str, inbox: Inbox) -> None:
        self.inbox = inbox
        self.address = address
        self.alive = True
        self.subscribed = False
        self.lost: str | None = None
        self._topics: dict[bytes, tuple[str, Kind, str]] = {}
        # The writer wakes the loop through this pair when it has queued acknowledgements.
        self.bell, self.button = socket.socketpair()
        self.bell.setblocking(False)
        self.button.setblocking(False)
        self.client = client = _client(address, client_id, persistent=True)
        client.will_set(STATUS_TOPIC, "offline", qos=1, retain=True)
        client.max_queued_messages_set(NOTICES_QUEUED)
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_publish = self.unheard = mqtt_commands.Unheard()
        # With this callback set paho only queues what other threads send, and calls it once per burst.
        client.on_socket_register_write = self._ring

    def serve(self, stop: threading.Event) -> None:
        """Connect, subscribe, deliver until `stop` or the end of the connection."""
        try:
            _connect(self.client, self.address)
            self.stream = self.client.stream
            self._subscribe()
            self._loop(stop)
            self._leave()
        except OSError as error:
            raise ConnectionLost(f"the connection to the broker failed: {error}") from error
        finally:
            self.alive = False
            _drop(self.client)
            self.bell.close()
            self.button.close()

    def _subscribe(self) -> None:
        if self.address.version == 5:
            # Retained states come once per session, not at every reconnect.
            options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
            self.client.subscribe([(topic, options) for topic in (SUBSCRIPTION, *HOMES)])
        else:
            self.client.subscribe([(topic, 1) for topic in (SUBSCRIPTION, *HOMES)])

    def _loop(self, stop: threading.Event) -> None:
        """Read what has come, write what is queued, keep alive."""
        stream = self.client.stream
        stream.on_publish = self._on_publish
        poller = select.poll()
        poller.register(self.bell, select.POLLIN)
        poller.register(stream, select.POLLIN)
        self._check(stream.pump(self.client))
        writing, next_misc = False, 0.0
        while not stop.is_set():
            self._write()
            if writing != stream.unsent:
                writing = stream.unsent
                poller.modify(stream, select.POLLIN | (select.POLLOUT if writing else 0))
            for fd, event in poller.poll(TICK_SECONDS * 1000):
                if fd == self.bell.fileno():
                    self._quiet_bell()
                elif event & ~select.POLLOUT:
                    self._check(stream.pump(self.client))
            now = time.monotonic()
            if now >= next_misc:
                next_misc = now + 1.0
                self._check(self.client.loop_misc())

    def _write(self) -> None:
        """Send everything that is queued."""
        # Asked again each round: another thread may have queued before paho's flag fell.
        while self.client.want_write():
            self._check(self.client.loop_write())
        self.client.stream.flush()

    def _leave(self) -> None:
        """Stopped: let the runner settle what it has, send the acknowledgements, and keep the session at the broker."""
        self.inbox.finish()
        self.alive = False
        self.client.publish(STATUS_TOPIC, "offline", qos=0, retain=True)
        deadline = time.monotonic() + LEAVE_SECONDS
        self._write()
        while self.client.stream.unsent and time.monotonic() < deadline:
            select.select([], [self.client.stream], [], TICK_SECONDS)
            self._write()
        self.client.stream.patience = LEAVE_SECONDS
        self.client.disconnect()
        self.client.loop_write()

    def _check(self, code: MQTTErrorCode) -> None:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or self.lost is not None:
            raise ConnectionLost(self.lost or f"the connection to the broker ended: {code.name}")

    def _quiet_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.bell.recv(4096):
                pass

    def _ring(self, *_: Any) -> None:
        """Wake the loop. Full: it is awake anyway. Closed: there is nobody to wake."""
        with contextlib.suppress(OSError):
            self.button.send(b"!")

    def _on_publish(self, packet: Publish) -> None:
        uid, kind, topic = self._address_of(packet.topic)
        content_type = None if packet.properties is None else getattr(packet.properties, "ContentType", None)
        receipt = packet.packet_id if packet.qos else None
        message = Message(uid, kind, packet.payload, topic, self._settle, receipt, content_type, packet.retain)
        if kind == "result":
            message.command_id = topic.rpartition("/")[2]
        self.inbox.deliver(message)

    def _address_of(self, name: bytes) -> tuple[str, Kind, str]:
        """What a topic says: (uid, kind, the topic as text). Devices have few topics, so the answer is kept."""
        known = self._topics.get(name)
        if known is None:
            topic = name.decode("utf-8", "replace")
            # The subscription also matches iiot/<uid>/up, which has no fourth part.
            first, uid, third, rest = f"{topic}/".split("/", 3)
            rest, is_home = rest.removesuffix("/"), first == "home"
            if rest.startswith(mqtt_commands.RESULT) and not is_home:
                # Every command has a topic of its own: nothing to remember.
                return uid, "result", topic
            kind: Kind = "home" if is_home else KINDS.get(rest, "other")
            known = (f"home/{uid}/{third}" if is_home else uid, kind, topic)
            if len(self._topics) >= TOPICS_KEPT:
                self._topics.clear()
            self._topics[name] = known
        return known

    def _on_subscribe(
        self, _client: Client, _userdata: Any, _mid: int, codes: list[ReasonCode], _props: Properties | None
    ) -> None:
        if any(code.is_failure for code in codes):
            topics = ", ".join((SUBSCRIPTION, *HOMES))
            self.lost = f"the broker refused the subscription to {topics}; check the adapter's role"
            return
        self.subscribed = True
        self.client.publish(STATUS_TOPIC, "online", qos=1, retain=True)
        self.inbox.connected()

    def _on_disconnect(
        self, _client: Client, _userdata: Any, _flags: DisconnectFlags, code: ReasonCode, _props: Properties | None
    ) -> None:
        self.lost = f"the broker ended the connection: {code}"

    def _settle(self, message: Message, outcome: Outcome) -> None:
        """Acknowledge on the connection the message came by. On a later one its number belongs to another message."""
        if not self.alive:
            return
        try:
            if outcome.refusals and message.uid:
                self._tell_refusals(message, outcome.refusals)
            if outcome.ack_ts is not None:
                self._tell(message.uid, "ack", {"ts": outcome.ack_ts})
        finally:
            # Whatever became of the notice: an acknowledgement that is missing would hold back all that follow.
            packet_id = message.receipt
            if packet_id is not None and self.stream.acknowledge(packet_id):
                self._ring()

    def _tell_refusals(self, message: Message, refusals: tuple[Refusal, ...]) -> None:
        for refusal in refusals[:TOLD_PER_MESSAGE]:
            self._tell(message.uid, "error", refusal.receipt() | {"topic": message.topic})

    def _tell(self, uid: str, word: str, notice: dict[str, Any]) -> None:
        self.client.publish(f"iiot/{uid}/down/{word}", json.dumps(notice, ensure_ascii=False), qos=1)


def _client(address: Address, client_id: str, *, persistent: bool) -> StreamClient:
    """A client that acknowledges by hand and, when `persistent`, finds its session again."""
    five = address.version == 5
    client = StreamClient(
        CallbackAPIVersion.VERSION2,
        client_id,
        clean_session=None if five else not persistent,
        protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
        manual_ack=True,
        reconnect_on_failure=False,
    )
    client.connect_timeout = CONNECT_SECONDS
    client.username_pw_set(address.username, address.password)
    if address.tls:
        client.tls_set(address.authority)
    if persistent:
        client.user_data_set("persistent")
    return client


def _connect(client: StreamClient, address: Address) -> None:
    """CONNECT and wait for the answer. Raises ConnectionLost with the broker's reason and what to look at."""
    answers: list[ReasonCode] = []

    def on_connect(_client: Client, _userdata: Any, _flags: ConnectFlags, code: ReasonCode, _props: Any) -> None:
        answers.append(code)

    persistent = client.user_data_get() == "persistent"
    client.on_connect = on_connect
    where = f"the broker at {address.host}:{address.port}"
    try:
        if address.version == 5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            if persistent:
                properties.SessionExpiryInterval = NEVER_EXPIRES
                properties.ReceiveMaximum = RECEIVE_MAXIMUM
            client.connect(address.host, address.port, 60, clean_start=not persistent, properties=properties)
        else:
            client.connect(address.host, address.port, 60)
        _loop_until(client, lambda: bool(answers))
    except OSError as error:
        raise ConnectionLost(f"{where} cannot be reached: {error}") from error
    if answers[0].is_failure:
        _drop(client)
        raise ConnectionLost(f"{where} refused the login: {answers[0]}; check user and password in IIOT_MQTT_URL")


def _loop_until(client: StreamClient, done: Callable[[], bool]) -> None:
    """Serve the connection in this thread until `done()`, at most CONNECT_SECONDS. Messages stay unread."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while not done():
        while client.want_write():
            client.loop_write()
        client.stream.flush()
        select.select([client.stream], [], [], TICK_SECONDS)
        code = client.stream.pump(client)
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS and not done():
            raise ConnectionLost(f"the broker ended the connection: {code.name}")
        if time.monotonic() > deadline:
            raise ConnectionLost("the broker does not answer")


def _drop(client: Client) -> None:
    """Close the connection without a DISCONNECT, if it is still open: the broker then publishes the last will."""
    sock = client.socket()
    if sock is not None:
        sock.close()
