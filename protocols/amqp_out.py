"""What the AMQP adapter publishes: commands, and refused messages for `telemetry.dead`. Not an adapter.

It has a connection of its own, since RabbitMQ stops reading from those that publish when memory or disk run short, and acknowledgements must go on
then. All methods are called from the adapter's loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import pika
import structlog
from pika.adapters.select_connection import IOLoop
from pika.spec import Basic
from prometheus_client import Counter

from protocols.base import Message, Order, Refusal

DEAD: Final = "telemetry.dead"
COMMANDS: Final = "command."
REOPEN_SECONDS: Final = 1.0
# Beyond it copies of refused messages are dropped: the portal has kept them.
UNCONFIRMED: Final = 10_000
LOG_SECONDS: Final = 1.0
Done = Callable[[bool], None]

dead_lost_total = Counter(
    "iiot_amqp_dead_lost_total", "Copies of refused messages for telemetry.dead that were dropped, or not confirmed."
)

log = structlog.get_logger("protocols")


class Outgoing:
    """A connection and a channel with publisher confirms. `lost` is called when the connection fails or ends."""

    def __init__(
        self,
        parameters: pika.ConnectionParameters,
        loop: IOLoop,
        ready: Callable[[], None],
        lost: Callable[[Any], None],
    ) -> None:
        self.loop = loop
        self._ready = ready
        self._channel: Any = None
        self._number = 0
        self._waiting: dict[int, Done] = {}
        self._returned: set[str] = set()
        self._lost = 0
        self._log_from = 0.0
        self.blocked = False
        self.connection = pika.SelectConnection(
            parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=lambda _connection, error: lost(error),
            on_close_callback=lambda _connection, error: lost(error),
            custom_ioloop=loop,
        )

    @property
    def is_open(self) -> bool:
        """Whether something can be published now."""
        return self._channel is not None and self._channel.is_open and not self.blocked

    def _on_open(self, connection: pika.SelectConnection) -> None:
        connection.add_on_connection_blocked_callback(lambda *_: self._block(True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._block(False))
        self._open_channel()

    def _block(self, blocked: bool) -> None:
        self.blocked = blocked
        log.warning(
            "RabbitMQ takes no messages: memory or disk run short" if blocked else "RabbitMQ takes messages again"
        )

    def _open_channel(self) -> None:
        if self.connection.is_open:
            self.connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        self._number = 0
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._ready())

    def _on_channel_closed(self, _channel: Any, error: Exception) -> None:
        """A queue that somebody made otherwise, or a right that is missing, must not end the taking in of telemetry."""
        self._channel = None
        waiting, self._waiting = self._waiting, {}
        for done in waiting.values():
            done(False)
        if self.connection.is_open:
            log.error("RabbitMQ refused a publication", error=str(error)[:300])
            self.loop.call_later(REOPEN_SECONDS, self._open_channel)

    def _on_return(self, _channel: Any, _method: Any, properties: pika.BasicProperties, _body: bytes) -> None:
        """A mandatory message that no queue took; its confirmation follows."""
        if properties.message_id is None:
            self._copied(False)
        else:
            self._returned.add(str(properties.message_id))

    def _on_confirm(self, answer: Any) -> None:
        tag, good = answer.method.delivery_tag, isinstance(answer.method, Basic.Ack)
        numbers = [number for number in self._waiting if number <= tag] if answer.method.multiple else [tag]
        for number in numbers:
            done = self._waiting.pop(number, None)
            if done is not None:
                done(good)

    def _publish(self, key: str, body: bytes, properties: pika.BasicProperties, done: Done) -> None:
        self._number += 1
        self._waiting[self._number] = done
        self._channel.basic_publish("", key, body, properties, mandatory=True)

    def command(self, order: Order, done: Done) -> None:
        """Publish a command to the device's queue; `done(True)` once RabbitMQ has it on disk. It drops it when its time is up before it was read."""
        if not self.is_open:
            done(False)
            return

        def confirmed(good: bool) -> None:
            done(good and order.id not in self._returned)
            self._returned.discard(order.id)

        # Made with the device's user; an administrator may have removed it since.
        self._channel.queue_declare(COMMANDS + order.uid, durable=True)
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            message_id=order.id,
            correlation_id=order.id,
            expiration=str(order.seconds_left() * 1000),
            type="command",
        )
        self._publish(COMMANDS + order.uid, order.payload(), properties, confirmed)

    def bury(self, message: Message, refusals: tuple[Refusal, ...], accepted: int) -> None:
        """A copy of a refused message for `telemetry.dead`, with the first reason in its headers."""
        if not self.is_open or len(self._waiting) >= UNCONFIRMED:
            self._copied(False)
            return
        first = refusals[0]
        headers: dict[str, Any] = {
            "code": first.code,
            "reason": first.reason,
            "limit": first.limit,
            # pika writes no fractions.
            "allowed": str(first.allowed) if isinstance(first.allowed, float) else first.allowed,
            "retry-after": first.retry_after,
            "key": first.key,
            "index": first.index,
            "routing-key": message.topic,
            "uid": message.uid,
            "accepted": accepted,
            "refused": len(refusals),
        }
        headers = {
            name: value
            for name, value in headers.items()
            if value is not None or name in ("limit", "allowed", "retry-after")
        }
        properties = pika.BasicProperties(content_type=message.content_type, delivery_mode=2, headers=headers)
        self._publish(DEAD, message.payload, properties, self._copied)

    def _copied(self, good: bool) -> None:
        """Nobody waits for a copy, but somebody may want to know how many are missing."""
        if good:
            return
        dead_lost_total.inc()
        self._lost += 1
        now = time.monotonic()
        if now >= self._log_from:
            log.warning(
                "copies of refused messages for telemetry.dead were lost; the portal has kept them", count=self._lost
            )
            self._lost, self._log_from = 0, now + LOG_SECONDS
