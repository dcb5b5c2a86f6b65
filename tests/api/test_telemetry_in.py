"""Measurements over HTTP: from devices, and from people on behalf of devices; what is refused is kept and explained."""

import base64
import json
from typing import Any

import pytest
from werkzeug.test import TestResponse

from tests import factories
from tests.api.conftest import Make, Person, Thing, basic, check_problem, make_thing


@pytest.fixture
def thing(admin: Person) -> Thing:
    """A device of the admin's tenant."""
    return make_thing(admin.tenant)


def send(person: Person, thing: Thing, payload: Any, content_type: str = "application/json") -> TestResponse:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return person.client.post("/api/v1/telemetry", data=data, content_type=content_type, headers=thing.headers)


def stored(thing: Thing) -> int:
    return int(
        factories.rows(
            "SELECT count(*) FROM iiot.telemetry t JOIN iiot.signal s ON s.id = t.signal_id JOIN iiot.device d ON d.id = s.device_id WHERE d.uid = %s",
            thing.uid,
        )[0][0]
    )


def refused(thing: Thing) -> list[str]:
    found = factories.rows(
        "SELECT r.code FROM iiot.rejected_message r JOIN iiot.device d ON d.id = r.device_id WHERE d.uid = %s AND r.protocol = 'http' ORDER BY r.id",
        thing.uid,
    )
    return [row[0] for row in found]


def test_a_device_stores_the_three_shapes_and_duplicates_change_nothing(admin: Person, thing: Thing) -> None:
    now = factories.now_ms()
    assert send(admin, thing, {"temperature": 21.5, "running": True, "state": "ok"}).get_json() == {
        "stored": 3,
        "duplicate": 0,
        "rejected": [],
    }
    message = {"ts": now - 5000, "values": {"temperature": 20}}
    assert send(admin, thing, message).get_json() == {"stored": 1, "duplicate": 0, "rejected": []}
    assert send(admin, thing, message).get_json() == {"stored": 0, "duplicate": 1, "rejected": []}
    assert send(admin, thing, [message, {"ts": now - 4000, "values": {"temperature": 20}}]).get_json() == {
        "stored": 1,
        "duplicate": 1,
        "rejected": [],
    }
    assert stored(thing) == 5


def test_what_can_be_stored_is_and_the_rest_is_explained(admin: Person, thing: Thing) -> None:
    ancient = 1_000_000_000_000
    answer = send(admin, thing, [{"t": 1.5}, {"ts": ancient, "values": {"t": 2}}, {"bad key!": 1}])
    assert answer.status_code == 200
    body = answer.get_json()
    assert body["stored"] == 1
    assert [each["index"] for each in body["rejected"]] == [1, 2]
    assert all(each["reason"] and each["code"] for each in body["rejected"])
    assert len(refused(thing)) == 1


@pytest.mark.parametrize(
    ("payload", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "not-json"),
        (b"", "application/json", 400, "empty"),
        (b"\xff\xfe{}", "application/json", 400, "not-utf8"),
        (b"[" * 10_000 + b"]" * 10_000, "application/json", 400, "too-deep"),
        (b'{"t": NaN}', "application/json", 400, "not-finite"),
        (b"\xff", "application/cbor", 400, "not-cbor"),
        (b"\xa1\x61t\xc0\x60", "application/cbor", 400, "cbor-type"),
        (b"{}", "application/senml+json", 400, "not-senml"),
        (b'"text"', "application/json", 422, "not-an-object"),
        (b"<t>1</t>", "application/xml", 415, "unsupported-content-type"),
        (b"t=1", "application/x-www-form-urlencoded", 415, "unsupported-content-type"),
        (b'{"t": "' + b"x" * 262_144 + b'"}', "application/json", 413, "too-large"),
    ],
)
def test_a_payload_refused_as_a_whole_is_kept_and_the_next_one_stored(
    admin: Person, thing: Thing, payload: bytes, content_type: str, status: int, code: str
) -> None:
    answer = send(admin, thing, payload, content_type)
    assert answer.status_code == status
    assert answer.content_type == "application/problem+json"
    problem = answer.get_json()
    assert problem["code"] == code
    assert problem["errors"][0]["msg"]
    assert refused(thing) == [code]
    assert send(admin, thing, {"t": 1}).get_json()["stored"] == 1


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        (b"\xa1\x61t\x01", "application/cbor"),
        (b'[{"n": "t", "v": 1}]', "application/senml+json"),
        (b"\x81\xa2\x00\x61t\x02\x01", "application/senml+cbor"),
    ],
)
def test_cbor_and_senml_are_stored(admin: Person, thing: Thing, payload: bytes, content_type: str) -> None:
    assert send(admin, thing, payload, content_type).get_json()["stored"] == 1


