"""The AMQP 0-9-1 adapter: takes what devices publish to RabbitMQ, acknowledges after the commit, hands commands to queues of the devices.

Devices publish to the topic exchange `iiot`; the quorum queue `telemetry` and the queue `result` keep the messages on disk until they are
acknowledged, in groups and after the commit. A device is who its routing key says: RabbitMQ lets a user write its own keys alone (`iiot.rabbitmq`).
What was refused is copied to `telemetry.dead` with the reason in its headers; so is what was handed out LIMIT times and never settled, with RabbitMQ's
own header `x-death`.

Sources: the AMQP 0-9-1 specification; rabbitmq.com/docs/quorum-queues, /confirms, /consumer-prefetch, /connection-blocked.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import pika
from pika.adapters.select_connection import IOLoop
from pika.exceptions import AMQPError, UnroutableError

from protocols.amqp_out import DEAD, Outgoing
from protocols.amqp_stream import Properties, StreamConnection, read_more_at_once
from protocols.amqp_tags import Tags
from protocols.base import AdapterError, ConnectionLost, Inbox, Kind, Message, Order, Outcome, Refusal

NAME = "amqp"
DESCRIPTION = "AMQP 0-9-1: exchange iiot, keys telemetry.<uid> and result.<uid>, at the RabbitMQ of IIOT_AMQP_URL"

EXCHANGE: Final = "iiot"
QUEUES: Final[dict[str, Kind]] = {"telemetry": "telemetry", "result": "result"}
# Each end of a connection counts as one for all that was on its way, so it is high: only what ends the adapter every time gets there.
LIMIT: Final = 100
DEAD_KEPT: Final = 100_000
# As high as goes, since late messages that wait in their lane count, too; with ANSWERS less than the runner's queue, so that the loop never waits for
# the database and goes on answering heartbeats.
PREFETCH: Final = 16_000
ANSWERS: Final = 2_000
CONNECT_SECONDS: Final = 10.0
TICK_SECONDS: Final = 0.25
LEAVE_SECONDS: Final = 2.0
LOGIN: Final = "user, password and rights in IIOT_AMQP_URL"
# For RabbitMQ's confirmation of a command; without one the command comes again.
CONFIRM_SECONDS: Final = 2.0
KEYS_KEPT: Final = 100_000
# For clients that cannot set a correlation id.
COMMAND_HEADER: Final = "command-id"

# It tells of every lost connection with a trace; the runner has a line for that.
logging.getLogger("pika").setLevel(logging.CRITICAL)


def parse_url(url: str) -> pika.ConnectionParameters:
    """`amqp://user:password@host:port/vhost`, `amqps://` for TLS. Raises AdapterError."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname or parts.port == 0:
            raise ValueError("not an address")
        parameters = pika.URLParameters(url)
    except ValueError as error:
        hint = "IIOT_AMQP_URL must look like amqp://user:password@host:5672/vhost (amqps:// for TLS)"
        raise AdapterError(hint) from error
    parameters.socket_timeout = parameters.stack_timeout = CONNECT_SECONDS
    parameters.blocked_connection_timeout = None
    parameters.heartbeat = 30
    parameters.client_properties = {"connection_name": "iiot-adapter"}
    return parameters


def make(settings: Any) -> AmqpAdapter:
    """Build the adapter from the portal's settings (`amqp_url`)."""
    if not settings.amqp_is_on:
        raise AdapterError(
            "there is no RabbitMQ: set IIOT_AMQP_URL, or install rabbitmq-server and start: python -m iiot up"
        )
    return AmqpAdapter(parse_url(settings.amqp_url))


class AmqpAdapter:
    """See `protocols.base.Adapter` and `Commander`. The queue keeps a command for a device that was never seen, unless it listens over MQTT."""

    any_order = True
    strangers_after = 2.0

    def __init__(self, parameters: pika.ConnectionParameters) -> None:
        self.parameters = parameters
        self._connection: _Connection | None = None

    def check(self) -> None:
        """Log in as the adapter does and leave."""
        with _blocking(self.parameters):
            pass

    def run(self, inbox: Inbox, stop: threading.Event) -> None:
        """One life of the two connections, from login to their end."""
        self._connection = connection = _Connection(self.parameters, inbox)
        connection.serve(stop)

    def command(self, order: Order) -> bool:
        """See `protocols.base.Commander`: RabbitMQ has confirmed that it is in the device's queue."""
        connection = self._connection
        return connection is not None and connection.alive and connection.command(order)

    def send(self, uid: str, token: str, payload: bytes) -> None:
        """Publish one telemetry message as the device; confirmed by RabbitMQ, which has it on disk, not yet by the database."""
        own = pika.ConnectionParameters(
            host=self.parameters.host,
            port=self.parameters.port,
            virtual_host=self.parameters.virtual_host,
            credentials=pika.PlainCredentials(uid, token),
            ssl_options=self.parameters.ssl_options,
            socket_timeout=CONNECT_SECONDS,
            stack_timeout=CONNECT_SECONDS,
        )
        with _blocking(own, "the uid and the token") as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
            channel.basic_publish(EXCHANGE, f"telemetry.{uid.partition('.')[0]}", payload, properties, mandatory=True)


