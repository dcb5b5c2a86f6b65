"""Answers about readings equal a plain reference, on both PostgreSQL versions, from hourly sums as well as from raw readings."""

import math
import statistics
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from iiot import tenancy
from iiot.clock import now_ms
from iiot.errors import Invalid, NotFound, Problem
from iiot.services import readings, rollups
from iiot.services.readings import Point, Question
from iiot.services.series import Reader
from iiot.services.timespan import DAY, HOUR, parse_interval
from iiot.stream import rollup
from tests import factories, services

UTC = ZoneInfo("UTC")
NOW = now_ms()
# A midnight (UTC) ten days back: its hours are over, and its partitions exist.
BASE = NOW // DAY * DAY - 10 * DAY
Series = list[tuple[int, float]]


@pytest.fixture(scope="module", params=["postgres", "postgres15"])
def tenant(request: pytest.FixtureRequest, workspace: Any) -> Iterator[factories.TenantRow]:
    """A tenant in a fresh database of each PostgreSQL version that the portal supports."""
    server: services.PostgresServer = request.getfixturevalue(request.param)
    settings = server.database(data_dir=workspace)
    with services.active(settings):
        yield factories.make_tenant()
    server.drop(settings)


@pytest.fixture
def device(tenant: factories.TenantRow) -> factories.DeviceRow:
    return factories.make_device(tenant)


def put(device: factories.DeviceRow, series: list[tuple[int, Any]], key: str = "temperature") -> None:
    factories.store(device.uid, *((ts, {key: value}) for ts, value in series))


def settle() -> None:
    """Let the tailer read all of the log, then sum up every hour that is over."""
    tailer = rollup.tailer()
    while tailer.step().outcome == "stepped":
        pass
    rollup.refresh()


def ask(device: factories.DeviceRow, start: int, stop: int, **question: Any) -> dict[str, list[Point]]:
    values: dict[str, Any] = {"keys": ["temperature"], "zone": UTC, "now": NOW} | question
    if isinstance(values.get("interval"), str):
        values["interval"] = parse_interval(values["interval"])
    with tenancy.work(tenancy.of_device(device)) as db:
        return readings.answer(db, device.uid, Question(start=start, stop=stop, **values))


def one(device: factories.DeviceRow, start: int, stop: int, **question: Any) -> list[Point]:
    return ask(device, start, stop, **question)["temperature"]


def weighted(series: Series, begin: int, end: int) -> float:
    """The time-weighted average over [begin, end), the slow way: every value counts until the next reading."""
    known = [point for point in series if point[0] < end]
    total = length = 0.0
    for i, (ts, value) in enumerate(known):
        until = known[i + 1][0] if i + 1 < len(known) else end
        lasted = max(0, min(until, end) - max(ts, begin))
        total, length = total + value * lasted, length + lasted
    return total / length


def reference(series: Series, agg: str, begin: int, end: int) -> float | None:
    """One bucket, with Python's own means."""
    values = [value for ts, value in series if begin <= ts < end]
    if not values or (agg == "stddev" and len(values) < 2):
        return None
    ordered = sorted(values)

    def quantile(q: float) -> float:
        place = q * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        return low + (high - low) * (place - math.floor(place))

    answers: dict[str, Callable[[], float]] = {
        "avg": lambda: math.fsum(values) / len(values),
        "min": lambda: min(values),
        "max": lambda: max(values),
        "sum": lambda: math.fsum(values),
        "count": lambda: len(values),
        "first": lambda: values[0],
        "last": lambda: values[-1],
        "delta": lambda: values[-1] - values[0],
        "stddev": lambda: statistics.stdev(values),
        "p50": lambda: quantile(0.5),
        "p95": lambda: quantile(0.95),
        "twavg": lambda: weighted(series, begin, end),
    }
    return answers[agg]()


AGGS = ["avg", "min", "max", "sum", "count", "first", "last", "delta", "stddev", "p50", "p95", "twavg"]


