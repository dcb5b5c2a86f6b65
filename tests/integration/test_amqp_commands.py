"""Commands over AMQP: to the queue of the device and back, over a real RabbitMQ."""

import json
from typing import Any

import pytest

from iiot import tenancy
from iiot.services import commands
from tests import factories
from tests.integration.mqtt_devices import Device
from tests.rabbit import RabbitServer, Site, publish
from tests.services import eventually

# RabbitMQ takes its time to start on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def rabbit(amqp_site: Site) -> RabbitServer:
    return amqp_site.rabbit


@pytest.fixture
def pump(amqp_site: Site) -> Device:
    """A device that was seen on AMQP."""
    device = amqp_site.device()
    with amqp_site.rabbit.online(device) as channel:
        publish(channel, device.uid, '{"a": 1}')
    query = "SELECT command_protocol FROM iiot.device WHERE id = %s"
    eventually(lambda: factories.rows(query, device.device_id) == [("amqp",)], 30)
    return device


def order(device: Device, name: str = "restart", ttl: int = 60, **params: Any) -> str:
    """A command; its id."""
    with tenancy.work(tenancy.of(device.tenant)) as db:
        return commands.create(db, device.uid, commands.NewCommand(name, params, ttl)).uid


def states(uid: str) -> list[str]:
    """The command's states so far."""
    ((history,),) = factories.rows("SELECT history FROM iiot.command WHERE uid = %s", uid)
    return [step["state"] for step in history]


def get(channel: Any, device: Device) -> tuple[Any, Any]:
    """The next command in the device's queue."""

    def one() -> Any:
        method, properties, body = channel.basic_get(f"command.{device.uid}", auto_ack=True)
        return method and (properties, json.loads(body))

    found: tuple[Any, Any] = eventually(one, 30)
    return found


def test_a_device_that_has_sent_nothing_has_its_queue_and_gets_its_commands(
    rabbit: RabbitServer, amqp_site: Site
) -> None:
    silent = amqp_site.device()
    with rabbit.online(silent) as channel:
        assert channel.basic_get(f"command.{silent.uid}") == (None, None, None)
        uid = order(silent)
        _, command = get(channel, silent)
        assert command["id"] == uid
        # The answer names its command as well as it can: AMQP's own field is not every client's to set.
        publish(channel, silent.uid, json.dumps({"id": uid, "status": "done"}), "result")
        eventually(lambda: states(uid)[-1] == "done", 30)


def test_a_command_goes_to_the_device_and_its_answer_comes_back(rabbit: RabbitServer, pump: Device) -> None:
    uid = order(pump, "set-speed", rpm=1500)
    with rabbit.online(pump) as channel:
        properties, command = get(channel, pump)
        assert command == {"id": uid, "name": "set-speed", "params": {"rpm": 1500}, "expires_at": command["expires_at"]}
        assert (properties.message_id, properties.correlation_id, properties.delivery_mode) == (uid, uid, 2)
        assert properties.content_type == "application/json"
        assert 0 < int(properties.expiration) <= 60_000
        eventually(lambda: states(uid) == ["queued", "sent"], 30)
        publish(channel, pump.uid, '{"status": "done", "result": {"rpm": 1498}}', "result", correlation_id=uid)
        eventually(lambda: states(uid) == ["queued", "sent", "delivered", "done"], 30)
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        found = commands.get(db, pump.uid, uid)
        assert (found.result, found.protocol) == ({"rpm": 1498}, "amqp")


def test_the_second_goes_out_after_the_first_and_a_header_may_name_the_command(
    rabbit: RabbitServer, pump: Device
) -> None:
    first, second = order(pump, "first"), order(pump, "second")
    with rabbit.online(pump) as channel:
        assert get(channel, pump)[1]["id"] == first
        assert states(second) == ["queued"]
        publish(channel, pump.uid, '{"status": "failed"}', "result", headers={"command-id": first})
        assert get(channel, pump)[1]["id"] == second
        eventually(lambda: states(first)[-1] == "failed", 30)


def test_a_device_that_was_away_finds_it_and_what_has_expired_is_gone(rabbit: RabbitServer, pump: Device) -> None:
    late = order(pump, "late", ttl=1)
    eventually(lambda: "sent" in states(late), 30)
    eventually(lambda: rabbit.waiting(f"command.{pump.uid}") == 0, 30)
    with rabbit.online(pump) as channel:
        following = order(pump, "next")
        with tenancy.work(tenancy.system("stream")) as db:
            commands.expire(db)
        assert get(channel, pump)[1]["id"] == following


BAD = {
    "not JSON": (b"done", "answer-invalid"),
    "another status": (b'{"status": "maybe"}', "answer-invalid"),
    "20 KiB": (b'{"status": "done", "result": "' + b"x" * 20_000 + b'"}', "too-large"),
}


def test_an_answer_that_cannot_be_read_is_refused_and_the_next_one_counts(rabbit: RabbitServer, pump: Device) -> None:
    uid = order(pump)
    with rabbit.online(pump) as channel:
        get(channel, pump)
        for payload, _ in BAD.values():
            publish(channel, pump.uid, payload, "result", correlation_id=uid)
        codes = [code for _, code in BAD.values()]
        eventually(lambda: pump.rejections == codes, 30)
        assert [properties.headers["code"] for properties, _ in rabbit.dead(3, pump.uid)] == codes
        publish(channel, pump.uid, '{"status": "done"}', "result", correlation_id=uid)
        eventually(lambda: states(uid)[-1] == "done", 30)


def test_nobody_answers_the_commands_of_others(rabbit: RabbitServer, pump: Device) -> None:
    uid = order(pump)
    for other in (Device(pump.tenant), Device(factories.make_tenant())):
        with rabbit.online(other) as channel:
            publish(channel, other.uid, '{"status": "done"}', "result", correlation_id=uid)
            publish(channel, other.uid, '{"status": "done"}', "result")
            eventually(lambda other=other: other.rejections == ["unknown-command"] * 2, 30)  # type: ignore[misc]
    assert "done" not in states(uid)
