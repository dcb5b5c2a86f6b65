"""What happens to AMQP messages when the adapter, the database or RabbitMQ goes away."""

import pytest

from iiot import clock
from iiot.config import Settings
from tests import factories
from tests.integration.mqtt_devices import Device, adapter
from tests.rabbit import RabbitServer, publish
from tests.services import PostgresServer, eventually

# RabbitMQ takes its time to start on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def pump(rabbit: RabbitServer, settings: Settings) -> Device:
    return Device(factories.make_tenant())


def readings(number: int, start: int) -> bytes:
    return b'{"ts":%d,"values":{"n":%d}}' % (start + number, number)


def test_it_waits_for_the_adapter(rabbit: RabbitServer, settings: Settings, pump: Device) -> None:
    with adapter(settings, "amqp"):
        pass
    with rabbit.online(pump) as channel:
        publish(channel, pump.uid, '{"a": 1}')
    assert pump.readings == 0
    with adapter(settings, "amqp"):
        eventually(lambda: pump.readings == 1, 30)


def test_a_failed_commit_acknowledges_nothing_and_it_is_stored_once(
    rabbit: RabbitServer, settings: Settings, pump: Device, postgres: PostgresServer
) -> None:
    now = clock.now_ms()
    with adapter(settings, "amqp") as running, rabbit.online(pump) as channel:
        publish(channel, pump.uid, readings(0, now - 100))
        eventually(lambda: pump.readings == 1, 30)
        postgres.kill()
        publish(channel, pump.uid, readings(1, now - 100))
        eventually(lambda: "batch not stored" in running.said, 30)
        running.kill()
        # The message is handed out again to the next one, which waits for the database.
        eventually(lambda: rabbit.waiting("telemetry") == 1, 30)
        postgres.start()
        running.start()
        publish(channel, pump.uid, readings(2, now - 100))
        eventually(lambda: pump.values == {0.0, 1.0, 2.0}, 40)
        assert pump.readings == 3
        eventually(lambda: rabbit.unsettled("telemetry") == 0, 30)


def test_a_term_signal_stores_and_acknowledges_what_was_taken(
    rabbit: RabbitServer, settings: Settings, pump: Device
) -> None:
    start = clock.now_ms() - 10_000
    with adapter(settings, "amqp") as process:
        with rabbit.online(pump) as channel:
            for number in range(500):
                channel.basic_publish("iiot", f"telemetry.{pump.uid}", readings(number, start))
        eventually(lambda: pump.readings > 0, 30)
        assert process.stop() == 0
        assert '"stopped"' in process.said
        stored, left = pump.readings, rabbit.waiting("telemetry")
        assert stored + left == 500
        process.start()
        eventually(lambda: pump.readings == 500, 30)


def test_rabbitmq_is_killed_and_comes_back(rabbit: RabbitServer, settings: Settings, pump: Device) -> None:
    start = clock.now_ms() - 10_000
    with adapter(settings, "amqp") as running:
        with rabbit.online(pump) as channel:
            for number in range(50):
                publish(channel, pump.uid, readings(number, start))
        before = running.connections
        eventually(rabbit.knows_its_queue, 30)
        rabbit.kill()
        eventually(lambda: "connection lost" in running.said, 30)
        rabbit.start()
        eventually(lambda: running.reconnected(before), 40)
        with rabbit.online(pump) as channel:
            publish(channel, pump.uid, readings(50, start))
        eventually(lambda: pump.readings == 51, 30)
        assert pump.values == {float(number) for number in range(51)}