@contextlib.contextmanager
def _blocking(parameters: pika.ConnectionParameters, login: str = LOGIN) -> Iterator[Any]:
    """A short connection. Raises AdapterError with what went wrong; `login`: what to check when it was refused."""
    where = f"RabbitMQ at {parameters.host}:{parameters.port}"
    try:
        connection = pika.BlockingConnection(parameters)
        try:
            yield connection
        finally:
            if connection.is_open:
                connection.close()
    except UnroutableError as error:
        raise AdapterError(
            f"{where} has no queue for telemetry yet: start the adapter, python -m protocols run amqp"
        ) from error
    except (AMQPError, OSError) as error:
        raise AdapterError(f"{where}: {_text(error, login)}") from error


def _text(error: object, login: str = LOGIN) -> str:
    """What a person reads of pika's error: some have no text of their own, and those of a connection hide the cause."""
    cause = error
    while getattr(cause, "exceptions", None) or getattr(cause, "exception", None):
        inner = getattr(cause, "exceptions", None)
        cause = inner[-1] if inner else cause.exception  # type: ignore[attr-defined]
    text = str(cause) or type(cause).__name__
    refused = "ACCESS_REFUSED" in text or "Authentication" in type(cause).__name__
    return f"{text}; check {login}" if refused else text


class _Connection:
    """The connection that consumes, the one that publishes, and the loop of both, in the runner's main thread; `settle` is called by its writers."""

    def __init__(self, parameters: pika.ConnectionParameters, inbox: Inbox) -> None:
        self.inbox = inbox
        self.parameters = parameters
        self.alive = True
        self.lost: str | None = None
        self.loop = IOLoop()
        self._keys: dict[bytes, tuple[str, Kind, str]] = {}
        self._channel: Any = None
        self._declared = self._consuming = self._connected = self._closing = False
        self._consumed = 0
        # Written by the writers' threads, read by the loop: what is settled, and what has to be told.
        self._tags = Tags()
        self._rung = False
        self._refused: deque[tuple[Message, Outcome]] = deque()
        self.outgoing = Outgoing(parameters, self.loop, self._start, self._on_lost)
        self.consumer = StreamConnection(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel),
            on_open_error_callback=lambda _connection, error: self._on_lost(error),
            on_close_callback=lambda _connection, error: self._on_lost(error),
            custom_ioloop=self.loop,
        )

    def serve(self, stop: threading.Event) -> None:
        """Connect, declare, deliver until `stop` or the end of a connection."""
        deadline = time.monotonic() + CONNECT_SECONDS * 2
        try:
            self._tick(stop, deadline)
            self.loop.start()
            if self.lost is None:
                self._leave()
        except AMQPError as error:
            raise ConnectionLost(_text(error)) from error
        finally:
            self.alive = False
            self._close()
        if self.lost is not None and not stop.is_set():
            raise ConnectionLost(self.lost)

    def _tick(self, stop: threading.Event, deadline: float) -> None:
        """Look at `stop` now and then; give up a connection that does not get ready."""
        if stop.is_set():
            self.loop.stop()
            return
        if not self._connected and time.monotonic() > deadline:
            self._on_lost("RabbitMQ does not answer")
            return
        self.loop.call_later(TICK_SECONDS, lambda: self._tick(stop, deadline))

    def _on_lost(self, error: object) -> None:
        """Either connection has failed or ended: both end."""
        if self._closing:
            return
        if self.lost is None:
            self.lost = f"RabbitMQ at {self.parameters.host}:{self.parameters.port}: {_text(error)}"
        self.alive = False
        self.loop.stop()

    def _close(self) -> None:
        """Close both connections; what is not acknowledged RabbitMQ hands out again. Takes LEAVE_SECONDS at most.

        One that is still logging in is waited for: pika cannot give that up in the middle.
        """
        self._closing = True
        connections = [self.consumer, self.outgoing.connection]
        deadline = time.monotonic() + LEAVE_SECONDS

        def look() -> None:
            for connection in connections:
                if connection.is_open:
                    with contextlib.suppress(AMQPError):
                        connection.close()
            if all(connection.is_closed for connection in connections) or time.monotonic() > deadline:
                self.loop.stop()
            else:
                self.loop.call_later(0.02, look)

        look()
        self.loop.start()
        self.loop.close()

    # The topology, then the messages.

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(lambda _channel, error: self._on_lost(error))
        steps = iter(self._steps(channel))

        def advance(_frame: Any = None) -> None:
            step = next(steps, None)
            if step is not None:
                step(advance)
            else:
                self._declared = True
                self._start()

        advance()

    @staticmethod
    def _steps(channel: Any) -> list[Callable[[Callable[[Any], None]], Any]]:
        """Exchange, queues and bindings of CONTRACT 7; each step is made, or found as it shall be, before the next."""
        living = {
            "x-queue-type": "quorum",
            "x-delivery-limit": LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": DEAD,
            # Kept until the other queue has it (rabbitmq.com/docs/quorum-queues); needs this way of overflowing, though the queue has no bound.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        dead = {"x-max-length": DEAD_KEPT}
        return [
            lambda done: channel.exchange_declare(EXCHANGE, "topic", durable=True, callback=done),
            lambda done: channel.queue_declare("telemetry", durable=True, arguments=living, callback=done),
            lambda done: channel.queue_declare(DEAD, durable=True, arguments=dead, callback=done),
            lambda done: channel.queue_bind("telemetry", EXCHANGE, "telemetry.#", callback=done),
            lambda done: channel.queue_declare("result", durable=True, callback=done),
            lambda done: channel.queue_bind("result", EXCHANGE, "result.#", callback=done),
        ]

    def _start(self) -> None:
        """Consume once both connections are ready; called by each, and by the second one again when its channel was opened anew."""
        if self._consuming or not self._declared or not self.outgoing.is_open:
            return
        self._consuming = True
        read_more_at_once(self.consumer)
        self.consumer.on_deliver = self._on_deliver
        self._channel.add_on_cancel_callback(lambda _frame: self._on_lost("a queue was deleted"))
        for queue in QUEUES:
            # Of the consumers that follow, each.
            self._channel.basic_qos(prefetch_count=PREFETCH if queue == "telemetry" else ANSWERS)
            self._channel.basic_consume(queue, _never, callback=self._on_consume)

    def _on_consume(self, _frame: Any) -> None:
        """RabbitMQ hands out from now on, from all queues."""
        self._consumed += 1
        if self._consumed == len(QUEUES):
            self._connected = True
            self.inbox.connected()

    def _on_deliver(self, tag: int, key: bytes, properties: Properties, payload: bytes) -> None:
        uid, kind, topic = self._address_of(key)
        message = Message(uid, kind, payload, topic, self._settle, tag, properties.content_type)
        sender = properties.user_id
        if kind == "other" or (sender is not None and sender != uid and sender.partition(".")[0] != uid):
            # RabbitMQ lets no device do that; an administrator may have.
            self._bury_unproved(message)
            return
        if kind == "result":
            message.command_id = properties.correlation_id or properties.header(COMMAND_HEADER)
        self.inbox.deliver(message)

    def _address_of(self, key: bytes) -> tuple[str, Kind, str]:
        """What a routing key says: (uid, kind, the key as text). Devices have two, so the answer is kept."""
        known = self._keys.get(key)
        if known is None:
            topic = key.decode(errors="replace")
            word, _, uid = topic.partition(".")
            known = (uid, QUEUES.get(word, "other") if uid and "." not in uid else "other", topic)
            if len(self._keys) >= KEYS_KEPT:
                self._keys.clear()
            self._keys[key] = known
        return known

    def _bury_unproved(self, message: Message) -> None:
        reason = "the sender is not the device of the routing key; devices publish telemetry.<uid> and result.<uid> as themselves"
        self._settle(message, Outcome(refusals=(Refusal("wrong-sender", reason),)))

    # Settling.

    def _settle(self, message: Message, outcome: Outcome) -> None:
        """Note it, and wake the loop once for all that is settled meanwhile. On a later connection the tag belongs to another message."""
        if not self.alive:
            return
        if outcome.refusals:
            self._refused.append((message, outcome))
        self._tags.settle(message.receipt)
        if not self._rung:
            self._rung = True
            self._call(self._flush)

    def _call(self, callback: Callable[[], None]) -> None:
        """Have the loop do it. Closed meanwhile: there is nobody to do it."""
        with contextlib.suppress(Exception):
            self.loop.add_callback_threadsafe(callback)

    def _flush(self) -> None:
        """Tell RabbitMQ what is settled, after the copies of what was refused."""
        self._rung = False
        if not self._channel.is_open:
            return
        together, alone = self._tags.take()
        while self._refused:
            message, outcome = self._refused.popleft()
            self.outgoing.bury(message, outcome.refusals, outcome.accepted)
        if together:
            self._channel.basic_ack(together, multiple=True)
        for tag in alone:
            self._channel.basic_ack(tag)

    def command(self, order: Order) -> bool:
        """Called by the thread of the commands."""
        answered, good = threading.Event(), []

        def done(confirmed: bool) -> None:
            good.append(confirmed)
            answered.set()

        def publish() -> None:
            if time.monotonic() < deadline:
                self.outgoing.command(order, done)

        deadline = time.monotonic() + CONFIRM_SECONDS
        self._call(publish)
        return answered.wait(CONFIRM_SECONDS) and good[0]

    def _leave(self) -> None:
        """Stopped: let the runner settle what it has, and acknowledge that."""
        self.inbox.finish()
        if self._consuming:
            self._flush()


def _never(*_: Any) -> None:
    """pika asks for a callback per consumer; deliveries take the short way."""
