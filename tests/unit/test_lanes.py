"""The lane of late data: live data does not wait for it, and outcomes keep the order of delivery."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iiot import clock
from iiot.services.ingest import Incoming
from protocols import lanes
from protocols.base import Message, Outcome
from protocols.lanes import Line
from tests.services import eventually
from tests.unit.test_runner import MemoryStore, Runner, Settled, runner, settled, store

__all__ = ["runner", "settled", "store"]

HOUR = 3_600_000


def old(uid: str, settle: Any, readings: int = 1) -> Message:
    """A message whose readings are an hour old."""
    ts = clock.now_ms() - HOUR
    payload = "[" + ",".join(f'{{"ts":{ts + number},"values":{{"a":1}}}}' for number in range(readings)) + "]"
    return Message(uid, "telemetry", payload.encode(), "t", settle)


def live(uid: str, settle: Any) -> Message:
    return Message(uid, "telemetry", b'{"a":1}', "t", settle)


class Gate:
    """A store's `fail` that holds late commits back until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.held = threading.Event()

    def __call__(self, messages: Sequence[Incoming]) -> None:
        if messages[0].uid.startswith("old"):
            self.held.set()
            assert self.opened.wait(30)


@pytest.fixture
def gate(store: MemoryStore) -> Gate:
    made = Gate()
    store.fail = made
    return made


def test_live_data_is_stored_while_late_data_waits_and_settled_in_order(
    runner: Runner, store: MemoryStore, settled: Settled, gate: Gate
) -> None:
    runner.deliver(live("first", settled))
    runner.deliver(old("old", settled))
    assert gate.held.wait(30)
    for number in range(100):
        runner.deliver(live(f"d{number}", settled))
    eventually(lambda: len(store.uids) == 101, 30)
    assert settled.order == ["first"], "acknowledged in the order of delivery"
    gate.opened.set()
    eventually(lambda: len(settled.order) == 102, 30)
    assert settled.order == ["first", "old", *(f"d{number}" for number in range(100))]


def test_an_adapter_that_takes_any_order_hears_of_live_data_at_once(
    runner: Runner, settled: Settled, gate: Gate
) -> None:
    runner._line.is_free = True
    runner.deliver(old("old", settled))
    assert gate.held.wait(30)
    runner.deliver(live("new", settled))
    eventually(lambda: settled.order == ["new"], 30)
    gate.opened.set()
    eventually(lambda: settled.order == ["new", "old"], 30)


def test_late_commits_are_small(runner: Runner, store: MemoryStore, settled: Settled, gate: Gate) -> None:
    for number in range(50):
        runner.deliver(old(f"old{number}", settled, 500))
    gate.opened.set()
    eventually(lambda: len(settled.order) == 50, 30)
    assert settled.order == store.uids == [f"old{number}" for number in range(50)]
    assert max(map(len, store.batches)) * 500 <= lanes.COMMIT_READINGS


def test_a_full_lane_makes_late_messages_wait_and_no_live_one(
    runner: Runner, store: MemoryStore, settled: Settled, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MOST_READINGS", 10)
    monkeypatch.setattr(lanes, "COMMIT_READINGS", 5)
    for number in range(4):
        runner.deliver(old(f"old{number}", settled, 5))
    assert gate.held.wait(30)
    eventually(lambda: runner._late._readings >= 10, 30)
    flood = threading.Thread(target=runner.deliver, args=(old("old4", settled, 5),))
    flood.start()
    runner.deliver(live("new", settled))
    eventually(lambda: "new" in store.uids, 30)
    assert flood.is_alive()
    gate.opened.set()
    flood.join(30)
    eventually(lambda: len(settled.order) == 6, 30)


def test_the_end_settles_late_data_too(runner: Runner, settled: Settled) -> None:
    for number in range(300):
        runner.deliver((old if number % 2 else live)(f"d{number}", settled))
    runner.finish()
    assert settled.order == [f"d{number}" for number in range(300)]


def test_what_has_one_fresh_reading_is_live(runner: Runner, store: MemoryStore, settled: Settled) -> None:
    now = clock.now_ms()
    payload = f'[{{"values":{{"a":1}}}},{{"ts":{now - HOUR},"values":{{"a":2}}}}]'.encode()
    message = Message("mixed", "telemetry", payload, "t", settled)
    runner.deliver(message)
    eventually(lambda: settled.order == ["mixed"])
    assert not message.late


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), max_size=6), st.randoms())
def test_any_interleaving_of_the_lanes_settles_everything_once_and_in_order(
    batches: list[list[bool]], chance: Any
) -> None:
    told: list[Message] = []
    line = Line("test")
    delivered: list[Message] = []
    waiting: list[Message] = []

    def finish_some() -> None:
        while waiting and chance.random() < 0.5:
            message = waiting.pop(0)
            line.settle([message], [Outcome(1)], late=True)

    for batch in batches:
        messages = [Message("d", "telemetry", b"", "t", lambda message, _: told.append(message)) for _ in batch]
        for message, late in zip(messages, batch, strict=True):
            message.late = late
        line.enter(messages)
        delivered += messages
        waiting += [message for message in messages if message.late]
        finish_some()
        fresh = [message for message in messages if not message.late]
        line.settle(fresh, [Outcome(1)] * len(fresh))
        assert told == delivered[: len(told)]
    for message in waiting:
        line.settle([message], [Outcome(1)], late=True)
    assert told == delivered
