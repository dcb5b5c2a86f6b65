"""Downsampling a series for a chart: largest triangle three buckets, with a min-max preselection for long series.

LTTB: Sveinn Steinarsson, "Downsampling Time Series for Visual Representation", University of Iceland, 2013, section 4.2.
MinMaxLTTB: Jeroen Van Der Donckt, Jonas Van Der Donckt, Michael Rademaker, Sofie Van Hoecke, "MinMaxLTTB: Leveraging
MinMax-Preselection to Scale LTTB", IEEE VIS 2023. It keeps the extremes of small bins and runs LTTB on those alone.
"""

import numpy as np
from numpy.typing import NDArray

Stamps = NDArray[np.int64]
Values = NDArray[np.float64]
Indexes = NDArray[np.intp]

# The paper's recommended preselection ratio: four candidates for every point that is shown, two (min, max) per bin.
PRESELECTION_RATIO = 4
# Below this many readings per shown point plain LTTB is as fast, so its exact answer is kept.
PRESELECT_ABOVE = 10


def lttb(ts: Stamps, values: Values, limit: int) -> Indexes:
    """Indexes of at most `limit` points that keep the visual shape.

    `ts` (n,) ascending, any unit; `values` (n,) finite. The first and the last point are always kept;
    a series that is short enough comes back whole. A limit of 1 gives the first point, 2 the first and the last.
    """
    count = len(ts)
    if limit >= count:
        return np.arange(count)
    if limit < 3:
        return np.array([0, count - 1][:limit], dtype=np.intp)
    # Bucket i is edges[i] to edges[i + 1]; the first and the last point are buckets of their own.
    edges = np.arange(limit - 1) * (count - 2) // (limit - 2) + 1
    x = (ts - ts[0]).astype(np.float64)
    ahead_x = np.append(_means(x, edges)[1:], x[-1])
    ahead_y = np.append(_means(values, edges)[1:], values[-1])
    return _walk(x, values, edges, ahead_x, ahead_y)


def _means(series: Values, edges: Indexes) -> Values:
    """The mean of each bucket."""
    sums: Values = np.add.reduceat(series[: edges[-1]], edges[:-1])
    return sums / np.diff(edges)


def _walk(x: Values, y: Values, edges: Indexes, ahead_x: Values, ahead_y: Values) -> Indexes:
    """Take from each bucket the point with the largest triangle to the point taken before and the mean ahead.

    Each choice depends on the one before, and the buckets hold ten points or fewer: plain lists are faster than numpy.
    """
    chosen = [0]
    xs, ys, bounds = x.tolist(), y.tolist(), edges.tolist()
    left_x, left_y = xs[0], ys[0]
    for i, (mean_x, mean_y) in enumerate(zip(ahead_x.tolist(), ahead_y.tolist(), strict=True)):
        run, rise = left_x - mean_x, mean_y - left_y
        best, best_area = bounds[i], -1.0
        for k in range(bounds[i], bounds[i + 1]):
            doubled_area = abs(run * (ys[k] - left_y) - (left_x - xs[k]) * rise)
            if doubled_area > best_area:
                best, best_area = k, doubled_area
        chosen.append(best)
        left_x, left_y = xs[best], ys[best]
    chosen.append(len(xs) - 1)
    return np.array(chosen, dtype=np.intp)


def min_max(ts: Stamps, values: Values, start: int, width: int) -> Indexes:
    """Indexes of the least and the greatest value of each time bin of `width` from `start`, and of both ends.

    At most two points per bin; the least and the greatest of all are always among them, so a long series may be reduced in parts.
    """
    bins = (ts - start) // width
    starts = np.flatnonzero(np.diff(bins, prepend=bins[0] - 1))
    sizes = np.diff(starts, append=len(ts))
    low = _first_equal(values, np.minimum.reduceat(values, starts), starts, sizes)
    high = _first_equal(values, np.maximum.reduceat(values, starts), starts, sizes)
    return np.unique(np.concatenate((low, high, [0, len(ts) - 1])))


def _first_equal(values: Values, extremes: Values, starts: Indexes, sizes: Indexes) -> Indexes:
    """In each bin the index of the first value that equals the bin's extreme."""
    hits = np.flatnonzero(values == np.repeat(extremes, sizes))
    found: Indexes = hits[np.searchsorted(hits, starts)]
    return found


class Downsampler:
    """Takes a series in ascending parts and gives at most `limit` points of it; memory stays bounded.

    While there are at most ten readings per shown point the answer is plain LTTB, beyond that MinMaxLTTB.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._is_reduced = False
        self._ts: Stamps = np.empty(0, dtype=np.int64)
        self._values: Values = np.empty(0, dtype=np.float64)

    def feed(self, ts: Stamps, values: Values) -> None:
        """Add the next part: (n,) ascending and later than what came before."""
        self._ts = np.concatenate((self._ts, ts))
        self._values = np.concatenate((self._values, values))
        if len(self._ts) > self._limit * PRESELECT_ABOVE:
            self._reduce()

    def _reduce(self) -> None:
        # The bins divide what has come so far, so that readings that fill a small part of the range keep their detail.
        start, span = int(self._ts[0]), int(self._ts[-1] - self._ts[0]) + 1
        keep = min_max(self._ts, self._values, start, -(-span * 2 // (self._limit * PRESELECTION_RATIO)))
        self._ts, self._values = self._ts[keep], self._values[keep]
        self._is_reduced = True

    def points(self) -> tuple[Stamps, Values]:
        """The chosen points, ascending."""
        if self._is_reduced:
            # What came since is still whole. LTTB deals its points out by number, so it would have most of them.
            self._reduce()
        keep = lttb(self._ts, self._values, self._limit)
        return self._ts[keep], self._values[keep]
