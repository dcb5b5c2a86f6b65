"""From a device's POST over CoAP to the row in the database and back to the device, over real servers."""

import asyncio
import itertools
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiocoap
import cbor2
import pytest
from aiocoap import Message
from aiocoap.messagemanager import MessageManager
from aiocoap.numbers import codes
from aiocoap.tokenmanager import TokenManager

from iiot import clock, tenancy
from iiot.config import Settings
from iiot.models import Tenant
from iiot.services import credentials, devices
from protocols import coap, coap_wire
from protocols.base import AdapterError, ConnectionLost
from tests import factories, services
from tests.integration.coap_devices import Device, Reliable, Server, Unreliable, request, serving, within
from tests.services import PostgresServer, eventually


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[Server]:
    """One adapter for all small tests."""
    with serving(module_settings) as (process, changed):
        yield Server(process, changed.coap_bind, factories.make_tenant())


@pytest.fixture
def pump(server: Server) -> Device:
    return server.device()


@pytest.mark.parametrize("tuning", [Reliable, Unreliable])
def test_a_reading_is_stored_when_the_answer_comes(server: Server, pump: Device, tuning: Any) -> None:
    answer = server.post(pump, b'{"temperature":21.5}', transport_tuning=tuning)
    assert (answer.code, answer.payload) == (codes.CHANGED, b"")
    assert pump.values == {21.5}


@pytest.mark.parametrize("kind", [[], ["-N"]], ids=["confirmable", "not confirmable"])
def test_libcoap_is_understood(server: Server, pump: Device, kind: list[str]) -> None:
    said = server.program(
        *kind, "-m", "post", "-t", "json", "-e", '{"temperature": 19.25}', server.uri("telemetry", pump)
    )
    assert "4." not in said
    eventually(lambda: pump.values == {19.25})


def test_libcoap_sends_in_blocks_and_reads_the_links(server: Server, pump: Device, folder: Any) -> None:
    now = clock.now_ms()
    path = folder / "payload"
    path.write_text(json.dumps([{"ts": now - number, "values": {"a": number}} for number in range(200)]))
    server.program("-m", "post", "-t", "json", "-f", str(path), server.uri("telemetry", pump))
    eventually(lambda: pump.readings == 200)
    said = server.program("-m", "get", server.uri(".well-known/core"))
    assert all(each in said for each in ("</telemetry>", "</devices>", "</commands>"))


def test_the_links_are_link_format(server: Server) -> None:
    answer = server.get(".well-known/core")
    assert (answer.code, answer.opt.content_format) == (codes.CONTENT, 40)
    assert answer.payload == coap.LINKS


def test_the_device_reads_itself(server: Server) -> None:
    device = Device(server.tenant, name="Pümpe " + "x" * 190)
    whole = json.loads(server.get("devices", device).payload)
    assert whole["children"] == []
    assert whole["device"]["id"] == device.uid
    assert whole["device"]["name"].startswith("Pümpe")
    assert {"type", "status", "is_gateway"} <= whole["device"].keys()
    parts = server.get("devices", device, block2=(0, False, 1))
    assert json.loads(parts.payload) == whole


def test_cbor_is_stored(server: Server, pump: Device) -> None:
    payload = cbor2.dumps([{"ts": clock.now_ms(), "values": {"a": 1, "b": 2.5}}])
    assert server.post(pump, payload, 60).code == codes.CHANGED
    assert pump.values == {1.0, 2.5}


@pytest.mark.parametrize("number", [110, 112])
def test_senml_is_stored(server: Server, pump: Device, number: int) -> None:
    if number == 110:
        payload = json.dumps([{"bn": "m/", "n": "a", "v": 3, "t": -5}, {"n": "b", "v": 4.5}]).encode()
    else:
        payload = cbor2.dumps([{-2: "m/", 0: "a", 2: 3, 6: -5}, {0: "b", 2: 4.5}])
    assert server.post(pump, payload, number).code == codes.CHANGED
    found = factories.rows("SELECT key FROM iiot.signal WHERE device_id = %s ORDER BY key", pump.device_id)
    assert [row[0] for row in found] == ["m/a", "m/b"]
    assert pump.values == {3.0, 4.5}


