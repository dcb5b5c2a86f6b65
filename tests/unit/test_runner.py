"""The runner's promises to adapters, over a store in memory that can be told to fail."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy.exc import DataError, OperationalError, ProgrammingError

from iiot.services.ingest import Incoming, Outcomes, StatusEvent
from iiot.services.ingest import Outcome as Result
from protocols import runner as module
from protocols.base import ConnectionLost, Inbox, Message, Outcome
from protocols.runner import Runner, pause_after
from tests.services import eventually

DOWN = OperationalError("INSERT", {}, Exception("the database system is shutting down"))
NO_TABLE = ProgrammingError("INSERT", {}, Exception("relation does not exist"))


class MemoryStore:
    """A store: whole batches or nothing. `fail` decides for each batch whether it raises."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.states: list[tuple[str, bool]] = []
        self.fail: Callable[[Sequence[Incoming]], None] = lambda _: None

    def ingest(self, messages: Sequence[Incoming], /, *, late: bool = False) -> Outcomes:
        self.fail(messages)
        self.batches.append([message.uid for message in messages])
        outcomes = Outcomes()
        for message in messages:
            if message.parsed is None:
                assert message.error is not None
                outcomes.append(Result("rejected", code=message.error.code, reason=message.error.reason))
            else:
                ack = message.parsed.ack
                outcomes.append(Result("stored", 1, list(message.parsed.rejected), message.parsed.items[0][0], ack=ack))
        outcomes.stored = len(messages)
        return outcomes

    def status(self, changes: Sequence[StatusEvent], /) -> None:
        self.states += [(change.uid, change.online) for change in changes]

    @property
    def uids(self) -> list[str]:
        return [uid for batch in self.batches for uid in batch]


