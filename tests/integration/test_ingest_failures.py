"""Ingest when the commit fails, and when many write at once: all or nothing, and never more than the quota."""

import subprocess
import sys
import threading

import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from iiot.clock import now_ms
from iiot.config import Settings
from iiot.services.ingest import ingest
from tests import factories, services
from tests.factories import failing_commits, make_device, make_tenant, message, refused, rows, store

pytestmark = pytest.mark.usefixtures("settings")

TABLES = ("telemetry", "telemetry_batch", "signal", "rejected_message")


def contents() -> dict[str, int]:
    return {table: int(rows(f"SELECT count(*) FROM iiot.{table}")[0][0]) for table in TABLES}


NOTHING = dict.fromkeys(TABLES, 0)


@pytest.mark.parametrize(
    "action", ["RAISE EXCEPTION 'the disk is full'", "PERFORM pg_terminate_backend(pg_backend_pid())"]
)
def test_a_failed_commit_raises_and_leaves_nothing_and_the_same_batch_is_stored_later(action: str) -> None:
    device = make_device(make_tenant())
    batch = [message(device.uid, (now_ms(), {"a": 1.0, "b": "x"})), refused(device.uid)]
    with failing_commits(action):
        for _ in range(2):
            with pytest.raises(DBAPIError):
                ingest(batch)
            assert contents() == NOTHING
    outcomes = ingest(batch)
    assert (outcomes.stored, [outcome.status for outcome in outcomes]) == (2, ["stored", "rejected"])
    assert contents() == {"telemetry": 2, "telemetry_batch": 1, "signal": 2, "rejected_message": 1}
    orphans = "SELECT 1 FROM iiot.telemetry t LEFT JOIN iiot.signal s ON s.tenant_id = t.tenant_id AND s.id = t.signal_id WHERE s.id IS NULL"
    assert rows(orphans) == [], "a signal of the failed transaction is not remembered"


def test_a_connection_that_dies_while_the_batch_is_written_raises_and_leaves_nothing() -> None:
    device = make_device(make_tenant())
    failures: list[BaseException] = []

    def write() -> None:
        try:
            store(device.uid, a=1.0)
        except OperationalError as error:
            failures.append(error)

    blocker = factories.connect(autocommit=False)
    with blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE iiot.telemetry IN EXCLUSIVE MODE")
    writer = threading.Thread(target=write)
    writer.start()
    waiting = "SELECT pid FROM pg_stat_activity WHERE usename = 'iiot_ingest' AND datname = current_database() AND wait_event_type = 'Lock'"
    ((pid,),) = services.eventually(lambda: rows(waiting))
    rows("SELECT pg_terminate_backend(%s)", pid)
    writer.join(10)
    blocker.close()
    assert len(failures) == 1
    assert contents() == NOTHING
    assert store(device.uid, a=1.0).stored == 1


def test_a_reading_without_a_partition_fails_the_batch_and_leaves_nothing() -> None:
    """Partitions are made a week ahead and kept for all that is accepted, so this is a broken installation: nothing may be acknowledged."""
    device = make_device(make_tenant())
    with pytest.raises(DBAPIError, match="no partition"):
        ingest([message(device.uid, a=1.0), message(device.uid, (now_ms() + 30 * 86_400_000, {"a": 1.0}))])
    assert contents() == NOTHING


WRITER = """
import sys, threading
from iiot.clock import now_ms
from iiot.services.ingest import ingest
from tests.factories import message
number, uids, threads, rounds, keys = int(sys.argv[1]), sys.argv[2:], 5, 2, 3
failures = []
def write(thread):
    try:
        for turn in range(rounds):
            for uid in uids:
                names = {f"k{number}.{thread}.{turn}.{k}": 1.0 for k in range(keys)}
                (outcome,) = ingest([message(uid, (now_ms(), names))])
                assert outcome.accepted + len(outcome.rejected) == keys, outcome
                assert {item.code for item in outcome.rejected} <= {"signal-quota"}, outcome
                # One write a line: print() sends text and line end apart, and threads would mix them.
                sys.stdout.write(f"{outcome.accepted}\\n")
    except BaseException as error:
        failures.append(repr(error))
workers = [threading.Thread(target=write, args=(i,)) for i in range(threads)]
ingest([])
print("ready", flush=True)
sys.stdin.readline()
for worker in workers: worker.start()
for worker in workers: worker.join()
sys.stdout.flush()
sys.exit("; ".join(failures) or 0)
"""


def test_twenty_threads_of_four_processes_never_overshoot_the_signal_quota(settings: Settings) -> None:
    """All of them fill the same devices in the same order, so that several processes come to each device's last place at once."""
    quota, tenant = 7, make_tenant(signals_per_device=7)
    uids = [make_device(tenant).uid for _ in range(12)]
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, str(number), *uids],
            cwd=services.ROOT, env=services.environment(settings), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0] * 4, [errors for _, errors in outputs]
    assert rows("SELECT DISTINCT count(*) FROM iiot.signal GROUP BY device_id") == [(quota,)]
    accepted = sum(int(line) for output, _ in outputs for line in output.split())
    assert accepted == quota * len(uids) == contents()["telemetry"] == contents()["signal"]
    assert rows("SELECT DISTINCT code FROM iiot.rejected_message") == [("signal-quota",)]


def test_a_quota_that_is_full_keeps_the_signals_that_exist() -> None:
    device = make_device(make_tenant(signals_per_device=2))
    now = now_ms()
    assert store(device.uid, (now, {"a": 1.0, "b": 1.0})).stored == 2
    (outcome,) = store(device.uid, (now + 1, {"a": 2.0, "c": 1.0}))
    assert (outcome.accepted, [item.code for item in outcome.rejected]) == (1, ["signal-quota"])
    assert (outcome.rejected[0].limit, outcome.rejected[0].allowed) == ("signals_per_device", 2)
    assert outcome.rejected[0].reason == "'c' is a new signal and the device has all 2 its quota allows."
    assert [row[0] for row in rows("SELECT key FROM iiot.signal ORDER BY key")] == ["a", "b"]


def test_a_raised_quota_counts_at_once_when_the_cache_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iiot.services.resolver.MAX_AGE", 0.0)
    tenant = make_tenant(signals_per_device=1)
    device = make_device(tenant)
    store(device.uid, a=1.0)
    assert store(device.uid, b=1.0)[0].code == "signal-quota"
    rows("UPDATE iiot.quota SET signals_per_device = 2")
    assert store(device.uid, b=1.0)[0].status == "stored"