def test_of_an_oversized_payload_the_beginning_is_kept(admin: Person, thing: Thing) -> None:
    payload = b'{"text": "' + b"x" * 262_144 + b'"}'
    assert send(admin, thing, payload).status_code == 413
    kept = factories.rows("SELECT payload, size FROM iiot.rejected_message ORDER BY id DESC LIMIT 1")
    assert (bytes(kept[0][0]), kept[0][1]) == (payload[: 256 * 1024], len(payload))


@pytest.mark.parametrize(
    "values",
    [
        b'{"t": 1e400}',
        b'{"bad key": 1}',
        b'{"ts": 1, "values": {"t": 1}}',
        b'{"ts": 9999999999999, "values": {"t": 1}}',
        b'{"t": null}',
    ],
)
def test_a_payload_of_which_nothing_is_good_answers_422_with_every_reason(
    admin: Person, thing: Thing, values: bytes
) -> None:
    answer = send(admin, thing, values)
    if answer.status_code == 400:
        assert answer.get_json()["code"] in ("not-json", "not-finite")
    else:
        problem = check_problem(answer, 422, "rejected")
        assert problem["stored"] == 0
        assert problem["rejected"][0]["reason"] == problem["errors"][0]["msg"]
    assert len(refused(thing)) == 1
    assert send(admin, thing, {"t": 1}).get_json()["stored"] == 1


def test_a_number_as_text_is_refused_where_numbers_were(admin: Person, thing: Thing) -> None:
    assert send(admin, thing, {"t": 1}).status_code == 200
    problem = check_problem(send(admin, thing, {"t": "1"}), 422, "rejected")
    assert problem["rejected"][0]["code"] == "wrong-type"
    assert refused(thing) == ["wrong-type"]


def test_new_keys_beyond_the_signal_quota_are_refused(person: Make) -> None:
    one = person(tenant=factories.make_tenant(signals_per_device=2))
    thing = make_thing(one.tenant)
    body = send(one, thing, {"a": 1, "b": 2, "c": 3}).get_json()
    assert body["stored"] == 2
    told = body["rejected"][0]
    assert (told["code"], told["limit"], told["allowed"]) == ("signal-quota", "signals_per_device", 2)


@pytest.mark.parametrize(
    "header",
    [
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"\xff:\xff").decode(),
        "Basic " + base64.b64encode(b"a\0b:c").decode(),
        "Basic " + base64.b64encode(b"a" * 26 + b":wrong").decode(),
        "Digest x",
    ],
)
def test_wrong_device_credentials(admin: Person, header: str) -> None:
    answer = admin.client.post("/api/v1/telemetry", json={"t": 1}, headers={"Authorization": header})
    check_problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("B")


def test_a_wrong_token_reads_like_an_unknown_device(admin: Person, thing: Thing) -> None:
    known = admin.client.post(
        "/api/v1/telemetry", json={"t": 1}, headers=basic(thing.uid, "wrong") | {"X-Request-ID": "x"}
    )
    unknown = admin.client.post(
        "/api/v1/telemetry", json={"t": 1}, headers=basic("a" * 26, "wrong") | {"X-Request-ID": "x"}
    )
    assert known.status_code == 401
    assert known.data == unknown.data


