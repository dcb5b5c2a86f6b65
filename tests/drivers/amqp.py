"""AMQP through the RabbitMQ of this run, with a virtual host of its own. A test may kill the node; it comes back with its queues."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import pika
import pytest

from tests.drivers import Driver, Send
from tests.rabbit import RabbitServer, publish


class Protocol(Driver):
    """RabbitMQ confirms to the device when it has the message on disk; the commit comes later."""

    commits = False
    node: RabbitServer

    def start(self, request: pytest.FixtureRequest) -> None:
        self.broker = self.node = request.getfixturevalue("rabbit_node")
        self._host = contextlib.ExitStack()
        self._host.enter_context(self.node.virtual_host())
        self.settings = self.settings.model_copy(update=self.node.fields)

    def stop(self) -> None:
        self._host.close()

    @contextmanager
    def device(self, uid: str, token: str) -> Iterator[Send]:
        """A channel with publisher confirms."""
        with self.node.login(uid, token) as channel:

            def send(payload: bytes, content_type: str | None) -> None:
                with contextlib.suppress(pika.exceptions.NackError):
                    publish(channel, uid, payload, **({"content_type": content_type} if content_type else {}))

            yield send
