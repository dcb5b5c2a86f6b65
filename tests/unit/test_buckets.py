"""Buckets follow the local calendar, also on the days on which clocks change, and instants are read as people write them."""

from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iiot.errors import Invalid
from iiot.services.buckets import edges
from iiot.services.timespan import DAY, HOUR, Interval, parse_instant, parse_interval, parse_zone

ZONES = [
    "UTC",
    "Europe/Berlin",
    "Asia/Kolkata",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "America/New_York",
]
NOW = 1_766_000_000_000


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def local(found: list[int], zone: str) -> list[str]:
    return [datetime.fromtimestamp(edge / 1000, ZoneInfo(zone)).strftime("%m-%d %H:%M") for edge in found]


def cut(interval: str, start: str, stop: str, zone: str) -> list[int]:
    return edges(parse_interval(interval), ms(start), ms(stop), ZoneInfo(zone)).tolist()


def lengths(found: list[int]) -> list[float]:
    return [(b - a) / HOUR for a, b in pairwise(found)]


def test_days_in_berlin_are_23_and_25_hours_long_when_clocks_change() -> None:
    march = cut("1d", "2026-03-28T00:00:00+01:00", "2026-03-31T00:00:00+02:00", "Europe/Berlin")
    assert local(march, "Europe/Berlin") == ["03-28 00:00", "03-29 00:00", "03-30 00:00", "03-31 00:00"]
    assert lengths(march) == [24, 23, 24]
    october = cut("1d", "2026-10-24T00:00:00+02:00", "2026-10-27T00:00:00+01:00", "Europe/Berlin")
    assert lengths(october) == [24, 25, 24]


