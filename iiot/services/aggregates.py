"""Sums up readings per time bucket, in numpy: pure functions over columns."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Values = NDArray[np.float64]

# What partial sums can be combined to; these may come from hourly rollups.
COMBINABLE = ("avg", "min", "max", "sum", "count", "first", "last", "delta", "stddev")
# What needs every reading.
EXACT = ("twavg", "p50", "p95")
NAMES = (*COMBINABLE, *EXACT, "lttb")
OF_ANY_TYPE = ("count", "first", "last")
QUANTILES = {"p50": 0.5, "p95": 0.95}


class Partials(NamedTuple):
    """Sums of runs of readings, one row per run: `bucket` says where it belongs; `sumsq` is the sum of squared deviations from the run's mean."""

    bucket: Integers
    n: Integers
    minimum: Values
    maximum: Values
    total: Values
    sumsq: Values
    first: Values
    last: Values
    first_ts: Integers
    last_ts: Integers


def buckets_of(ts: Integers, edges: Integers) -> Integers:
    """The index of the bucket of each instant."""
    return np.searchsorted(edges, ts, side="right").astype(np.int64) - 1


def _starts(groups: Integers) -> Integers:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.diff(groups, prepend=groups[0] - 1)).astype(np.int64)


def partials(ts: Integers, values: Values, edges: Integers) -> Partials:
    """Sum up readings (n,), ascending and not empty, per bucket."""
    bucket = buckets_of(ts, edges)
    starts = _starts(bucket)
    n = np.diff(starts, append=len(ts))
    ends = starts + n - 1
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduceat(values, starts)
        sumsq = np.add.reduceat((values - np.repeat(total / n, n)) ** 2, starts)
    return Partials(
        bucket[starts],
        n,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
        total,
        sumsq,
        values[starts],
        values[ends],
        ts[starts],
        ts[ends],
    )


def merge(parts: Iterable[Partials]) -> Partials | None:
    """One row per bucket, ascending; None when there is nothing.

    Squared deviations are combined as in Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances", 1979: no large squares are subtracted from each other.
    """
    given = [part for part in parts if len(part.bucket)]
    if not given:
        return None
    rows = Partials._make(np.concatenate(columns) for columns in zip(*given, strict=True))
    order = np.lexsort((rows.first_ts, rows.bucket))
    rows = Partials._make(column[order] for column in rows)
    starts = _starts(rows.bucket)
    counts = np.diff(starts, append=len(order))
    n = np.add.reduceat(rows.n, starts)
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduceat(rows.total, starts)
        between = rows.n * (rows.total / rows.n - np.repeat(total / n, counts)) ** 2
        sumsq = np.add.reduceat(rows.sumsq + between, starts)
    ends = starts + counts - 1
    return Partials(
        rows.bucket[starts],
        n,
        np.minimum.reduceat(rows.minimum, starts),
        np.maximum.reduceat(rows.maximum, starts),
        total,
        sumsq,
        rows.first[starts],
        rows.last[ends],
        rows.first_ts[starts],
        rows.last_ts[ends],
    )


def finish(agg: str, rows: Partials) -> tuple[Integers, NDArray[np.generic]]:
    """(bucket indexes, values) of a combinable aggregate; `stddev` is the sample's and needs two readings in a bucket."""
    if agg == "stddev":
        several = rows.n > 1
        return rows.bucket[several], np.sqrt(rows.sumsq[several] / (rows.n[several] - 1))
    plain = {"min": rows.minimum, "max": rows.maximum, "sum": rows.total, "count": rows.n, "first": rows.first}
    if agg in plain:
        return rows.bucket, plain[agg]
    if agg == "avg":
        return rows.bucket, rows.total / rows.n
    return rows.bucket, rows.last if agg == "last" else rows.last - rows.first


def quantiles(ts: Integers, values: Values, edges: Integers, q: float) -> tuple[Integers, Values]:
    """The q-quantile of each bucket, between two readings interpolated linearly, as SQL's percentile_cont does."""
    bucket = buckets_of(ts, edges)
    starts = _starts(bucket)
    n = np.diff(starts, append=len(ts))
    ordered = values[np.lexsort((values, bucket))]
    place = q * (n - 1)
    below = np.floor(place).astype(np.int64)
    low, high = ordered[starts + below], ordered[starts + np.minimum(below + 1, n - 1)]
    share = place - below
    return bucket[starts], low * (1 - share) + high * share


class TimeWeighted:
    """Time-weighted averages: each value counts as long as it was the last one observed.

    Feed ascending parts; the first may begin with the last reading before the range, which then counts from the range's
    beginning. A bucket in which nothing was read is absent; before the very first reading there is no value to weigh.
    """

    def __init__(self, edges: Integers, start: int, stop: int) -> None:
        inside = (edges > start) & (edges < stop)
        self._cuts = np.concatenate(([start], edges[inside], [stop])).astype(np.int64)
        self._bucket = buckets_of(self._cuts[:-1], edges)
        self._area = np.zeros(len(self._cuts) - 1)
        self._weight = np.zeros(len(self._cuts) - 1)
        self._n = np.zeros(len(self._cuts) - 1, dtype=np.int64)
        self._held: tuple[int, float] | None = None

    def feed(self, ts: Integers, values: Values) -> None:
        """Add readings; all but the last are weighed at once, the last is held until the next part."""
        if not len(ts):
            return
        in_range = ts >= self._cuts[0]
        np.add.at(self._n, buckets_of(ts[in_range], self._cuts), 1)
        if self._held is not None:
            ts, values = np.append(self._held[0], ts), np.append(self._held[1], values)
        self._weigh(ts, values)
        self._held = (int(ts[-1]), float(values[-1]))

    def _weigh(self, ts: Integers, values: Values) -> None:
        """Add the areas between the first and the last of these readings."""
        first, last = max(int(ts[0]), int(self._cuts[0])), int(ts[-1])
        if last <= first:
            return
        borders = self._cuts[(self._cuts > first) & (self._cuts < last)]
        moments = np.unique(np.concatenate(([first], ts[ts > first], borders)))
        held = values[np.searchsorted(ts, moments[:-1], side="right") - 1]
        lengths = np.diff(moments).astype(np.float64)
        bucket = buckets_of(moments[:-1], self._cuts)
        with np.errstate(over="ignore"):
            np.add.at(self._area, bucket, held * lengths)
        np.add.at(self._weight, bucket, lengths)

    def finish(self) -> tuple[Integers, Values]:
        """(bucket indexes, averages); the last value is carried to the end of the range."""
        if self._held is not None:
            end = int(self._cuts[-1])
            self._weigh(np.array([self._held[0], end]), np.array([self._held[1], self._held[1]]))
        known = (self._n > 0) & (self._weight > 0)
        return self._bucket[known], self._area[known] / self._weight[known]
