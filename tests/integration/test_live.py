"""Socket.IO against the real web server with two workers, the real stream process, PostgreSQL and Valkey."""

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import socketio
import websocket

from iiot import auth, cache, clock, tenancy
from iiot.config import Settings
from iiot.services import api_keys, service_accounts
from iiot.services.presence import StatusEvent, status
from iiot.stream.log import lag
from iiot.tenancy import sql
from tests import factories
from tests.live import Listener, Process, WebServer, listening, stream, token_of
from tests.services import eventually, http_status


@dataclass
class House:
    """A tenant with two devices and somebody who is signed in."""

    tenant: factories.TenantRow
    devices: list[factories.DeviceRow]
    user: factories.UserRow
    token: str
    session: str


def _house() -> House:
    tenant = factories.make_tenant()
    user = factories.make_user(tenant, "viewer")
    return House(tenant, [factories.make_device(tenant) for _ in range(2)], user, *token_of(user))


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[WebServer]:
    """The web server and the stream, for all tests of the module."""
    running: list[Process] = [WebServer(), stream()]
    for process in running:
        process.start()
    yield running[0]  # type: ignore[misc]
    for process in running:
        process.stop()


@pytest.fixture
def house(server: WebServer) -> House:
    return _house()


def test_a_reading_reaches_who_listens_to_its_device(server: WebServer, house: House) -> None:
    one, two = house.devices
    with listening(server.url, house.token, devices=[one.uid]) as listener:
        now = clock.now_ms()
        factories.store(two.uid, (now, {"t": 9.0}))
        factories.store(one.uid, (now, {"t": 21.5, "running": True, "name": "a", "set": {"x": [1]}}))
        eventually(lambda: len(listener.readings) == 4)
        assert listener.readings == {
            (one.uid, "t", now): 21.5,
            (one.uid, "running", now): True,
            (one.uid, "name", now): "a",
            (one.uid, "set", now): {"x": [1]},
        }


def test_the_quality_of_a_reading_is_told_and_told_again(server: WebServer, house: House) -> None:
    device = house.devices[0]
    with listening(server.url, house.token, devices=[device.uid]) as listener:
        factories.store(device.uid, t=1.0)
        eventually(lambda: listener.readings)
        before, at = listener.cursor, clock.now_ms()
        factories.send(device.uid, {"ts": at, "values": {"t": 2.0, "u": 3.0}, "quality": {"t": "bad"}})
        eventually(lambda: (device.uid, "u", at) in listener.readings)
        assert listener.quality == {(device.uid, "t", at): "bad"}
        eventually(lambda: _lag() == 0)
        with listening(server.url, house.token, devices=[device.uid]) as again:
            again.ask("resume", {"cursor": before})
            eventually(lambda: again.quality == {(device.uid, "t", at): "bad"})


def test_a_tenant_subscription_brings_each_reading_once(server: WebServer, house: House) -> None:
    one, two = house.devices
    with listening(server.url, house.token, devices=[one.uid], tenant=True) as listener:
        now = clock.now_ms()
        factories.store(one.uid, (now, {"t": 1.0}))
        factories.store(two.uid, (now, {"t": 2.0}))
        eventually(lambda: len(listener.readings) == 2)
        assert len(listener.order) == 2
        assert listener.ask("unsubscribe", {"tenant": True}) == {"ok": True}
        factories.store(two.uid, (now + 1, {"t": 2.0}))
        factories.store(one.uid, (now + 1, {"t": 1.0}))
        eventually(lambda: len(listener.readings) == 3)
        assert (two.uid, "t", now + 1) not in listener.readings


def test_nothing_of_a_tenant_reaches_another(server: WebServer, house: House) -> None:
    other = _house()
    with (
        listening(server.url, house.token, tenant=True) as ours,
        listening(server.url, other.token, tenant=True) as theirs,
    ):
        now = clock.now_ms()
        for device in (*house.devices, *other.devices):
            factories.store(device.uid, (now, {"t": 1.0}))
            status([StatusEvent(device.uid, True, "status topic")])
        eventually(lambda: len(ours.readings) == 2 and len(theirs.readings) == 2)
        uids = {device.uid for device in other.devices}
        eventually(lambda: {data["device_id"] for name, data in theirs.others if name == "device"} >= uids)
        assert {key[0] for key in ours.readings} == {device.uid for device in house.devices}
        assert {data["device_id"] for name, data in theirs.others if name == "device"} == uids
        start = "0" * 32
        assert theirs.ask("resume", {"cursor": start})["ok"]
        assert {key[0] for key in theirs.readings} == {device.uid for device in other.devices}


