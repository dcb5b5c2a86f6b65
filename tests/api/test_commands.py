"""Commands over REST: people give them, devices fetch and answer them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from iiot import clock, tenancy
from iiot.errors import Unauthorized
from iiot.services import command_bell, command_delivery, commands, credentials, devices
from iiot.web import limits
from tests import factories
from tests.api.conftest import Make, Person, Thing, check_problem, make_thing
from tests.services import eventually


@pytest.fixture
def pump(admin: Person) -> Thing:
    return make_thing(admin.tenant)


def order(person: Person, thing: Thing, **body: Any) -> dict[str, Any]:
    """A command that was taken."""
    answer = person.post(f"/devices/{thing.uid}/commands", json={"name": "restart"} | body)
    assert answer.status_code == 201, answer.get_data(as_text=True)
    made: dict[str, Any] = answer.get_json()
    return made


def fetch(person: Person, thing: Thing, wait: float = 0) -> list[dict[str, Any]]:
    """What the device is told to do."""
    answer = person.client.get(f"/api/v1/commands?wait={wait}", headers=thing.headers)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    items: list[dict[str, Any]] = answer.get_json()["items"]
    return items


def say(person: Person, thing: Thing, uid: str, status: str = "done", result: Any = None) -> TestResponse:
    """The device's answer."""
    body = {"status": status, "result": result}
    return person.client.post(f"/api/v1/commands/{uid}/result", headers=thing.headers, json=body)


def read(person: Person, made: dict[str, Any]) -> dict[str, Any]:
    """The command as it is now."""
    answer = person.get(f"/devices/{made['device_id']}/commands/{made['id']}")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.get_json()
    return found


def states(command: dict[str, Any]) -> list[str]:
    return [step["state"] for step in command["history"]]


def let_expire(made: dict[str, Any]) -> None:
    """As if it had been made longer ago than it may last."""
    factories.rows("UPDATE iiot.command SET expires_at = now() - interval '1 second' WHERE uid = %s", made["id"])


def test_a_command_has_the_shape_that_programs_build_on(admin: Person, pump: Thing) -> None:
    answer = admin.post(
        f"/devices/{pump.uid}/commands", json={"name": "set-speed", "params": {"rpm": 1500, "soft": True}, "ttl": 60}
    )
    assert answer.status_code == 201
    made = answer.get_json()
    assert made | {"history": [], "created_at": "", "expires_at": ""} == {
        "id": made["id"],
        "device_id": pump.uid,
        "name": "set-speed",
        "params": {"rpm": 1500, "soft": True},
        "state": "queued",
        "created_by": made["created_by"],
        "approval": None,
        "approved_by": None,
        "approved_at": None,
        "created_at": "",
        "expires_at": "",
        "history": [],
        "result": None,
    }
    assert made["created_by"]
    assert states(made) == ["queued"]
    assert answer.headers["Location"].endswith(f"/devices/{pump.uid}/commands/{made['id']}")
    assert read(admin, made) == made


def test_a_device_fetches_and_answers(admin: Person, pump: Thing) -> None:
    made = order(admin, pump, params={"how": "softly"})
    [given] = fetch(admin, pump)
    assert given == {"id": made["id"], "name": "restart", "params": {"how": "softly"}, "expires_at": made["expires_at"]}
    assert read(admin, made)["state"] == "sent"
    assert say(admin, pump, made["id"], "done", {"uptime": 0}).status_code == 204
    found = read(admin, made)
    assert (found["state"], found["result"]) == ("done", {"uptime": 0})
    assert states(found) == ["queued", "sent", "delivered", "done"]
    assert fetch(admin, pump) == []
    assert admin.get(f"/devices/{pump.uid}").get_json()["status"] == "online"


