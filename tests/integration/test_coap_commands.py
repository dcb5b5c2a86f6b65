"""Commands over CoAP: asked for, observed, confirmed and answered, over real servers."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiocoap.numbers import codes

from iiot import tenancy
from iiot.config import Settings
from iiot.services import command_delivery, commands, credentials, devices
from iiot.stream import housekeeping
from protocols import coap_observe
from tests import factories
from tests.integration.coap_devices import Device, Raw, Server, order, serving, states, within
from tests.services import eventually

WAIT = 30


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[Server]:
    """One adapter for all tests here."""
    with serving(module_settings) as (process, changed):
        yield Server(process, changed.coap_bind, factories.make_tenant())


@pytest.fixture
def pump(server: Server) -> Device:
    return server.device()


@pytest.fixture
def raw(server: Server) -> Iterator[Raw]:
    with server.raw() as found:
        yield found


def done(raw: Raw, server: Server, device: Device, uid: str, answer: Any = None) -> Any:
    """Answer a command; the code of what the server says."""
    payload = json.dumps({"status": "done"} if answer is None else answer).encode()
    return raw.ask(codes.POST, server.uri(f"commands/{uid}", device), payload, content_format=50)


def test_who_asks_gets_the_next_command_until_it_is_answered(server: Server, pump: Device, raw: Raw) -> None:
    empty = raw.ask(codes.GET, server.uri("commands", pump))
    assert (empty.code, empty.payload, empty.opt.content_format) == (codes.CONTENT, b"{}", 50)
    uid, following = order(pump, "set-speed", rpm=1500), order(pump)
    for _ in range(2):
        command = json.loads(raw.ask(codes.GET, server.uri("commands", pump)).payload)
        assert (command["id"], command["name"], command["params"]) == (uid, "set-speed", {"rpm": 1500})
        assert command["expires_at"].endswith("Z")
    assert states(uid) == ["queued", "sent"]
    assert done(raw, server, pump, uid, {"status": "done", "result": {"rpm": 1498}}).code == codes.CHANGED
    assert states(uid) == ["queued", "sent", "delivered", "done"]
    assert json.loads(raw.ask(codes.GET, server.uri("commands", pump)).payload)["id"] == following
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        found = commands.get(db, pump.uid, uid)
        assert (found.result, found.protocol) == ({"rpm": 1498}, "coap")


def test_an_answer_that_does_not_fit_is_refused_with_a_code(server: Server, pump: Device, raw: Raw) -> None:
    uid = order(pump)
    raw.ask(codes.GET, server.uri("commands", pump))
    assert done(raw, server, pump, "a" * 26).code == codes.NOT_FOUND
    assert done(raw, server, server.device(), uid).code == codes.NOT_FOUND
    assert done(raw, server, pump, uid, {"status": "perhaps"}).code == codes.BAD_REQUEST
    assert states(uid)[-1] == "delivered"
    assert done(raw, server, pump, uid).code == codes.CHANGED
    assert done(raw, server, pump, uid).code == codes.CHANGED
    late = done(raw, server, pump, uid, {"status": "failed"})
    assert (late.code, late.payload.split(b":")[0]) == (codes.CONFLICT, b"command-finished")
    cbor = raw.ask(codes.POST, server.uri(f"commands/{uid}", pump), b"\xa0", content_format=60)
    assert cbor.code == codes.UNSUPPORTED_CONTENT_FORMAT
    assert pump.rejections == ["unknown-command", "answer-invalid", "command-finished"]


def test_a_command_is_pushed_and_sent_when_it_is_acknowledged(server: Server, pump: Device, raw: Raw) -> None:
    first = raw.observe(server.uri("commands", pump))
    assert (first.code, first.payload) == (codes.CONTENT, b"{}")
    assert first.opt.observe is not None
    assert first.opt.max_age > 0
    uid, second = order(pump, "first"), order(pump, "second")
    message = raw.notified(answer=None)
    assert message is not None
    assert (message.mtype, message.token, json.loads(message.payload)["id"]) == (0, b"\x0b", uid)
    assert message.opt.observe > first.opt.observe
    assert 0 < message.opt.max_age <= 60
    assert states(uid) == ["queued"]
    # Nothing else goes out before the acknowledgement; the same is repeated after some seconds.
    again = raw.notified()
    assert again is not None
    assert (again.mid, again.payload) == (message.mid, message.payload)
    eventually(lambda: states(uid) == ["queued", "sent"], WAIT)
    assert states(second) == ["queued"]
    assert done(raw, server, pump, uid).code == codes.CHANGED
    following = raw.notified()
    assert following is not None
    assert json.loads(following.payload)["id"] == second
    eventually(lambda: states(second) == ["queued", "sent"], WAIT)


def test_numbers_rise_also_when_an_observation_begins_anew(server: Server, pump: Device, raw: Raw) -> None:
    uri, token = server.uri("commands", pump), b"\x0e"
    seen = [raw.observe(uri, token).opt.observe]
    for _ in range(2):
        done(raw, server, pump, order(pump))
        uid = order(pump)
        message = raw.notified()
        while message is not None and uid not in message.payload.decode():
            seen.append(message.opt.observe)
            message = raw.notified()
        assert message is not None
        seen.append(message.opt.observe)
        assert done(raw, server, pump, uid).code == codes.CHANGED
        seen.append(raw.observe(uri, token).opt.observe)
    raw.ask(codes.GET, uri, token=token, observe=1)
    seen.append(raw.observe(uri, token).opt.observe)
    assert seen == sorted(set(seen))


@pytest.fixture
def often(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that sends the state again every half second instead of every minute."""
    monkeypatch.setattr(coap_observe, "KEEP_SECONDS", 0.5)
    with within(settings) as found:
        yield found


