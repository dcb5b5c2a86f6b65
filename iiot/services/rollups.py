"""Hourly sums of numeric signals: which hours changed, summing them up, and reading them so that answers stay exact.

A row of rollup_1h with n = 0 says: this hour has changed since it was summed up, read it raw. The tailer `rollup` writes such marks in the
transaction that moves its cursor; a closed hour is then summed up once, from the raw readings. A reader adds the hours that the log names behind
that cursor, so it never misses a reading that was committed before it asked.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
from sqlalchemy.orm import Session

from iiot import clock, tenancy
from iiot.services import aggregates, arrays
from iiot.services.aggregates import Partials
from iiot.services.arrays import Integers, Values
from iiot.services.lttb import min_max
from iiot.services.series import Reader
from iiot.services.timespan import HOUR

TAILER = "rollup"
# With more of the log unread than this the tailer is out of order, and raw readings are the cheaper truth.
MAX_UNREAD = 2_000
# Extremes are kept of every bin of this many milliseconds, in hours with more readings than twice the points that are kept.
EXTREMES_BIN = 10_000
DENSE = 4 * HOUR // EXTREMES_BIN

_MARK = tenancy.sql(
    """
    INSERT INTO iiot.rollup_1h AS r
        (tenant_id, signal_id, hour, n, minimum, maximum, total, sumsq, first, last, first_ts, last_ts)
    SELECT u.tenant, u.signal, u.hour, 0, 0, 0, 0, 0, 0, 0, u.hour, u.hour
    FROM unnest(CAST(:tenants AS integer[]), CAST(:signals AS integer[]), CAST(:hours AS timestamptz[])) AS u(tenant, signal, hour)
    ON CONFLICT (tenant_id, signal_id, hour) DO UPDATE SET n = 0
    """
)
_MARK_ALL = tenancy.sql(
    """
    INSERT INTO iiot.rollup_1h AS r
        (tenant_id, signal_id, hour, n, minimum, maximum, total, sumsq, first, last, first_ts, last_ts)
    SELECT tenant_id, signal_id, hour, 0, 0, 0, 0, 0, 0, 0, hour, hour
    FROM (SELECT DISTINCT tenant_id, signal_id, date_trunc('hour', ts) AS hour
          FROM iiot.telemetry WHERE ts >= :since AND num IS NOT NULL) AS touched
    ON CONFLICT (tenant_id, signal_id, hour) DO UPDATE SET n = 0
    """
)
# xmin tells one mark from the next: a mark that came while the hour was being summed up is not overwritten.
_PENDING = tenancy.sql(
    """
    SELECT tenant_id, signal_id, hour, xmin::text FROM iiot.rollup_1h
    WHERE n = 0 AND hour < :before ORDER BY hour DESC, tenant_id, signal_id LIMIT :limit
    """
)
_STORE = tenancy.sql(
    """
    UPDATE iiot.rollup_1h AS r
    SET n = u.n, minimum = u.minimum, maximum = u.maximum, total = u.total, sumsq = u.sumsq,
        first = u.first, last = u.last, first_ts = u.first_ts, last_ts = u.last_ts, extremes = u.extremes
    FROM unnest(CAST(:signals AS integer[]), CAST(:hours AS timestamptz[]), CAST(:marks AS text[]), CAST(:n AS integer[]),
                CAST(:minimum AS float8[]), CAST(:maximum AS float8[]), CAST(:total AS float8[]), CAST(:sumsq AS float8[]),
                CAST(:first AS float8[]), CAST(:last AS float8[]), CAST(:first_ts AS timestamptz[]), CAST(:last_ts AS timestamptz[]),
                CAST(:extremes AS bytea[]))
        AS u(signal, hour, mark, n, minimum, maximum, total, sumsq, first, last, first_ts, last_ts, extremes)
    WHERE r.tenant_id = (SELECT iiot.tid()) AND r.signal_id = u.signal AND r.hour = u.hour AND r.n = 0 AND r.xmin::text = u.mark
    """
)
_DROP = tenancy.sql(
    """
    DELETE FROM iiot.rollup_1h AS r
    USING unnest(CAST(:signals AS integer[]), CAST(:hours AS timestamptz[]), CAST(:marks AS text[])) AS u(signal, hour, mark)
    WHERE r.tenant_id = (SELECT iiot.tid()) AND r.signal_id = u.signal AND r.hour = u.hour AND r.n = 0 AND r.xmin::text = u.mark
    """
)
_SUMS = tenancy.sql(
    """
    SELECT array_send(array_agg(hour)), array_send(array_agg(n)), array_send(array_agg(minimum)), array_send(array_agg(maximum)),
           array_send(array_agg(total)), array_send(array_agg(sumsq)), array_send(array_agg(first)), array_send(array_agg(last)),
           array_send(array_agg(first_ts)), array_send(array_agg(last_ts))
    FROM (SELECT * FROM iiot.rollup_1h
          WHERE tenant_id = (SELECT iiot.tid()) AND signal_id = :signal AND hour >= :start AND hour < :stop ORDER BY hour) AS sums
    """
)
_EXTREMES = tenancy.sql(
    """
    SELECT hour, n, extremes FROM iiot.rollup_1h
    WHERE tenant_id = (SELECT iiot.tid()) AND signal_id = :signal AND hour >= :start AND hour < :stop ORDER BY hour
    """
)
_UNREAD = tenancy.sql(
    """
    SELECT (SELECT count(*) FROM (
               SELECT 1 FROM iiot.telemetry_batch AS b WHERE (b.xid, b.id) > (c.xid, c.id) LIMIT :limit) AS waiting)
    FROM iiot.stream_cursor AS c WHERE c.name = :name
    """
)
_UNREAD_HOURS = tenancy.sql(
    """
    SELECT DISTINCT u.signal, u.ts / 3600000
    FROM iiot.stream_cursor AS c, iiot.telemetry_batch AS b, unnest(b.signal_ids, b.ts) AS u(signal, ts)
    WHERE c.name = :name AND (b.xid, b.id) > (c.xid, c.id) AND u.signal = ANY(:wanted) AND u.ts < :before
    """
)


class Pending(NamedTuple):
    """An hour that waits to be summed up; `mark` tells which change it waits for."""

    tenant_id: int
    signal_id: int
    hour: datetime
    mark: str


class Dense(NamedTuple):
    """An hour (ms) whose extremes are kept: `n` readings, of which (ts, values) are the extremes, ascending."""

    hour: int
    n: int
    extremes: tuple[Integers, Values]


class Hours(NamedTuple):
    """Hours of one signal that are summed up (`bucket` is the hour in ms), and the ranges [start, stop) beside them to be read raw."""

    sums: Partials
    raw: list[tuple[int, int]]


def mark(db: Session, tenants: Sequence[int], signals: Sequence[int], hours: Sequence[int]) -> None:
    """Say that these hours (ms, equally long lists, no triple twice) have changed."""
    moments = [clock.from_ms(hour) for hour in hours]
    db.execute(_MARK, {"tenants": list(tenants), "signals": list(signals), "hours": moments})


def mark_all(db: Session, since: datetime) -> None:
    """Say that every hour with numbers from `since` on has changed: after the log was lost, or readings came without it. Slow."""
    db.execute(_MARK_ALL, {"since": since})


def pending(db: Session, before: datetime, limit: int) -> list[Pending]:
    """Up to `limit` hours that began before `before` and wait, newest first: late data keeps no recent hour waiting."""
    return [Pending(*row) for row in db.execute(_PENDING, {"before": before, "limit": limit})]


def sum_up(db: Session, waiting: Sequence[Pending]) -> int:
    """Sum up hours of the session's tenant from the raw readings and store them; returns how many were stored.

    Reads first and writes last, so that the transaction is a writer for a moment only. An hour that changed meanwhile stays marked.
    """
    reader = Reader(db)
    full: list[tuple[Pending, Partials, bytes | None]] = []
    empty: list[Pending] = []
    for item in waiting:
        start = clock.to_ms(item.hour)
        ts, values = reader.part(item.signal_id, start, start + HOUR)
        if len(ts):
            full.append((item, aggregates.partials(ts, values, np.array([start, start + HOUR])), _extremes(ts, values)))
        else:
            empty.append(item)
    if full:
        db.execute(_STORE, _columns(full))
    if empty:
        db.execute(_DROP, _keys(empty))
    return len(full)


def _extremes(ts: Integers, values: Values) -> bytes | None:
    """The extremes of an hour with many readings, None of any other."""
    if len(ts) <= DENSE:
        return None
    kept = min_max(ts, values, int(ts[0]) // HOUR * HOUR, EXTREMES_BIN)
    return arrays.packed(ts[kept], values[kept])


def _keys(items: Iterable[Pending]) -> dict[str, object]:
    given = list(items)
    return {
        "signals": [item.signal_id for item in given],
        "hours": [item.hour for item in given],
        "marks": [item.mark for item in given],
    }


def _columns(full: list[tuple[Pending, Partials, bytes | None]]) -> dict[str, object]:
    rows = Partials._make(np.concatenate(columns) for columns in zip(*(sums for _, sums, _ in full), strict=True))
    columns: dict[str, object] = {name: column.tolist() for name, column in rows._asdict().items() if name != "bucket"}
    for name in ("first_ts", "last_ts"):
        columns[name] = [clock.from_ms(ts) for ts in getattr(rows, name).tolist()]
    columns["extremes"] = [extremes for *_, extremes in full]
    return columns | _keys(item for item, *_ in full)


def changed_hours(db: Session, signals: Sequence[int], before: int) -> dict[int, set[int]] | None:
    """signal → hours (ms) before `before` that the log names behind the tailer's cursor; None: the sums cannot be trusted now."""
    unread = db.execute(_UNREAD, {"name": TAILER, "limit": MAX_UNREAD + 1}).scalar()
    if unread is None or unread > MAX_UNREAD:
        return None
    found: dict[int, set[int]] = {signal: set() for signal in signals}
    if unread:
        rows = db.execute(_UNREAD_HOURS, {"name": TAILER, "wanted": list(signals), "before": before})
        for signal, hour in rows:
            found[signal].add(hour * HOUR)
    return found


