"""Reading the batch log: rows of `telemetry_batch` in one order that never changes, and their readings as arrays.

Every commit of `services.ingest` writes rows that carry its transaction id. Rows are read in the order (xid, id), and only those whose transaction
id lies below `pg_snapshot_xmin`: every transaction below it has ended, so no row can appear behind a reader later. The price is that a row waits
for the slowest transaction that was writing when it was committed. The log may hold a reading twice, because a redelivered message is logged
again: whoever reads it is idempotent by (signal, ts). In a tenant's session row-level security shows that tenant's rows alone.
"""

import re
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from iiot.tenancy import sql

MAX_ROWS = 200
MAX_READINGS = 100_000
# The row of stream_cursor that remembers up to where rows were dropped by retention.
FLOOR = "log-floor"
# One dimension, then a length before every element: the layout of array_send() for an array without NULL.
_HEADER = 20
# Both numbers are below 2^63.
_CURSOR = re.compile("([0-7][0-9a-f]{15}){2}").fullmatch
_INT = np.dtype([("length", ">i4"), ("value", ">i4")])
_LONG = np.dtype([("length", ">i4"), ("value", ">i8")])
_DOUBLE = np.dtype([("length", ">i4"), ("value", ">f8")])

CURSORS = sql(
    "SELECT name, xid::text AS xid, id, xid >= pg_snapshot_xmax(pg_current_snapshot()) AS foreign FROM iiot.stream_cursor WHERE name IN (:name, :floor)"
)
_NEWEST = sql(
    "SELECT xid::text AS xid, id FROM iiot.telemetry_batch WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) "
    "ORDER BY telemetry_batch.xid DESC, telemetry_batch.id DESC LIMIT 1"
)
_ROWS = sql(
    "SELECT xid::text AS xid, id, tenant_id, created_at, cardinality(signal_ids) AS size, late, protocol, "
    "xid < pg_snapshot_xmin(pg_current_snapshot()) AS settled "
    "FROM iiot.telemetry_batch WHERE (xid, id) > (CAST(:xid AS xid8), :id) ORDER BY telemetry_batch.xid, telemetry_batch.id LIMIT :rows"
)
_COLUMNS = (
    "SELECT xid::text AS xid, id, array_send(signal_ids) AS signal_ids, array_send(ts) AS ts, array_send(num) AS num, txt, quality "
    "FROM iiot.telemetry_batch WHERE (xid, id) > (CAST(:xid AS xid8), :id) "
    "AND (xid, id) <= (CAST(:last_xid AS xid8), :last_id){} ORDER BY telemetry_batch.xid, telemetry_batch.id"
)
_ALL_COLUMNS = sql(_COLUMNS.format(""))
_SOME_COLUMNS = sql(_COLUMNS.format(" AND id = ANY(:ids)"))
_MOVE = sql(
    "INSERT INTO iiot.stream_cursor AS c (name, xid, id) VALUES (:name, CAST(:xid AS xid8), :id) "
    "ON CONFLICT (name) DO UPDATE SET xid = excluded.xid, id = excluded.id, updated_at = now()"
)


class Cursor(NamedTuple):
    """A place in the log. Its text has 32 hexadecimal digits and sorts as the log does."""

    xid: int
    id: int

    def __str__(self) -> str:
        return f"{self.xid:016x}{self.id:016x}"

    @classmethod
    def parse(cls, value: object) -> "Cursor":
        """The cursor that `str` wrote; raises ValueError on anything else."""
        if not isinstance(value, str) or not _CURSOR(value):
            raise ValueError("a cursor has 32 hexadecimal digits")
        return cls(int(value[:16], 16), int(value[16:], 16))


START = Cursor(0, 0)


class Row(NamedTuple):
    """One row of the log without its readings: what one tenant stored in one commit."""

    cursor: Cursor
    tenant_id: int
    created_at: datetime
    size: int
    late: bool = False
    protocol: str | None = None


class Readings(NamedTuple):
    """Readings in the log's order, as equally long arrays. `row` counts within `rows`; text values are in `txt` by position, where `num` is NaN;
    `quality` by position, where it is not good, as a place in payloads.QUALITIES.
    """

    rows: Sequence[Row]
    row: npt.NDArray[np.int32]
    tenant_ids: npt.NDArray[np.int32]
    signal_ids: npt.NDArray[np.int32]
    ts: npt.NDArray[np.int64]
    num: npt.NDArray[np.float64]
    txt: dict[int, str]
    quality: dict[int, int]


def read_rows(
    db: Session, after: Cursor, max_rows: int = MAX_ROWS, max_readings: int = MAX_READINGS
) -> tuple[list[Row], bool, bool]:
    """(rows that are safe to take, whether more of them wait, whether later rows wait for a running writer). At least one row when there is one."""
    found = db.execute(_ROWS, {"xid": str(after.xid), "id": after.id, "rows": max_rows}).all()
    rows: list[Row] = []
    readings = 0
    for xid, id_, tenant_id, created_at, size, late, protocol, settled in found:
        if not settled:
            return rows, False, True
        if rows and readings + size > max_readings:
            return rows, True, False
        rows.append(Row(Cursor(int(xid), id_), tenant_id, created_at, size, late, protocol))
        readings += size
    return rows, len(found) == max_rows, False


