"""Charts of dense signals come from the kept extremes of their hours, and show what a chart of all readings shows."""

import math
import random
from typing import Any

import numpy as np
import pytest

from iiot import tenancy
from iiot.clock import now_ms
from iiot.services import readings, rollups
from iiot.services.lttb import Downsampler
from iiot.services.readings import Point, Question
from iiot.services.timespan import DAY, HOUR
from iiot.stream import rollup
from tests import factories
from tests.integration.test_readings import UTC

NOW = now_ms()
BASE = NOW // DAY * DAY - 10 * DAY
HOURS = 6
LIMIT = 200


@pytest.fixture(scope="module")
def device(module_settings: object) -> factories.DeviceRow:
    """A device with six hours at 1 Hz: a wave with noise, and single spikes that a chart must show."""
    made = factories.make_device(factories.make_tenant())
    random.seed(7)
    values = [math.sin(second / 900) + random.random() / 10 for second in range(HOURS * 3600)]
    values[5_000], values[12_345], values[20_000] = 9.0, -9.0, 8.0
    items = [(BASE + second * 1000, {"t": value}) for second, value in enumerate(values)]
    for first in range(0, len(items), 3600):
        factories.store(made.uid, *items[first : first + 3600])
    settle()
    return made


def settle() -> None:
    tailer = rollup.tailer()
    while tailer.step().outcome == "stepped":
        pass
    rollup.refresh()


def chart(device: factories.DeviceRow, limit: int = LIMIT, stop: int = BASE + HOURS * HOUR) -> list[Point]:
    question = Question(keys=["t"], start=BASE, stop=stop, now=NOW, zone=UTC, agg="lttb", limit=limit)
    with tenancy.work(tenancy.of_device(device)) as db:
        return readings.answer(db, device.uid, question)["t"]


def every_reading(device: factories.DeviceRow) -> list[Point]:
    signal = factories.signal_id(device, "t")
    rows = factories.rows(
        "SELECT (extract(epoch FROM ts) * 1000)::bigint, num FROM iiot.telemetry WHERE signal_id = %s ORDER BY ts",
        signal,
    )
    return [(int(ts), num) for ts, num in rows]


def test_the_extremes_and_the_ends_are_those_of_all_readings(device: factories.DeviceRow) -> None:
    shown, everything = chart(device), every_reading(device)
    assert len(shown) == LIMIT
    assert (shown[0], shown[-1]) == (everything[0], everything[-1])
    assert set(shown) <= set(everything), "no point is made up"
    spikes = {(BASE + 5_000_000, 9.0), (BASE + 12_345_000, -9.0), (BASE + 20_000_000, 8.0)}
    assert spikes <= set(shown)
    # What is drawn covers what was measured as well as a chart chosen from all readings at once.
    sampler = Downsampler(LIMIT)
    ts, values = (np.array(column) for column in zip(*everything, strict=True))
    sampler.feed(ts, values)
    reference = uncovered(ts, values, *sampler.points())
    assert uncovered(ts, values, *(np.array(column) for column in zip(*shown, strict=True))) <= reference * 1.1


def uncovered(ts: Any, values: Any, shown_ts: Any, shown: Any) -> float:
    """The median distance between the least and greatest value of each five minutes and those of the drawn line."""
    missing = []
    for begin in range(BASE, BASE + HOURS * HOUR, 300_000):
        inside = (ts >= begin) & (ts < begin + 300_000)
        line = np.interp(ts[inside], shown_ts, shown)
        missing += [abs(values[inside].max() - line.max()), abs(values[inside].min() - line.min())]
    return float(np.median(missing))


def test_it_is_read_from_the_kept_extremes(device: factories.DeviceRow) -> None:
    before = chart(device)
    signal = factories.signal_id(device, "t")
    kept = factories.rows("SELECT n, length(extremes) FROM iiot.rollup_1h WHERE signal_id = %s", signal)
    assert [n for n, _ in kept] == [3600] * HOURS
    assert all(length <= (2 * HOUR // rollups.EXTREMES_BIN + 2) * 16 for _, length in kept)
    connection = factories.connect(autocommit=False)
    try:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE iiot.aside AS SELECT * FROM iiot.telemetry WHERE signal_id = %s", (signal,))
            cursor.execute("DELETE FROM iiot.telemetry WHERE signal_id = %s", (signal,))
        connection.commit()
        assert chart(device) == before, "without a single raw reading the chart is the same"
    finally:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO iiot.telemetry SELECT * FROM iiot.aside")
            cursor.execute("DROP TABLE iiot.aside")
        connection.commit()
        connection.close()


def test_a_finer_chart_is_chosen_from_all_readings(device: factories.DeviceRow) -> None:
    fine = chart(device, limit=2000)
    assert len(fine) == 2000
    assert set(fine) <= set(every_reading(device))


def test_a_late_reading_is_in_the_chart_at_once_and_after_its_hour_was_summed_up_again(
    device: factories.DeviceRow,
) -> None:
    late = (BASE + 3 * HOUR + 500, -20.0)
    factories.store(device.uid, (late[0], {"t": late[1]}))
    assert late in chart(device), "before any tailer has read the log"
    settle()
    assert late in chart(device)


def test_sparse_hours_keep_no_extremes(module_settings: object) -> None:
    sparse = factories.make_device(factories.make_tenant())
    factories.store(sparse.uid, *((BASE + n * 10_000, {"t": float(n)}) for n in range(HOURS * 360)))
    settle()
    rows = factories.rows(
        "SELECT n, extremes FROM iiot.rollup_1h WHERE signal_id = %s", factories.signal_id(sparse, "t")
    )
    assert {(n, extremes) for n, extremes in rows} == {(360, None)}
    assert len(chart(sparse)) == LIMIT
