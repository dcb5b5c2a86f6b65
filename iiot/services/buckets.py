"""The edges of time buckets in a local calendar, right over changes of daylight saving time."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from iiot.services.timespan import DAY, HOUR, Interval, invalid

MAX_BUCKETS = 10_000
_EPOCH = date(1970, 1, 1).toordinal()
_MONDAY = date(1970, 1, 5).toordinal()

Edges = NDArray[np.int64]


def edges(interval: Interval, start: int, stop: int, zone: ZoneInfo) -> Edges:
    """Ascending instants (ms): bucket i is [edges[i], edges[i + 1]); the first is at or before `start`, the last at or after `stop`.

    Days begin at local midnight (or at the first instant of the day where midnight does not exist), weeks on Monday (ISO 8601),
    months on the first. Minutes and hours that divide a day follow the local clock; other lengths count from the epoch.
    Raises Invalid when there are more than 10,000.
    """
    if (stop - start) // interval.nominal_ms > MAX_BUCKETS:
        raise invalid(
            "interval",
            f"this range has about {(stop - start) // interval.nominal_ms} buckets of this interval, at most {MAX_BUCKETS} "
            "are answered. Use a longer interval or a shorter range.",
        )
    if interval.unit == "s" or (interval.unit in "mh" and DAY % interval.nominal_ms):
        step = interval.nominal_ms
        first = start // step * step
        return np.arange(first, stop + step, step, dtype=np.int64)[: -(-(stop - first) // step) + 1]
    if interval.unit in ("m", "h"):
        return _clock_edges(interval.nominal_ms, start, stop, zone)
    return _calendar_edges(interval, start, stop, zone)


def _calendar_edges(interval: Interval, start: int, stop: int, zone: ZoneInfo) -> Edges:
    day = _aligned(datetime.fromtimestamp(start / 1000, zone).date(), interval)
    found = [_midnight(day, zone)]
    while found[-1] < stop:
        day = _next(day, interval)
        found.append(_midnight(day, zone))
    # Where a country crossed the date line a whole day is missing: its two edges are the same instant.
    return _covering(np.unique(np.array(found, dtype=np.int64)), start, stop)


def _clock_edges(step: int, start: int, stop: int, zone: ZoneInfo) -> Edges:
    midnights = _calendar_edges(Interval(1, "d"), start, stop, zone)
    parts = []
    for day_start, day_stop in zip(midnights[:-1].tolist(), midnights[1:].tolist(), strict=True):
        if day_stop - day_start == DAY:
            parts.append(np.arange(day_start, day_stop, step, dtype=np.int64))
        else:
            parts.append(_changed_day(day_start, day_stop, step, zone))
    return _covering(np.concatenate((*parts, midnights[-1:])), start, stop)


def _changed_day(day_start: int, day_stop: int, step: int, zone: ZoneInfo) -> Edges:
    """Edges of a day on which the clock was changed: an hour that comes twice is two buckets, one that is left out none."""
    midnight = datetime.combine(datetime.fromtimestamp(day_start / 1000, zone).date(), datetime.min.time())
    found = {day_start}
    for offset in range(0, DAY, step):
        wall = midnight + timedelta(milliseconds=offset)
        found.add(_instant(wall.replace(tzinfo=zone)))
        second = wall.replace(tzinfo=zone, fold=1)
        if step <= HOUR and second.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == wall:
            found.add(_instant(second))
    return np.array(sorted(edge for edge in found if day_start <= edge < day_stop), dtype=np.int64)


def _covering(found: Edges, start: int, stop: int) -> Edges:
    first = int(np.searchsorted(found, start, side="right")) - 1
    last = int(np.searchsorted(found, stop, side="left"))
    return found[first : last + 1]


def _aligned(day: date, interval: Interval) -> date:
    if interval.unit == "mo":
        months = (day.year - 1970) * 12 + day.month - 1
        return _month(months - months % interval.count)
    length, origin = (7 * interval.count, _MONDAY) if interval.unit == "w" else (interval.count, _EPOCH)
    return day - timedelta(days=(day.toordinal() - origin) % length)


def _next(day: date, interval: Interval) -> date:
    if interval.unit == "mo":
        return _month((day.year - 1970) * 12 + day.month - 1 + interval.count)
    return day + timedelta(days=interval.count * (7 if interval.unit == "w" else 1))


def _month(months: int) -> date:
    return date(1970 + months // 12, months % 12 + 1, 1)


def _midnight(day: date, zone: ZoneInfo) -> int:
    return _instant(datetime(day.year, day.month, day.day, tzinfo=zone))


def _instant(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
