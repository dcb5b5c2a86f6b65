"""Acknowledgements of an AMQP channel: no tag that is not settled, none twice, and in the end all."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from protocols.amqp_tags import Tags


class Broker:
    """RabbitMQ's side: what it has handed out and not been told of, and that it closes the channel over a tag it does not know."""

    def __init__(self, count: int) -> None:
        self.open = dict.fromkeys(range(1, count + 1))

    def take(self, tags: Tags) -> set[int]:
        """Have everything acknowledged that `tags` tells; returns what that was."""
        together, alone = tags.take()
        told = {tag for tag in self.open if tag <= together}
        assert not together or together in self.open
        for tag in told:
            del self.open[tag]
        for tag in alone:
            del self.open[tag]
        return told | set(alone)


@given(st.permutations(range(1, 25)), st.lists(st.integers(0, 5), max_size=60))
def test_any_order_and_any_moments_cover_what_is_settled_and_nothing_else(order: list[int], pieces: list[int]) -> None:
    tags, broker = Tags(), Broker(len(order))
    settled: set[int] = set()
    acknowledged: set[int] = set()
    while len(settled) < len(order):
        share = pieces.pop() if pieces else 1
        for tag in order[len(settled) : len(settled) + share]:
            tags.settle(tag)
            settled.add(tag)
        acknowledged |= broker.take(tags)
        assert acknowledged == settled
    assert not broker.open
    assert tags.take() == (0, [])
    assert not tags._alone


def test_in_order_everything_is_told_at_once_and_behind_an_open_one_alone() -> None:
    tags = Tags()
    for tag in (1, 2, 3, 5, 6):
        tags.settle(tag)
    assert tags.take() == (3, [5, 6])
    tags.settle(4)
    # Not 6: RabbitMQ has forgotten it.
    assert tags.take() == (4, [])
    for tag in (7, 8):
        tags.settle(tag)
    assert tags.take() == (8, [])


def test_two_threads_settle_while_a_third_acknowledges() -> None:
    count = 40_000
    tags = Tags()
    live = threading.Thread(target=lambda: [tags.settle(tag) for tag in range(1, count + 1, 2)])
    late = threading.Thread(target=lambda: [tags.settle(tag) for tag in range(2, count + 1, 2)])
    acknowledged: list[tuple[int, list[int]]] = []
    for thread in (live, late):
        thread.start()
    while live.is_alive() or late.is_alive():
        acknowledged.append(tags.take())
    acknowledged.append(tags.take())
    alone = [tag for _, tags_alone in acknowledged for tag in tags_alone]
    assert len(alone) == len(set(alone))
    assert tags._prefix == count
