"""CoAP under OSCORE (RFC 8613): keys from the database, replays, restarts, restored backups, over real servers."""

import json
import time
from collections.abc import Iterator

import pytest
from aiocoap import Message
from aiocoap.numbers import codes
from cryptography.exceptions import InvalidTag

from iiot import tenancy
from iiot.config import Settings
from iiot.errors import Conflict, NotFound
from iiot.models import Tenant
from iiot.services import devices, oscore
from protocols.base import SharedKey
from protocols.coap_oscore import Context
from protocols.devices import Devices
from tests import factories
from tests.integration.coap_devices import Device, Server, order, serving, states
from tests.integration.oscore_devices import Protected, issue
from tests.services import eventually

WAIT = 30


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[Server]:
    """One adapter for the tests that leave it alone."""
    with serving(module_settings) as (process, changed):
        yield Server(process, changed.coap_bind, factories.make_tenant())


@pytest.fixture
def pump(server: Server) -> Device:
    return server.device()


@pytest.fixture
def device(server: Server, pump: Device) -> Iterator[Protected]:
    with Protected(server, issue(pump)) as found:
        yield found


def test_a_reading_is_stored_and_the_first_request_proves_that_it_is_fresh(pump: Device, device: Protected) -> None:
    first = device.post(b'{"temperature":21.5}')
    assert (first.code, first.outer.code, device.echoes) == (codes.CHANGED, codes.CHANGED, 1)
    assert first.inner is not None
    assert device.post(b'{"temperature":22.5}').code == codes.CHANGED
    assert device.echoes == 1
    assert pump.values == {21.5, 22.5}
    assert factories.rows(
        "SELECT last_used_at IS NOT NULL FROM iiot.oscore_context WHERE device_id = %s", pump.device_id
    ) == [(True,)]


def test_all_resources_are_there_without_credentials(pump: Device, device: Protected) -> None:
    shown = device.ask(codes.GET, "devices").inner
    assert shown is not None
    assert json.loads(shown.payload)["device"]["id"] == pump.uid
    links = device.ask(codes.GET, ".well-known/core").inner
    assert links is not None
    assert links.payload.startswith(b"</telemetry>")
    assert device.ask(codes.GET, "nowhere").code == codes.NOT_FOUND
    assert device.ask(codes.DELETE, "telemetry").code == codes.METHOD_NOT_ALLOWED
    refused = device.post(b"temperature=5")
    assert refused.code == codes.BAD_REQUEST
    # What was refused is told inside alone.
    assert refused.outer.code == codes.CHANGED
    assert b"not-json" not in refused.outer.payload
    assert pump.rejections == ["not-json"]


def test_the_key_says_who_it_is_and_nothing_else_does(server: Server, pump: Device, device: Protected) -> None:
    other = server.device()
    query = [f"uid={other.uid}", f"token={other.token}"]
    assert device.post(b'{"a":1}', uri_query=query).code == codes.CHANGED
    assert (pump.values, other.values) == ({1.0}, set())


def test_a_body_comes_in_blocks(pump: Device, device: Protected) -> None:
    device.ask(codes.GET, "devices")
    body = json.dumps({f"signal{number}": number for number in range(60)}).encode().ljust(1_000)
    for number in range(4):
        block = (number, number < 3, 4)
        answer = device.post(body[number * 256 : number * 256 + 256], block1=block)
        assert answer.code == (codes.CONTINUE if number < 3 else codes.CHANGED)
    assert pump.readings == 60


def test_a_replayed_request_is_refused_and_changes_nothing(server: Server, pump: Device, device: Protected) -> None:
    device.post(b'{"a":0}')
    datagram, token, identifiers = device.datagram(codes.POST, "telemetry", b'{"a":1}')
    assert device.exchange(datagram, token, identifiers).code == codes.CHANGED
    with server.raw() as thief:
        # From another address with another message id it is no duplicate, but the same number.
        thief.send(datagram[:2] + b"\x77\x77" + datagram[4:])
        answer = Message.decode(thief.datagram())
    assert (answer.code, answer.opt.max_age, answer.opt.oscore) == (codes.UNAUTHORIZED, 0, None)
    assert pump.values == {0.0, 1.0}
    assert device.post(b'{"a":2}').code == codes.CHANGED


def test_wrong_keys_and_broken_requests_open_nothing(server: Server, pump: Device, device: Protected) -> None:
    device.post(b'{"a":0}')
    with Protected(server, issue(pump), secret=b"x" * 16) as liar:
        assert liar.post(b'{"a":1}').code == codes.BAD_REQUEST
    other = issue(pump)
    other.context.kid = b"\x01\x02\x03"
    with Protected(server, other) as stranger:
        answer = stranger.post(b'{"a":2}')
        assert (answer.code, answer.outer.payload) == (codes.UNAUTHORIZED, b"Security context not found")
    datagram, token, identifiers = device.datagram(codes.POST, "telemetry", b'{"a":3}')
    changed = datagram[:-1] + bytes([datagram[-1] ^ 1])
    assert device.exchange(changed, token, identifiers).code == codes.BAD_REQUEST
    assert pump.values == {0.0}
    assert device.post(b'{"a":4}').code == codes.CHANGED