def test_a_device_of_another_tenant_reads_like_one_that_does_not_exist(server: WebServer, house: House) -> None:
    foreign = _house().devices[0].uid
    with listening(server.url, house.token) as listener:
        answers = [
            listener.ask("subscribe", {"devices": [house.devices[0].uid, uid]})
            for uid in (foreign, "a" * 26, "x", "'--")
        ]
        for answer in answers:
            assert answer["devices"]
            del answer["devices"]
        assert all(answer == answers[0] for answer in answers)
        assert answers[0]["ok"] is False
        assert answers[0]["error"] == "unknown-device"


def test_the_status_of_a_device_is_told(server: WebServer, house: House) -> None:
    device = house.devices[0]
    with listening(server.url, house.token, devices=[device.uid]) as listener:
        status([StatusEvent(device.uid, True, "status topic")])
        status([StatusEvent(device.uid, False, "last will")])
        eventually(lambda: len(listener.others) >= 2)
        told = [data for name, data in listener.others if name == "device"]
        assert [data["status"] for data in told] == ["online", "offline"]
        assert told[0].keys() == {"device_id", "status", "last_seen_at"}


def test_a_new_device_comes_online_by_sending(server: WebServer, house: House) -> None:
    device = house.devices[0]
    with listening(server.url, house.token, tenant=True) as listener:
        factories.store(device.uid, (clock.now_ms(), {"t": 1.0}))
        told = eventually(lambda: [data for name, data in listener.others if name == "device"])
        assert (told[0]["device_id"], told[0]["status"]) == (device.uid, "online")


def test_resume_brings_what_was_missed_in_order(server: WebServer, house: House) -> None:
    device = house.devices[0]
    now = clock.now_ms()
    with listening(server.url, house.token, devices=[device.uid]) as listener:
        factories.store(device.uid, (now, {"t": 0.0}))
        eventually(lambda: listener.readings)
        seen = listener.cursor
    for number in range(1, 30):
        factories.store(device.uid, (now + number, {"t": float(number)}))
    # What is still on its way would also come live, before the answer to the resume.
    eventually(lambda: _lag() == 0)
    with listening(server.url, house.token, devices=[device.uid]) as again:
        answer = again.ask("resume", {"cursor": seen})
        assert answer["ok"] is True
        assert answer["cursor"] > seen
        factories.store(device.uid, (now + 30, {"t": 30.0}))
        eventually(lambda: (device.uid, "t", now + 30) in again.readings)
        missed = [ts for _, _, ts in again.order if ts > now]
        assert missed == [now + number for number in range(1, 31)]


def _lag() -> int:
    with tenancy.work(tenancy.system("stream")) as db:
        return lag(db, "live").rows


def test_resume_while_readings_arrive_leaves_no_gap(server: WebServer, house: House) -> None:
    device = house.devices[0]
    now = clock.now_ms()
    with listening(server.url, house.token, devices=[device.uid]) as listener:
        start = listener.ask("subscribe", {"devices": [device.uid]})["cursor"]
    everything: dict[tuple[str, str, int], float] = {}
    cursor, number = start, 0
    for _ in range(4):
        with listening(server.url, house.token, devices=[device.uid]) as listener:
            since = cursor
            for _ in range(20):
                factories.store(device.uid, (now + number, {"t": float(number)}))
                number += 1
            assert listener.ask("resume", {"cursor": since})["ok"]
            for _ in range(20):
                factories.store(device.uid, (now + number, {"t": float(number)}))
                number += 1
            # Cut at once: what is on its way is lost, and the next resume has to bring it.
        everything |= listener.readings
        cursor = listener.cursor or cursor
    with listening(server.url, house.token, devices=[device.uid]) as listener:
        assert listener.ask("resume", {"cursor": cursor})["ok"]
        eventually(
            lambda: (everything | listener.readings).keys() >= {(device.uid, "t", now + n) for n in range(number)}
        )