def test_a_hundred_kilobytes_come_in_blocks(server: Server, pump: Device) -> None:
    now = clock.now_ms()
    payload = json.dumps([{"ts": now - number, "values": {"a": number, "b": number}} for number in range(2_000)])
    payload += " " * (100_000 - len(payload))
    answer = server.post(pump, payload.encode())
    assert answer.code == codes.CHANGED
    assert pump.readings == 4_000


def test_what_is_too_large_is_refused_with_the_limit(server: Server, pump: Device) -> None:
    answer = server.post(pump, b" " * 270_000)
    assert (answer.code, answer.opt.size1) == (codes.REQUEST_ENTITY_TOO_LARGE, 256 * 1024)


def test_blocks_that_are_missing_are_named(server: Server, pump: Device) -> None:
    uri = server.uri("telemetry", pump)
    answer = server.ask(Message(code=codes.POST, uri=uri, payload=b"x", block1=(3, False, 6)), blockwise=False)
    assert answer.code == codes.REQUEST_ENTITY_INCOMPLETE


def test_a_wrong_token_and_an_unknown_device_read_the_same(server: Server, pump: Device) -> None:
    wrong = server.post(pump, b'{"a":1}' + b" " * 100, token="wrong")
    stranger = Device(server.tenant)
    stranger.uid = "u" * 26
    unknown = server.post(stranger, b'{"a":1}' + b" " * 100)
    assert wrong.code == unknown.code == codes.UNAUTHORIZED
    assert wrong.payload == unknown.payload != b""
    assert server.post(pump, b"{}", token="x" * 240).code == codes.UNAUTHORIZED
    assert server.ask(Message(code=codes.POST, uri=server.uri("telemetry"))).code == codes.UNAUTHORIZED
    assert server.get("devices").code == codes.UNAUTHORIZED
    assert pump.readings == 0


def test_a_disabled_device_and_a_suspended_tenant_are_told(server: Server, pump: Device) -> None:
    with tenancy.work(tenancy.of(server.tenant)) as db:
        devices.set_enabled(db, pump.uid, False)
    answer = server.post(pump, b'{"a":1}')
    assert (answer.code, answer.payload.split(b":")[0]) == (codes.FORBIDDEN, b"device-disabled")
    tenant = factories.make_tenant()
    other = Device(tenant)
    with tenancy.work(tenancy.system("platform")) as db:
        db.get_one(Tenant, tenant.tenant_id).status = "suspended"
    answer = server.post(other, b'{"a":1}')
    assert (answer.code, answer.payload.split(b":")[0]) == (codes.FORBIDDEN, b"tenant-suspended")


def test_a_revoked_token_is_muted_within_a_second(server: Server, pump: Device) -> None:
    assert server.post(pump, b'{"a":1}').code == codes.CHANGED
    with tenancy.work(tenancy.of(server.tenant)) as db:
        credentials.replace(db, devices.get(db, pump.uid), credentials.Wanted())
    eventually(lambda: server.post(pump, b'{"a":2}').code == codes.UNAUTHORIZED, 1.0)


@pytest.mark.parametrize(
    ("payload", "number", "code"),
    [
        (b"temperature=5", 50, "not-json"),
        (b'{"a":NaN}', None, "not-finite"),
        (b"\xff\xff", 60, "not-cbor"),
        (b"{}", 110, "not-senml"),
        (b"", 50, "empty"),
    ],
)
def test_bad_content_is_named_and_kept_and_the_next_message_is_stored(
    server: Server, pump: Device, payload: bytes, number: int | None, code: str
) -> None:
    answer = server.post(pump, payload, number)
    assert (answer.code, answer.payload.split(b":")[0]) == (codes.BAD_REQUEST, code.encode())
    assert pump.rejections == [code]
    assert server.post(pump, b'{"a":1}').code == codes.CHANGED
    assert pump.values == {1.0}


