"""Keeps rollup_1h: a tailer that marks the hours that the log touched, and a sweep that sums up those that are over."""

import time
from datetime import timedelta
from itertools import groupby

import numpy as np
import structlog
from sqlalchemy.orm import Session

from iiot import clock, tenancy
from iiot.services import rollups
from iiot.services.batchlog import position
from iiot.services.timespan import DAY, HOUR
from iiot.stream.log import Batch, Tailer

log = structlog.get_logger(__name__)

# A reading may come some time after its hour; summing up waits a little, so that most hours are summed up once.
GRACE = timedelta(minutes=2)
# Hours per transaction.
PORTION = 200
# Readings are accepted from 30 days back.
REACH = timedelta(milliseconds=32 * DAY)


class Marker:
    """The effect of the tailer: hours of numeric signals that a batch touched are marked as changed.

    Hours that are not over yet are remembered, so that a busy signal costs one write an hour; the sweep never touches those.
    """

    def __init__(self) -> None:
        self._marked: set[tuple[int, int]] = set()

    def __call__(self, db: Session, batch: Batch) -> None:
        """Mark what `batch` touched; all earlier hours too when retention dropped a part of the log before it was read."""
        own = position(db, rollups.TAILER)
        if own < batch.after:
            log.error(
                "a part of the log was lost: summing up every hour again", cursor=str(own), after=str(batch.after)
            )
            rollups.mark_all(db, clock.now() - REACH)
        tenants, signals, hours = self._touched(batch)
        now = clock.now_ms()
        self._marked = {known for known in self._marked if known[1] + HOUR > now}
        new = [
            (tenant, signal, hour)
            for tenant, signal, hour in zip(tenants, signals, hours, strict=True)
            if (signal, hour) not in self._marked
        ]
        if new:
            rollups.mark(db, *(list(column) for column in zip(*new, strict=True)))
            is_open = {(signal, hour) for _, signal, hour in new if hour + HOUR > now}
            tenancy.after_commit(db, lambda: self._marked.update(is_open))

    @staticmethod
    def _touched(batch: Batch) -> tuple[list[int], list[int], list[int]]:
        """Tenants, signals and hours (ms) with numbers in this batch, each triple once, in order."""
        readings = batch.readings()
        numeric = ~np.isnan(readings.num)
        # One sortable number per (signal, hour): fourteen times faster than comparing columns. A signal has one tenant.
        signal_ids, hours_since = readings.signal_ids[numeric].astype(np.int64), readings.ts[numeric] // HOUR
        found, first = np.unique(signal_ids << 32 | hours_since, return_index=True)
        tenants = readings.tenant_ids[numeric][first].tolist()
        signals, hours = (found >> 32).tolist(), ((found & 0xFFFFFFFF) * HOUR).tolist()
        return tenants, signals, hours


def tailer() -> Tailer:
    """The tailer `rollup`; it starts with the oldest row of the log."""
    return Tailer(rollups.TAILER, Marker())


def sweep(portion: int = PORTION) -> int:
    """Sum up one portion of the hours that are over and marked; returns how many were looked at, 0 when none wait."""
    with tenancy.work(tenancy.system("stream")) as db:
        waiting = rollups.pending(db, clock.now() - GRACE - timedelta(hours=1), portion)
    for tenant_id, items in groupby(sorted(waiting), key=lambda item: item.tenant_id):
        with tenancy.work(tenancy.system("stream", tenant_id)) as db:
            rollups.sum_up(db, list(items))
    return len(waiting)


def refresh(most_seconds: float = 20.0) -> None:
    """Sum up all hours that wait, for at most `most_seconds`; what is left waits for the next time. Raises what the database raises."""
    deadline = time.monotonic() + most_seconds
    while sweep() == PORTION and time.monotonic() < deadline:
        pass
