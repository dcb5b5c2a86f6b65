"""GET signals, latest, telemetry and rejected of a device, as programs call them."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from iiot import clock
from iiot.payloads import PayloadError, Value
from iiot.services.ingest import Incoming, ingest
from iiot.services.timespan import DAY, HOUR
from iiot.stream.latest import LatestEffect
from iiot.stream.log import Tailer
from tests import factories
from tests.api.conftest import Make, Person, check_problem

NOW = clock.now_ms()
BASE = NOW // DAY * DAY - 3 * DAY


@pytest.fixture
def device(admin: Person) -> factories.DeviceRow:
    return factories.make_device(admin.tenant)


def fill(device: factories.DeviceRow) -> None:
    readings: list[tuple[int, dict[str, Value]]] = [
        (BASE + i * HOUR // 4, {"temperature": 20.0 + i % 8}) for i in range(96)
    ]
    factories.store(device.uid, *readings)
    factories.store(device.uid, (BASE, {"state": "idle", "running": True, "config": {"a": 1}}))


def read(person: Person, device: factories.DeviceRow, **query: Any) -> Any:
    query = {name.rstrip("_"): value for name, value in query.items()}
    answer = person.get(f"/devices/{device.uid}/telemetry", query_string=query)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return answer.get_json()


def settle() -> None:
    """The newest readings are noted."""
    tailer = Tailer("latest", LatestEffect())
    while tailer.step().outcome == "stepped":
        pass


def rfc(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


def test_raw_readings_are_pairs_of_milliseconds_and_value(admin: Person, device: factories.DeviceRow) -> None:
    fill(device)
    span = {"from_": BASE, "to": BASE + HOUR}
    assert read(admin, device, keys="temperature", **span) == {
        "temperature": [[BASE + i * HOUR // 4, 20.0 + i] for i in range(4)]
    }
    assert read(admin, device, keys="temperature", order="desc", limit=1, **span) == {
        "temperature": [[BASE + 3 * HOUR // 4, 23.0]]
    }
    every = read(admin, device, **span)
    assert every["state"] == [[BASE, "idle"]]
    assert every["running"] == [[BASE, True]]
    assert every["config"] == [[BASE, {"a": 1}]]


def test_raw_readings_come_with_their_quality_where_it_is_asked_for(admin: Person, device: factories.DeviceRow) -> None:
    factories.store(device.uid, (BASE, {"a": 1.0, "state": "idle"}))
    marked = {"ts": BASE + 1, "values": {"a": 2.0, "state": "x"}, "quality": {"a": "bad"}}
    with_late = [marked, {"ts": BASE + 2, "values": {"a": 3.0, "state": "y"}, "quality": "uncertain"}]
    factories.send(device.uid, with_late)
    span = {"from_": BASE, "to": BASE + HOUR, "quality": "true"}
    assert read(admin, device, **span) == {
        "a": [[BASE, 1.0, "good"], [BASE + 1, 2.0, "bad"], [BASE + 2, 3.0, "uncertain"]],
        "state": [[BASE, "idle", "good"], [BASE + 1, "x", "good"], [BASE + 2, "y", "uncertain"]],
    }
    newest = read(admin, device, keys="a", order="desc", limit=2, **span)
    assert newest == {"a": [[BASE + 2, 3.0, "uncertain"], [BASE + 1, 2.0, "bad"]]}
    assert read(admin, device, keys="never", **span) == {"never": []}
    settle()
    found = admin.get(f"/devices/{device.uid}/latest").get_json()
    assert (found["a"]["quality"], found["state"]["quality"]) == ("uncertain", "uncertain")
    signals = admin.get(f"/devices/{device.uid}/signals").get_json()["items"]
    assert {each["last_quality"] for each in signals} == {"uncertain"}
    query = {"quality": "true", "agg": "avg"}
    refused = admin.get(f"/devices/{device.uid}/telemetry", query_string=query)
    assert "leave out agg" in check_problem(refused, 422, "invalid")["detail"]


def test_times_are_read_in_every_form(admin: Person, device: factories.DeviceRow) -> None:
    fill(device)
    want = read(admin, device, keys="temperature", from_=BASE, to=BASE + HOUR)
    assert read(admin, device, keys="temperature", from_=rfc(BASE), to=rfc(BASE + HOUR)) == want
    shifted = datetime.fromtimestamp(BASE / 1000, UTC).astimezone().isoformat()
    assert read(admin, device, keys="temperature", from_=shifted, to=str(BASE + HOUR)) == want
    assert read(admin, device, keys="temperature", from_="now-7d", to="now", limit=4) == want
    assert read(admin, device) == {}


def test_readings_are_summed_up_per_interval(admin: Person, device: factories.DeviceRow) -> None:
    fill(device)
    span = {"keys": "temperature", "from_": BASE, "to": BASE + DAY}
    hourly = read(admin, device, agg="avg", interval="1h", **span)["temperature"]
    assert hourly[:2] == [[BASE, 21.5], [BASE + HOUR, 25.5]]
    assert len(hourly) == 24
    assert read(admin, device, agg="avg", interval="3600", **span)["temperature"] == hourly
    assert read(admin, device, agg="max", **span) == {"temperature": [[BASE, 27.0]]}
    assert read(admin, device, agg="count", interval="1d", tz="UTC", **span) == {"temperature": [[BASE, 96]]}
    kolkata = read(admin, device, agg="count", interval="1d", tz="Asia/Kolkata", **span)["temperature"]
    assert [value for _, value in kolkata] == [74, 22]
    assert kolkata[1][0] - kolkata[0][0] == DAY
    assert len(read(admin, device, agg="lttb", limit=10, **span)["temperature"]) == 10


def test_days_follow_the_time_zone_of_the_tenant_unless_told(admin: Person, device: factories.DeviceRow) -> None:
    fill(device)
    factories.rows("UPDATE iiot.tenant SET timezone = 'Asia/Kolkata' WHERE id = %s", admin.tenant.tenant_id)
    span = {"keys": "temperature", "from_": BASE, "to": BASE + DAY, "agg": "count", "interval": "1d"}
    assert [value for _, value in read(admin, device, **span)["temperature"]] == [74, 22]
    assert [value for _, value in read(admin, device, tz="UTC", **span)["temperature"]] == [96]


def test_a_key_that_was_never_sent_is_an_empty_list(admin: Person, device: factories.DeviceRow) -> None:
    assert read(admin, device, keys="missing,temperature") == {"missing": [], "temperature": []}


@pytest.mark.parametrize(
    ("query", "parameter", "text"),
    [
        ({"from": "yesterday"}, "from", "RFC 3339"),
        ({"from": "2026-11-22T10:00:00"}, "from", "append Z"),
        ({"from": "now", "to": "now-1h"}, "to", "after the beginning"),
        ({"agg": "median"}, "agg", "avg"),
        ({"agg": "avg", "interval": "1 fortnight"}, "interval", "15m"),
        ({"agg": "avg", "interval": "1s", "from": "now-7d"}, "interval", "longer interval"),
        ({"interval": "1h"}, "interval", "agg"),
        ({"agg": "avg", "interval": "1d", "tz": "Mars/Base"}, "tz", "IANA"),
        ({"limit": "10001"}, "limit", "10000"),
        ({"agg": "lttb", "limit": "2001"}, "limit", "2000"),
        ({"order": "up"}, "order", "asc"),
        ({"key": "temperature"}, "key", "xtra"),
    ],
)
def test_a_wrong_parameter_is_named_and_explained(
    admin: Person, device: factories.DeviceRow, query: dict[str, str], parameter: str, text: str
) -> None:
    body = check_problem(admin.get(f"/devices/{device.uid}/telemetry", query_string=query), 422, "invalid")
    assert body["errors"][0]["loc"] == ["query", parameter]
    assert text in body["errors"][0]["msg"]


def test_numbers_cannot_be_made_of_texts(admin: Person, device: factories.DeviceRow) -> None:
    fill(device)
    answer = admin.get(f"/devices/{device.uid}/telemetry", query_string={"keys": "state", "agg": "avg", "from": BASE})
    assert "'state' is a string signal" in check_problem(answer, 422, "invalid")["detail"]


def test_signals_come_with_their_newest_reading_page_by_page(admin: Person, device: factories.DeviceRow) -> None:
    fill(device)
    settle()
    answer = admin.get(f"/devices/{device.uid}/signals", query_string={"limit": 3}).get_json()
    assert [item["key"] for item in answer["items"]] == ["config", "running", "state"]
    assert answer["total"] == 4
    assert answer["items"][0]["last_value"] == {"a": 1}
    assert answer["items"][1]["last_value"] is True
    rest = admin.get(
        f"/devices/{device.uid}/signals", query_string={"limit": 3, "cursor": answer["next_cursor"]}
    ).get_json()
    assert rest["next_cursor"] is None
    (last,) = rest["items"]
    newest = BASE + 95 * HOUR // 4
    assert datetime.fromisoformat(last.pop("last_ts")) == datetime.fromtimestamp(newest / 1000, UTC)
    assert last == {
        "key": "temperature",
        "type": "number",
        "unit": None,
        "min": None,
        "max": None,
        "last_value": 27.0,
        "last_quality": "good",
        "writable": False,
    }
    latest = admin.get(f"/devices/{device.uid}/latest").get_json()
    assert latest == {
        "config": {"ts": BASE, "value": {"a": 1}},
        "running": {"ts": BASE, "value": True},
        "state": {"ts": BASE, "value": "idle"},
        "temperature": {"ts": newest, "value": 27.0},
    }


def test_a_device_without_readings_has_no_signals(admin: Person, device: factories.DeviceRow) -> None:
    assert admin.get(f"/devices/{device.uid}/signals").get_json() == {"items": [], "next_cursor": None, "total": 0}
    assert admin.get(f"/devices/{device.uid}/latest").get_json() == {}


def test_refused_messages_are_listed_newest_first_with_payload_and_reason(
    admin: Person, device: factories.DeviceRow
) -> None:
    payloads = [b"{not json", b"\xff\xfe", b"<script>alert(1)</script>"]
    for payload in payloads:
        ingest(
            [Incoming(device.uid, None, PayloadError("not-json", "it is not JSON", None), "mqtt", "iiot/up", payload)]
        )
    first = admin.get(f"/devices/{device.uid}/rejected", query_string={"limit": 2}).get_json()
    assert [item["payload"] for item in first["items"]] == [
        "<script>alert(1)</script>",
        base64.b64encode(b"\xff\xfe").decode(),
    ]
    assert [item["payload_encoding"] for item in first["items"]] == ["text", "base64"]
    assert first["items"][0]["code"] == "not-json"
    assert first["items"][0]["size"] == len(payloads[2])
    received = datetime.fromisoformat(first["items"][0]["received_at"])
    assert abs(received - datetime.now(UTC)) < timedelta(minutes=1)
    rest = admin.get(
        f"/devices/{device.uid}/rejected", query_string={"limit": 2, "cursor": first["next_cursor"]}
    ).get_json()
    assert [item["payload"] for item in rest["items"]] == ["{not json"]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize("what", ["signals", "latest", "telemetry", "rejected"])
def test_a_foreign_device_reads_like_one_that_does_not_exist(
    person: Make, device: factories.DeviceRow, what: str
) -> None:
    fill(device)
    stranger = person()
    foreign = check_problem(stranger.get(f"/devices/{device.uid}/{what}"), 404, "not-found")
    missing = check_problem(stranger.get(f"/devices/{'a' * 26}/{what}"), 404, "not-found")
    assert foreign["detail"] == missing["detail"]
    assert stranger.client.get(f"/api/v1/devices/{device.uid}/{what}").status_code == 401


@pytest.mark.parametrize("role", ["viewer", "operator", "engineer"])
def test_every_role_may_read(person: Make, admin: Person, device: factories.DeviceRow, role: str) -> None:
    reader = person(role, admin.tenant)
    for what in ("signals", "latest", "telemetry", "rejected"):
        assert reader.get(f"/devices/{device.uid}/{what}").status_code == 200