@pytest.mark.parametrize("cursor", [None, 7, "", "zz", "f" * 32, {"a": 1}])
def test_a_cursor_that_is_none_is_refused(server: WebServer, house: House, cursor: object) -> None:
    with listening(server.url, house.token, tenant=True) as listener:
        answer = listener.ask("resume", {"cursor": cursor})
        assert (answer["ok"], answer["error"]) == (False, "invalid")


def test_a_cursor_behind_the_log_has_expired(server: WebServer, house: House) -> None:
    with listening(server.url, house.token, tenant=True) as listener:
        with tenancy.work(tenancy.system("stream")) as db:
            db.execute(sql("INSERT INTO iiot.stream_cursor (name, xid, id) VALUES ('log-floor', CAST('1' AS xid8), 1)"))
        try:
            answer = listener.ask("resume", {"cursor": "0" * 32})
            assert (answer["ok"], answer["error"]) == (False, "cursor-expired")
            assert "telemetry" in answer["hint"]
        finally:
            with tenancy.work(tenancy.system("stream")) as db:
                db.execute(sql("DELETE FROM iiot.stream_cursor WHERE name = 'log-floor'"))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (None,),
        (5,),
        ("x",),
        ([],),
        ({},),
        ({"devices": "x"},),
        ({"devices": [1]},),
        ({"tenant": "yes"},),
        ({"tenant": 1},),
        ({}, {}, {}),
    ],
)
@pytest.mark.parametrize("event", ["subscribe", "unsubscribe"])
def test_malformed_requests_are_answered(
    server: WebServer, house: House, event: str, arguments: tuple[object, ...]
) -> None:
    with listening(server.url, house.token) as listener:
        answer = listener.ask(event, *arguments)
        assert (answer["ok"], answer["error"]) == (False, "invalid")


def test_unknown_events_are_answered_and_the_connection_goes_on(server: WebServer, house: House) -> None:
    with listening(server.url, house.token) as listener:
        for name in ("x", "__init__", "connect", "disconnect", "connect_error", "telemetry", "*"):
            assert listener.ask(name, {"a": 1})["error"] == "unknown-event"
        assert listener.ask("subscribe", {"tenant": True})["ok"]


def test_too_many_devices_are_refused(server: WebServer, house: House) -> None:
    with listening(server.url, house.token) as listener:
        answer = listener.ask("subscribe", {"devices": ["a" * 26] * 501})
        assert (answer["error"], answer["limit"]) == ("too-many-devices", 500)


def test_too_many_events_are_refused_and_then_disconnected(server: WebServer, house: House) -> None:
    with listening(server.url, house.token) as listener:
        for _ in range(100):
            assert listener.ask("unsubscribe", {"tenant": True})["ok"]
        assert listener.ask("unsubscribe", {"tenant": True})["error"] == "rate-limited"
        for _ in range(250):
            if not listener.client.connected:
                break
            listener.client.emit("unsubscribe", {"tenant": True})
        assert listener.gone.wait(10)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "\0", "é" * 10, None])
def test_a_wrong_token_is_refused_with_a_reason(server: WebServer, token: str | None) -> None:
    listener = Listener(server.url, token)
    with pytest.raises(socketio.exceptions.ConnectionError):
        listener.connect()
    assert eventually(lambda: listener.refused)["message"] == "unauthorized"
    listener.close()


def _handshake(server: WebServer, origin: str | None) -> str:
    """The first frame that a WebSocket from a page of `origin` receives; empty when it is closed instead."""
    address = f"{server.url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket"
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    with contextlib.closing(plain):
        connection = websocket.create_connection(address, socket=plain, timeout=5, origin=origin)
        return str(connection.recv())


def test_pages_of_another_site_are_refused(server: WebServer) -> None:
    assert _handshake(server, server.url).startswith('0{"sid"')
    assert not _handshake(server, "https://evil.example")
    assert not _handshake(server, "null")


