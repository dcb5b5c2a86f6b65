"""Refused messages over REST: found by filters, mended and sent again through the one door, in steps of many, thrown away."""

import base64
import json
from typing import Any

import pytest

from iiot import clock, config, payloads, tenancy
from iiot.services import devices
from iiot.services.ingest import Incoming, ingest
from iiot.stream import housekeeping
from tests import factories
from tests.api.conftest import Make, Person, Thing, check_problem, make_thing
from tests.services import eventually

NOW = "2026-01-01T00:00:00Z"


@pytest.fixture
def thing(admin: Person) -> Thing:
    """A device of the admin's tenant."""
    return make_thing(admin.tenant)


def send(person: Person, thing: Thing, payload: bytes, content_type: str = "application/json") -> None:
    """Send as the device over HTTP, whatever the answer is."""
    person.client.post("/api/v1/telemetry", data=payload, content_type=content_type, headers=thing.headers)


def listed(person: Person, **query: Any) -> list[dict[str, Any]]:
    answer = person.get("/rejected", query_string=query)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    items: list[dict[str, Any]] = answer.get_json()["items"]
    return items


def stored(thing: Thing) -> dict[str, list[float]]:
    """Key → numbers, oldest first."""
    found: dict[str, list[float]] = {}
    for key, number in factories.rows(
        "SELECT s.key, t.num FROM iiot.telemetry t JOIN iiot.signal s USING (tenant_id) JOIN iiot.device d ON d.id = s.device_id "
        "WHERE s.id = t.signal_id AND d.uid = %s ORDER BY t.ts",
        thing.uid,
    ):
        found.setdefault(key, []).append(number)
    return found


def test_a_message_is_mended_and_stored_as_its_device(admin: Person, thing: Thing) -> None:
    send(admin, thing, b'{"temperature": 21.5')
    [message] = listed(admin)
    assert (message["code"], message["device_id"], message["protocol"], message["replayed_at"]) == (
        "not-json",
        thing.uid,
        "http",
        None,
    )
    answer = admin.post(f"/rejected/{message['id']}/replay", json={"payload": '{"temperature": 21.5}'})
    assert answer.status_code == 200, answer.get_data(as_text=True)
    body = answer.get_json()
    assert (body["accepted"], body["rejected"]) == (1, [])
    assert body["message"]["replayed_by"] == admin.user.email
    assert body["message"]["replay"] == {"accepted": 1, "mended": True, "rejected": []}
    assert body["message"]["payload"] == '{"temperature": 21.5', "what came is never changed"
    assert stored(thing) == {"temperature": [21.5]}
    assert listed(admin, state="open") == []
    assert len(listed(admin, state="replayed")) == 1


def test_sending_again_twice_stores_nothing_twice_and_the_time_is_that_of_the_arrival(
    admin: Person, thing: Thing
) -> None:
    send(admin, thing, b"{'a': 1}")
    [message] = listed(admin)
    for _ in range(2):
        answer = admin.post(f"/rejected/{message['id']}/replay", json={"payload": '{"a": 1}'})
        assert answer.get_json()["accepted"] == 1
    assert stored(thing) == {"a": [1.0]}
    times = factories.rows(
        "SELECT t.ts = r.received_at FROM iiot.telemetry t, iiot.rejected_message r "
        "WHERE r.uid = %s AND t.tenant_id = r.tenant_id",
        message["id"],
    )
    assert times == [(True,)]


def test_what_is_still_wrong_is_said_and_no_second_message_is_kept(admin: Person, thing: Thing) -> None:
    send(admin, thing, b"nonsense")
    [message] = listed(admin)
    problem = check_problem(
        admin.post(f"/rejected/{message['id']}/replay", json={"payload": '{"bad key": 1}'}), 422, "rejected"
    )
    assert [(each["code"], each["limit"]) for each in problem["rejected"]] == [("key-invalid", "key_characters")]
    partly = admin.post(f"/rejected/{message['id']}/replay", json={"payload": '{"good": 1, "bad key": 1}'}).get_json()
    assert (partly["accepted"], [each["key"] for each in partly["rejected"]]) == (1, ["bad key"])
    [message] = listed(admin)
    assert message["replay"]["rejected"][0]["code"] == "key-invalid"


def test_without_a_body_it_goes_as_it_came_once_the_cause_is_mended(admin: Person, thing: Thing) -> None:
    off(admin, thing, enabled=False)
    ingest([refusable(thing, b'{"level": 3}')])
    off(admin, thing, enabled=True)
    [message] = listed(admin)
    assert message["code"] == "device-disabled"
    assert admin.post(f"/rejected/{message['id']}/replay").get_json()["accepted"] == 1
    assert stored(thing) == {"level": [3.0]}


def off(person: Person, thing: Thing, *, enabled: bool) -> None:
    with tenancy.work(tenancy.of(person.tenant)) as db:
        devices.set_enabled(db, thing.uid, enabled)


def refusable(thing: Thing, payload: bytes, **values: Any) -> Incoming:
    """A good message; the door decides."""
    parsed = factories.message(thing.uid, (factories.now_ms(), json.loads(payload))).parsed
    return Incoming(thing.uid, parsed, None, "mqtt", f"iiot/{thing.uid}/up/telemetry", payload, **values)


