"""The life of a command against a model that knows nothing of the code's table."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from iiot.errors import Conflict
from iiot.models import Command
from iiot.services import command_life
from iiot.services.commands import MAX_JSON, json_mistake

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
# In words of the contract: queued → sent → delivered → done | failed, or expired, cancelled.
ORDER = ["queued", "sent", "delivered"]
ENDS = {"done": ["delivered"], "failed": ["delivered"], "expired": ORDER, "cancelled": ["queued", "sent"]}


def model_allows(now: str, then: str) -> bool:
    """Whether the contract lets a command go from the one state to the other."""
    if then in ENDS:
        return now in ENDS[then]
    return now in ORDER and ORDER.index(then) == ORDER.index(now) + 1


class Life(RuleBasedStateMachine):
    """Any wishes in any order: what the model allows happens, everything else changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self.command = Command()
        command_life.begin(self.command, self.now)
        self.states = ["queued"]

    @rule(state=st.sampled_from(command_life.STATES), pause=st.integers(0, 10_000))
    def go(self, state: str, pause: int) -> None:
        self.now += timedelta(milliseconds=pause)
        if model_allows(self.states[-1], state):
            assert command_life.may(self.command, state)
            command_life.advance(self.command, state, self.now)
            self.states.append(state)
        else:
            assert not command_life.may(self.command, state)
            with pytest.raises(Conflict):
                command_life.advance(self.command, state, self.now)

    @rule()
    def hear_from_the_device(self) -> None:
        if self.states[-1] in ORDER:
            command_life.confirm(self.command, self.now)
            self.states += ORDER[ORDER.index(self.states[-1]) + 1 :]

    @invariant()
    def it_is_where_its_history_ends(self) -> None:
        assert [step["state"] for step in self.command.history] == self.states
        assert self.command.state == self.states[-1]
        times = [step["at"] for step in self.command.history]
        assert times == sorted(times)

    @invariant()
    def its_stamps_say_the_same(self) -> None:
        assert (self.command.sent_at is not None) == ("sent" in self.states)
        assert (self.command.delivered_at is not None) == ("delivered" in self.states)
        assert (self.command.finished_at is not None) == (self.states[-1] in ENDS)
        assert command_life.is_finished(self.command) == (self.states[-1] in ENDS)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)


def test_unfinished_is_what_something_can_still_happen_to() -> None:
    assert set(command_life.UNFINISHED) == set(ORDER)


@pytest.mark.parametrize(
    "value", [{"x": float("nan")}, {"x": float("inf")}, {"x": "\x00"}, {"x": "\ud800"}, {1: {2}}, "x" * MAX_JSON]
)
def test_what_cannot_be_stored_is_named(value: object) -> None:
    assert json_mistake(value)


def test_what_looks_like_nul_and_is_none_is_stored() -> None:
    assert json_mistake({"x": "\\u0000", "y": 1.5, "z": [None, True]}) is None
    assert json_mistake("x" * (MAX_JSON - 2)) is None