def test_guessing_a_token_is_slowed_down(admin: Person, thing: Thing) -> None:
    for _ in range(20):
        assert (
            admin.client.post("/api/v1/telemetry", json={"t": 1}, headers=basic(thing.uid, "wrong")).status_code == 401
        )
    answer = admin.client.post("/api/v1/telemetry", json={"t": 1}, headers=basic(thing.uid, "wrong"))
    check_problem(answer, 429, "rate-limited")
    assert int(answer.headers["Retry-After"]) >= 1
    elsewhere = admin.client.post(
        "/api/v1/telemetry", json={"t": 1}, headers=thing.headers, environ_base={"REMOTE_ADDR": "192.0.2.77"}
    )
    assert elsewhere.status_code == 200


def test_a_device_reads_nothing(admin: Person, thing: Thing) -> None:
    check_problem(admin.client.get("/api/v1/devices", headers=thing.headers), 401, "unauthorized")


def test_people_send_for_one_device_or_for_several(admin: Person, thing: Thing) -> None:
    other = make_thing(admin.tenant)
    assert admin.post("/telemetry", json={"device_id": thing.uid, "data": {"t": 1}}).get_json()["stored"] == 1
    several = [{"device_id": thing.uid, "data": [{"t": 2}]}, {"device_id": other.uid, "data": {"t": 1, "u": 2}}]
    assert admin.post("/telemetry", json=several).get_json() == {"stored": 3, "duplicate": 0, "rejected": []}


def test_in_a_list_every_entry_stands_for_itself(admin: Person, thing: Thing, person: Make) -> None:
    foreign = make_thing(person().tenant)
    body = [
        {"device_id": foreign.uid, "data": {"t": 1}},
        {"device_id": thing.uid, "data": {"t": 1}},
        {"device_id": thing.uid, "data": [{"t": 2, "ts": "yesterday"}]},
        {"device_id": thing.uid, "data": 5},
    ]
    answer = admin.post("/telemetry", json=body)
    assert answer.status_code == 200
    assert answer.get_json()["stored"] == 1
    assert answer.get_json()["rejected"][0]["code"] == "unknown-device"
    assert {each["index"] for each in answer.get_json()["rejected"]} == {0, 2, 3}
    assert stored(foreign) == 0
    nothing = check_problem(admin.post("/telemetry", json=body[:1]), 422, "rejected")
    assert nothing["rejected"][0]["code"] == "unknown-device"


def test_a_foreign_device_reads_like_an_unknown_one(admin: Person, person: Make) -> None:
    foreign = make_thing(person().tenant)
    answers = [
        admin.post("/telemetry", json={"device_id": uid, "data": {"t": 1}}, headers={"X-Request-ID": "x"})
        for uid in (foreign.uid, "a" * 26)
    ]
    check_problem(answers[0], 404, "not-found")
    assert answers[0].data == answers[1].data
    assert stored(foreign) == 0


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"device_id": "x"},
        {"device_id": 5, "data": {}},
        {"device_id": "x", "data": {}, "tenant": 1},
        "text",
        [5],
    ],
)
def test_bodies_of_people_are_checked(admin: Person, body: object) -> None:
    check_problem(admin.post("/telemetry", json=body), 422, "invalid")


def test_bodies_of_people_that_are_no_json(admin: Person) -> None:
    check_problem(admin.post("/telemetry", data="{", content_type="application/json"), 400, "bad-request")
    check_problem(admin.post("/telemetry", data=b"\xff", content_type="application/json"), 400, "bad-request")
    check_problem(admin.post("/telemetry", data="{}", content_type="text/csv"), 415, "unsupported-media-type")
    check_problem(admin.post("/telemetry", data="x" * 262_145, content_type="application/json"), 413, "too-large")
    deep = b'{"device_id": "x", "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert admin.post("/telemetry", data=deep, content_type="application/json").status_code in (400, 404, 422)