def test_cbor_is_shown_in_base64_and_read_again_as_cbor(admin: Person, thing: Thing) -> None:
    send(admin, thing, b"\xa1\x61t\xfb", "application/cbor")
    [message] = listed(admin)
    assert (message["payload_encoding"], message["content_type"]) == ("base64", "application/cbor")
    assert base64.b64decode(message["payload"]) == b"\xa1\x61t\xfb"
    mended = base64.b64encode(b"\xa1\x61t\x07").decode()
    body = {"payload": mended, "payload_encoding": "base64"}
    assert admin.post(f"/rejected/{message['id']}/replay", json=body).get_json()["accepted"] == 1
    assert stored(thing) == {"t": [7.0]}
    wrong = admin.post(f"/rejected/{message['id']}/replay", json=body | {"payload": "!"})
    check_problem(wrong, 422, "invalid")


def test_a_wrong_content_type_is_mended(admin: Person, thing: Thing) -> None:
    send(admin, thing, b'{"t": 1}', "application/xml")
    [message] = listed(admin)
    answer = admin.post(f"/rejected/{message['id']}/replay", json={"content_type": "application/json"})
    assert answer.get_json()["accepted"] == 1


def test_the_largest_message_is_kept_whole_and_a_larger_one_says_that_it_was_cut(admin: Person, thing: Thing) -> None:
    whole = b'{"bad key": 1, "x": "' + b"y" * (262_144 - 23) + b'"}'
    assert len(whole) == 262_144
    send(admin, thing, whole)
    send(admin, thing, whole + b" ")
    cut, kept = listed(admin)
    assert (kept["size"], cut["size"]) == (262_144, 262_145)
    assert len(kept["payload"]) == 8192, "lists show the beginning"
    assert admin.get(f"/rejected/{kept['id']}").get_json()["payload"] == whole.decode()
    check_problem(admin.post(f"/rejected/{cut['id']}/replay"), 409, "payload-cut")
    again = admin.post(f"/rejected/{cut['id']}/replay", json={"payload": '{"x": 1}'})
    assert again.get_json()["accepted"] == 1


@pytest.mark.parametrize(
    "topic", ["iiot/{}/up/status", "iiot/{}/up/result/x", "iiot/{}/up/gateway/telemetry", "home/a/b"]
)
def test_what_holds_no_measurements_of_the_device_cannot_be_sent_again(admin: Person, thing: Thing, topic: str) -> None:
    refused = factories.refused(thing.uid, payload=b'{"t": 1}')
    refused.topic = topic.format(thing.uid)
    ingest([refused])
    [message] = listed(admin)
    check_problem(admin.post(f"/rejected/{message['id']}/replay"), 409, "not-replayable")
    step = admin.post("/rejected/replay").get_json()
    assert step == {"stored": 0, "refused": 0, "skipped": 1, "next_cursor": None}


def test_many_go_in_steps_oldest_first_and_what_is_refused_again_stays_open(admin: Person, thing: Thing) -> None:
    off(admin, thing, enabled=False)
    ingest([refusable(thing, json.dumps({"n": number}).encode()) for number in range(7)])
    ingest([factories.refused(thing.uid)])
    off(admin, thing, enabled=True)
    total, cursor, steps = {"stored": 0, "refused": 0, "skipped": 0}, None, 0
    while True:
        step = admin.post("/rejected/replay", json={"limit": 3} | ({"cursor": cursor} if cursor else {})).get_json()
        for name in total:
            total[name] += step[name]
        steps += 1
        cursor = step["next_cursor"]
        if cursor is None:
            break
    assert total == {"stored": 7, "refused": 1, "skipped": 0}
    assert steps == 3
    assert len(stored(thing)["n"]) >= 1
    [left] = listed(admin, state="open")
    assert (left["code"], left["replay"]["rejected"][0]["code"]) == ("device-disabled", "not-json")


def test_a_message_stays_open_until_nothing_of_it_is_refused(admin: Person, thing: Thing) -> None:
    send(admin, thing, b'{"temperature": 1}')
    send(admin, thing, b'{"temperature": "warm", "ok": 3}')
    [message] = listed(admin, state="open")
    step = admin.post("/rejected/replay", json={}).get_json()
    assert (step["stored"], step["refused"]) == (0, 1)
    alone = admin.post(f"/rejected/{message['id']}/replay").get_json()
    assert (alone["accepted"], [each["key"] for each in alone["rejected"]]) == (1, ["temperature"])
    [message] = listed(admin, state="open")
    assert message["replayed_at"] is None
    mended = {"payload": '{"temperature": 2, "ok": 3}'}
    assert admin.post(f"/rejected/{message['id']}/replay", json=mended).get_json()["message"]["replayed_at"]
    assert listed(admin, state="open") == []
    assert stored(thing) == {"temperature": [1, 2], "ok": [3]}


