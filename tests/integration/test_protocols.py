"""What every adapter promises, over every adapter that there is: `python -m protocols list` says which.

A new adapter is in here by itself. What a test needs to know about its protocol is in tests/drivers.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from iiot.config import Settings
from protocols import runner as running
from protocols.__main__ import names
from protocols.base import AdapterError
from tests import factories, services
from tests.contract import NOT_STORED, WRITER_WAITS, Counting, Side, locked, reading
from tests.drivers import Refused, driver, kind
from tests.services import eventually


@pytest.fixture(scope="module", params=names())
def side(request: pytest.FixtureRequest, module_settings: Settings, workspace: Path) -> Iterator[Side]:
    """An adapter with its broker; the process starts when a test asks for it."""
    folder = workspace / f"contract {request.param}"
    folder.mkdir(mode=0o755)
    made = driver(request.param, module_settings, folder)
    try:
        made.start(request)
        with services.active(made.settings):
            one = Side(made)
            yield one
            one.stop()
    finally:
        made.stop()


@pytest.fixture
def up(side: Side) -> Side:
    """The same with its process running."""
    return side.start()


TAKING = [name for name in names() if kind(name).takes_messages]
SERVING = [name for name in names() if not kind(name).takes_messages]
takes = pytest.mark.parametrize("side", TAKING, indirect=True, scope="module")
serves = pytest.mark.parametrize("side", SERVING, indirect=True, scope="module")


# --- every adapter -----------------------------------------------------------------------------------------------------


def test_listed_and_checked(side: Side) -> None:
    side.stop()
    assert f"{side.name} " in side.command("list").stdout.decode()
    checked = side.command("check", side.name)
    assert (checked.returncode, checked.stdout.decode().strip()) == (0, f"{side.name}: ok"), checked.stderr.decode()


# --- adapters that take messages ---------------------------------------------------------------------------------------


@takes
def test_queue_full_slows_and_loses_nothing(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    side.stop()
    queue, batch, senders = 16, 4, 30
    monkeypatch.setattr(running, "QUEUE", queue)
    monkeypatch.setattr(running, "BATCH", batch)
    side.driver.tighten(queue, monkeypatch)
    devices = [side.device() for _ in range(senders)]
    runner = Counting(side.name)
    thread = threading.Thread(target=runner.run, args=(side.driver.make(),))
    with ThreadPoolExecutor(senders) as pool:
        thread.start()
        try:
            side.insist(devices[0], 0)
            with locked():
                sent = [pool.submit(side.insist, device, 1) for device in devices]
                eventually(lambda: runner.taken - runner.settled >= queue, 60)
                assert not any(future.done() for future in sent)
            for future in sent:
                future.result(90)
        finally:
            runner.stop.set()
            thread.join(30)
    assert queue <= runner.most <= queue + batch + 1
    assert [device.readings for device in devices] == [2] + [1] * (senders - 1)


@takes
def test_stored_and_acknowledged(up: Side) -> None:
    device = up.device()
    up.send(device, b'{"temperature":21.5}')
    assert device.values == {21.5} or not up.driver.commits
    eventually(lambda: device.values == {21.5}, 30)
    assert device.rejections == []


@takes
def test_sent_from_the_command_line(up: Side) -> None:
    device = up.device()
    done = up.command("send", up.name, "--uid", device.uid, "--token", device.token, "-", stdin=b'{"a":1}')
    assert (done.returncode, done.stdout) == (0, b"sent\n"), done.stderr.decode()
    eventually(lambda: device.values == {1.0}, 30)


@takes
def test_refused_with_reason(up: Side) -> None:
    device = up.device()
    if up.driver.commits:
        with pytest.raises(AdapterError, match="not-json"):
            up.send(device, b"temperature=5")
    else:
        up.send(device, b"temperature=5")
    kept = "SELECT code, reason, payload, protocol FROM iiot.rejected_message WHERE device_id = %s"
    [(code, reason, payload, protocol)] = eventually(lambda: factories.rows(kept, device.device_id), 30)
    assert (code, bytes(payload), protocol) == ("not-json", b"temperature=5", up.name)
    assert reason
    up.send(device, b'{"a":1}')
    eventually(lambda: device.values == {1.0}, 30)


@takes
def test_refused_in_part(up: Side) -> None:
    device = up.device()
    up.send(device, b'{"good":1,"bad key":2}')
    eventually(lambda: (device.values, device.rejections) == ({1.0}, ["key-invalid"]), 30)


@takes
def test_wrong_credential(up: Side) -> None:
    device = up.device()
    with pytest.raises(AdapterError):
        up.send(device, b'{"a":1}', token="wrong")
    up.send(device, b'{"a":2}')
    eventually(lambda: device.readings == 1, 30)
    assert (device.values, device.rejections) == ({2.0}, [])


@takes
def test_unknown_device(up: Side) -> None:
    stranger, known = up.device(), up.device()
    stranger.uid = "u" * 26
    before = factories.rows("SELECT count(*) FROM iiot.rejected_message")
    with pytest.raises(AdapterError) as unknown:
        up.send(stranger, b'{"a":1}')
    with pytest.raises(AdapterError) as wrong:
        up.send(known, b'{"a":1}', token=stranger.token)
    assert str(unknown.value) == str(wrong.value), "a stranger shall not learn which devices exist"
    assert factories.rows("SELECT count(*) FROM iiot.rejected_message") == before


@takes
def test_commit_fails_then_stored_once(up: Side) -> None:
    device, before = up.device(), len(up.process.said)
    with ThreadPoolExecutor(1) as pool:
        with factories.failing_commits():
            sent = pool.submit(up.send, device, b'{"n":1}')
            eventually(lambda: up.said(NOT_STORED, before), 30)
            assert not (up.driver.commits and sent.done())
            assert device.readings == 0
        sent.result(90)
    eventually(lambda: device.values == {1.0}, 60)
    assert device.readings == 1


@takes
def test_commit_fails_then_redelivered_once(up: Side) -> None:
    """The adapter dies before the database is well again: whoever has no acknowledgement sends the message again."""
    device, before = up.device(), len(up.process.said)
    with ThreadPoolExecutor(1) as pool:
        with factories.failing_commits():
            sent = pool.submit(up.insist, device, 1) if up.driver.commits else pool.submit(up.send, device, reading(1))
            eventually(lambda: up.said(NOT_STORED, before), 30)
            up.process.kill()
        up.start()
        sent.result(90)
    eventually(lambda: device.values == {1.0}, 60)
    assert device.readings == 1


@takes
def test_killed_and_back(up: Side) -> None:
    """kill -9 of the broker, or of the adapter where it is the server itself."""
    device = up.device()
    up.insist(device, 1)
    with ThreadPoolExecutor(1) as pool:
        with up.away():
            later = pool.submit(up.insist, device, 2)
        later.result(90)
    up.insist(device, 3)
    assert (device.values, device.readings) == ({1.0, 2.0, 3.0}, 3)


@takes
def test_sigterm_drains(up: Side) -> None:
    devices = [up.device() for _ in range(5)]
    with ThreadPoolExecutor(len(devices)) as pool:
        with locked():
            sent = [pool.submit(up.send, device, b'{"n":1}') for device in devices]
            eventually(lambda: factories.rows(WRITER_WAITS), 30)
            if not up.driver.commits:
                for future in sent:
                    future.result(30)
            up.terminate()
        assert up.process.stop() == 0
        stored = sum(device.readings for device in devices)
        assert stored >= 1
        up.start()
        for device, future in zip(devices, sent, strict=True):
            try:
                future.result(90)
            except AdapterError:
                up.send(device, b'{"n":1}')
    eventually(lambda: all(device.readings for device in devices), 60)
    assert [device.readings for device in devices] == [1] * len(devices), "what was acknowledged does not come again"


@takes
def test_metrics_moved(up: Side) -> None:
    names = {
        "iiot_protocol_messages_total": {"kind": "telemetry"},
        "iiot_protocol_readings_total": {"result": "stored"},
        "iiot_protocol_rejected_total": {"code": "empty"},
        "iiot_protocol_batch_messages_count": {},
        "iiot_protocol_commit_seconds_count": {},
    }
    before = {name: up.metric(name, **labels) for name, labels in names.items()}
    device = up.device()
    with suppress(AdapterError):
        up.send(device, b"")
    up.send(device, b'{"a":1}')
    eventually(lambda: device.readings == 1 and device.rejections == ["empty"], 30)
    for name, labels in names.items():
        eventually(lambda name=name, labels=labels: up.metric(name, **labels) > before[name])
    assert up.metric("iiot_protocol_connected") == 1


# --- adapters that serve what is stored ----------------------------------------------------------------------------------


def shown(side: Side, user: str, password: str, uid: str) -> object:
    """What the person reads; a server that is on its way up is asked again."""
    return eventually(lambda: side.driver.read(user, password, uid, "n"), 60, 0.2)


@serves
def test_what_is_stored_is_shown(up: Side) -> None:
    device = up.device()
    factories.store(device.uid, n=21.5)
    assert shown(up, *up.driver.person(up.tenant), device.uid) == 21.5


@serves
def test_nobody_sends(up: Side) -> None:
    device = up.device()
    with pytest.raises(AdapterError, match="do not send"):
        up.send(device, b'{"n":1}')
    assert device.readings == 0


@serves
def test_wrong_password(up: Side) -> None:
    device, (user, _) = up.device(), up.driver.person(up.tenant)
    with pytest.raises(Refused):
        up.driver.read(user, "wrong", device.uid, "n")


@serves
def test_unknown_user(up: Side) -> None:
    device, (user, password) = up.device(), up.driver.person(up.tenant)
    with pytest.raises(Refused) as unknown:
        up.driver.read(f"nobody-{user}", password, device.uid, "n")
    with pytest.raises(Refused) as wrong:
        up.driver.read(user, "wrong", device.uid, "n")
    assert str(unknown.value) == str(wrong.value), "a stranger shall not learn who has an account"


@serves
def test_another_tenant_reads_like_nothing(up: Side) -> None:
    device = up.device()
    factories.store(device.uid, n=1.0)
    own = up.driver.person(up.tenant)
    assert shown(up, *own, device.uid) == 1.0
    foreign = up.driver.person(factories.make_tenant())
    assert up.driver.read(*foreign, device.uid, "n") is None
    assert up.driver.read(*own, "u" * 26, "n") is None


@serves
def test_killed_and_shown_again(up: Side) -> None:
    device, person = up.device(), up.driver.person(up.tenant)
    factories.store(device.uid, n=1.0)
    assert shown(up, *person, device.uid) == 1.0
    with up.away():
        with pytest.raises(Refused):
            up.driver.read(*person, device.uid, "n")
        factories.store(device.uid, n=2.0)
    eventually(lambda: shown(up, *person, device.uid) == 2.0, 60)


@serves
def test_sigterm_ends_it(up: Side) -> None:
    assert up.process.stop() == 0
    up.start()
    assert up.metric("iiot_protocol_connected") == 1
