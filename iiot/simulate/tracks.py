"""Recorded series: read from CSV files, kept as points at an offset from their own beginning."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple


class TrackError(Exception):
    """A file that cannot be replayed; the text says why."""


class Point(NamedTuple):
    """What a device measured `offset` seconds after its series began."""

    offset: float
    values: dict[str, float]


@dataclass(frozen=True)
class Track:
    """What one device replays: points by ascending offset, and the seconds after which the series may begin again."""

    name: str
    points: Sequence[Point]
    length: float

    def from_offset(self, start: float, loop: bool) -> Iterator[Point]:
        """The points from `start` on, endlessly when `loop`; offsets keep growing over the repetitions."""
        base = start // self.length * self.length
        if base and not loop:
            return
        while True:
            for point in self.points:
                if base + point.offset >= start:
                    yield Point(base + point.offset, point.values)
            if not loop:
                return
            base += self.length


def make_track(name: str, points: Sequence[Point]) -> Track:
    """A track of at least two points; it repeats one mean step after its last point. Raises TrackError."""
    ordered = sorted(points, key=lambda point: point.offset)
    if len(ordered) < 2 or ordered[-1].offset <= ordered[0].offset:
        raise TrackError(f"{name}: at least two readings at different times are needed")
    begin = ordered[0].offset
    shifted = [Point(point.offset - begin, point.values) for point in ordered]
    return Track(name, shifted, shifted[-1].offset * len(shifted) / (len(shifted) - 1))


def read_csv(path: Path, key: str | None = None) -> Track:
    """A CSV file with a header: time in the first column, one signal per further column; empty cells are left out.

    Times are RFC 3339 (without an offset: UTC), or seconds or milliseconds since the epoch. `key` names the signal of a file with
    one; without it a column called `value` is named after the file. Raises TrackError with the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if len(header) < 2:
                raise TrackError(f"{path}: the first line must name a time column and at least one signal")
            names = [name.strip() for name in header[1:]]
            if len(names) == 1 and (key or names[0] == "value"):
                names = [key or path.stem]
            points = [_point(path, rows.line_num, names, row) for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrackError(f"{path}: cannot be read ({error})") from error
    return make_track(path.stem, points)


def _point(path: Path, line: int, names: Sequence[str], row: Sequence[str]) -> Point:
    try:
        values = {name: float(cell) for name, cell in zip(names, row[1:], strict=False) if cell.strip()}
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError("a value is not finite")
        return Point(_seconds(row[0].strip()), values)
    except ValueError as error:
        raise TrackError(f"{path}, line {line}: {error}") from None


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return number / 1000 if number > 1e11 else number


def merge(name: str, tracks: Sequence[Track]) -> Track:
    """One device that measures what several series recorded, all beginning together; equal offsets become one message."""
    together: dict[float, dict[str, float]] = {}
    length = min(track.length for track in tracks)
    for track in tracks:
        for point in track.points:
            if point.offset < length:
                together.setdefault(point.offset, {}).update(point.values)
    return Track(name, [Point(offset, together[offset]) for offset in sorted(together)], length)