def test_hours_in_berlin_skip_one_in_march_and_repeat_one_in_october() -> None:
    march = cut("1h", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00", "Europe/Berlin")
    assert lengths(march) == [1] * 23
    assert local(march, "Europe/Berlin")[1:4] == ["03-29 01:00", "03-29 03:00", "03-29 04:00"]
    october = cut("1h", "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00", "Europe/Berlin")
    assert lengths(october) == [1] * 25
    assert local(october, "Europe/Berlin")[1:5] == ["10-25 01:00", "10-25 02:00", "10-25 02:00", "10-25 03:00"]


def test_six_hours_in_berlin_keep_to_the_clock_on_the_wall() -> None:
    october = cut("6h", "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00", "Europe/Berlin")
    assert local(october, "Europe/Berlin") == [
        "10-25 00:00",
        "10-25 06:00",
        "10-25 12:00",
        "10-25 18:00",
        "10-26 00:00",
    ]
    assert lengths(october) == [7, 6, 6, 6]


def test_hours_and_days_in_kolkata_begin_at_half_past_utc() -> None:
    for interval in ("1h", "1d"):
        found = cut(interval, "2026-06-01T00:00:00+05:30", "2026-06-03T00:00:00+05:30", "Asia/Kolkata")
        assert all(edge % HOUR == HOUR // 2 for edge in found)
    assert local(found, "Asia/Kolkata") == ["06-01 00:00", "06-02 00:00", "06-03 00:00"]


def test_a_day_in_sao_paulo_whose_midnight_does_not_exist_begins_at_one() -> None:
    found = cut("1d", "2018-11-03T00:00:00-03:00", "2018-11-06T00:00:00-02:00", "America/Sao_Paulo")
    assert local(found, "America/Sao_Paulo") == ["11-03 00:00", "11-04 01:00", "11-05 00:00", "11-06 00:00"]
    assert lengths(found) == [24, 23, 24]
    autumn = cut("1d", "2019-02-16T00:00:00-02:00", "2019-02-18T00:00:00-03:00", "America/Sao_Paulo")
    assert lengths(autumn) == [25, 24]


def test_half_an_hour_of_daylight_saving_in_lord_howe_gives_half_an_hour() -> None:
    spring = cut("1h", "2026-10-04T00:00:00+10:30", "2026-10-05T00:00:00+11:00", "Australia/Lord_Howe")
    assert lengths(spring)[1:4] == [1, 0.5, 1]
    assert sum(lengths(spring)) == 23.5


def test_the_day_that_samoa_left_out_has_no_bucket() -> None:
    found = cut("1d", "2011-12-29T00:00:00-10:00", "2012-01-01T00:00:00+14:00", "Pacific/Apia")
    assert local(found, "Pacific/Apia") == ["12-29 00:00", "12-31 00:00", "01-01 00:00"]


def test_weeks_begin_on_monday_and_months_on_the_first() -> None:
    weeks = cut("1w", "2026-11-22T10:00:00Z", "2026-12-02T00:00:00Z", "Europe/Berlin")
    assert local(weeks, "Europe/Berlin") == ["11-16 00:00", "11-23 00:00", "11-30 00:00", "12-07 00:00"]
    months = cut("1mo", "2026-01-31T23:30:00Z", "2026-03-15T00:00:00Z", "Europe/Berlin")
    assert local(months, "Europe/Berlin") == ["02-01 00:00", "03-01 00:00", "04-01 00:00"]
    quarters = cut("3mo", "2026-05-05T00:00:00Z", "2026-07-01T00:00:00Z", "UTC")
    assert local(quarters, "UTC") == ["04-01 00:00", "07-01 00:00"]


def test_seconds_and_odd_lengths_count_from_the_epoch() -> None:
    assert edges(Interval(90, "s"), 100_000, 300_000, ZoneInfo("Asia/Kolkata")).tolist() == [
        90_000,
        180_000,
        270_000,
        360_000,
    ]
    assert edges(Interval(7, "m"), 0, 420_000, ZoneInfo("Asia/Kolkata")).tolist() == [0, 420_000]


@given(
    start=st.integers(0, 4_000_000_000_000),
    span=st.integers(1, 100 * DAY),
    interval=st.sampled_from(["3600", "15m", "1h", "6h", "1d", "5d", "1w", "1mo", "7h", "100000"]),
    zone=st.sampled_from(ZONES),
)
def test_edges_ascend_and_cover_the_range_tightly(start: int, span: int, interval: str, zone: str) -> None:
    found = edges(parse_interval(interval), start, start + span, ZoneInfo(zone)).tolist()
    assert all(a < b for a, b in pairwise(found))
    assert found[0] <= start < found[1]
    assert found[-2] < start + span <= found[-1]


@given(start=st.integers(157_766_400_000, 2_051_222_400_000), zone=st.sampled_from(ZONES))
def test_every_instant_falls_in_the_bucket_of_its_local_day(start: int, zone: str) -> None:
    found = edges(Interval(1, "d"), start, start + 1, ZoneInfo(zone)).tolist()
    day = datetime.fromtimestamp(start / 1000, ZoneInfo(zone)).date()
    assert datetime.fromtimestamp(found[0] / 1000, ZoneInfo(zone)).date() == day
    assert datetime.fromtimestamp((found[1] - 1) / 1000, ZoneInfo(zone)).date() == day
    assert datetime.fromtimestamp((found[0] - 1) / 1000, ZoneInfo(zone)).date() < day


def test_too_many_buckets_are_refused_with_what_to_do() -> None:
    with pytest.raises(Invalid, match="longer interval or a shorter range"):
        edges(Interval(1, "s"), 0, 365 * DAY, ZoneInfo("UTC"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1766000000123", 1766000000123),
        ("2026-11-22T10:00:00Z", ms("2026-11-22T10:00:00+00:00")),
        ("2026-11-22T10:00:00.250+01:00", ms("2026-11-22T09:00:00+00:00") + 250),
        ("2026-11-22T10:00:00 01:00", ms("2026-11-22T09:00:00+00:00")),
        ("now", NOW),
        ("now-1h", NOW - HOUR),
        ("now-7d", NOW - 7 * DAY),
        ("now+30s", NOW + 30_000),
    ],
)
def test_instants_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert parse_instant("from", text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-11-22", "2026-11-22T10:00:00", "-5", "now-1y", "9" * 30, "١٢٣", "2026-13-01T00:00:00Z"],
)
def test_other_instants_are_refused_with_the_parameter_named(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_instant("from", text, NOW)
    assert refused.value.errors is not None
    assert refused.value.errors[0]["loc"] == ["query", "from"]


def test_intervals_and_zones_are_read() -> None:
    assert parse_interval("90") == Interval(90, "s")
    assert parse_interval("15m").nominal_ms == timedelta(minutes=15) / timedelta(milliseconds=1)
    assert parse_interval("1mo") == Interval(1, "mo")
    for wrong in ("", "0", "1y", "-1h", "1.5h", "h", "0d", "999999999mo"):
        with pytest.raises(Invalid):
            parse_interval(wrong)
    assert parse_zone("Europe/Berlin").key == "Europe/Berlin"
    for wrong in ("", "Mars/Olympus", "../../etc/passwd", "/etc/localtime", "Europe", "a\0b"):
        with pytest.raises(Invalid):
            parse_zone(wrong)
