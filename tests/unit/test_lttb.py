"""Downsampling keeps the ends, the extremes and the order, and plain LTTB equals the published reference."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iiot.services.lttb import Downsampler, lttb, min_max

series = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=400)


def reference(data: list[tuple[float, float]], threshold: int) -> list[int]:
    """Steinarsson's published algorithm, written as plainly as in the thesis (figure 4.2)."""
    count = len(data)
    if threshold >= count or threshold == 0:
        return list(range(count))
    sampled = [0]
    taken = 0
    for i in range(threshold - 2):
        start, stop = (i * (count - 2) // (threshold - 2)) + 1, ((i + 1) * (count - 2) // (threshold - 2)) + 1
        ahead_stop = min(((i + 2) * (count - 2) // (threshold - 2)) + 1, count)
        ahead = data[stop:ahead_stop]
        mean_x = sum(p[0] for p in ahead) / len(ahead)
        mean_y = sum(p[1] for p in ahead) / len(ahead)
        best, best_area = start, -1.0
        for k in range(start, stop):
            x, y = data[taken]
            area = abs((x - mean_x) * (data[k][1] - y) - (x - data[k][0]) * (mean_y - y)) * 0.5
            if area > best_area:
                best, best_area = k, area
        sampled.append(best)
        taken = best
    return [*sampled, count - 1]


def wave(count: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(count, dtype=np.int64) * 1000
    return x, np.sin(x / 40_000) * 10 + np.cos(x / 3_000)


@pytest.mark.parametrize(("count", "limit"), [(10, 3), (100, 10), (1000, 37), (5000, 2000), (2001, 2000)])
def test_it_chooses_the_same_points_as_the_published_algorithm(count: int, limit: int) -> None:
    x, y = wave(count)
    assert lttb(x, y, limit).tolist() == reference(list(zip(x.tolist(), y.tolist(), strict=True)), limit)


@given(values=series, limit=st.integers(1, 50))
def test_it_keeps_the_ends_the_order_and_the_limit(values: list[float], limit: int) -> None:
    x = np.arange(len(values), dtype=np.int64) * 60_000
    chosen = lttb(x, np.array(values), limit)
    assert len(chosen) == min(limit, len(values))
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] == 0
    if limit > 1:
        assert chosen[-1] == len(values) - 1


def test_a_series_shorter_than_the_limit_comes_back_whole() -> None:
    x, y = wave(50)
    assert lttb(x, y, 2000).tolist() == list(range(50))


def test_a_flat_series_does_not_divide_by_zero() -> None:
    x, _ = wave(500)
    assert len(lttb(x, np.zeros(500), 20)) == 20


@given(values=series, width=st.integers(1, 30))
def test_preselection_keeps_the_least_and_the_greatest_of_every_bin(values: list[float], width: int) -> None:
    x = np.arange(len(values), dtype=np.int64)
    y = np.array(values)
    kept = min_max(x, y, 0, width)
    assert (np.diff(kept) > 0).all()
    for start in range(0, len(values), width):
        inside = kept[(kept >= start) & (kept < start + width)]
        assert y[inside].min() == min(values[start : start + width])
        assert y[inside].max() == max(values[start : start + width])


def feed(x: np.ndarray, y: np.ndarray, limit: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    sampler = Downsampler(limit)
    for part_x, part_y in zip(np.array_split(x, parts), np.array_split(y, parts), strict=True):
        sampler.feed(part_x, part_y)
    return sampler.points()


@pytest.mark.parametrize("parts", [1, 7, 100])
def test_a_spike_of_one_reading_in_a_million_is_shown_however_the_series_is_cut(parts: int) -> None:
    x, y = wave(1_000_000)
    y[654_321] = 500.0
    y[123_456] = -500.0
    shown_x, shown_y = feed(x, y, 2000, parts)
    assert len(shown_x) == 2000
    assert 500.0 in shown_y
    assert -500.0 in shown_y
    assert shown_x[0] == x[0]
    assert shown_x[-1] == x[-1]


def test_ten_readings_per_point_or_fewer_give_plain_lttb() -> None:
    x, y = wave(5000)
    plain = lttb(x, y, 500)
    shown_x, shown_y = feed(x, y, 500, 3)
    assert shown_x.tolist() == x[plain].tolist()
    assert shown_y.tolist() == y[plain].tolist()


def test_memory_stays_bounded_while_a_long_series_is_fed() -> None:
    sampler = Downsampler(100)
    for start in range(0, 10_000_000, 100_000):
        x = np.arange(start, start + 100_000, dtype=np.int64)
        sampler.feed(x, np.sin(x / 999))
    assert len(sampler._ts) <= 100 * 10
    assert math.isclose(sampler.points()[1].max(), 1.0, abs_tol=1e-3)