def test_a_time_is_judged_by_when_it_is_sent_again(admin: Person, thing: Thing) -> None:
    ahead = clock.now_ms() + payloads.MAX_AHEAD_MS + 3_000
    send(admin, thing, b'{"ts": %d, "values": {"a": 1}}' % ahead)
    send(admin, thing, b'{"a": "no json"')
    [broken, early] = listed(admin)
    aged = "UPDATE iiot.rejected_message SET received_at = now() - interval '40 days' WHERE uid = %s"
    factories.rows(aged, broken["id"])

    def again(message: dict[str, Any], payload: str | None = None) -> tuple[int, str | None]:
        body = {} if payload is None else {"payload": payload}
        answer = admin.post(f"/rejected/{message['id']}/replay", json=body)
        found = answer.get_json()
        return answer.status_code, found["rejected"][0]["code"] if found["rejected"] else None

    assert again(broken, '{"a": 1}') == (422, "ts-too-old")
    long_ago = clock.now_ms() - payloads.MAX_AGE_MS - 60_000
    assert again(broken, json.dumps({"ts": long_ago, "a": 1})) == (422, "ts-too-old")
    assert again(broken, json.dumps({"ts": clock.now_ms(), "a": 2})) == (200, None)
    assert again(early) in {(422, "ts-too-new"), (200, None)}
    eventually(lambda: again(early) == (200, None))
    assert stored(thing) == {"a": [2, 1]}


def test_filters_narrow_the_list_and_the_replay(admin: Person, thing: Thing) -> None:
    other = make_thing(admin.tenant, "other")
    send(admin, thing, b"nonsense")
    send(admin, other, b"<t/>", "application/xml")
    ingest([factories.refused(thing.uid)])
    assert {each["device_id"] for each in listed(admin)} == {thing.uid, other.uid}
    assert [each["device_id"] for each in listed(admin, device=other.uid)] == [other.uid]
    assert [each["code"] for each in listed(admin, code="unsupported-content-type")] == ["unsupported-content-type"]
    assert [each["protocol"] for each in listed(admin, protocol="test")] == ["test"]
    assert listed(admin, **{"from": "2099-01-01T00:00:00Z"}) == []
    assert listed(admin, to=NOW[:2] + "01-01-01T00:00:00Z") == []
    assert len(listed(admin, limit=1)) == 1
    first = admin.get("/rejected", query_string={"limit": 2}).get_json()
    rest = admin.get("/rejected", query_string={"limit": 2, "cursor": first["next_cursor"]}).get_json()
    assert (first["total"], len(first["items"]), len(rest["items"])) == (3, 2, 1)
    step = admin.post("/rejected/replay", json={"device": other.uid}).get_json()
    assert (step["stored"], step["refused"]) == (0, 1)


def test_a_message_is_discarded(admin: Person, thing: Thing) -> None:
    send(admin, thing, b"nonsense")
    [message] = listed(admin)
    assert admin.delete(f"/rejected/{message['id']}").status_code == 204
    check_problem(admin.get(f"/rejected/{message['id']}"), 404, "not-found")
    assert listed(admin) == []


def test_a_viewer_may_look_and_nobody_elses_message_exists(admin: Person, thing: Thing, person: Make) -> None:
    send(admin, thing, b"nonsense")
    [message] = listed(admin)
    viewer = person("viewer", admin.tenant)
    assert viewer.get(f"/rejected/{message['id']}").status_code == 200
    check_problem(viewer.post(f"/rejected/{message['id']}/replay"), 403, "forbidden")
    check_problem(viewer.delete(f"/rejected/{message['id']}"), 403, "forbidden")
    stranger = person()
    assert listed(stranger) == []
    for answer in (
        stranger.get(f"/rejected/{message['id']}"),
        stranger.post(f"/rejected/{message['id']}/replay"),
        stranger.delete(f"/rejected/{message['id']}"),
        stranger.get("/rejected/not-an-id"),
    ):
        check_problem(answer, 404, "not-found")


def test_a_replay_leaves_no_trace_of_a_connection(admin: Person, thing: Thing) -> None:
    send(admin, thing, b"nonsense")
    [message] = listed(admin)
    admin.post(f"/rejected/{message['id']}/replay", json={"payload": '{"t": 1}'})
    logged = factories.rows(
        "SELECT b.protocol, b.late FROM iiot.telemetry_batch b JOIN iiot.tenant t ON t.id = b.tenant_id WHERE t.id = %s",
        admin.tenant.tenant_id,
    )
    assert logged == [("replay", True)]


def test_a_broken_device_cannot_fill_the_disk(
    admin: Person, thing: Thing, person: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = person()
    for number in range(7):
        ingest([factories.refused(thing.uid, payload=bytes([48 + number]) * 250_000)])
    ingest([factories.refused(make_thing(other.tenant).uid, payload=b"x" * 250_000)])
    monkeypatch.setattr(housekeeping.config, "load", lambda: config.read(rejected_megabytes=1))
    with tenancy.work(tenancy.system("stream")) as db:
        assert not housekeeping.limit_rejected(db)
    monkeypatch.undo()
    assert [each["payload"][0] for each in listed(admin)] == ["6", "5", "4", "3"]
    assert len(listed(other)) == 1
