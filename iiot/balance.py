"""Gunicorn's gevent worker, with connections shared out evenly over the workers.

Whoever wakes first takes a new connection, and that is nearly always the same worker: with connections that stay open, one worker serves
everybody while the other one sleeps. Here a worker that has more of them than another leaves a new one alone for a moment, in which the other
takes it. If that one is too busy, the first takes it after all, so a connection waits no longer than `PAUSE_SECONDS`.

Imported by gunicorn's master before the portal is, so it imports nothing of it.
"""

import mmap
import struct
from typing import Any

from geventwebsocket.gunicorn.workers import GeventWebSocketWorker
from gunicorn.workers.ggevent import PyWSGIServer

PAUSE_SECONDS = 0.005
MAX_WORKERS = 64
_NOBODY = 0xFFFFFFFF
_WIDTH = 4


class Loads:
    """How many connections each worker holds, in memory that is shared with the workers by forking."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, MAX_WORKERS * _WIDTH)
        for slot in range(MAX_WORKERS):
            self.put(slot, _NOBODY)

    def take(self) -> int:
        """A slot for a worker about to be forked; in the master. With more workers than slots the last is shared."""
        counts = struct.unpack_from(f"={MAX_WORKERS}I", self._map)
        slot = next((slot for slot, count in enumerate(counts) if count == _NOBODY), MAX_WORKERS - 1)
        self.put(slot, 0)
        return slot

    def put(self, slot: int, count: int) -> None:
        """Say how many a worker holds."""
        struct.pack_into("=I", self._map, slot * _WIDTH, count)

    def free(self, slot: int) -> None:
        """The worker of this slot has ended."""
        self.put(slot, _NOBODY)

    def least_of_others(self, slot: int) -> int:
        """How many the worker with the fewest holds; a worker that is alone finds a number that it never exceeds."""
        counts = struct.unpack_from(f"={MAX_WORKERS}I", self._map)
        return min(int(count) for other, count in enumerate(counts) if other != slot)


loads = Loads()


class BalancedServer(PyWSGIServer):  # type: ignore[misc]
    """A WSGI server that asks how the others are doing before it accepts."""

    slot = 0
    _has_waited = False

    def report(self) -> int:
        """Tell the others how many connections are open here."""
        count = len(self.pool)
        loads.put(self.slot, count)
        return count

    def do_read(self) -> Any:
        """Accept a connection, or leave it to another worker for a moment; gevent calls this whenever one waits."""
        if self.report() > loads.least_of_others(self.slot) and not self._has_waited:
            self._has_waited = True
            self.stop_accepting()
            self._timer = self.loop.timer(PAUSE_SECONDS)
            self._timer.start(self._start_accepting_if_started)
            return None
        self._has_waited = False
        return super().do_read()


class BalancedWorker(GeventWebSocketWorker):  # type: ignore[misc]
    """Serves pages and WebSockets with a `BalancedServer`."""

    server_class = BalancedServer
