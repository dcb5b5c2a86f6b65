"""The batch log against a real PostgreSQL: order, cursors, newest values, presence."""

import random
import threading

import pytest
from sqlalchemy.orm import Session

from iiot import clock, tenancy
from iiot.config import Settings
from iiot.services import batchlog
from iiot.services.batchlog import START, Cursor
from iiot.services.presence import StatusEvent, status
from iiot.stream import housekeeping
from iiot.stream.latest import LatestEffect
from iiot.stream.log import Batch, Tailer
from iiot.stream.loop import Doorbell, follow
from iiot.tenancy import sql
from tests import factories
from tests.services import PostgresServer, eventually

pytestmark = pytest.mark.usefixtures("settings")


class Recorder:
    """An effect that remembers what it was given, and where the log was cut."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.cuts: list[tuple[Cursor, Cursor]] = []
        self.fail = False

    def __call__(self, db: Session, batch: Batch) -> None:
        if self.fail:
            raise RuntimeError("no effect")
        ids = batch.readings().ts.tolist()
        tenancy.after_commit(db, lambda: self.ids.extend(ids))
        tenancy.after_commit(db, lambda: self.cuts.append((batch.after, batch.upto)))


def _write(
    tenant_id: int, number: int, wait: threading.Event | None = None, begun: threading.Event | None = None
) -> None:
    """A row of the log whose only reading has the timestamp `number`, in a transaction that stays open until `wait`."""
    with tenancy.work(tenancy.system("ingest")) as db:
        db.execute(
            sql(
                "INSERT INTO iiot.telemetry_batch (tenant_id, signal_ids, ts, num) VALUES (:t, '{1}', ARRAY[CAST(:n AS bigint)], '{1}')"
            ),
            {"t": tenant_id, "n": number},
        )
        if begun:
            begun.set()
        if wait:
            wait.wait(30)


def _drain(tailer: Tailer) -> None:
    while tailer.step().outcome == "stepped":
        pass


def test_a_row_behind_an_open_writer_waits_and_is_not_skipped() -> None:
    tenant = factories.make_tenant().tenant_id
    recorder = Recorder()
    tailer = Tailer("test", recorder)
    release, begun = threading.Event(), threading.Event()
    slow = threading.Thread(target=_write, args=(tenant, 1, release, begun))
    slow.start()
    assert begun.wait(10)
    _write(tenant, 2)
    progress = tailer.step()
    assert (progress.outcome, progress.waiting, recorder.ids) == ("idle", True, [])
    release.set()
    slow.join(10)
    _drain(tailer)
    assert recorder.ids == [1, 2]


def test_concurrent_writers_that_commit_out_of_order_lose_nothing_and_repeat_nothing() -> None:
    tenants = [factories.make_tenant().tenant_id for _ in range(3)]
    recorder = Recorder()
    stop = threading.Event()
    readers = [threading.Thread(target=follow, args=(Tailer("test", recorder), stop, Doorbell())) for _ in range(2)]
    for reader in readers:
        reader.start()

    def write(base: int) -> None:
        chance = random.Random(base)
        for number in range(60):
            # Transactions overlap for random times, so they commit in another order than they began.
            done = threading.Event()
            threading.Timer(chance.random() * 0.02, done.set).start()
            _write(chance.choice(tenants), base + number, done)

    writers = [threading.Thread(target=write, args=(1000 * index,)) for index in range(1, 5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    expected = sorted(1000 * index + number for index in range(1, 5) for number in range(60))
    try:
        eventually(lambda: len(recorder.ids) >= len(expected), 20)
    finally:
        stop.set()
        for reader in readers:
            reader.join(10)
    assert sorted(recorder.ids) == expected
    assert recorder.cuts[0][0] == START
    assert all(before[1] == after[0] for before, after in zip(recorder.cuts, recorder.cuts[1:], strict=False))


def test_an_effect_that_fails_has_not_happened_and_comes_again() -> None:
    tenant = factories.make_tenant().tenant_id
    recorder = Recorder()
    tailer = Tailer("test", recorder)
    _write(tenant, 1)
    recorder.fail = True
    with pytest.raises(RuntimeError):
        tailer.step()
    recorder.fail = False
    assert tailer.step().readings == 1
    assert recorder.ids == [1]


def test_replay_gives_everything_again() -> None:
    tenant = factories.make_tenant().tenant_id
    recorder = Recorder()
    tailer = Tailer("test", recorder)
    _write(tenant, 1)
    _write(tenant, 2)
    _drain(tailer)
    tailer.replay(recorder.cuts[0][0])
    _drain(tailer)
    assert recorder.ids == [1, 2, 1, 2]


def test_steps_are_bounded_and_say_that_more_waits() -> None:
    tenant = factories.make_tenant().tenant_id
    for number in range(5):
        _write(tenant, number)
    with tenancy.work(tenancy.system("stream")) as db:
        rows, more, waiting = batchlog.read_rows(db, START, max_rows=2)
        assert (len(rows), more, waiting) == (2, True, False)
        rows, more, _ = batchlog.read_rows(db, START, max_readings=3)
        assert (len(rows), more) == (3, True)
        rows, more, _ = batchlog.read_rows(db, START, max_readings=0)
        assert (len(rows), more) == (1, True)


def test_a_new_tailer_may_begin_with_what_comes_next() -> None:
    tenant = factories.make_tenant().tenant_id
    _write(tenant, 1)
    recorder = Recorder()
    tailer = Tailer("test", recorder, start="newest")
    assert tailer.step().outcome == "idle"
    _write(tenant, 2)
    _drain(tailer)
    assert recorder.ids == [2]


def test_a_tailer_that_retention_has_overtaken_says_so_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    tenant = factories.make_tenant().tenant_id
    recorder = Recorder()
    tailer = Tailer("test", recorder)
    _write(tenant, 1)
    _drain(tailer)
    _write(tenant, 2)
    with tenancy.work(tenancy.system("stream")) as db:
        batchlog.move(db, batchlog.FLOOR, batchlog.newest(db))
    _write(tenant, 3)
    _drain(tailer)
    assert recorder.ids == [1, 3]
    assert "dropped by retention" in capsys.readouterr().out


def test_a_cursor_of_another_server_starts_again(capsys: pytest.CaptureFixture[str]) -> None:
    tenant = factories.make_tenant().tenant_id
    recorder = Recorder()
    tailer = Tailer("test", recorder)
    tailer.replay(Cursor(2**40, 1))
    _write(tenant, 1)
    _drain(tailer)
    assert recorder.ids == [1]
    assert "another database server" in capsys.readouterr().out


def test_lag_counts_what_is_not_done() -> None:
    tenant = factories.make_tenant().tenant_id
    tailer = Tailer("test", Recorder())
    assert tailer.lag() == (0, 0.0)
    _write(tenant, 1)
    lag = tailer.lag()
    assert lag.rows == 1
    assert 0 <= lag.seconds < 60
    _drain(tailer)
    assert tailer.lag() == (0, 0.0)


def test_a_commit_wakes_the_tailer_without_polling(settings: Settings) -> None:
    device = factories.make_device(factories.make_tenant())
    bell, stop = Doorbell(), threading.Event()
    listener = threading.Thread(target=bell.listen, args=(stop,))
    listener.start()
    try:
        seen = bell.wait(0, 10)
        assert seen == 1
        factories.store(device.uid, (clock.now_ms(), {"temperature": 1.0}))
        assert bell.wait(seen, 10) > seen
    finally:
        stop.set()
        listener.join(10)


# --- newest values and presence ---------------------------------------------------------------------------------------


def _latest(device: factories.DeviceRow) -> dict[str, tuple[int, float | None, str | None]]:
    with tenancy.work(tenancy.of_device(device)) as db:
        rows = db.execute(
            sql(
                "SELECT s.key, l.ts, l.num, l.txt FROM iiot.latest l JOIN iiot.signal s USING (tenant_id) "
                "WHERE s.id = l.signal_id AND s.device_id = :device"
            ),
            {"device": device.device_id},
        )
        return {key: (clock.to_ms(ts), num, txt) for key, ts, num, txt in rows}


def _device(device: factories.DeviceRow) -> tuple[str, bool, list[tuple[bool, str]]]:
    with tenancy.work(tenancy.of_device(device)) as db:
        state = db.execute(
            sql("SELECT status, last_seen_at FROM iiot.device WHERE id = :id"), {"id": device.device_id}
        ).one()
        past = db.execute(
            sql("SELECT online, reason FROM iiot.connection_event WHERE device_id = :id ORDER BY id"),
            {"id": device.device_id},
        )
        return state[0], state[1] is not None, [(online, reason) for online, reason in past]


@pytest.fixture
def latest() -> Tailer:
    return Tailer("latest", LatestEffect())


def test_late_readings_never_move_latest_back(latest: Tailer) -> None:
    device = factories.make_device(factories.make_tenant())
    now = clock.now_ms()
    factories.store(device.uid, (now, {"t": 1.0}))
    _drain(latest)
    factories.store(device.uid, (now - 5000, {"t": 2.0}))
    factories.store(device.uid, (now, {"t": 3.0}))
    _drain(latest)
    assert _latest(device) == {"t": (now, 1.0, None)}
    factories.store(device.uid, (now + 1, {"t": 4.0}))
    _drain(latest)
    assert _latest(device) == {"t": (now + 1, 4.0, None)}


def test_latest_keeps_every_type(latest: Tailer) -> None:
    device = factories.make_device(factories.make_tenant())
    now = clock.now_ms()
    factories.store(device.uid, (now, {"n": 1.5, "b": True, "s": 'x{},"\\', "j": {"a": [1]}}))
    _drain(latest)
    assert _latest(device) == {
        "n": (now, 1.5, None),
        "b": (now, 1.0, None),
        "s": (now, None, 'x{},"\\'),
        "j": (now, None, '{"a":[1]}'),
    }


def test_a_device_that_sends_is_online_and_one_that_falls_silent_goes_offline(
    latest: Tailer, postgres: PostgresServer, settings: Settings
) -> None:
    device = factories.make_device(factories.make_tenant())
    assert _device(device) == ("new", False, [])
    factories.store(device.uid, (clock.now_ms(), {"t": 1.0}))
    _drain(latest)
    assert _device(device) == ("online", True, [(True, "telemetry")])
    duty = next(duty for duty in housekeeping.duties() if duty.name == "silence")
    assert housekeeping.perform(duty)
    assert _device(device)[0] == "online"
    name = str(settings.database_url).rpartition("/")[2]
    postgres.execute("UPDATE iiot.device SET last_seen_at = now() - interval '1 hour'", name)
    assert housekeeping.perform(duty)
    assert _device(device) == ("offline", True, [(True, "telemetry"), (False, "silence")])


def test_a_device_that_tells_its_state_is_believed(latest: Tailer) -> None:
    device = factories.make_device(factories.make_tenant())
    status([StatusEvent(device.uid, True, "status topic")])
    status([StatusEvent(device.uid, False, "last will")])
    factories.store(device.uid, (clock.now_ms(), {"t": 1.0}))
    _drain(latest)
    assert _device(device) == ("offline", True, [(True, "status topic"), (False, "last will")])


# --- housekeeping -----------------------------------------------------------------------------------------------------


def test_every_duty_can_be_done_and_done_again() -> None:
    for duty in housekeeping.duties():
        if duty.name != "broker":
            assert housekeeping.perform(duty), duty.name
            assert housekeeping.perform(duty), duty.name


def test_a_failing_duty_stops_no_other() -> None:
    def fail(_db: Session) -> None:
        raise RuntimeError("no")

    assert housekeeping.perform(housekeeping.Duty("fails", 1, fail)) is False


def test_retention_drops_old_days_of_the_log_and_notes_how_far(settings: Settings, postgres: PostgresServer) -> None:
    tenant = factories.make_tenant().tenant_id
    name = str(settings.database_url).rpartition("/")[2]
    postgres.execute(
        "CREATE TABLE iiot.telemetry_batch_p20200101 PARTITION OF iiot.telemetry_batch FOR VALUES FROM ('2020-01-01 00:00Z') TO ('2020-01-02 00:00Z');"
        "ALTER TABLE iiot.telemetry_batch_p20200101 OWNER TO iiot_owner;"
        f"INSERT INTO iiot.telemetry_batch (tenant_id, created_at, signal_ids, ts, num) VALUES ({tenant}, '2020-01-01 10:00Z', '{{1}}', '{{7}}', '{{1}}')",
        name,
    )
    _write(tenant, 8)
    recorder = Recorder()
    assert housekeeping.perform(next(duty for duty in housekeeping.duties() if duty.name == "retention"))
    with tenancy.work(tenancy.system("stream")) as db:
        assert batchlog.floor(db) > START
        assert db.scalar(sql("SELECT to_regclass('iiot.telemetry_batch_p20200101') IS NULL"))
    _drain(Tailer("test", recorder))
    assert recorder.ids == [8]