def test_no_answer_to_a_stranger_is_larger_than_what_was_sent(server: Server, pump: Device) -> None:
    issued = issue(pump)
    fresh = Protected(server, issued)
    liar = Protected(server, issued, secret=b"x" * 16)
    unknown = Protected(server, issue(pump))
    liar.raw.mid, unknown.raw.mid = 200, 300
    unknown.side.sender_id = b"\x09"
    with fresh, liar, unknown, server.raw() as raw:
        datagrams = {
            "echo": fresh.datagram(codes.GET, "devices")[0],
            "wrong key": liar.datagram(codes.GET, "devices")[0],
            "unknown key": unknown.datagram(codes.GET, "devices")[0],
            "empty option": b"\x40\x02\x11\x11\x90\xff\x00",
            "cut option": b"\x40\x02\x11\x12\x91\x19\xff\x00",
            "no payload": b"\x40\x02\x11\x13\x94\x09\x01abc"[:9],
        }
        for name, datagram in datagrams.items():
            raw.send(datagram)
            assert 0 < len(raw.datagram()) <= len(datagram), name


def test_a_restart_asks_for_an_echo_and_no_replay_gets_through(settings: Settings) -> None:
    with serving(settings) as (process, changed):
        server = Server(process, changed.coap_bind, factories.make_tenant())
        pump = server.device()
        with Protected(server, issue(pump)) as device:
            device.post(b'{"a":0}')
            recorded, _, _ = device.datagram(codes.POST, "telemetry", b'{"a":1}')
            device.raw.send(recorded)
            eventually(lambda: pump.values == {0.0, 1.0})
            process.kill()
            process.start()
            count = pump.readings
            with server.raw() as thief:
                thief.send(recorded[:2] + b"\x55\x55" + recorded[4:])
                answer = Message.decode(thief.datagram())
                # Protected, and only the device can read what it has to send back.
                assert (answer.code, answer.opt.oscore is None) == (codes.CHANGED, False)
            assert pump.readings == count
            assert device.post(b'{"a":2}').code == codes.CHANGED
            assert device.echoes == 2
            assert pump.values == {0.0, 1.0, 2.0}


def test_a_revoked_key_is_muted_within_a_second(pump: Device, device: Protected) -> None:
    assert device.post(b'{"a":0}').code == codes.CHANGED
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        row = devices.locked(db, pump.uid)
        oscore.revoke(db, row, oscore.list_all(db, row)[0].uid)
    began = time.monotonic()
    answer = device.post(b'{"a":1}')
    assert (answer.code, answer.inner) == (codes.UNAUTHORIZED, None)
    assert time.monotonic() - began < 1.0
    assert pump.values == {0.0}
    with tenancy.work(tenancy.of(pump.tenant)) as db, pytest.raises(NotFound):
        oscore.revoke(db, devices.locked(db, pump.uid), "a" * 26)


def test_a_disabled_device_and_a_suspended_tenant_are_told_inside(
    server: Server, pump: Device, device: Protected
) -> None:
    device.post(b'{"a":0}')
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        devices.set_enabled(db, pump.uid, False)
    answer = device.post(b'{"a":1}')
    assert answer.inner is not None
    assert (answer.code, answer.inner.payload.split(b":")[0]) == (codes.FORBIDDEN, b"device-disabled")
    tenant = factories.make_tenant()
    other = Device(tenant)
    issued = issue(other)
    with tenancy.work(tenancy.system("platform")) as db:
        db.get_one(Tenant, tenant.tenant_id).status = "suspended"
    with Protected(server, issued) as suspended:
        assert suspended.post(b'{"a":1}').code == codes.FORBIDDEN


def test_commands_are_observed_confirmed_and_answered(pump: Device, device: Protected) -> None:
    first = device.ask(codes.GET, "commands", observe=0, token=b"\x0b")
    assert first.inner is not None
    assert (first.code, first.inner.payload, first.outer.opt.observe is not None) == (codes.CONTENT, b"{}", True)
    watched = device.observed
    numbers = []
    for name in ("first", "second"):
        uid = order(pump, name)
        message = device.raw.notified()
        assert message is not None
        assert message.mtype == 0
        opened = device.open(message, watched)
        assert opened.inner is not None
        assert json.loads(opened.inner.payload)["id"] == uid
        numbers.append(opened.outer.opt.observe)
        eventually(lambda uid=uid: states(uid) == ["queued", "sent"], WAIT)  # type: ignore[misc]
        assert device.ask(codes.POST, f"commands/{uid}", b'{"status":"done"}', content_format=50).code == codes.CHANGED
        assert states(uid)[-1] == "done"
    assert numbers == sorted(numbers)


