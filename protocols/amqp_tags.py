"""Which deliveries of an AMQP channel may be acknowledged, and how. Not an adapter.

RabbitMQ counts the deliveries of a channel from one. A tag with `multiple` stands for all up to it, so it is told for the settled ones that continue
what is acknowledged; what is settled behind an open one is acknowledged alone. RabbitMQ closes the channel over a tag it does not know (any more),
so none is told twice.
"""

from __future__ import annotations

from collections import deque


class Tags:
    """The tags of one channel. Any thread may call `settle`, one thread calls `take`."""

    def __init__(self) -> None:
        self._settled: deque[int] = deque()
        # All up to here are acknowledged; beyond it there are those that were acknowledged alone.
        self._prefix = 0
        self._alone: set[int] = set()

    def settle(self, tag: int) -> None:
        """This one may be acknowledged. Called once per tag."""
        self._settled.append(tag)

    def take(self) -> tuple[int, list[int]]:
        """What to acknowledge now: the tag to tell with `multiple` (0: none), and those to tell alone, in ascending order."""
        settled = self._settled
        fresh = {settled.popleft() for _ in range(len(settled))}
        together, following = 0, self._prefix + 1
        while True:
            if following in fresh:
                fresh.remove(following)
                # Never one that was told alone before: RabbitMQ has forgotten it.
                together = following
            elif following in self._alone:
                self._alone.remove(following)
            else:
                break
            following += 1
        self._prefix = following - 1
        self._alone |= fresh
        return together, sorted(fresh)
