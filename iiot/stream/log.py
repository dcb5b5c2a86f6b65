"""Tailers: what carries the batch log into effects, once, behind a durable cursor.

A tailer's effects and its cursor are one transaction: each row takes effect once, through any crash. Effects outside the database (events) happen
before the commit and are repeated after a crash: at least once. How the log is ordered, and why it may hold a reading twice, is told in
`iiot.services.batchlog`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import structlog
from sqlalchemy.orm import Session

from iiot import clock, tenancy
from iiot.services.batchlog import (
    CURSORS,
    FLOOR,
    START,
    Cursor,
    Readings,
    Row,
    move,
    newest,
    position,
    read_columns,
    read_live,
    read_rows,
)
from iiot.tenancy import sql

__all__ = ["START", "Batch", "Cursor", "Handle", "Lag", "Progress", "Readings", "Row", "Tailer", "lag"]

log = structlog.get_logger(__name__)

_LOCK = sql(
    # A lost commit takes the effects and the cursor with it, and the log brings both back: no need to wait for the disk.
    "SELECT pg_try_advisory_xact_lock(hashtextextended('iiot.tailer.' || :name, 0)), set_config('synchronous_commit', 'off', true)"
)
_LAG = sql(
    "SELECT count(*), min(created_at) FROM (SELECT created_at FROM iiot.telemetry_batch WHERE (xid, id) > (CAST(:xid AS xid8), :id) LIMIT :most) waiting"
)


@dataclass(frozen=True)
class Batch:
    """A piece of the log: everything after `after` up to and including `upto`. Readings are fetched when asked for."""

    db: Session
    after: Cursor
    rows: Sequence[Row]

    @property
    def upto(self) -> Cursor:
        """The place of the last row."""
        return self.rows[-1].cursor

    @property
    def size(self) -> int:
        """How many readings the rows hold."""
        return sum(row.size for row in self.rows)

    def readings(self, tenants: Collection[int] | None = None) -> Readings:
        """The readings of all rows, or of some tenants' rows."""
        return read_columns(self.db, self.after, self.rows, tenants)

    def live_readings(self, tenants: Collection[int]) -> Readings:
        """The readings of some tenants' rows, without late data."""
        return read_live(self.db, self.after, self.rows, tenants)


class Lag(NamedTuple):
    """What a tailer has not yet done; counted up to 10,000 rows."""

    rows: int
    seconds: float


def lag(db: Session, name: str) -> Lag:
    """How far the tailer `name` is behind the commits."""
    cursor = position(db, name)
    rows, oldest = db.execute(_LAG, {"xid": str(cursor.xid), "id": cursor.id, "most": 10_000}).one()
    return Lag(rows, max(0.0, (clock.now() - oldest).total_seconds()) if oldest else 0.0)


class Progress(NamedTuple):
    """What a step did. `more`: the next step finds work at once; `waiting`: rows of a running writer will become readable any moment."""

    outcome: Literal["stepped", "idle", "standby"]
    readings: int = 0
    more: bool = False
    waiting: bool = False


Handle = Callable[[Session, Batch], None]


class Tailer:
    """Carries the log into effects, behind a cursor of its own. One instance per name works at a time; others stand by.

    `handle(db, batch)` is called from the thread of `run`, never twice at once for one name, with batches in the log's order and without holes. It
    writes its effects through `db`, in the transaction that also moves the cursor, and never commits. When it raises, nothing of the batch has
    happened, and the same rows come again after a pause, perhaps cut differently. It should compute first and write last: an open writer delays
    the readers of the log.
    """

    def __init__(self, name: str, handle: Handle, *, start: Literal["oldest", "newest"] = "oldest") -> None:
        """`start`: where a name without a cursor begins."""
        if name == FLOOR or not name:
            raise ValueError("this name is taken")
        self.name = name
        self._handle = handle
        self._start = start
        self._scope = tenancy.system("stream")

    def step(self) -> Progress:
        """Take one bounded batch. Raises what the database or the effect raises; then nothing has happened."""
        with tenancy.work(self._scope) as db:
            if not db.scalar(_LOCK, {"name": self.name}):
                return Progress("standby")
            after = self._cursor(db)
            rows, more, waiting = read_rows(db, after)
            if not rows:
                return Progress("idle", waiting=waiting)
            batch = Batch(db, after, rows)
            self._handle(db, batch)
            move(db, self.name, batch.upto)
            return Progress("stepped", batch.size, more, waiting)

    def replay(self, after: Cursor) -> None:
        """Go back (or forth) to `after`: the effect sees everything behind it again. Raises RuntimeError while a step holds the name."""
        with tenancy.work(self._scope) as db:
            if not db.scalar(_LOCK, {"name": self.name}):
                raise RuntimeError(f"the tailer {self.name} is at work; try again")
            move(db, self.name, after)

    def lag(self) -> Lag:
        """How far the effects are behind the commits."""
        with tenancy.work(self._scope) as db:
            return lag(db, self.name)

    def _cursor(self, db: Session) -> Cursor:
        own: Cursor | None = None
        lowest = START
        for name, xid, id_, foreign in db.execute(CURSORS, {"name": self.name, "floor": FLOOR}):
            if foreign:
                log.error(
                    "cursor of another database server: starting again with the oldest row",
                    tailer=self.name,
                    cursor_name=name,
                )
            elif name == FLOOR:
                lowest = Cursor(int(xid), id_)
            else:
                own = Cursor(int(xid), id_)
        if own is None:
            # Written at once, so that nothing that arrives from now on is skipped.
            own = newest(db) if self._start == "newest" else lowest
            move(db, self.name, own)
        if own < lowest:
            log.error(
                "the log was dropped by retention before it was read: readings were missed",
                tailer=self.name,
                cursor=str(own),
                floor=str(lowest),
            )
            return lowest
        return own