@pytest.mark.parametrize("end", ["cancelled", "done"])
def test_a_command_that_has_ended_elsewhere_is_not_sent_again(often: Server, end: str) -> None:
    pump = often.device()

    def next_state(raw: Raw) -> Any:
        message = raw.notified()
        assert message is not None
        return json.loads(message.payload)

    with often.raw() as raw:
        raw.observe(often.uri("commands", pump))
        uid = order(pump)
        eventually(lambda: next_state(raw).get("id") == uid, WAIT)
        eventually(lambda: states(uid)[-1] == "sent", WAIT)
        assert next_state(raw)["id"] == uid, "it is not answered yet"
        if end == "cancelled":
            with tenancy.work(tenancy.of(pump.tenant)) as db:
                commands.cancel(db, pump.uid, uid)
        else:
            command_delivery.take_all([command_delivery.Answer(pump.uid, uid, "done")])
        eventually(lambda: next_state(raw) == {}, WAIT)
        assert [next_state(raw) for _ in range(3)] == [{}] * 3
        assert states(uid)[-1] == end


def test_a_command_that_waits_comes_with_the_registration(server: Server, pump: Device, raw: Raw) -> None:
    uid = order(pump, text="ü" * 2_000)
    first = raw.observe(server.uri("commands", pump))
    assert first.opt.block2.more
    body = first.payload
    while first.opt.block2.more:
        number = first.opt.block2.block_number + 1
        first = raw.ask(codes.GET, server.uri("commands", pump), block2=(number, False, 6))
        body += first.payload
    assert json.loads(body)["id"] == uid
    assert states(uid) == ["queued", "sent"]


def test_who_resets_or_cancels_gets_nothing_more(server: Server, pump: Device, raw: Raw) -> None:
    raw.observe(server.uri("commands", pump))
    uid = order(pump, ttl=600)
    assert raw.notified(answer=0x70) is not None
    assert states(uid) == ["queued"]
    raw.observe(server.uri("commands", pump), observe_token := b"\x0c")
    assert done(raw, server, pump, uid).code == codes.CHANGED
    cancelled = raw.ask(codes.GET, server.uri("commands", pump), token=observe_token, observe=1)
    assert cancelled.opt.observe is None
    later = order(pump)
    assert raw.notified(1.5) is None
    assert states(later) == ["queued"]


