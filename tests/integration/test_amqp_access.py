"""Who may do what at RabbitMQ: every exchange and queue × every operation × own, sibling's and another tenant's."""

from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPChannelError, AMQPConnectionError, ChannelClosedByBroker, UnroutableError

from tests import factories
from tests.integration.mqtt_devices import Device
from tests.rabbit import RabbitServer, Site, publish
from tests.services import eventually

Act = Callable[[Any], Any]
EXCHANGES = ("iiot", "", "amq.topic", "amq.direct", "amq.fanout", "amq.headers")
SERVICE_QUEUES = ("telemetry", "telemetry.dead", "result")


# RabbitMQ takes its time to start on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def fleet(amqp_site: Site) -> dict[str, Device]:
    """Own, sibling and another tenant's device, all of which have a queue of commands with something in it."""
    found = {"own": amqp_site.device(), "sibling": amqp_site.device(), "other": Device(factories.make_tenant())}
    for device in found.values():
        with amqp_site.rabbit.online(device) as channel:
            publish(channel, device.uid, '{"mine": 1}')
        eventually(lambda device=device: _has_queue(amqp_site.rabbit, device), 30)  # type: ignore[misc]
        with amqp_site.rabbit.adapter_login() as channel:
            channel.basic_publish("", f"command.{device.uid}", b"secret", mandatory=True)
    return found


def _has_queue(rabbit: RabbitServer, device: Device) -> bool:
    with rabbit.online(device) as channel:
        try:
            channel.basic_get(f"command.{device.uid}")
        except ChannelClosedByBroker:
            return False
    return True


def _publishes(fleet: dict[str, Device]) -> Iterator[tuple[str, Act, bool]]:
    """To every exchange, with every key: (what, how, whether it is allowed)."""
    for exchange in EXCHANGES:
        for whose, device in fleet.items():
            for word in ("telemetry", "result", "command"):
                key = f"{word}.{device.uid}"
                allowed = exchange == "iiot" and whose == "own" and word != "command"
                yield f"publish {exchange or 'default'} {word} {whose}", _publish(exchange, key), allowed
    for queue in SERVICE_QUEUES:
        yield f"publish default {queue}", _publish("", queue), False
        yield f"publish iiot {queue}", _publish("iiot", queue), False
    own = fleet["own"].uid
    for key in (f"telemetry.{own}.x", f"telemetry/{own}", f"x.telemetry.{own}", f"telemetry.{own}\n", "#", ""):
        yield f"publish iiot {key!r}", _publish("iiot", key), False
    for whose in ("sibling", "other"):
        act = _publish("iiot", f"telemetry.{own}", user_id=fleet[whose].uid)
        yield f"publish as {whose}", act, False
    yield "publish as oneself", _publish("iiot", f"telemetry.{own}", user_id=own), True


def _publish(exchange: str, key: str, **properties: Any) -> Act:
    body = b'{"forged": 1}'
    return lambda channel: channel.basic_publish(
        exchange, key, body, pika.BasicProperties(**properties), mandatory=True
    )


def _queues(fleet: dict[str, Device]) -> Iterator[tuple[str, Act, bool]]:
    """Every operation on every queue."""
    names = {f"command {whose}": f"command.{device.uid}" for whose, device in fleet.items()}
    for label, queue in (names | {name: name for name in SERVICE_QUEUES}).items():
        own = label == "command own"
        yield f"get {label}", lambda channel, queue=queue: channel.basic_get(queue), own
        yield f"consume {label}", lambda channel, queue=queue: channel.basic_consume(queue, print), own
        # Purging is reading: what is thrown away is one's own.
        yield f"purge {label}", lambda channel, queue=queue: channel.queue_purge(queue), own
        yield f"delete {label}", lambda channel, queue=queue: channel.queue_delete(queue), False
        yield f"declare {label}", lambda channel, queue=queue: channel.queue_declare(queue, durable=True), False
        yield (
            f"bind {label}",
            lambda channel, queue=queue: channel.queue_bind(queue, "iiot", "telemetry.#"),
            False,
        )
        yield f"unbind {label}", lambda channel, queue=queue: channel.queue_unbind(queue, "iiot", "telemetry.#"), False


def _makes(_fleet: dict[str, Device]) -> Iterator[tuple[str, Act, bool]]:
    """New things, and the exchange itself."""
    yield "declare a queue", lambda channel: channel.queue_declare("evil"), False
    yield "declare a nameless queue", lambda channel: channel.queue_declare("", exclusive=True), False
    yield "declare an exchange", lambda channel: channel.exchange_declare("evil", "topic"), False
    yield "delete the exchange", lambda channel: channel.exchange_delete("iiot"), False
    yield "bind exchanges", lambda channel: channel.exchange_bind("amq.topic", "iiot", "#"), False
    yield "bind exchanges back", lambda channel: channel.exchange_bind("iiot", "amq.topic", "#"), False


def _is_refused(rabbit: RabbitServer, device: Device, act: Act) -> bool:
    with rabbit.online(device) as channel:
        try:
            act(channel)
        except UnroutableError:
            # Let through, and no queue was bound: nobody got it.
            return True
        except (AMQPChannelError, AMQPConnectionError):
            return True
    return False


def test_no_foreign_act_succeeds(amqp_site: Site, fleet: dict[str, Device]) -> None:
    cells = [*_publishes(fleet), *_queues(fleet), *_makes(fleet)]
    assert len(cells) >= 40
    rabbit, own = amqp_site.rabbit, fleet["own"]
    wrong = [what for what, act, allowed in cells if _is_refused(rabbit, own, act) is allowed]
    assert wrong == [], f"{len(wrong)} of {len(cells)} cells"
    # What was let through arrived, and nothing else.
    eventually(lambda: own.values == {1.0} and own.readings >= 3, 30)
    assert (fleet["sibling"].readings, fleet["other"].readings) == (1, 1)
    for whose in ("sibling", "other"):
        assert rabbit.waiting(f"command.{fleet[whose].uid}") == 1


def test_a_device_enters_no_other_virtual_host_and_no_management(amqp_site: Site, fleet: dict[str, Device]) -> None:
    import requests

    rabbit, own = amqp_site.rabbit, fleet["own"]
    credentials = pika.PlainCredentials(own.uid, own.token)
    with pytest.raises(AMQPConnectionError):
        pika.BlockingConnection(pika.ConnectionParameters(rabbit.host, rabbit.port, "/", credentials))
    url = f"http://127.0.0.1:{rabbit.node.inner.management}/api/overview"
    assert requests.get(url, auth=(own.uid, own.token), timeout=20).status_code == 401