def expected(series: Series, agg: str, start: int, stop: int, step: int) -> Series:
    found = []
    for edge in range(start // step * step, stop, step):
        value = reference(series, agg, max(edge, start), min(edge + step, stop))
        if value is not None:
            found.append((edge, value))
    return found


def assert_same(found: list[Point], wanted: Series) -> None:
    assert [ts for ts, _ in found] == [ts for ts, _ in wanted]
    for (_, got), (_, want) in zip(found, wanted, strict=True):
        assert got == pytest.approx(want, rel=1e-9, abs=1e-7)


wave = [(BASE + i * 97_000, math.sin(i / 30) * 20 + i % 7) for i in range(800)]


@pytest.mark.parametrize("agg", AGGS)
def test_every_aggregate_equals_the_reference_before_and_after_hours_are_summed_up(
    device: factories.DeviceRow, agg: str
) -> None:
    put(device, wave)
    span = (BASE + 1_234_567, BASE + 20 * HOUR + 7)
    for interval, step in (("1h", HOUR), ("6h", 6 * HOUR), ("10m", HOUR // 6)):
        wanted = expected(wave, agg, *span, step)
        assert_same(one(device, *span, agg=agg, interval=interval), wanted)
    settle()
    for interval, step in (("1h", HOUR), ("6h", 6 * HOUR), ("10m", HOUR // 6)):
        assert_same(one(device, *span, agg=agg, interval=interval), expected(wave, agg, *span, step))


def test_whole_hours_come_from_the_sums_and_not_from_raw_readings(device: factories.DeviceRow) -> None:
    put(device, wave)
    settle()
    before = one(device, BASE, BASE + 10 * HOUR, agg="avg", interval="1h")
    factories.rows(
        "DELETE FROM iiot.telemetry USING iiot.signal s WHERE s.id = telemetry.signal_id AND s.device_id = %s",
        device.device_id,
    )
    assert one(device, BASE, BASE + 10 * HOUR, agg="avg", interval="1h") == before
    assert one(device, BASE, BASE + 10 * HOUR, agg="avg", interval="10m") == []


steps = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.integers(0, 7 * 60), st.floats(-1e6, 1e6, allow_nan=False, width=32)), min_size=1, max_size=30
        ),
        st.sampled_from(["nothing", "tail", "settle"]),
    ),
    min_size=1,
    max_size=5,
)


@given(steps=steps, agg=st.sampled_from(AGGS), cut=st.tuples(st.integers(0, 90), st.integers(300, 430)))
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_sums_and_raw_agree_after_any_order_of_late_readings_duplicates_and_tailer_steps(
    tenant: factories.TenantRow, steps: Any, agg: str, cut: tuple[int, int]
) -> None:
    device = factories.make_device(tenant)
    known: dict[int, float] = {}
    start, stop = BASE + cut[0] * 60_000, BASE + cut[1] * 60_000
    for batch, then in steps:
        put(device, [(BASE + minute * 60_000, value) for minute, value in batch])
        for minute, value in batch:
            known.setdefault(BASE + minute * 60_000, value)
        if then == "settle":
            settle()
        elif then == "tail":
            rollup.tailer().step()
        series = sorted(known.items())
        assert_same(one(device, start, stop, agg=agg, interval="1h"), expected(series, agg, start, stop, HOUR))
        whole = one(device, start, stop, agg=agg)
        assert_same(whole, [(start, value)] if (value := reference(series, agg, start, stop)) is not None else [])


def test_an_hour_that_changes_while_it_is_summed_up_stays_marked(device: factories.DeviceRow) -> None:
    put(device, [(BASE, 1.0)])
    tailer = rollup.tailer()
    while tailer.step().outcome == "stepped":
        pass
    with tenancy.work(tenancy.system("stream")) as db:
        waiting = [item for item in rollups.pending(db, datetime.now(UTC), 1000) if item.tenant_id == device.tenant_id]
    put(device, [(BASE + 1, 3.0)])
    while tailer.step().outcome == "stepped":
        pass
    with tenancy.work(tenancy.system("stream", device.tenant_id)) as db:
        rollups.sum_up(db, waiting)
    signal_rows = "SELECT n FROM iiot.rollup_1h JOIN iiot.signal s ON s.id = signal_id WHERE s.device_id = %s"
    assert factories.rows(signal_rows, device.device_id) == [(0,)]
    settle()
    assert factories.rows(signal_rows, device.device_id) == [(2,)]


def test_a_late_reading_is_in_the_answer_before_any_tailer_has_seen_it(device: factories.DeviceRow) -> None:
    put(device, wave)
    settle()
    late = BASE + 5 * HOUR + 1
    put(device, [(late, 1e6)])
    assert max(value for _, value in one(device, BASE, BASE + 9 * HOUR, agg="max", interval="1h")) == 1e6


def test_a_sum_beyond_the_largest_double_is_null_and_stops_nobody(device: factories.DeviceRow) -> None:
    put(device, [(BASE + i, 1.7e308) for i in range(4)])
    for _ in range(2):
        found = {
            agg: one(device, BASE, BASE + 4 * HOUR, agg=agg, interval="1h")[0][1]
            for agg in ("sum", "avg", "stddev", "max")
        }
        assert found == {"sum": None, "avg": None, "stddev": None, "max": 1.7e308}
        settle()


@pytest.mark.parametrize(
    ("zone", "start", "stop", "lengths"),
    [
        ("Europe/Berlin", "2026-03-28T00:00:00+01:00", "2026-03-31T00:00:00+02:00", [24, 23, 24]),
        ("Europe/Berlin", "2026-10-24T00:00:00+02:00", "2026-10-27T00:00:00+01:00", [24, 25, 24]),
        ("Asia/Kolkata", "2026-06-01T00:00:00+05:30", "2026-06-03T00:00:00+05:30", [24, 24]),
        ("America/Sao_Paulo", "2018-11-03T00:00:00-03:00", "2018-11-06T00:00:00-02:00", [24, 23, 24]),
    ],
)
def test_days_of_a_zone_hold_the_readings_of_their_local_day(
    device: factories.DeviceRow, zone: str, start: str, stop: str, lengths: list[int]
) -> None:
    begin, end = (int(datetime.fromisoformat(text).timestamp() * 1000) for text in (start, stop))
    factories.rows("SELECT iiot.ensure_partitions(%s::date - 1, %s::date + 1)", start[:10], stop[:10])
    put(device, [(ts, 1.0) for ts in range(begin, end, HOUR // 4)])
    for _ in range(2):
        found = one(device, begin, end, agg="count", interval="1d", zone=ZoneInfo(zone))
        assert [value / 4 for _, value in found] == lengths
        assert found[0][0] == begin
        settle()


def test_a_value_from_before_the_range_counts_from_its_beginning(device: factories.DeviceRow) -> None:
    put(device, [(BASE, 10.0), (BASE + 3 * HOUR, 20.0)])
    assert one(device, BASE + 2 * HOUR, BASE + 4 * HOUR, agg="twavg") == [(BASE + 2 * HOUR, 15.0)]
    assert one(device, BASE + 2 * HOUR, BASE + 4 * HOUR, agg="twavg", interval="1h") == [(BASE + 3 * HOUR, 20.0)]


def test_raw_readings_come_in_the_order_and_number_asked_for(device: factories.DeviceRow) -> None:
    put(device, wave)
    span = (BASE, BASE + DAY)
    assert one(device, *span) == wave
    assert one(device, *span, limit=3) == wave[:3]
    assert one(device, *span, limit=3, descending=True) == wave[::-1][:3]
    assert one(device, wave[5][0], wave[7][0]) == wave[5:7]
    assert one(device, *span, agg="count", interval="1h", limit=1, descending=True)[0][0] == wave[-1][0] // HOUR * HOUR


def test_texts_json_and_booleans_keep_their_type(device: factories.DeviceRow) -> None:
    put(device, [(BASE, "idle"), (BASE + 1, "busy"), (BASE + HOUR, "idle")], "state")
    put(device, [(BASE, {"a": [1]}), (BASE + HOUR, [True])], "config")
    put(device, [(BASE, True), (BASE + HOUR, False)], "running")
    span = (BASE, BASE + DAY)
    assert ask(device, *span, keys=None) == {
        "config": [(BASE, {"a": [1]}), (BASE + HOUR, [True])],
        "running": [(BASE, True), (BASE + HOUR, False)],
        "state": [(BASE, "idle"), (BASE + 1, "busy"), (BASE + HOUR, "idle")],
    }
    assert ask(device, *span, keys=["state"], descending=True, limit=1) == {"state": [(BASE + HOUR, "idle")]}
    last = ask(device, *span, keys=None, agg="last", interval="1h")
    assert last["state"] == [(BASE, "busy"), (BASE + HOUR, "idle")]
    assert last["config"] == [(BASE, {"a": [1]}), (BASE + HOUR, [True])]
    assert last["running"] == [(BASE, True), (BASE + HOUR, False)]
    assert ask(device, *span, keys=["state"], agg="count")["state"] == [(BASE, 3)]
    assert ask(device, *span, keys=None, agg="avg") == {"running": [(BASE, 0.5)]}
    assert ask(device, BASE + 2 * HOUR, BASE + DAY, keys=["state"], agg="last") == {"state": []}


def test_numbers_are_refused_where_only_texts_are(device: factories.DeviceRow) -> None:
    put(device, [(BASE, "idle")], "state")
    with pytest.raises(Invalid, match="'state' is a string signal; use count, first or last"):
        ask(device, BASE, BASE + DAY, keys=["state"], agg="avg")


def test_a_key_that_was_never_sent_gives_an_empty_list_and_an_unknown_device_nothing(
    device: factories.DeviceRow,
) -> None:
    assert ask(device, BASE, BASE + DAY, keys=["missing"]) == {"missing": []}
    other = factories.DeviceRow(device.tenant_id, 0, "a" * 26, "other")
    with pytest.raises(NotFound):
        ask(other, BASE, BASE + DAY)


def test_another_tenants_device_does_not_exist(device: factories.DeviceRow) -> None:
    put(device, wave)
    stranger = factories.make_tenant()
    with tenancy.work(tenancy.of(stranger)) as db:
        with pytest.raises(NotFound):
            readings.answer(db, device.uid, Question(None, BASE, BASE + DAY, NOW, UTC))
        signal = factories.rows("SELECT id FROM iiot.signal WHERE device_id = %s", device.device_id)[0][0]
        assert len(Reader(db).part(signal, BASE, BASE + DAY)[0]) == 0
        assert len(rollups.read(db, signal, BASE, BASE + DAY, set()).sums.n) == 0


def test_a_chart_has_at_most_the_points_asked_for_and_keeps_the_spike(device: factories.DeviceRow) -> None:
    series = [(BASE + i * 1000, math.sin(i / 500)) for i in range(20_000)]
    series[12_345] = (series[12_345][0], 99.0)
    put(device, series)
    found = one(device, BASE, BASE + DAY, agg="lttb", limit=200)
    assert len(found) == 200
    assert max(value for _, value in found) == 99.0
    assert found[0] == series[0]
    assert found[-1] == series[-1]
    assert one(device, BASE, BASE + DAY, agg="lttb", limit=200, descending=True) == found[::-1]
    assert len(one(device, BASE, BASE + DAY, agg="lttb")) == 2000


@pytest.mark.parametrize(
    ("question", "parameter"),
    [
        ({"agg": "median"}, "agg"),
        ({"interval": "1h"}, "interval"),
        ({"agg": "lttb", "interval": "1h"}, "interval"),
        ({"agg": "lttb", "limit": 2001}, "limit"),
        ({"limit": 10_001}, "limit"),
        ({"limit": 0}, "limit"),
        ({"agg": "avg", "interval": "1s"}, "interval"),
    ],
)
def test_impossible_questions_are_refused_with_the_parameter(
    device: factories.DeviceRow, question: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(Invalid) as refused:
        ask(device, BASE, BASE + DAY, **question)
    assert refused.value.errors is not None
    assert refused.value.errors[0]["loc"] == ["query", parameter]


def test_a_range_that_ends_before_it_begins_is_refused(device: factories.DeviceRow) -> None:
    with pytest.raises(Invalid, match="to:"):
        ask(device, BASE, BASE)


def test_what_takes_too_long_is_refused_with_what_to_do(device: factories.DeviceRow) -> None:
    put(device, [(BASE + i, float(i)) for i in range(60_000)])
    with tenancy.work(tenancy.of_device(device)) as db:
        db.execute(tenancy.sql("SET LOCAL statement_timeout = '5ms'"))
        with pytest.raises(Problem, match="shorter range") as refused:
            readings.answer(db, device.uid, Question(None, BASE, BASE + DAY, NOW, UTC, agg="p95"))
        db.rollback()
        assert refused.value.status == 422
        signal = factories.rows("SELECT id FROM iiot.signal WHERE device_id = %s", device.device_id)[0][0]
        with pytest.raises(Problem, match="shorter range"):
            list(Reader(db, time_limit=0).parts(signal, BASE, BASE + DAY))


def test_one_day_reads_one_partition_by_the_primary_key(device: factories.DeviceRow) -> None:
    put(device, wave)
    signal = factories.rows("SELECT id FROM iiot.signal WHERE device_id = %s", device.device_id)[0][0]
    with tenancy.work(tenancy.of_device(device)) as db:
        db.execute(tenancy.sql("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(Reader(db).explain(signal, BASE, BASE + DAY))
    day = datetime.fromtimestamp(BASE / 1000, UTC).strftime("telemetry_p%Y%m%d")
    assert plan.count(" on telemetry_p") == 1
    assert f"Index Scan using {day}_pkey on {day}" in plan
    condition = next(line for line in plan.splitlines() if "Index Cond" in line)
    assert "tenant_id =" in condition
    assert "signal_id =" in condition
    assert "ts >=" in condition
    assert "Sort" not in plan


def test_a_log_that_was_lost_makes_every_hour_be_summed_up_again(device: factories.DeviceRow) -> None:
    put(device, wave)
    settle()
    factories.rows(
        "INSERT INTO iiot.telemetry (tenant_id, signal_id, ts, num) SELECT tenant_id, id, to_timestamp(%s), 777 FROM iiot.signal WHERE device_id = %s",
        BASE / 1000 + 1,
        device.device_id,
    )
    factories.rows(
        "INSERT INTO iiot.stream_cursor (name, xid, id) SELECT 'log-floor', xid, id FROM iiot.telemetry_batch ORDER BY xid DESC, id DESC LIMIT 1 "
        "ON CONFLICT (name) DO UPDATE SET xid = excluded.xid, id = excluded.id"
    )
    factories.rows("UPDATE iiot.stream_cursor SET xid = '3', id = 0 WHERE name = 'rollup'")
    put(device, [(BASE + DAY, 1.0)])
    settle()
    assert max(value for _, value in one(device, BASE, BASE + 9 * HOUR, agg="max", interval="1h")) == 777


def test_a_mark_without_readings_is_removed(device: factories.DeviceRow) -> None:
    put(device, [(BASE, 1.0)])
    signal = factories.rows("SELECT id FROM iiot.signal WHERE device_id = %s", device.device_id)[0][0]
    with tenancy.work(tenancy.system("stream")) as db:
        rollups.mark(db, [device.tenant_id], [signal], [BASE + 5 * HOUR])
    settle()
    rows = factories.rows("SELECT n FROM iiot.rollup_1h WHERE signal_id = %s", signal)
    assert rows == [(1,)]


def test_an_answer_of_too_many_points_says_how_many_keys_fit(device: factories.DeviceRow) -> None:
    factories.store(device.uid, (BASE, {f"k{number}": 1.0 for number in range(21)}))
    with pytest.raises(Invalid, match="Name at most 20 keys, or lower limit"):
        ask(device, BASE, BASE + DAY, keys=None, limit=10_000)


def test_a_range_without_readings_is_empty_for_every_aggregate(device: factories.DeviceRow) -> None:
    put(device, [(BASE, 1.0)])
    for agg in [*AGGS, "lttb"]:
        assert one(device, BASE + DAY, BASE + 2 * DAY, agg=agg) == []
