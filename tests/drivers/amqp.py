"""AMQP through a RabbitMQ node of its own, which a test may kill."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import pika

from tests.drivers import Driver, Send
from tests.rabbit import RabbitServer, publish


class Protocol(Driver):
    """RabbitMQ confirms to the device when it has the message on disk; the commit comes later."""

    commits = False
    node: RabbitServer

    def start(self) -> None:
        self.broker = self.node = RabbitServer(self.folder / "rabbit")
        self.node.start()
        self._host = contextlib.ExitStack()
        self._host.enter_context(self.node.virtual_host())
        self.settings = self.settings.model_copy(update=self.node.fields)

    def stop(self) -> None:
        self.node.stop()

    @contextmanager
    def device(self, uid: str, token: str) -> Iterator[Send]:
        """A channel with publisher confirms."""
        with self.node.login(uid, token) as channel:

            def send(payload: bytes, content_type: str | None) -> None:
                with contextlib.suppress(pika.exceptions.NackError):
                    publish(channel, uid, payload, **({"content_type": content_type} if content_type else {}))

            yield send