def read_columns(db: Session, after: Cursor, rows: Sequence[Row], tenants: Collection[int] | None = None) -> Readings:
    """The readings of `rows`, which `read_rows` returned for `after`; of some tenants alone when they are named."""
    return _read_columns(
        db, after, rows, rows if tenants is None else [row for row in rows if row.tenant_id in tenants]
    )


def read_live(db: Session, after: Cursor, rows: Sequence[Row], tenants: Collection[int] | None = None) -> Readings:
    """As `read_columns`, without late data, which nobody is told of live."""
    wanted = [row for row in rows if not row.late and (tenants is None or row.tenant_id in tenants)]
    return _read_columns(db, after, rows, wanted)


def _read_columns(db: Session, after: Cursor, rows: Sequence[Row], wanted: Sequence[Row]) -> Readings:
    if not wanted:
        return _join([], [])
    bounds: dict[str, Any] = {
        "xid": str(after.xid),
        "id": after.id,
        "last_xid": str(rows[-1].cursor.xid),
        "last_id": rows[-1].cursor.id,
    }
    if len(wanted) == len(rows):
        found = db.execute(_ALL_COLUMNS, bounds).all()
    else:
        # The ids alone would do; the bounds let PostgreSQL walk the index.
        found = db.execute(_SOME_COLUMNS, bounds | {"ids": [row.cursor.id for row in wanted]}).all()
    # Retention may drop a partition between the two statements; what is gone is left out.
    by_cursor = {row.cursor: row for row in wanted}
    kept = [
        (by_cursor[cursor], columns)
        for columns in found
        if (cursor := Cursor(int(columns[0]), columns[1])) in by_cursor
    ]
    return _join([row for row, _ in kept], [columns for _, columns in kept])


def _join(rows: list[Row], found: list[Any]) -> Readings:
    signal_ids = [_decode(columns[2], _INT) for columns in found]
    sizes = [len(ids) for ids in signal_ids]
    txt: dict[int, str] = {}
    quality: dict[int, int] = {}
    position = 0
    for size, columns in zip(sizes, found, strict=True):
        if columns[5] is not None:
            txt.update((position + i, value) for i, value in enumerate(columns[5]) if value is not None)
        if columns[6] is not None:
            quality.update((position + i, mark) for i, mark in enumerate(columns[6]) if mark is not None)
        position += size
    return Readings(
        rows,
        np.repeat(np.arange(len(rows), dtype=np.int32), sizes),
        np.repeat(np.array([row.tenant_id for row in rows], dtype=np.int32), sizes),
        _concatenate(signal_ids, np.int32),
        _concatenate([_decode(columns[3], _LONG) for columns in found], np.int64),
        _concatenate([_decode(columns[4], _DOUBLE) for columns in found], np.float64),
        txt,
        quality,
    )


def _concatenate(parts: list[npt.NDArray[Any]], kind: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(kind, copy=False) if parts else np.empty(0, kind)


def _decode(data: memoryview, layout: np.dtype[Any]) -> npt.NDArray[Any]:
    """The elements of array_send()'s answer in native byte order: ten times faster than the driver's lists. NULL becomes NaN."""
    head = np.frombuffer(data, ">i4", count=3)
    if head[0] == 0:
        return np.empty(0, layout["value"].newbyteorder("="))
    if not head[1]:
        return np.frombuffer(data, layout, offset=_HEADER)["value"].astype(layout["value"].newbyteorder("="))
    raw, values, offset = bytes(data), [], _HEADER
    for _ in range(int.from_bytes(raw[12:16], "big")):
        size = int.from_bytes(raw[offset : offset + 4], "big", signed=True)
        offset += 4
        if size < 0:
            values.append(np.nan)
        else:
            values.append(np.frombuffer(raw, layout["value"], count=1, offset=offset)[0])
            offset += size
    return np.array(values, dtype=layout["value"].newbyteorder("="))


def newest(db: Session) -> Cursor:
    """The place of the last row that is safe to take; the floor when the log is empty."""
    row = db.execute(_NEWEST).first()
    return Cursor(int(row[0]), row[1]) if row else floor(db)


def floor(db: Session) -> Cursor:
    """Up to where retention has dropped rows; whoever stands before it has missed some."""
    for name, xid, id_, _ in db.execute(CURSORS, {"name": FLOOR, "floor": FLOOR}):
        if name == FLOOR:
            return Cursor(int(xid), id_)
    return START


def position(db: Session, name: str) -> Cursor:
    """Where a tailer stands: everything up to there has taken effect."""
    for found, xid, id_, _ in db.execute(CURSORS, {"name": name, "floor": name}):
        if found == name:
            return Cursor(int(xid), id_)
    return START


def move(db: Session, name: str, cursor: Cursor) -> None:
    """Move a cursor within the caller's transaction."""
    db.execute(_MOVE, {"name": name, "xid": str(cursor.xid), "id": cursor.id})