def test_production_takes_keys_and_no_tokens(settings: Settings) -> None:
    with serving(settings.model_copy(update={"coap_plain": False})) as (process, changed):
        server = Server(process, changed.coap_bind, factories.make_tenant())
        pump = server.device()
        answer = server.post(pump, b'{"a":1}' + b" " * 100)
        assert (answer.code, b"OSCORE" in answer.payload) == (codes.UNAUTHORIZED, True)
        with Protected(server, issue(pump)) as device:
            assert device.post(b'{"a":2}').code == codes.CHANGED
        assert pump.values == {2.0}


# --- the service -------------------------------------------------------------------------------------------------------------------------------


CHANGE = "UPDATE iiot.oscore_context SET"


def reserve(kid: bytes) -> range | None:
    with tenancy.work(tenancy.system("device-sign-in")) as db:
        return oscore.reserve(db, kid)


def test_numbers_are_stored_ahead_and_never_given_twice(settings: Settings) -> None:
    pump = Device(factories.make_tenant())
    kid = issue(pump).context.kid
    found = [reserve(kid) for _ in range(5)]
    assert all(each is not None and len(each) == oscore.STEP for each in found)
    whole = [number for each in found if each for number in each]
    assert len(set(whole)) == len(whole)
    assert whole == sorted(whole)
    stored = factories.rows("SELECT sequence FROM iiot.oscore_context WHERE kid = %s", kid)[0][0]
    assert stored == whole[-1] + 1
    assert reserve(b"nobody") is None


def test_a_restored_backup_goes_on_beyond_what_was_used(settings: Settings) -> None:
    pump = Device(factories.make_tenant())
    kid = issue(pump).context.kid
    # A day has passed; then as many numbers were used as are given away at all.
    factories.rows(f"{CHANGE} created_at = created_at - interval '1 day' WHERE kid = %s RETURNING 1", kid)
    used = [numbers for _ in range(oscore.AHEAD // oscore.STEP * 2) if (numbers := reserve(kid))]
    assert reserve(kid) is None
    # The backup knows nothing of these, and is brought back a minute later.
    later = f"{CHANGE} sequence = 0, created_at = created_at - interval '61 seconds' WHERE kid = %s RETURNING 1"
    factories.rows(later, kid)
    following = reserve(kid)
    assert following is not None
    assert following.start >= used[-1].stop > 86_400 * oscore.PER_SECOND


def test_numbers_do_not_run_away_from_the_clock(settings: Settings) -> None:
    pump = Device(factories.make_tenant())
    kid = issue(pump).context.kid
    factories.rows(f"{CHANGE} sequence = sequence + %s WHERE kid = %s RETURNING 1", oscore.AHEAD * 2, kid)
    assert reserve(kid) is None


def test_the_secret_is_encrypted_bound_to_its_row_and_never_in_the_trail(settings: Settings) -> None:
    pump = Device(factories.make_tenant())
    issued = issue(pump, "new firmware")
    row = issued.context
    assert issued.secret not in row.secret
    assert len(row.kid) == len(row.own_id) == 7
    assert oscore._unseal(row.secret, row.uid) == issued.secret
    with pytest.raises(InvalidTag):
        oscore._unseal(row.secret, "a" * 26)
    trail = factories.rows(
        "SELECT action, after::text FROM iiot.audit WHERE object_uid = %s ORDER BY seq DESC LIMIT 1", pump.uid
    )
    assert trail[0][0] == "oscore.create"
    assert issued.secret.hex() not in trail[0][1]


def test_five_keys_and_no_more(settings: Settings) -> None:
    pump = Device(factories.make_tenant())
    for _ in range(oscore.MOST):
        issue(pump)
    with pytest.raises(Conflict):
        issue(pump)


def test_contexts_of_one_key_never_share_numbers(settings: Settings) -> None:
    pump = Device(factories.make_tenant())
    door = Devices("coap")
    key = door.shared_key(issue(pump).context.kid)
    assert isinstance(key, SharedKey)
    context = Context(key)
    first, second = door.reserve(key), door.reserve(key)
    assert isinstance(first, range)
    assert isinstance(second, range)
    context.add(first)
    taken = [context.new_sequence_number() for _ in first]
    context.add(first)
    assert not context.numbers
    context.add(second)
    taken += [context.new_sequence_number() for _ in second]
    assert len(set(taken)) == len(taken)