def test_other_content_formats_paths_and_methods(server: Server, pump: Device) -> None:
    assert server.post(pump, b"{}", 41).code == codes.UNSUPPORTED_CONTENT_FORMAT
    assert pump.rejections == ["unsupported-content-type"]
    assert server.get("nowhere").code == codes.NOT_FOUND
    assert server.get("telemetry", pump).code == codes.METHOD_NOT_ALLOWED
    assert server.get("devices", pump, accept=60).code == codes.NOT_ACCEPTABLE
    assert server.get("devices", pump, if_none_match=True).code == codes.BAD_OPTION


def test_what_was_refused_of_a_message_is_told(server: Server) -> None:
    device = Device(factories.make_tenant(signals_per_device=2))
    answer = server.post(device, b'{"a":1,"b":2,"c":3}')
    told = json.loads(answer.payload)
    assert (answer.code, told["accepted"], told["refused"]) == (codes.CHANGED, 2, 1)
    assert told["refusals"][0]["code"] == "signal-quota"
    assert told["refusals"][0]["key"] in "abc"


def test_a_used_up_quota_says_when_to_come_back(server: Server) -> None:
    device = Device(factories.make_tenant(readings_per_day=1))
    assert server.post(device, b'{"a":1}').code == codes.CHANGED
    answer = server.post(device, b'{"a":2}')
    assert answer.code == codes.TOO_MANY_REQUESTS
    assert 0 < answer.opt.max_age <= 86_401


def test_too_many_failures_are_throttled(server: Server, pump: Device) -> None:
    answers = [server.post(pump, b"{}", token="wrong") for _ in range(coap_failures() + 1)]
    assert answers[-1].code == codes.TOO_MANY_REQUESTS
    assert answers[-1].opt.max_age > 0


def coap_failures() -> int:
    from protocols.devices import FAILURES_OF_DEVICE

    return FAILURES_OF_DEVICE


def test_a_repeated_request_gets_the_same_answer_and_is_stored_once(server: Server, pump: Device) -> None:
    datagram = request(codes.POST, server.uri("telemetry", pump), 7, b'{"a":1}')
    with server.raw() as raw:
        first = raw.answer(datagram)
        assert first.code == codes.CHANGED
        raw.send(datagram)
        again = Message.decode(raw.receive())
        assert again.mid == 7
        assert again.code in (codes.CHANGED, codes.EMPTY)
    assert pump.readings == 1


@pytest.mark.parametrize("token", [b"", b"\x00", b"\x00\x09\x00", b"zz"])
def test_a_forged_repetition_calls_up_no_answer(server: Server, pump: Device, token: bytes) -> None:
    with server.raw() as raw:
        answer = raw.answer(request(codes.GET, server.uri("devices", pump), 9))
        assert answer.code == codes.CONTENT
        raw.send(bytes([0x40 | len(token), 1, 0, 9]) + token)
        # The answer to what follows is the next thing that comes.
        followed = request(codes.GET, server.uri("nowhere", pump), 10)
        raw.send(followed)
        came = Message.decode(raw.receive())
        if came.code == codes.EMPTY:
            # The answer had been a separate one; its acknowledgement says nothing.
            came = Message.decode(raw.receive())
        assert came.mid == 10


