"""Reads the readings of one signal as columns.

A day at 1 Hz is 86,400 rows. As rows they cost the driver 150 ms; as two arrays in PostgreSQL's own binary form, taken over by numpy, 30 ms,
of which the index scan is 10. COPY would be faster still, but it is refused on tables with row-level security and by psycopg2 under gevent.
"""

import time
from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import TextClause
from sqlalchemy.orm import Session

from iiot import clock, tenancy
from iiot.errors import Problem
from iiot.services import arrays
from iiot.services.arrays import Integers, Values
from iiot.services.timespan import DAY, HOUR

Series = tuple[Integers, Values]

TIME_LIMIT_SECONDS = 10.0
# Parts of this many rows keep memory small and let other requests of the process run in between.
PART_ROWS = 150_000
LOOK_BACK = 31 * DAY

# The comparison with iiot.tid() repeats what row-level security adds, for the role stream: its policies see every tenant.
_WHERE = """
    FROM iiot.telemetry
    WHERE tenant_id = (SELECT iiot.tid()) AND signal_id = :signal AND ts >= :start AND ts < :stop
"""
_PAIRS = "SELECT string_agg(timestamptz_send(ts) || float8send(num), ''::bytea) FROM (SELECT ts, num"
_PART = tenancy.sql(f"{_PAIRS} {_WHERE} AND num IS NOT NULL ORDER BY ts) readings")
_OLDEST = tenancy.sql(f"{_PAIRS} {_WHERE} AND num IS NOT NULL ORDER BY ts LIMIT :limit) readings")
_NEWEST = tenancy.sql(f"{_PAIRS} {_WHERE} AND num IS NOT NULL ORDER BY ts DESC LIMIT :limit) readings")
_STAMPS = tenancy.sql(f"SELECT array_send(array_agg(ts)) FROM (SELECT ts {_WHERE} ORDER BY ts) readings")  # noqa: S608 constants only
_MARKS = tenancy.sql(f"SELECT ts, quality {_WHERE} AND quality IS NOT NULL")
_TEXT_ASC = tenancy.sql(f"SELECT ts, txt {_WHERE} ORDER BY ts LIMIT :limit")
_TEXT_DESC = tenancy.sql(f"SELECT ts, txt {_WHERE} ORDER BY ts DESC LIMIT :limit")
_TEXT_AT = tenancy.sql(f"SELECT ts, txt {_WHERE} AND ts = ANY(:stamps) ORDER BY ts")


class Reader:
    """Readings of a tenant, in milliseconds since the epoch, within a time limit for everything it is asked."""

    def __init__(self, db: Session, time_limit: float = TIME_LIMIT_SECONDS) -> None:
        self._db = db
        self._deadline = time.monotonic() + time_limit

    def parts(self, signal: int, start: int, stop: int) -> Iterator[Series]:
        """The numbers in [start, stop), ascending, in parts of roughly 150,000. Raises Problem when the time is up."""
        length = DAY
        while start < stop:
            upto = min(start + length, stop)
            ts, values = self.part(signal, start, upto)
            if len(ts):
                yield ts, values
            start = upto
            if len(ts) > PART_ROWS:
                length = max(length // 2, HOUR)
            elif len(ts) < PART_ROWS // 4:
                length *= 4

    def part(self, signal: int, start: int, stop: int) -> Series:
        """The numbers in [start, stop), ascending, at once."""
        return arrays.pairs(self._scalar(_PART, signal, start, stop))

    def edge(self, signal: int, start: int, stop: int, limit: int, descending: bool) -> Series:
        """The oldest `limit` numbers in [start, stop), or the newest, newest first."""
        return arrays.pairs(self._scalar(_NEWEST if descending else _OLDEST, signal, start, stop, limit=limit))

    def before(self, signal: int, moment: int) -> Series:
        """The last number before `moment`, none or one, from at most 31 days back."""
        return self.edge(signal, max(0, moment - LOOK_BACK), moment, 1, descending=True)

    def stamps(self, signal: int, start: int, stop: int) -> Integers:
        """When there are readings of any type in [start, stop), ascending."""
        return arrays.stamps(self._scalar(_STAMPS, signal, start, stop))

    def texts(self, signal: int, start: int, stop: int, limit: int, descending: bool) -> list[tuple[int, str]]:
        """The oldest or newest `limit` texts in [start, stop)."""
        statement = _TEXT_DESC if descending else _TEXT_ASC
        rows = self._db.execute(statement, {**_bounds(signal, start, stop), "limit": limit})
        return [(clock.to_ms(ts), txt) for ts, txt in rows]

    def texts_at(self, signal: int, stamps: list[int]) -> list[str]:
        """The texts at these instants (ascending, each must exist)."""
        bounds = _bounds(signal, stamps[0], stamps[-1] + 1)
        rows = self._db.execute(_TEXT_AT, {**bounds, "stamps": [clock.from_ms(ts) for ts in stamps]})
        return [txt for _, txt in rows]

    def marks(self, signal: int, start: int, stop: int) -> dict[int, int]:
        """ts → place in payloads.QUALITIES of the readings in [start, stop) that are not good."""
        rows = self._db.execute(_MARKS, _bounds(signal, start, stop))
        return {clock.to_ms(ts): quality for ts, quality in rows}

    def explain(self, signal: int, start: int, stop: int) -> list[str]:
        """PostgreSQL's plan for one part."""
        statement = tenancy.sql(f"EXPLAIN {_PART.text}")
        return [line for (line,) in self._db.execute(statement, _bounds(signal, start, stop))]

    def _scalar(self, statement: TextClause, signal: int, start: int, stop: int, **more: int) -> arrays.Raw:
        if time.monotonic() > self._deadline:
            raise too_much()
        raw: arrays.Raw = self._db.scalar(statement, {**_bounds(signal, start, stop), **more})
        return raw


def too_much() -> Problem:
    """The refusal of a question that would take too long."""
    return Problem(
        422,
        "range-too-large",
        "There are too many readings in this range to answer in time. Ask for a shorter range or fewer keys, or for "
        "avg, min, max, sum, count, first, last, delta or stddev with an interval of whole hours, which are kept summed up.",
    )


def _bounds(signal: int, start: int, stop: int) -> dict[str, int | datetime]:
    return {"signal": signal, "start": clock.from_ms(start), "stop": clock.from_ms(stop)}
