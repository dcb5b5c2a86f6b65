"""A simulated device over AMQP."""

import json
from collections.abc import Sequence
from typing import Any

import pika
from pika.exceptions import AMQPError, ProbableAccessDeniedError, ProbableAuthenticationError

from iiot.simulate.links import LOGIN_SECONDS, Answer, LinkError, Message, QueuedLink, Tally
from iiot.simulate.portal import Login, Portal

EXCHANGE = "iiot"


class AmqpLink(QueuedLink):
    """Publishes to the exchange `iiot` and waits for RabbitMQ's confirm. What is refused later stands on the device's page Rejected."""

    def __init__(self, portal: Portal, login: Login, tally: Tally) -> None:
        if portal.amqp is None:
            raise LinkError("this portal has no AMQP broker; take another --protocol")
        self._parameters = pika.URLParameters(portal.amqp)
        self._parameters.credentials = pika.PlainCredentials(login.uid, login.token)
        self._parameters.stack_timeout = self._parameters.socket_timeout = LOGIN_SECONDS
        self._connection: Any = None
        self._channel: Any = None
        super().__init__(login, tally)

    def _post(self, batch: Sequence[Message]) -> Answer:
        try:
            if self._channel is None:
                self._connection = pika.BlockingConnection(self._parameters)
                self._channel = self._connection.channel()
                self._channel.confirm_delivery()
            content = pika.BasicProperties(content_type="application/json", delivery_mode=2)
            body = json.dumps(batch).encode()
            self._channel.basic_publish(EXCHANGE, f"telemetry.{self.login.uid}", body, content, mandatory=True)
        except (ProbableAuthenticationError, ProbableAccessDeniedError):
            self._channel = None
            return Answer(len(batch), "the broker does not let the device in", ends=True)
        except (AMQPError, OSError) as error:
            self._channel = None
            return Answer(reason=f"the AMQP broker does not take it ({error or type(error).__name__})", wait=0.0)
        return Answer()

    def _disconnect(self) -> None:
        if self._connection is not None and self._connection.is_open:
            self._connection.close()
