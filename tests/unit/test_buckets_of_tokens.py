"""Token buckets of `protocols.buckets`."""

import pytest

from protocols import buckets
from protocols.buckets import Buckets


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(buckets, "time", made)
    return made


def test_a_burst_passes_and_then_the_rate(clock: Clock) -> None:
    made = Buckets(rate=2, burst=3)
    assert [made.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert made.wait("a") == 0.5
    assert made.wait("b") == made.take("b") == 0.0
    clock.now += 0.5
    assert made.wait("a") == 0.0
    assert [made.take("a"), made.take("a")] == [0.0, 0.5]
    clock.now += 100
    assert [made.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_the_oldest_key_is_forgotten(clock: Clock) -> None:
    made = Buckets(rate=1, burst=1, size=2)
    for key in "abc":
        assert made.take(key) == 0.0
    assert made.wait("a") == 0.0
    assert made.wait("b") > 0
    assert made.wait("c") > 0