class Settled:
    """What was settled, in order."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.outcomes: dict[str, Outcome] = {}

    def __call__(self, message: Message, outcome: Outcome) -> None:
        self.order.append(message.uid)
        self.outcomes[message.uid] = outcome


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def settled() -> Settled:
    return Settled()


@pytest.fixture
def runner(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.02)
    running = Runner("test", store)
    yield running
    store.fail = lambda _: None
    running.finish()


def telemetry(uid: str, settled: Settled, payload: bytes = b'{"a":1}', **options: Any) -> Message:
    return Message(uid, "telemetry", payload, f"iiot/{uid}/up/telemetry", settled, **options)


def test_messages_are_settled_in_the_order_of_arrival(runner: Runner, store: MemoryStore, settled: Settled) -> None:
    wanted = [f"d{number}" for number in range(5_000)]
    for uid in wanted:
        runner.deliver(telemetry(uid, settled))
    eventually(lambda: len(settled.order) == 5_000)
    assert settled.order == wanted == store.uids
    assert max(map(len, store.batches)) <= module.BATCH
    assert len(store.batches) < 100


def test_nothing_is_settled_before_the_commit(runner: Runner, store: MemoryStore, settled: Settled) -> None:
    reached, go = threading.Event(), threading.Event()

    def wait(_: Sequence[Incoming]) -> None:
        reached.set()
        go.wait(10)

    store.fail = wait
    runner.deliver(telemetry("one", settled))
    assert reached.wait(10)
    assert settled.order == []
    go.set()
    eventually(lambda: settled.order == ["one"])


def test_a_failed_commit_is_tried_again_and_settles_nothing(
    runner: Runner, store: MemoryStore, settled: Settled
) -> None:
    failures: list[int] = []

    def fail(messages: Sequence[Incoming]) -> None:
        if len(failures) < 5:
            assert settled.order == []
            failures.append(len(messages))
            raise DOWN

    store.fail = fail
    for number in range(10):
        runner.deliver(telemetry(f"d{number}", settled))
    eventually(lambda: len(settled.order) == 10)
    assert len(failures) == 5
    assert store.uids == settled.order == [f"d{number}" for number in range(10)]


@pytest.mark.parametrize("error", [DataError("INSERT", {}, Exception("bad")), ValueError("NUL"), NO_TABLE])
def test_a_poisoned_message_is_found_kept_and_settled(
    runner: Runner, store: MemoryStore, settled: Settled, error: Exception
) -> None:
    def fail(messages: Sequence[Incoming]) -> None:
        if any(message.uid == "poison" and message.parsed is not None for message in messages):
            raise error

    store.fail = fail
    wanted = [f"d{number}" for number in range(50)] + ["poison"] + [f"e{number}" for number in range(50)]
    for uid in wanted:
        runner.deliver(telemetry(uid, settled))
    eventually(lambda: len(settled.order) == 101)
    assert settled.order == wanted
    assert [refusal.code for refusal in settled.outcomes["poison"].refusals] == ["not-storable"]
    assert sorted(store.uids) == sorted(wanted)


def test_a_lone_poisoned_message_does_not_stop_the_others(runner: Runner, store: MemoryStore, settled: Settled) -> None:
    def fail(messages: Sequence[Incoming]) -> None:
        if any(message.uid == "poison" and message.parsed is not None for message in messages):
            raise NO_TABLE

    store.fail = fail
    runner.deliver(telemetry("poison", settled))
    runner.deliver(telemetry("good", settled))
    eventually(lambda: settled.order == ["poison", "good"])


def test_a_broken_schema_refuses_no_message(runner: Runner, store: MemoryStore, settled: Settled) -> None:
    tries: list[int] = []

    def fail(messages: Sequence[Incoming]) -> None:
        tries.append(len(messages))
        raise NO_TABLE

    store.fail = fail
    for number in range(100):
        runner.deliver(telemetry(f"d{number}", settled))
    eventually(lambda: len(tries) > 60)
    assert settled.order == []
    store.fail = lambda _: None
    eventually(lambda: len(settled.order) == 100)
    assert all(not outcome.refusals for outcome in settled.outcomes.values())


def test_a_full_queue_makes_the_adapter_wait(
    runner: Runner, store: MemoryStore, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE", 100)
    go = threading.Event()

    def wait(_: Sequence[Incoming]) -> None:
        go.wait(10)

    store.fail = wait
    delivered: list[int] = []

    def adapter() -> None:
        for number in range(5_000):
            runner.deliver(telemetry(f"d{number}", settled))
            delivered.append(number)

    thread = threading.Thread(target=adapter)
    thread.start()
    eventually(lambda: len(runner._queue) >= 100)
    seen = len(delivered)
    assert seen < module.BATCH + 200
    assert settled.order == []
    go.set()
    thread.join(10)
    eventually(lambda: len(settled.order) == 5_000)


def test_the_end_settles_what_was_delivered(runner: Runner, settled: Settled) -> None:
    for number in range(3_000):
        runner.deliver(telemetry(f"d{number}", settled))
    runner.finish()
    assert len(settled.order) == 3_000


def test_the_end_does_not_wait_for_a_dead_database(
    runner: Runner, store: MemoryStore, settled: Settled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FINISH_SECONDS", 0.2)

    def fail(_: Sequence[Incoming]) -> None:
        raise DOWN

    store.fail = fail
    runner.deliver(telemetry("one", settled))
    runner.finish()
    assert settled.order == []


def test_outcomes_carry_refusals_and_acknowledgements(runner: Runner, settled: Settled) -> None:
    runner.deliver(telemetry("plain", settled))
    runner.deliver(telemetry("asked", settled, b'{"ack":true,"a":1}'))
    runner.deliver(telemetry("half", settled, b'{"a":1,"b c":2}'))
    runner.deliver(telemetry("bad", settled, b"nonsense"))
    runner.deliver(telemetry("xml", settled, content_type="application/xml"))
    runner.deliver(Message("lost", "other", b"", "iiot/lost/up/nowhere", settled))
    eventually(lambda: len(settled.order) == 6)
    codes = {uid: [refusal.code for refusal in outcome.refusals] for uid, outcome in settled.outcomes.items()}
    assert codes == {
        "plain": [],
        "asked": [],
        "half": ["key-invalid"],
        "bad": ["not-json"],
        "xml": ["unsupported-content-type"],
        "lost": ["unknown-topic"],
    }
    assert settled.outcomes["plain"].ack_ts is None
    assert settled.outcomes["asked"].ack_ts is not None


def test_status_messages_become_events(runner: Runner, store: MemoryStore, settled: Settled) -> None:
    for payload in (b"online", b" Offline\n", b"", b"dancing"):
        runner.deliver(Message("d", "status", payload, "iiot/d/up/status", settled))
    eventually(lambda: len(settled.order) == 4)
    assert store.states == [("d", True), ("d", False)]
    assert [refusal.code for refusal in settled.outcomes["d"].refusals] == ["status-invalid"]


def test_retained_telemetry_is_old_news(runner: Runner, store: MemoryStore, settled: Settled) -> None:
    runner.deliver(telemetry("old", settled, retained=True))
    eventually(lambda: settled.order == ["old"])
    assert store.uids == []


def test_a_lost_connection_is_made_again(runner: Runner) -> None:
    class Adapter:
        runs = 0

        def check(self) -> None:
            raise NotImplementedError

        def send(self, uid: str, token: str, payload: bytes) -> None:
            raise NotImplementedError

        def run(self, inbox: Inbox, stop: threading.Event) -> None:
            self.runs += 1
            if self.runs < 4:
                raise ConnectionLost("gone")
            inbox.connected()
            stop.wait(10)

    adapter = Adapter()
    thread = threading.Thread(target=runner.run, args=(adapter,))
    thread.start()
    eventually(lambda: adapter.runs == 4)
    runner.stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_pauses_grow_by_half_up_to_a_minute_with_jitter() -> None:
    for failures in range(1, 40):
        whole = min(60.0, 0.1 * 1.5 ** (failures - 1))
        assert whole / 2 <= pause_after(failures) <= whole
    assert len({pause_after(5) for _ in range(10)}) > 1


def test_readings_without_a_time_do_not_collide(runner: Runner, store: MemoryStore, settled: Settled) -> None:
    times: list[int] = []

    def keep(messages: Sequence[Incoming]) -> None:
        times.extend(message.parsed.items[0][0] for message in messages if message.parsed)

    store.fail = keep
    for _ in range(3_000):
        runner.deliver(telemetry("same", settled))
    eventually(lambda: len(settled.order) == 3_000)
    assert times == sorted(set(times))


def test_a_failing_acknowledgement_does_not_stop_the_others(runner: Runner, settled: Settled) -> None:
    def fail(_message: Message, _outcome: Outcome) -> None:
        raise OSError("gone")

    runner.deliver(Message("one", "telemetry", b'{"a":1}', "t", fail))
    runner.deliver(telemetry("two", settled))
    eventually(lambda: settled.order == ["two"])