def test_strangers_get_no_more_than_they_sent(server: Server, pump: Device) -> None:
    wrong = f"{server.uri('telemetry')}?uid={pump.uid}&token=wrong"
    with server.raw() as raw:
        links = bytes.fromhex("40010001bb") + b".well-known" + b"\x04core"
        datagrams = {
            "nowhere": request(codes.GET, server.uri("nowhere"), 2),
            "nothing": request(codes.GET, server.uri(""), 3),
            "method": request(codes.DELETE, server.uri("telemetry"), 4),
            "credentials": request(codes.POST, server.uri("telemetry"), 5),
            "wrong": request(codes.POST, wrong, 6, b"{}"),
            "not confirmable": request(codes.POST, wrong, 7, b"{}", confirmable=False),
            "ping": bytes([0x40, 0, 0, 8]),
            "path": bytes([0x40, 1, 0, 9, 0xB1, 0x78]),
            "empty OSCORE": bytes([0x40, 2, 0, 10, 0x90]),
            "GET under OSCORE": bytes([0x40, 1, 0, 11, 0x90]),
            "no such block": links[:2] + b"\x00\x0c" + links[4:] + b"\xc2\x01\x00",
            "another format": links[:2] + b"\x00\x0d" + links[4:] + b"\x61\x32",
        }
        for name, datagram in datagrams.items():
            raw.send(datagram)
            assert 0 < len(raw.receive()) <= len(datagram), name