def test_one_that_is_gone_holds_up_nobody(server: Server, pump: Device, raw: Raw) -> None:
    gone = server.device()
    with server.raw() as silent:
        silent.observe(server.uri("commands", gone))
        lost = order(gone)
        raw.observe(server.uri("commands", pump))
        uid = order(pump)
        message = raw.notified()
        assert message is not None
        assert json.loads(message.payload)["id"] == uid
        eventually(lambda: states(uid) == ["queued", "sent"], WAIT)
        assert states(lost) == ["queued"]
        # It was there after all: what it confirms late counts, and is not sent twice.
        assert silent.notified() is not None
        eventually(lambda: states(lost) == ["queued", "sent"], WAIT)


def test_a_device_has_few_observations_and_a_new_one_ends_the_oldest(server: Server, pump: Device) -> None:
    sockets = [server.raw() for _ in range(5)]
    try:
        for each in sockets:
            assert each.observe(server.uri("commands", pump)).opt.observe is not None
        uid = order(pump)
        for each in sockets[1:]:
            message = each.notified()
            assert message is not None
            assert json.loads(message.payload)["id"] == uid
        assert sockets[0].notified(0.5) is None
    finally:
        for each in sockets:
            each.socket.close()


def test_what_has_expired_or_was_cancelled_is_not_pushed(server: Server, pump: Device, raw: Raw) -> None:
    raw.ask(codes.GET, server.uri("commands", pump))
    short, called_back = order(pump, "short", ttl=1), order(pump, "called-back")
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        commands.cancel(db, pump.uid, called_back)
    duty = housekeeping.Duty("commands", 1, commands.expire)

    def is_over() -> bool:
        housekeeping.perform(duty)
        return states(short)[-1] == "expired"

    eventually(is_over, WAIT)
    uid = order(pump, "last")
    answer = raw.observe(server.uri("commands", pump))
    assert json.loads(answer.payload)["id"] == uid


def test_a_revoked_or_disabled_device_gets_no_command(server: Server, pump: Device, raw: Raw) -> None:
    raw.observe(server.uri("commands", pump))
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        credentials.replace(db, devices.get(db, pump.uid), credentials.Wanted())
    uid = order(pump)
    message = raw.notified()
    assert message is not None
    assert message.code == codes.UNAUTHORIZED
    assert message.opt.observe is None
    assert states(uid) == ["queued"]
    assert raw.ask(codes.GET, server.uri("commands", pump)).code == codes.UNAUTHORIZED
    other = server.device()
    raw.observe(server.uri("commands", other), b"\x0d")
    with tenancy.work(tenancy.of(other.tenant)) as db:
        order_of_other = commands.create(db, other.uid, commands.NewCommand("restart")).uid
        devices.set_enabled(db, other.uid, False)
    assert raw.notified(1.5) is None
    assert states(order_of_other) == ["queued"]


def test_telemetry_alone_moves_no_commands_to_coap(server: Server, pump: Device, raw: Raw) -> None:
    assert raw.ask(codes.POST, server.uri("telemetry", pump), b'{"a":1}', content_format=50).code == codes.CHANGED
    query = "SELECT command_protocol FROM iiot.device WHERE id = %s"
    assert factories.rows(query, pump.device_id) == [(None,)]
    raw.ask(codes.GET, server.uri("commands", pump))
    assert factories.rows(query, pump.device_id) == [("coap",)]


def test_commands_of_many_devices_arrive_in_order(server: Server) -> None:
    fleet = [server.device() for _ in range(6)]
    wanted = {device.uid: [order(device, f"step-{number}") for number in range(3)] for device in fleet}
    got: dict[str, list[str]] = {}

    def work(device: Device) -> None:
        with server.raw() as own:
            message: Any = own.observe(server.uri("commands", device))
            seen = got.setdefault(device.uid, [])
            while len(seen) < 3 and message is not None:
                command = json.loads(message.payload)
                if command and command["id"] not in seen:
                    seen.append(command["id"])
                    done(own, server, device, command["id"])
                if len(seen) < 3:
                    message = own.notified(WAIT)

    threads = [threading.Thread(target=work, args=(device,)) for device in fleet]
    for each in threads:
        each.start()
    for each in threads:
        each.join(90)
    assert got == wanted
    eventually(lambda: all(states(uid)[-1] == "done" for uids in wanted.values() for uid in uids), WAIT)