def test_what_was_handed_out_and_not_answered_comes_again(admin: Person, pump: Thing) -> None:
    made = order(admin, pump)
    assert [each["id"] for each in fetch(admin, pump)] == [made["id"]]
    assert [each["id"] for each in fetch(admin, pump)] == [made["id"]]
    assert states(read(admin, made)) == ["queued", "sent"]


@pytest.mark.parametrize("end", ["done", "failed", "expired", "cancelled"])
def test_the_second_goes_out_when_the_first_has_ended(admin: Person, pump: Thing, end: str) -> None:
    first, second = order(admin, pump, name="first"), order(admin, pump, name="second")
    assert [each["name"] for each in fetch(admin, pump)] == ["first"]
    if end == "expired":
        let_expire(first)
    elif end == "cancelled":
        assert admin.post(f"/devices/{pump.uid}/commands/{first['id']}/cancel").status_code == 200
    else:
        assert say(admin, pump, first["id"], end).status_code == 204
    assert [each["name"] for each in fetch(admin, pump)] == ["second"]
    assert read(admin, second)["state"] == "sent"


def test_the_same_answer_again_is_harmless_and_another_one_is_refused_and_kept(admin: Person, pump: Thing) -> None:
    made = order(admin, pump)
    fetch(admin, pump)
    assert say(admin, pump, made["id"], "done", {"n": 1}).status_code == 204
    before = read(admin, made)
    assert say(admin, pump, made["id"], "done", {"n": 1.0}).status_code == 204
    check_problem(say(admin, pump, made["id"], "failed", {"n": 1}), 409, "command-finished")
    check_problem(say(admin, pump, made["id"], "done", {"n": True}), 409, "command-finished")
    assert read(admin, made) == before
    kept = admin.get(f"/devices/{pump.uid}/rejected").get_json()["items"]
    assert [each["code"] for each in kept] == ["command-finished", "command-finished"]


def test_an_answer_with_a_result_that_cannot_be_stored_shows_that_the_command_arrived(
    admin: Person, pump: Thing
) -> None:
    made = order(admin, pump)
    told = check_problem(say(admin, pump, made["id"], "done", "x" * 9000), 422, "invalid")
    assert (told["code"], told["limit"], told["allowed"]) == ("answer-invalid", "json_bytes", commands.MAX_JSON)
    assert read(admin, made)["state"] == "delivered"
    check_problem(admin.post(f"/devices/{pump.uid}/commands/{made['id']}/cancel"), 409, "command-state")
    assert say(admin, pump, made["id"]).status_code == 204