@pytest.mark.parametrize(
    "frames",
    [
        ["4" + "0" * 70_000],
        ["x" * 70_000],
        [b"x" * 70_000],
        [""],
        ["9"],
        ["xyz"],
        ["42" + "[" * 10_000],
        ["42{}"],
        ["42[5]"],
        ['451-["subscribe",{"_placeholder":true,"num":0}]'],
        [b"\0\1"],
        ["40{", "40[1,2]", "40/other,"],
        ["40", "40", "40"],
        ["42" + "1" * 300 + '["subscribe",{}]'],
    ],
)
def test_frames_that_are_nonsense_harm_nobody(server: WebServer, house: House, frames: list[str | bytes]) -> None:
    with listening(server.url, house.token, tenant=True) as listener:
        address = f"{server.url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket"
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        with contextlib.closing(plain):
            stranger = websocket.create_connection(address, socket=plain, timeout=5)
            assert str(stranger.recv()).startswith("0{")
            for frame in frames:
                with contextlib.suppress(OSError, websocket.WebSocketException):
                    stranger.send(frame, 2 if isinstance(frame, bytes) else 1)
            now = clock.now_ms()
            factories.store(house.devices[0].uid, (now, {"t": 1.0}))
            eventually(lambda: listener.readings)
    assert "Traceback" not in server.output


def test_a_message_in_many_frames_is_bounded_too(server: WebServer) -> None:
    address = f"{server.url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket"
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    with contextlib.closing(plain):
        stranger = websocket.create_connection(address, socket=plain, timeout=5)
        stranger.recv()

        def send() -> bool:
            try:
                stranger.send_frame(websocket.ABNF(fin=0, opcode=0, data=b"x" * 10_000))
            except OSError:
                return True
            return False

        stranger.send_frame(websocket.ABNF(fin=0, opcode=2, data=b"4"))
        assert any(send() or eventually(lambda: True) for _ in range(200))


def test_polling_is_refused(server: WebServer) -> None:
    assert http_status(f"{server.url}/socket.io/?EIO=4&transport=polling") == 400


def test_the_end_of_a_session_ends_its_connections_within_a_second(server: WebServer, house: House) -> None:
    other = token_of(house.user)[0]
    with (
        listening(server.url, house.token, tenant=True) as listener,
        listening(server.url, other, tenant=True) as stays,
    ):
        with tenancy.work(tenancy.system("sign-in")) as db:
            db.execute(sql("UPDATE iiot.session SET revoked_at = now() WHERE uid = :uid"), {"uid": house.session})
        began = time.monotonic()
        cache.forget_everywhere()
        assert listener.gone.wait(5)
        assert time.monotonic() - began < 1.2
        assert stays.ask("subscribe", {"tenant": True})["ok"]


@pytest.mark.parametrize("kind", ["user", "service"])
def test_an_api_key_listens_until_it_is_revoked(server: WebServer, kind: str) -> None:
    tenant = factories.make_tenant()
    device, user = factories.make_device(tenant), factories.make_user(tenant)
    boss = auth.Principal("user", tenant.tenant_id, tenant.uid, user.user_id, user.uid, "admin")
    with tenancy.work(tenancy.of(tenant)) as db:
        account = None if kind == "user" else service_accounts.create(db, boss, "exporter", "viewer").uid
        listed, key = api_keys.create(db, boss, api_keys.Wish("live", service_account=account))
        _, blind = api_keys.create(db, boss, api_keys.Wish("blind", ("device:read",), service_account=account))
    refused = Listener(server.url, blind)
    with pytest.raises(socketio.exceptions.ConnectionError):
        refused.connect()
    refused.close()
    with listening(server.url, key, tenant=True) as listener:
        now = clock.now_ms()
        factories.store(device.uid, (now, {"t": 21.5}))
        eventually(lambda: listener.readings == {(device.uid, "t", now): 21.5})
        with tenancy.work(tenancy.of(tenant)) as db:
            api_keys.revoke(db, boss, listed.uid)
        assert listener.gone.wait(5)
        again = Listener(server.url, key)
        with pytest.raises(socketio.exceptions.ConnectionError):
            again.connect()
        again.close()


def test_a_user_has_twenty_connections_on_all_workers(server: WebServer, house: House) -> None:
    listeners = [Listener(server.url, house.token).connect() for _ in range(20)]
    try:
        refused = Listener(server.url, house.token)
        with pytest.raises(socketio.exceptions.ConnectionError):
            refused.connect()
        assert eventually(lambda: refused.refused)["message"] == "too-many-connections"
        refused.close()
        listeners.pop().close()
        eventually(lambda: _connects(server, house), 5)
    finally:
        for listener in listeners:
            listener.close()


def _connects(server: WebServer, house: House) -> bool:
    listener = Listener(server.url, house.token)
    try:
        listener.connect()
    except socketio.exceptions.ConnectionError:
        return False
    finally:
        listener.close()
    return True