# What follows the type, version and length of the token, and the message id: (first byte without the type, code, the rest).
MALFORMED = {
    "token of 9": (0x49, 1, b"123456789"),
    "token of 15": (0x4F, 1, b"x" * 15),
    "token beyond the end": (0x48, 1, b"7"),
    "class 1": (0x40, 0x21, b""),
    "class 3": (0x40, 0x61, b""),
    "class 6": (0x40, 0xC1, b""),
    "class 7": (0x40, 0xE1, b""),
    "empty with more": (0x40, 0, b"x"),
    "delta 15": (0x40, 1, b"\xf1x"),
    "length 15": (0x40, 1, b"\xbfx"),
    "option beyond the end": (0x40, 1, b"\xb5x"),
    "number beyond the end": (0x40, 1, b"\xe0\x01"),
    "no such number": (0x40, 1, b"\xe0\xff\xff"),
    "path without UTF-8": (0x40, 2, b"\xb1\xff"),
    "query without UTF-8": (0x40, 2, b"\xd1\x02\xff"),
    "65 options": (0x40, 1, b"\xb0" + b"\x00" * 64),
    "marker without payload": (0x40, 2, b"\xb9telemetry\xff"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_message_is_rejected(server: Server, name: str) -> None:
    first, code, rest = MALFORMED[name]
    with server.raw() as raw:
        # One that is not confirmable, an acknowledgement and a reset get nothing, another version and half a header neither.
        for kind in (0x10, 0x20, 0x30):
            raw.send(bytes([first | kind, code, 0x12, 0x36]) + rest)
        raw.send(bytes([first | 0x80, code, 0x12, 0x36]) + rest)
        raw.send(bytes([first, code, 0x12]))
        for _ in range(2):
            raw.send(bytes([first, code, 0x12, 0x37]) + rest)
            assert raw.receive() == b"\x70\x00\x12\x37"


def test_as_many_options_as_there_may_be_are_read(server: Server) -> None:
    with server.raw() as raw:
        raw.send(b"\x40\x01\x12\x38\xb0" + b"\x00" * 63)
        assert Message.decode(raw.receive()).code == codes.NOT_FOUND


# Accept twice, Block2 twice, behind the query (option 15).
@pytest.mark.parametrize("options", [b"\x21\x32\x01\x32", b"\x81\x06\x01\x06"])
def test_an_option_that_stands_twice_is_refused(server: Server, pump: Device, options: bytes) -> None:
    with server.raw() as raw:
        answer = raw.answer(request(codes.GET, server.uri("devices", pump), 21) + options)
        assert answer.code == codes.BAD_OPTION
        assert b"stands twice" in answer.payload


def test_the_seams_in_aiocoap_are_where_they_are_expected() -> None:
    for name in ("_deduplicate_message", "_store_response_for_duplicates", "_remove_exchange"):
        assert name in MessageManager.__dict__
        assert name in coap_wire.Manager.__dict__
    assert "_received_datagram" in coap_wire._Datagrams.__dict__
    assert hasattr(coap_wire.MessageInterfaceSimpleServer, "_received_datagram")
    for name in ("process_request", "dispatch_error"):
        assert name in TokenManager.__dict__
        assert name in coap_wire._Tokens.__dict__


def test_check_send_and_a_port_that_is_taken(server: Server, pump: Device, module_settings: Settings) -> None:
    adapter = coap.make(module_settings.model_copy(update={"coap_bind": server.bind}))
    adapter.send(pump.uid, pump.token, b'{"a":1}')
    assert pump.values == {1.0}
    with pytest.raises(AdapterError, match=r"4\.01"):
        adapter.send(pump.uid, "wrong", b"{}")
    with pytest.raises(AdapterError, match="IIOT_COAP_BIND"):
        adapter.check()
    with pytest.raises(ConnectionLost, match="IIOT_COAP_BIND"):
        adapter.run(None, threading.Event())  # type: ignore[arg-type]
    free = module_settings.model_copy(update={"coap_bind": "127.0.0.1:0"})
    coap.make(free).check()
    assert not coap.make(free.model_copy(update={"env": "production"})).takes_tokens
    assert coap.make(free.model_copy(update={"env": "production", "coap_plain": True})).takes_tokens


def test_nothing_is_acknowledged_before_the_commit(settings: Settings) -> None:
    with serving(settings) as (process, changed):
        server = Server(process, changed.coap_bind, factories.make_tenant())
        pump = server.device()
        assert server.post(pump, b'{"a":0}').code == codes.CHANGED
        connection = factories.connect(autocommit=False)
        try:
            with connection.cursor() as cursor, server.raw() as raw:
                cursor.execute("LOCK TABLE iiot.telemetry IN ACCESS EXCLUSIVE MODE")
                raw.send(request(codes.POST, server.uri("telemetry", pump), 9, b'{"a":1}'))
                acknowledgement = Message.decode(raw.receive())
                assert (acknowledgement.mtype, acknowledgement.code) == (aiocoap.ACK, codes.EMPTY)
                assert raw.receive(0.5) == b""
                connection.rollback()
                answer = Message.decode(raw.receive())
                assert (answer.mtype, answer.code) == (aiocoap.CON, codes.CHANGED)
                assert pump.values == {0.0, 1.0}
                raw.send(bytes([0x60, 0, answer.mid >> 8, answer.mid & 255]))
        finally:
            connection.close()


def test_sigterm_answers_what_was_taken(settings: Settings) -> None:
    with serving(settings) as (process, changed):
        server = Server(process, changed.coap_bind, factories.make_tenant())
        pump = server.device()
        connection = factories.connect(autocommit=False)
        try:
            with connection.cursor() as cursor, server.raw() as raw:
                cursor.execute("LOCK TABLE iiot.telemetry IN ACCESS EXCLUSIVE MODE")
                raw.send(request(codes.POST, server.uri("telemetry", pump), 10, b'{"a":1}'))
                assert Message.decode(raw.receive()).code == codes.EMPTY
                # Taken over: the writer waits for the table.
                waits = "SELECT 1 FROM pg_stat_activity WHERE usename = 'iiot_ingest' AND wait_event_type = 'Lock'"
                eventually(lambda: factories.rows(waits))
                assert process.process is not None
                os.kill(process.process.pid, signal.SIGTERM)
                connection.rollback()
                answer = Message.decode(raw.receive())
                assert answer.code == codes.CHANGED
                raw.send(bytes([0x60, 0, answer.mid >> 8, answer.mid & 255]))
        finally:
            connection.close()
        started = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - started < 5
        assert pump.values == {1.0}


def test_an_outage_of_the_database_loses_nothing_that_was_confirmed(folder: Any, valkey: services.ValkeyServer) -> None:
    postgres = PostgresServer(folder / "own")
    postgres.start()
    try:
        fresh = postgres.database(redis_url=valkey.url(3), data_dir=folder)
        with serving(fresh) as (process, changed):
            server = Server(process, changed.coap_bind, factories.make_tenant())
            pump = server.device()
            assert server.post(pump, b'{"a":0}').code == codes.CHANGED
            postgres.stop()
            payload = b'{"ts":%d,"values":{"a":1}}' % clock.now_ms()
            with ThreadPoolExecutor(1) as pool:
                # It waits for its commit, or cannot be asked who it is, according to how long the stop took.
                early = pool.submit(server.post, pump, payload)
                eventually(lambda: "not stored, nothing ack" in process.said or "cannot be asked" in process.said)
                assert not early.done() or early.result().code == codes.SERVICE_UNAVAILABLE
                postgres.start()
                assert early.result().code in (codes.CHANGED, codes.SERVICE_UNAVAILABLE)
            eventually(lambda: server.post(pump, payload).code == codes.CHANGED, 30)
            assert server.post(pump, payload).code == codes.CHANGED
            assert sorted(pump.values) == [0.0, 1.0]
            assert pump.readings == 2
    finally:
        postgres.stop()


def test_noise_upsets_nothing(settings: Settings) -> None:
    chance = random.Random(7)
    with serving(settings) as (process, changed):
        server = Server(process, changed.coap_bind, factories.make_tenant())
        pump = server.device()
        good = request(codes.POST, server.uri("telemetry", pump), 1, b'{"a":1}')
        with server.raw() as raw:
            for noise in (b"", b"\x40", b"\x00" * 4, b"\x4f\x01\x00\x01" + b"x" * 15, b"\x40\x02\x00\x02\xb1\xff"):
                raw.send(noise)
            for number in range(200):
                # Every code and type, with options and payloads of any kind; then a good request with one byte changed.
                head = bytes([0x40 | chance.randrange(64), chance.randrange(256)]) + number.to_bytes(2, "big")
                raw.send(head + chance.randbytes(chance.randrange(40)))
                broken = bytearray(good[:2] + (40_000 + number).to_bytes(2, "big") + good[4:])
                broken[chance.randrange(4, len(broken))] = chance.randrange(256)
                raw.send(bytes(broken))
        # So many wrong tokens of one address are throttled for a while, whoever sends them.
        eventually(lambda: server.post(pump, b'{"b":1}').code == codes.CHANGED)
        assert "Traceback" not in process.said


def test_metrics_move(settings: Settings, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = folder / "metrics"
    metrics.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(metrics))
    with serving(settings) as (process, changed):
        server = Server(process, changed.coap_bind, factories.make_tenant())
        pump = server.device()
        assert server.post(pump, b'{"a":1}').code == codes.CHANGED
        assert server.post(pump, b"{").code == codes.BAD_REQUEST
        assert server.post(pump, b"{}", token="wrong").code == codes.UNAUTHORIZED
    from prometheus_client import CollectorRegistry, generate_latest, multiprocess

    whole = CollectorRegistry()
    multiprocess.MultiProcessCollector(whole, str(metrics))  # type: ignore[no-untyped-call]
    text = generate_latest(whole).decode()
    assert 'iiot_protocol_messages_total{kind="telemetry",protocol="coap"} 2.0' in text
    assert 'iiot_protocol_rejected_total{code="not-json",protocol="coap"} 1.0' in text
    assert 'iiot_protocol_logins_total{protocol="coap",result="wrong"} 1.0' in text


def test_many_devices_at_once(server: Server) -> None:
    async def ask(context: aiocoap.Context, device: Device, number: int) -> Any:
        uri = server.uri("telemetry", device)
        message = Message(code=codes.POST, uri=uri, payload=b'{"a":%d}' % number, content_format=50)
        return (await asyncio.wait_for(context.request(message).response, 30)).code

    def client(device: Device) -> list[Any]:
        async def all_of_them() -> list[Any]:
            context = await aiocoap.Context.create_client_context(transports=["simple6"])
            try:
                return [await ask(context, device, number) for number in range(20)]
            finally:
                await context.shutdown()

        return asyncio.run(all_of_them())

    made = [server.device() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = [code for codes_of_device in pool.map(client, made) for code in codes_of_device]
    assert set(found) == {codes.CHANGED}
    assert all(device.readings == 20 for device in made)


# The message ids of requests without a path, a token, anything: four bytes.
BARE = 0x8000


def test_a_source_that_floods_is_slowed_down(settings: Settings) -> None:
    with serving(settings) as (process, changed):
        server = Server(process, changed.coap_bind, factories.make_tenant())
        with server.raw() as raw:
            found: list[Message] = []
            sizes: set[int] = set()
            mids = itertools.count()

            def many() -> bool:
                """A hundred at once: one by one, a busy machine may stay below what is allowed."""
                for mid in itertools.islice(mids, 50):
                    raw.send(request(codes.GET, server.uri("nowhere"), mid))
                    raw.send(bytes([0x40, 1]) + (BARE + mid).to_bytes(2, "big"))
                for answer in (raw.receive() for _ in range(100)):
                    found.append(Message.decode(answer))
                    if found[-1].mid >= BARE and found[-1].code == codes.TOO_MANY_REQUESTS:
                        sizes.add(len(answer))
                return bool(sizes)

            eventually(many, timeout=30)
            assert {answer.code for answer in found} == {codes.NOT_FOUND, codes.TOO_MANY_REQUESTS}
            assert len(found) > coap.SOURCE_BURST
            # Four bytes came: not one is left for more than the code.
            assert sizes == {4}


def test_a_token_that_is_used_again_at_once_loses_nothing(server: Server, pump: Device) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        host, port = server.bind.split(":")
        for mid in range(50):  # nobody reads the answers
            gone.sendto(request(codes.POST, server.uri("telemetry", pump), mid, b'{"a":1}'), (host, int(port)))
    eventually(lambda: pump.readings == 50)
    assert server.post(pump, b'{"a":2}').code == codes.CHANGED


def test_the_whole_way_in_one_process(settings: Settings) -> None:
    with within(settings) as server:
        server.tenant = factories.make_tenant(signals_per_device=3)
        pump = server.device()
        for payload, number, code in (
            (b'{"a":1}', 50, codes.CHANGED),
            (b'{"a":' + b" " * 3_000 + b"2}", None, codes.CHANGED),
            (cbor2.dumps({"a": 3}), 60, codes.CHANGED),
            (b'{"b":1,"c":2,"d":3,"e":4}', 50, codes.CHANGED),
            (b"{", 50, codes.BAD_REQUEST),
            (b"{}", 41, codes.UNSUPPORTED_CONTENT_FORMAT),
            (b" " * 270_000, 50, codes.REQUEST_ENTITY_TOO_LARGE),
        ):
            assert server.post(pump, payload, number).code == code
        assert server.post(pump, b"{}", token="wrong").code == codes.UNAUTHORIZED
        assert json.loads(server.get("devices", pump).payload)["device"]["id"] == pump.uid
        assert server.get(".well-known/core").payload == coap.LINKS
        assert server.get("devices").code == codes.UNAUTHORIZED
        assert server.get("telemetry").code == codes.METHOD_NOT_ALLOWED
        datagram = request(codes.POST, server.uri("telemetry", pump), 7, b'{"a":4}')
        with server.raw() as raw:
            assert raw.answer(datagram).code == raw.answer(datagram).code == codes.CHANGED
        assert pump.values >= {1.0, 2.0, 3.0, 4.0}
