"""Answers questions about readings: raw, summed up per bucket of a calendar, or downsampled for a chart."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from psycopg2.errors import QueryCanceled
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from iiot.errors import Invalid
from iiot.models import Signal, Tenant
from iiot.payloads import GOOD, QUALITIES
from iiot.services import aggregates, devices, rollups
from iiot.services.aggregates import Partials, TimeWeighted
from iiot.services.arrays import Integers
from iiot.services.buckets import edges
from iiot.services.lttb import PRESELECT_ABOVE, PRESELECTION_RATIO, Downsampler
from iiot.services.series import Reader, Series, too_much
from iiot.services.signals import value_of
from iiot.services.timespan import HOUR, Interval, invalid, parse_instant, parse_interval, parse_zone
from iiot.tenancy import ScopedSession

MAX_READINGS = 10_000
MAX_POINTS = 2_000
MAX_ANSWER = 200_000
# Percentiles hold every value of the range in memory: 40 MB.
MAX_SORTED = 5_000_000
NUMERIC = ("number", "boolean")

# (ms, value), where it is asked for with the word for its quality.
Point = tuple[int, Any] | tuple[int, Any, str]
Answer = dict[str, list[Point]]


@dataclass(frozen=True)
class Question:
    """What is asked of a device's readings in [start, stop) (ms).

    `keys` None means all signals that can answer. `agg` None means raw readings; `interval` None with an `agg` means one bucket.
    `limit` is per signal, from the oldest, or from the newest when `descending`. `now` bounds how far a last value is carried.
    `quality`: raw readings come with theirs.
    """

    keys: Sequence[str] | None
    start: int
    stop: int
    now: int
    zone: ZoneInfo
    agg: str | None = None
    interval: Interval | None = None
    limit: int | None = None
    descending: bool = False
    quality: bool = False

    def __post_init__(self) -> None:
        if self.stop <= self.start:
            raise invalid("to", "the end must lie after the beginning (`from`).")
        if self.agg is not None and self.agg not in aggregates.NAMES:
            raise invalid("agg", f"use one of {', '.join(aggregates.NAMES)}.")
        if self.interval is not None and self.agg in (None, "lttb"):
            raise invalid(
                "interval", "an interval needs an aggregate: add agg=avg, min, max, sum, count, … (not lttb)."
            )
        if self.quality and self.agg is not None:
            raise invalid("quality", "raw readings alone have a quality: leave out agg.")
        most = MAX_POINTS if self.agg == "lttb" else MAX_READINGS
        if self.limit is not None and not 1 <= self.limit <= most:
            raise invalid("limit", f"1 to {most}. For more, ask for shorter ranges one after the other, or use agg.")

    @property
    def most(self) -> int:
        """The most points per signal."""
        if self.limit is not None:
            return self.limit
        return {None: 1_000, "lttb": MAX_POINTS}.get(self.agg, MAX_READINGS)


@dataclass(frozen=True)
class Asking:
    """A question as people write it; see the documents of GET /devices/{id}/telemetry."""

    keys: Sequence[str] | None
    start: str
    stop: str
    agg: str | None = None
    interval: str | None = None
    limit: int | None = None
    descending: bool = False
    tz: str | None = None
    quality: bool = False


def understand(db: Session, asking: Asking, now: int) -> Question:
    """Read times, interval and zone; without a zone the tenant's counts. Raises Invalid with the parameter's name."""
    zone = asking.tz
    if zone is None:
        # Only buckets have a calendar.
        zone = "UTC" if asking.interval is None else db.scalar(select(Tenant.timezone)) or "UTC"
    return Question(
        keys=asking.keys,
        start=parse_instant("from", asking.start, now),
        stop=parse_instant("to", asking.stop, now),
        now=now,
        zone=parse_zone(zone),
        agg=asking.agg,
        interval=parse_interval(asking.interval) if asking.interval is not None else None,
        limit=asking.limit,
        descending=asking.descending,
        quality=asking.quality,
    )


def answer(db: ScopedSession, uid: str, question: Question) -> Answer:
    """signal key → [(ms, value), …]; keys that the device has not (yet) sent give an empty list.

    Buckets without a reading are absent, and a bucket carries the instant at which it begins, even where the range begins later.
    Raises NotFound, Invalid, and Problem 422 `range-too-large` when the answer would take too long.
    """
    signals = _signals(db, devices.id_of(db, uid), question)
    if len(signals) * question.most > MAX_ANSWER:
        room = MAX_ANSWER // question.most
        raise Invalid(
            f"{len(signals)} signals with {question.most} points each are too many. Name at most {room} keys, or lower limit."
        )
    with _explained():
        asked = _Asked(db, question, [signal.id for signal in signals])
        found: Answer = {key: [] for key in question.keys or ()}
        for signal in signals:
            points = asked.points(signal)
            if points or question.keys is not None:
                found[signal.key] = points
    return found


@contextmanager
def _explained() -> Iterator[None]:
    """A statement that ran into the database's time limit is the question's fault, and the answer says so."""
    try:
        yield
    except OperationalError as error:
        if isinstance(error.orig, QueryCanceled):
            raise too_much() from error
        raise


def _signals(db: Session, device_id: int, question: Question) -> list[Signal]:
    statement = select(Signal).where(Signal.device_id == device_id).order_by(Signal.key)
    if question.keys is not None:
        statement = statement.where(Signal.key.in_(question.keys))
    signals = list(db.scalars(statement))
    if question.agg is None or question.agg in aggregates.OF_ANY_TYPE:
        return signals
    numeric = [signal for signal in signals if signal.type in NUMERIC]
    if question.keys is not None and len(numeric) < len(signals):
        wrong = next(signal for signal in signals if signal.type not in NUMERIC)
        raise invalid(
            "agg",
            f"{question.agg} needs numbers, and '{wrong.key}' is a {wrong.type} signal; use count, first or last for it.",
        )
    return numeric


class _Asked:
    """One question at work."""

    def __init__(self, db: Session, question: Question, signals: Sequence[int]) -> None:
        self.db = db
        self.question = question
        self.reader = Reader(db)
        self.edges = self._edges()
        self.changed = self._changed(signals)

    def _edges(self) -> Integers:
        question = self.question
        if question.interval is None:
            return np.array([question.start, question.stop], dtype=np.int64)
        return edges(question.interval, question.start, question.stop, question.zone)

    def _changed(self, signals: Sequence[int]) -> dict[int, set[int]] | None:
        """Hours not to trust, or None when hourly sums do not fit: short ranges, or buckets that begin within an hour (UTC)."""
        question = self.question
        if question.agg not in (*aggregates.COMBINABLE, "lttb") or question.stop - question.start < 3 * HOUR:
            return None
        if question.interval is not None and (self.edges % HOUR).any():
            return None
        return rollups.changed_hours(self.db, signals, question.stop)

    def points(self, signal: Signal) -> list[Point]:
        """The answer for one signal, in the order and number that were asked for."""
        question = self.question
        if question.agg is None:
            return self._marked(signal, self._raw(signal)) if question.quality else self._raw(signal)
        if question.agg == "lttb":
            points = self._chart(signal.id)
        elif signal.type in NUMERIC:
            points = _pairs(*self._numbers(signal), signal.type == "boolean" and question.agg in ("first", "last"))
        else:
            points = self._texts(signal)
        if question.descending:
            points.reverse()
        return points[: question.most]

    def _raw(self, signal: Signal) -> list[Point]:
        question = self.question
        span = (signal.id, question.start, question.stop, question.most, question.descending)
        if signal.type in NUMERIC:
            return _pairs(*self.reader.edge(*span), signal.type == "boolean")
        return [(ts, value_of(signal.type, None, txt)) for ts, txt in self.reader.texts(*span)]

    def _marked(self, signal: Signal, points: list[Point]) -> list[Point]:
        if not points:
            return points
        ends = sorted((points[0][0], points[-1][0]))
        marks = self.reader.marks(signal.id, ends[0], ends[1] + 1)
        return [(point[0], point[1], QUALITIES[marks.get(point[0], GOOD)]) for point in points]

    def _chart(self, signal: int) -> list[Point]:
        question = self.question
        sampler = Downsampler(question.most)
        for part in self._candidates(signal):
            sampler.feed(*part)
        return _pairs(*sampler.points())

    def _candidates(self, signal: int) -> Iterator[Series]:
        """What a chart chooses from: all readings, or the kept extremes of dense hours where those are at least twice as fine as it needs."""
        question = self.question
        bins = question.most * PRESELECTION_RATIO // 2
        if self.changed is not None and question.stop - question.start >= 2 * rollups.EXTREMES_BIN * bins:
            dense, raw = rollups.read_dense(self.db, signal, question.start, question.stop, self.changed[signal])
            # With fewer readings than this the chart is chosen from all of them.
            if sum(hour.n for hour in dense) > question.most * PRESELECT_ABOVE:
                parts = [(hour.hour, iter([hour.extremes])) for hour in dense]
                parts += [(start, self.reader.parts(signal, start, stop)) for start, stop in raw]
                for _, readings in sorted(parts, key=lambda part: part[0]):
                    yield from readings
                return
        yield from self.reader.parts(signal, question.start, question.stop)

    def _numbers(self, signal: Signal) -> tuple[Integers, Any]:
        question = self.question
        if question.agg in aggregates.QUANTILES:
            bucket, values = self._quantiles(signal.id, aggregates.QUANTILES[question.agg])
        elif question.agg == "twavg":
            bucket, values = self._time_weighted(signal.id)
        else:
            rows = aggregates.merge(self._partials(signal.id))
            if rows is None:
                return self.edges[:0], self.edges[:0]
            bucket, values = aggregates.finish(str(question.agg), rows)
        return self.edges[bucket], values

    def _partials(self, signal: int) -> Iterator[Partials]:
        """Sums of the whole range: of hours where they can be trusted, of raw readings everywhere else."""
        question = self.question
        ranges = [(question.start, question.stop)]
        if self.changed is not None:
            found = rollups.read(self.db, signal, question.start, question.stop, self.changed[signal])
            ranges = found.raw
            yield found.sums._replace(bucket=aggregates.buckets_of(found.sums.bucket, self.edges))
        for start, stop in ranges:
            for ts, values in self.reader.parts(signal, start, stop):
                yield aggregates.partials(ts, values, self.edges)

    def _quantiles(self, signal: int, q: float) -> tuple[Integers, Any]:
        parts = []
        held = 0
        for part in self.reader.parts(signal, self.question.start, self.question.stop):
            parts.append(part)
            held += len(part[0])
            if held > MAX_SORTED:
                raise too_much()
        if not parts:
            return self.edges[:0], self.edges[:0]
        ts, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return aggregates.quantiles(ts, values, self.edges, q)

    def _time_weighted(self, signal: int) -> tuple[Integers, Any]:
        question = self.question
        stop = min(question.stop, max(question.now, question.start + 1))
        weigher = TimeWeighted(self.edges, question.start, stop)
        weigher.feed(*self.reader.before(signal, question.start))
        for part in self.reader.parts(signal, question.start, stop):
            weigher.feed(*part)
        return weigher.finish()

    def _texts(self, signal: Signal) -> list[Point]:
        """count, first and last of a signal that holds texts or JSON."""
        stamps = self.reader.stamps(signal.id, self.question.start, self.question.stop)
        if not len(stamps):
            return []
        rows = aggregates.partials(stamps, np.zeros(len(stamps)), self.edges)
        if self.question.agg == "count":
            return _pairs(self.edges[rows.bucket], rows.n)
        chosen = rows.first_ts if self.question.agg == "first" else rows.last_ts
        texts = self.reader.texts_at(signal.id, chosen.tolist())
        return list(
            zip(self.edges[rows.bucket].tolist(), [value_of(signal.type, None, txt) for txt in texts], strict=True)
        )


def _pairs(ts: Integers, values: Any, as_boolean: bool = False) -> list[Point]:
    """Columns → points. A sum too large for a double becomes null, as JSON has no infinity."""
    numbers = values.astype(bool).tolist() if as_boolean else values.tolist()
    if not np.isfinite(values).all():
        numbers = [number if ok else None for number, ok in zip(numbers, np.isfinite(values).tolist(), strict=True)]
    return list(zip(ts.tolist(), numbers, strict=True))