def read(db: Session, signal: int, start: int, stop: int, changed: set[int]) -> Hours:
    """The sums of the whole hours in [start, stop) and what is left to read raw; `changed` are hours not to trust."""
    first, last = -(-start // HOUR) * HOUR, stop // HOUR * HOUR
    bounds = {"signal": signal, "start": clock.from_ms(first), "stop": clock.from_ms(max(first, last))}
    columns = db.execute(_SUMS, bounds).one()
    hours, counts = arrays.stamps(columns[0]), arrays.integers(columns[1])
    floats = [arrays.doubles(raw) for raw in columns[2:8]]
    rows = Partials._make([hours, counts, *floats, arrays.stamps(columns[8]), arrays.stamps(columns[9])])
    stale = counts == 0
    if changed:
        stale |= np.isin(hours, list(changed))
    unsure = sorted({each for each in changed if first <= each < last} | set(hours[stale].tolist()))
    sums = Partials._make(column[~stale] for column in rows)
    return Hours(sums, _ranges(start, first, unsure, last, stop))


def read_dense(
    db: Session, signal: int, start: int, stop: int, changed: set[int]
) -> tuple[list[Dense], list[tuple[int, int]]]:
    """The hours in [start, stop) whose extremes are kept, and the ranges beside them to be read raw; `changed` as for `read`."""
    first, last = -(-start // HOUR) * HOUR, stop // HOUR * HOUR
    bounds = {"signal": signal, "start": clock.from_ms(first), "stop": clock.from_ms(max(first, last))}
    dense = []
    for moment, n, raw in db.execute(_EXTREMES, bounds):
        hour = clock.to_ms(moment)
        if n and raw is not None and hour not in changed:
            dense.append(Dense(hour, n, arrays.pairs(raw)))
    known = {each.hour for each in dense}
    return dense, _ranges(start, first, [hour for hour in range(first, last, HOUR) if hour not in known], last, stop)


def _ranges(start: int, first: int, unsure: list[int], last: int, stop: int) -> list[tuple[int, int]]:
    """Ascending ranges, neighbours joined: the odd ends and the hours that are not summed up."""
    if first >= last:
        return [(start, stop)]
    found: list[tuple[int, int]] = []
    for begin, end in [(start, first), *((hour, hour + HOUR) for hour in unsure), (last, stop)]:
        if begin >= end:
            continue
        if found and found[-1][1] == begin:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found