NONSENSE = {
    "no such status": (b'{"status":"maybe"}', 422, "answer-invalid", None),
    "no JSON": (b"not json", 422, "answer-invalid", None),
    "nothing": (b"", 422, "answer-invalid", None),
    "NUL": (b'{"status":"done","result":"\\u0000"}', 422, "answer-invalid", "json_bytes"),
    "17 KiB": (b" " * 17 * 1024, 413, "too-large", "answer_bytes"),
    "300 KiB": (b" " * 300 * 1024, 413, "too-large", "answer_bytes"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_answer_that_cannot_be_read_is_kept_and_shows_that_the_command_arrived(
    admin: Person, pump: Thing, name: str
) -> None:
    body, status, code, limit = NONSENSE[name]
    made = order(admin, pump)
    fetch(admin, pump)
    path, json = f"/api/v1/commands/{made['id']}/result", "application/json"
    answer = admin.client.post(path, headers=pump.headers, data=body, content_type=json)
    told = check_problem(answer, status, "too-large" if status == 413 else "invalid")
    assert (told["code"], told["limit"]) == (code, limit)
    assert states(read(admin, made)) == ["queued", "sent", "delivered"]
    [kept] = admin.get(f"/devices/{pump.uid}/rejected").get_json()["items"]
    assert (kept["code"], kept["topic"]) == (code, f"POST {path}")
    plain = admin.client.post(path, headers=pump.headers, data=b"done", content_type="text/plain")
    check_problem(plain, 415, "unsupported-media-type")
    assert say(admin, pump, made["id"]).status_code == 204


def test_a_device_answers_its_own_commands_alone(admin: Person, pump: Thing, person: Make) -> None:
    made = order(admin, pump)
    neighbour, stranger = make_thing(admin.tenant, "other"), make_thing(person().tenant)
    for thing in (neighbour, stranger):
        answers = [say(admin, thing, uid) for uid in (made["id"], "a" * 26)]
        texts = [answer.get_json()["detail"] for answer in answers]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert texts[0] == texts[1]
    assert read(admin, made)["state"] == "queued"


def test_an_expired_command_is_never_handed_out_and_its_answer_is_refused(admin: Person, pump: Thing) -> None:
    late, sent = order(admin, pump, ttl=1), order(admin, pump)
    let_expire(late)
    assert [each["id"] for each in fetch(admin, pump)] == [sent["id"]]
    let_expire(sent)
    check_problem(say(admin, pump, sent["id"]), 409, "command-finished")
    with tenancy.work(tenancy.system("stream")) as db:
        commands.expire(db)
    assert [read(admin, each)["state"] for each in (late, sent)] == ["expired", "expired"]
    assert states(read(admin, sent)) == ["queued", "sent", "expired"]


def test_an_idempotency_key_orders_once(admin: Person, pump: Thing) -> None:
    body = {"name": "open", "params": {"valve": 2}, "ttl": 90, "idempotency_key": "order-1"}
    first = order(admin, pump, **body)
    assert order(admin, pump, **body) == first
    for other in ({"params": {"valve": 3}}, {"name": "close"}, {"ttl": 91}, {"params": {"valve": 2, "now": True}}):
        answer = admin.post(f"/devices/{pump.uid}/commands", json=body | other)
        check_problem(answer, 409, "idempotency-key-reused")
    assert order(admin, make_thing(admin.tenant, "another"), **body)["id"] != first["id"]
    assert admin.get(f"/devices/{pump.uid}/commands").get_json()["total"] == 1


@pytest.mark.parametrize("header", ["order-1", '"order-1"'])
def test_an_idempotency_key_may_be_a_header(admin: Person, pump: Thing, header: str) -> None:
    path, plain = f"/devices/{pump.uid}/commands", {"name": "open"}
    first = order(admin, pump, name="open", idempotency_key="order-1")
    again = admin.post(path, json=plain, headers={"Idempotency-Key": header})
    assert (again.status_code, again.get_json()["id"]) == (201, first["id"])
    both = admin.post(path, json=plain | {"idempotency_key": "order-1"}, headers={"Idempotency-Key": header})
    assert both.get_json()["id"] == first["id"]
    differing = admin.post(path, json=plain | {"idempotency_key": "order-2"}, headers={"Idempotency-Key": header})
    check_problem(differing, 422, "invalid")
    for wrong in ("", "x" * 201):
        check_problem(admin.post(path, json=plain, headers={"Idempotency-Key": wrong}), 422, "invalid")


def test_a_command_is_cancelled_until_its_device_has_confirmed_it(admin: Person, pump: Thing) -> None:
    made = order(admin, pump)
    path = f"/devices/{pump.uid}/commands/{made['id']}/cancel"
    assert admin.post(path).get_json()["state"] == "cancelled"
    check_problem(admin.post(path), 409, "command-state")
    check_problem(say(admin, pump, made["id"]), 409, "command-finished")
    assert states(read(admin, made)) == ["queued", "cancelled"]


BAD = {
    "no name": ({"name": ""}, 422),
    "a long name": ({"name": "n" * 65}, 422),
    "a line break": ({"name": "a\nb"}, 422),
    "params of 9 KiB": ({"params": {"text": "x" * 9000}}, 422),
    "params that are a list": ({"params": [1]}, 422),
    "NUL": ({"params": {"text": "\x00"}}, 422),
    "no time": ({"ttl": 0}, 422),
    "31 days": ({"ttl": 31 * 86400}, 422),
    "an empty key": ({"idempotency_key": ""}, 422),
    "an unknown field": ({"state": "done"}, 422),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_a_command_is_refused(admin: Person, pump: Thing, name: str) -> None:
    body, status = BAD[name]
    check_problem(admin.post(f"/devices/{pump.uid}/commands", json={"name": "restart"} | body), status, "invalid")


def test_a_disabled_device_takes_no_commands(admin: Person, pump: Thing) -> None:
    with tenancy.work(tenancy.of(admin.tenant)) as db:
        devices.set_enabled(db, pump.uid, False)
    answer = admin.post(f"/devices/{pump.uid}/commands", json={"name": "restart"})
    check_problem(answer, 409, "device-disabled")


def test_a_viewer_reads_and_an_operator_commands(admin: Person, pump: Thing, person: Make) -> None:
    made = order(person("operator", admin.tenant), pump)
    viewer = person("viewer", admin.tenant)
    assert viewer.get(f"/devices/{pump.uid}/commands").get_json()["items"] == [made]
    check_problem(viewer.post(f"/devices/{pump.uid}/commands", json={"name": "restart"}), 403, "forbidden")
    check_problem(viewer.post(f"/devices/{pump.uid}/commands/{made['id']}/cancel"), 403, "forbidden")


def test_a_foreign_device_is_no_device(pump: Thing, person: Make) -> None:
    other = person()
    check_problem(other.post(f"/devices/{pump.uid}/commands", json={"name": "restart"}), 404, "not-found")
    check_problem(other.get(f"/devices/{pump.uid}/commands"), 404, "not-found")


def test_the_list_goes_by_pages_and_by_state(admin: Person, pump: Thing) -> None:
    made = [order(admin, pump, name=f"n{number}")["id"] for number in range(5)]
    fetch(admin, pump)
    say(admin, pump, made[0])
    path, seen = f"/devices/{pump.uid}/commands?limit=2", []
    cursor = ""
    while cursor is not None:
        page = admin.get(path + (f"&cursor={cursor}" if cursor else "")).get_json()
        seen += [each["id"] for each in page["items"]]
        assert page["total"] == 5
        cursor = page["next_cursor"]
    assert seen == made[::-1]
    done = admin.get(f"/devices/{pump.uid}/commands?state=done").get_json()
    assert [each["id"] for each in done["items"]] == made[:1]


def test_the_hundred_and_first_order_of_an_hour_is_refused(app: Flask, admin: Person, pump: Thing) -> None:
    with app.test_request_context():
        for _ in range(99):
            limits.spend("control", admin.user.uid)
    order(admin, pump)
    answer = admin.post(f"/devices/{pump.uid}/commands", json={"name": "restart"})
    check_problem(answer, 429, "rate-limited")
    assert int(answer.headers["Retry-After"]) > 0


@contextmanager
def listening(thing: Thing, work: Callable[[], None]) -> Iterator[None]:
    """`work` waits in a thread of its own for a command of the device."""
    thread = threading.Thread(target=work)
    thread.start()
    bell = command_bell.bell()
    eventually(lambda: bell.is_listening and thing.uid in bell._waiting)
    yield
    thread.join(25)


@pytest.fixture
def asking(admin: Person, pump: Thing) -> Iterator[list[Any]]:
    """A device that waits for a command; the list gets what it is answered, and when."""
    answers: list[Any] = []
    with listening(pump, lambda: answers.append((fetch(admin, pump, 20), clock.now()))):
        yield answers


def test_a_long_poll_answers_at_once(admin: Person, pump: Thing, asking: list[Any]) -> None:
    made = order(admin, pump)
    at = clock.now()
    eventually(lambda: asking)
    [(items, answered)] = asking
    assert [each["id"] for each in items] == [made["id"]]
    assert answered - at < timedelta(seconds=0.9), "it did not wait for the next look"


SHUT_OUT = {
    "revoked": (
        lambda db, uid: [credentials.revoke(db, devices.locked(db, uid), each.uid) for each in held(db, uid)],
        401,
    ),
    "replaced": (lambda db, uid: credentials.replace(db, devices.locked(db, uid), credentials.Wanted()), 401),
    "disabled": (lambda db, uid: devices.set_enabled(db, uid, False), 403),
    "deleted": (devices.remove, 401),
}


def held(db: Session, uid: str) -> list[credentials.Listed]:
    return credentials.list_all(db, devices.get(db, uid))


@pytest.mark.parametrize("name", SHUT_OUT)
def test_a_poll_that_waits_is_refused_when_its_device_is_shut_out(admin: Person, pump: Thing, name: str) -> None:
    shut_out, status = SHUT_OUT[name]
    answers: list[TestResponse] = []

    def ask() -> TestResponse:
        return admin.client.get("/api/v1/commands?wait=25", headers=pump.headers)

    with listening(pump, lambda: answers.append(ask())):
        with tenancy.work(tenancy.of(admin.tenant)) as db:
            shut_out(db, pump.uid)
        eventually(lambda: answers, 5)
    fresh = ask()
    assert (fresh.status_code, answers[0].status_code) == (status, status)
    assert answers[0].headers.get("WWW-Authenticate") == fresh.headers.get("WWW-Authenticate")
    told = [answer.get_json() | {"request_id": None} for answer in (answers[0], fresh)]
    assert told[0] == told[1]


def test_a_revoked_poll_takes_no_command_with_it(admin: Person, pump: Thing) -> None:
    """The order comes before the waiting question has noticed anything."""
    made = order(admin, pump)
    with tenancy.work(tenancy.of(admin.tenant)) as db:
        device_id = devices.id_of(db, pump.uid)
        credentials.replace(db, devices.locked(db, pump.uid), credentials.Wanted())

    def check(db: Session) -> None:
        if credentials.authenticate(db, pump.uid, pump.token) is None:
            raise Unauthorized

    with pytest.raises(Unauthorized):
        command_delivery.poll(tenancy.of(admin.tenant), device_id, check=check)
    assert states(read(admin, made)) == ["queued"]


def test_a_long_poll_gets_the_next_one_when_the_one_before_has_expired(admin: Person, pump: Thing) -> None:
    first, second = order(admin, pump), order(admin, pump)
    [given] = fetch(admin, pump)
    assert given["id"] == first["id"]
    let_expire(first)
    with tenancy.work(tenancy.system("stream")) as db:
        commands.expire(db)
    assert [each["id"] for each in fetch(admin, pump, 5)] == [second["id"]]


def test_a_poll_that_waits_gives_nothing_to_a_device_that_is_shut_out_meanwhile(admin: Person, pump: Thing) -> None:
    order(admin, pump)
    with tenancy.work(tenancy.of(admin.tenant)) as db:
        device_id = devices.id_of(db, pump.uid)
        devices.set_enabled(db, pump.uid, False)
    assert command_delivery.poll(tenancy.of(admin.tenant), device_id) is None


def test_a_poll_that_finds_nothing_is_empty_after_its_time(admin: Person, pump: Thing) -> None:
    assert fetch(admin, pump, 0.2) == []
    answer = admin.client.get("/api/v1/commands?wait=31", headers=pump.headers)
    check_problem(answer, 422, "invalid")


def test_without_redis_a_waiting_device_looks_by_itself(admin: Person, pump: Thing) -> None:
    bell = command_bell.Bell("redis://127.0.0.1:9/0")
    url = next(url for url, each in command_bell._bells.items() if each is command_bell.bell())
    command_bell._bells[url], before = bell, command_bell._bells[url]
    answers: list[Any] = []
    try:
        thread = threading.Thread(target=lambda: answers.append(fetch(admin, pump, 20)))
        thread.start()
        eventually(lambda: pump.uid in bell._waiting)
        made = order(admin, pump)
        eventually(lambda: answers)
        thread.join(25)
    finally:
        command_bell._bells[url] = before
    assert [each["id"] for each in answers[0]] == [made["id"]]


class Carrier:
    """What an adapter takes over."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def __call__(self, order: command_delivery.Order) -> bool:
        self.given.append(order.uid)
        return True


def test_a_device_of_mqtt_gets_its_commands_there_and_one_that_asks_gets_them_here(admin: Person, pump: Thing) -> None:
    mqtt = Carrier()
    first, second = order(admin, pump), order(admin, pump)
    assert not command_delivery.deliver("mqtt", mqtt), "it was never seen on MQTT"
    assert command_delivery.reached("mqtt", [pump.uid])
    assert command_delivery.deliver("mqtt", mqtt)
    assert not command_delivery.deliver("mqtt", mqtt), "one at a time"
    assert [each["id"] for each in fetch(admin, pump)] == [first["id"]], "it moved and has not answered"
    say(admin, pump, first["id"])
    assert [each["id"] for each in fetch(admin, pump)] == [second["id"]]
    assert not command_delivery.deliver("mqtt", mqtt)
    assert mqtt.given == [first["id"]]


def test_a_protocol_with_a_wide_reach_tries_strangers_and_those_who_do_not_fetch(admin: Person, pump: Thing) -> None:
    amqp, mqtt = Carrier(), Carrier()
    made = order(admin, pump)
    later = command_delivery.Reach(timedelta(minutes=1))
    assert not command_delivery.deliver("amqp", amqp, among=[pump.uid], reach=later), "too early"
    at_once = command_delivery.Reach(timedelta(0), timedelta(0))
    assert command_delivery.deliver("amqp", amqp, among=[pump.uid], reach=at_once)
    assert not command_delivery.deliver("amqp", amqp, among=[pump.uid], reach=at_once), "it has it"
    assert not command_delivery.deliver("mqtt", mqtt, without=[pump.uid], among=[pump.uid], reach=at_once)
    assert command_delivery.deliver("mqtt", mqtt, among=[pump.uid], reach=at_once), (
        "its queue may not be where it listens"
    )
    assert not command_delivery.deliver("coap", Carrier(), among=[pump.uid], reach=at_once), "two are enough"
    assert read(admin, made)["state"] == "sent"
    say(admin, pump, made["id"])
    order(admin, pump)
    assert fetch(admin, pump)
    assert not command_delivery.deliver("mqtt", mqtt, among=[pump.uid], reach=at_once), "the device has fetched it"
    assert (amqp.given, mqtt.given) == ([made["id"]], [made["id"]])


def test_a_device_that_moves_gets_an_unanswered_command_once_more(admin: Person, pump: Thing) -> None:
    mqtt, amqp = Carrier(), Carrier()
    made = order(admin, pump)
    command_delivery.reached("amqp", [pump.uid])
    assert command_delivery.deliver("amqp", amqp)
    command_delivery.reached("mqtt", [pump.uid])
    assert command_delivery.deliver("mqtt", mqtt)
    command_delivery.reached("amqp", [pump.uid])
    assert not command_delivery.deliver("amqp", amqp), "it has been there"
    assert (amqp.given, mqtt.given) == ([made["id"]], [made["id"]])


def test_what_a_protocol_cannot_take_stays_queued(admin: Person, pump: Thing) -> None:
    made = order(admin, pump)
    command_delivery.reached("mqtt", [pump.uid])
    assert not command_delivery.deliver("mqtt", lambda order: False)
    assert read(admin, made)["state"] == "queued"


def test_the_trail_says_who_ordered_and_who_cancelled(admin: Person, pump: Thing) -> None:
    made = order(admin, pump)
    admin.post(f"/devices/{pump.uid}/commands/{made['id']}/cancel")
    found = factories.rows("SELECT action, actor_uid FROM iiot.audit WHERE object_uid = %s ORDER BY seq", made["id"])
    assert found == [("command.create", admin.user.uid), ("command.cancel", admin.user.uid)]


@pytest.fixture
def press(admin: Person) -> Thing:
    """A device whose commands need a second person."""
    thing = make_thing(admin.tenant)
    assert admin.patch(f"/devices/{thing.uid}", json={"needs_approval": True}).get_json()["needs_approval"] is True
    return thing


def approve(person: Person, made: dict[str, Any]) -> TestResponse:
    return person.post(f"/devices/{made['device_id']}/commands/{made['id']}/approve")


def test_a_second_person_lets_a_command_out(admin: Person, press: Thing, person: Make) -> None:
    colleague = person("operator", admin.tenant)
    made = order(admin, press)
    assert (made["state"], made["approval"], made["approved_by"]) == ("queued", "waiting", None)
    assert fetch(admin, press) == []
    assert say(admin, press, made["id"]).status_code == 404, "nobody has told the device of it"
    check_problem(approve(admin, made), 403, "own-command")
    found = approve(colleague, made).get_json()
    assert (found["state"], found["approval"]) == ("queued", "approved")
    assert found["approved_by"] != found["created_by"]
    assert found["approved_at"]
    [entry] = admin.get(f"/audit?action=command.approve&object={made['id']}").get_json()["items"]
    assert (entry["actor"]["id"], entry["after"]) == (colleague.user.uid, {"approval": "approved"})
    check_problem(approve(colleague, made), 409, "command-state")
    [given] = fetch(admin, press)
    assert given["id"] == made["id"]


def test_the_order_is_that_of_the_approvals(admin: Person, press: Thing, person: Make) -> None:
    colleague = person("operator", admin.tenant)
    first, second = order(admin, press, name="first"), order(admin, press, name="second")
    approve(colleague, second)
    assert [each["name"] for each in fetch(admin, press)] == ["second"]
    approve(colleague, first)
    assert [each["name"] for each in fetch(admin, press)] == ["second"], "one after another"
    assert say(admin, press, second["id"]).status_code == 204
    assert [each["name"] for each in fetch(admin, press)] == ["first"]
    waiting = admin.get(f"/devices/{press.uid}/commands?approval=waiting").get_json()
    assert waiting["items"] == []


def test_what_waits_expires_and_is_cancelled_like_any_other(admin: Person, press: Thing, person: Make) -> None:
    colleague = person("operator", admin.tenant)
    late, unwanted = order(admin, press), order(admin, press)
    let_expire(late)
    check_problem(approve(colleague, late), 409, "command-state")
    assert admin.post(f"/devices/{press.uid}/commands/{unwanted['id']}/cancel").status_code == 200
    check_problem(approve(colleague, unwanted), 409, "command-state")
    assert fetch(admin, press) == []


def test_a_key_approves_nothing_and_viewers_neither(admin: Person, press: Thing, person: Make) -> None:
    made = order(admin, press)
    check_problem(approve(person("viewer", admin.tenant), made), 403, "forbidden")
    key = person("engineer", admin.tenant).post("/api-keys", json={"name": "robot"}).get_json()
    answer = admin.client.post(
        f"/api/v1/devices/{press.uid}/commands/{made['id']}/approve",
        headers={"Authorization": f"Bearer {key['key']}"},
    )
    check_problem(answer, 403, "not-for-keys")


def test_what_waits_when_the_device_stops_asking_still_waits(admin: Person, press: Thing) -> None:
    order(admin, press, name="early")
    admin.patch(f"/devices/{press.uid}", json={"needs_approval": False})
    order(admin, press, name="later")
    assert [each["name"] for each in fetch(admin, press)] == ["later"]
