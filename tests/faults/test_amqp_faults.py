"""RabbitMQ, the database and the adapter are killed under load: what RabbitMQ confirmed to the device is stored, once.

IIOT_FAULT_RATE (2,000) messages a second while RabbitMQ is there, for IIOT_FAULT_SECONDS (6).
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.adapters.select_connection import IOLoop
from pika.spec import Basic

from iiot import clock
from iiot.config import Settings
from tests import factories
from tests.faults.pace import RECOVERY_SECONDS, Pace
from tests.integration.mqtt_devices import AdapterProcess, Device, adapter
from tests.rabbit import RabbitServer
from tests.services import PostgresServer, eventually

pytestmark = pytest.mark.timeout(300)
RATE = int(os.environ.get("IIOT_FAULT_RATE", "2000"))
MESSAGES = int(RATE * float(os.environ.get("IIOT_FAULT_SECONDS", "6")))
SLICE = 0.05
UNCONFIRMED = 4_000


class Publisher(threading.Thread):
    """A device that sends MESSAGES readings with publisher confirms and, like a good one, repeats what was not confirmed."""

    def __init__(self, rabbit: RabbitServer, device: Device) -> None:
        super().__init__(daemon=True)
        self.device = device
        login = pika.PlainCredentials(device.uid, device.token)
        self.parameters = pika.ConnectionParameters(rabbit.host, rabbit.port, rabbit.vhost, login, stack_timeout=5)
        self.pace = Pace(RATE)
        # To be sent again.
        self.waiting = deque[int]()
        self.ledger: set[int] = set()
        self.pause = threading.Event()
        self.first = clock.now_ms() - MESSAGES
        self.start()

    def run(self) -> None:
        """Connection after connection, until all is confirmed."""
        while len(self.ledger) < MESSAGES:
            with contextlib.suppress(Exception):
                self._session()
            self.pause.wait(0.2)

    def _session(self) -> None:
        loop, sent = IOLoop(), dict[int, int]()
        self.published = 0
        connection = pika.SelectConnection(
            self.parameters,
            on_open_callback=lambda opened: opened.channel(on_open_callback=opened_channel),
            on_open_error_callback=lambda *_: loop.stop(),
            on_close_callback=lambda *_: loop.stop(),
            custom_ioloop=loop,
        )

        def opened_channel(channel: Any) -> None:
            self.pace.run()
            channel.confirm_delivery(confirmed, callback=lambda _frame: publish(channel))

        def publish(channel: Any) -> None:
            while self.waiting and len(sent) < UNCONFIRMED:
                self._send(channel, sent, self.waiting.popleft())
            for number in range(self.pace.total, min(MESSAGES, self.pace.due())):
                if len(sent) < UNCONFIRMED:
                    self.pace.offer()
                    self._send(channel, sent, number)
            if len(self.ledger) >= MESSAGES:
                connection.close()
            elif channel.is_open:
                loop.call_later(SLICE, lambda: publish(channel))

        def confirmed(answer: Any) -> None:
            tag, good = answer.method.delivery_tag, isinstance(answer.method, Basic.Ack)
            for each in [each for each in sent if each <= tag] if answer.method.multiple else [tag]:
                number = sent.pop(each)
                if good:
                    self.ledger.add(number)
                else:
                    self.waiting.append(number)

        try:
            loop.start()
        finally:
            self.pace.rest()
            self.waiting.extendleft(sent.values())
            loop.close()

    def _send(self, channel: Any, sent: dict[int, int], number: int) -> None:
        body = b'{"ts":%d,"values":{"n":%d}}' % (self.first + number, number)
        # Confirmations bear the number of the message in its channel. Noted first, so that one that cannot be sent comes again.
        self.published += 1
        sent[self.published] = number
        channel.basic_publish("iiot", f"telemetry.{self.device.uid}", body, pika.BasicProperties(delivery_mode=2))


@pytest.fixture
def device(rabbit: RabbitServer, settings: Settings) -> Device:
    return Device(factories.make_tenant())


@pytest.fixture
def running(rabbit: RabbitServer, settings: Settings) -> Iterator[AdapterProcess]:
    with adapter(settings, "amqp") as process:
        yield process


def test_nothing_confirmed_is_lost_and_nothing_is_stored_twice(
    running: AdapterProcess, rabbit: RabbitServer, device: Device, postgres: PostgresServer
) -> None:
    eventually(rabbit.knows_its_queue, 30)
    publisher = Publisher(rabbit, device)
    pace = publisher.pace
    _until_stored(device, MESSAGES // 8)
    with pace.fault(lambda: _is_stored(device, before)):
        rabbit.kill()
        before = pace.total
        rabbit.start()

    _until_stored(device, MESSAGES // 4)
    with pace.fault(lambda: _is_stored(device, before)):
        postgres.kill()
        before = pace.total
        postgres.start()

    _until_stored(device, MESSAGES // 2)
    with pace.fault(lambda: _is_stored(device, before)):
        running.kill()
        before = pace.total
        running.start()

    publisher.join(90)
    assert len(publisher.ledger) == MESSAGES
    eventually(lambda: device.readings >= MESSAGES, RECOVERY_SECONDS, 0.2)
    assert device.values == {float(number) for number in publisher.ledger}, "lost"
    assert device.readings == MESSAGES, "stored twice"
    assert device.rejections == []
    eventually(lambda: rabbit.unsettled("telemetry") == 0, RECOVERY_SECONDS, 0.2)
    pace.check()


def _is_stored(device: Device, before: int) -> bool:
    """Whether a message that was offered later than that is stored, or all are."""
    return max(device.values, default=-1.0) >= min(before, MESSAGES - 1)


def _until_stored(device: Device, count: int) -> None:
    eventually(lambda: device.readings > count, 60, 0.05)
