"""Receipts: every refusal that has a limit says which one, what it allows, and when to come back, in each protocol's own way."""

import json
import sys
from typing import Any

import pytest

from iiot import payloads
from iiot.payloads import PayloadError, Rejected
from iiot.services import command_delivery
from protocols import coap_exchange, coap_guard, translate
from protocols.base import Message, Refusal
from protocols.devices import Devices
from scripts import error_texts
from tests import factories
from tests.api.conftest import Make, Person, Thing, check_problem, make_thing

JSON, CBOR, SENML = "application/json", "application/cbor", "application/senml+json"
NOTHING = (None, None)
# What a device sends → the code, the name of the limit and what it allows; no limit: nothing was passed, something is wrong.
SENT: list[tuple[bytes, str, str, str | None, Any]] = [
    (b"", JSON, "empty", *NOTHING),
    (b"{", JSON, "not-json", *NOTHING),
    (b"\xff", JSON, "not-utf8", *NOTHING),
    (b"5", JSON, "not-an-object", *NOTHING),
    (b'{"a": NaN}', JSON, "not-finite", *NOTHING),
    (b"\xff", CBOR, "not-cbor", *NOTHING),
    (b"\xa1\x61t\xc0\x60", CBOR, "cbor-type", *NOTHING),
    (b"\xa2\x61t\x01\x61t\x02", CBOR, "duplicate-key", *NOTHING),
    (b"{}", SENML, "not-senml", *NOTHING),
    (b'[{"n": "t", "s": 1}]', SENML, "senml-field", *NOTHING),
    (b'{"a": null}', JSON, "value-null", *NOTHING),
    (b'{"a": "\\u0000"}', JSON, "string-invalid", *NOTHING),
    (b'{"ts": "yesterday", "values": {"a": 1}}', JSON, "ts-invalid", *NOTHING),
    (b'{"ack": 1, "values": {}}', JSON, "ack-not-boolean", *NOTHING),
    (b'{"x": 1, "values": {}}', JSON, "unknown-field", *NOTHING),
    (b'{"quality": "fine", "values": {"a": 1}}', JSON, "quality-invalid", "quality", "good, uncertain, bad"),
    (b'{"a": 1e400}', JSON, "number-out-of-range", "number", sys.float_info.max),
    (b'{"a": "' + b"x" * 262_144 + b'"}', JSON, "too-large", "message_bytes", 262_144),
    (b"[" + b'{"a":1},' * 10_000 + b'{"a":1}]', JSON, "too-many-readings", "readings_per_message", 10_000),
    (b"[" * 10_000, JSON, "too-deep", "nesting_levels", 32),
    (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", JSON, "too-deep", "nesting_levels", 32),
    (b'{"a": "' + b"x" * 1025 + b'"}', JSON, "string-too-long", "string_characters", 1024),
    (json.dumps({"a": ["x" * 1000] * 9}).encode(), JSON, "json-too-large", "json_bytes", 8192),
    (b'{"bad key": 1}', JSON, "key-invalid", "key_characters", "1 to 128 characters of A-Za-z0-9_.:/-"),
    (b'{"ts": 1000000000000, "values": {"a": 1}}', JSON, "ts-too-old", "ts_age_seconds", 30 * 86_400),
    (b'{"ts": 9999999999999, "values": {"a": 1}}', JSON, "ts-too-new", "ts_ahead_seconds", 600),
    (b"<a/>", "application/xml", "unsupported-content-type", "content_type", ", ".join(payloads.READ)),
]
# Codes of what the tests below bring about.
DECIDED = {
    # Of gateways and homes: tests/unit/test_payloads_gateway.py, tests/integration/test_gateway.py.
    "rate-limited", "unauthorized", "unavailable", "wrong-sender",
    "child-ignored", "child-name-invalid", "child-waiting", "inbox-full", "not-a-gateway", "state-invalid", "too-many-children",
    "topic-invalid", "unknown-home",
    "answer-invalid", "command-finished", "device-disabled", "no-payload", "not-storable", "readings-quota", "signal-quota",
    "status-invalid", "tenant-deleting", "tenant-suspended", "unknown-command", "unknown-device", "unknown-topic", "wrong-type",
}  # fmt: skip


@pytest.fixture
def thing(admin: Person) -> Thing:
    """A device of the admin's tenant."""
    return make_thing(admin.tenant)


def test_the_table_knows_every_code() -> None:
    assert {code for _, _, code, *_ in SENT} | DECIDED == error_texts.REFUSALS.keys()


def refused(payload: bytes, content_type: str) -> Rejected | PayloadError:
    try:
        return payloads.parse(payload, content_type, factories.now_ms()).rejected[0]
    except PayloadError as error:
        return error


@pytest.mark.parametrize(("payload", "content_type", "code", "limit", "allowed"), SENT, ids=[row[2] for row in SENT])
def test_a_refusal_names_its_limit_in_every_protocol(
    admin: Person, thing: Thing, payload: bytes, content_type: str, code: str, limit: str | None, allowed: Any
) -> None:
    found = refused(payload, content_type)
    assert (found.code, found.limit, found.allowed) == (code, limit, allowed)
    answer = admin.client.post("/api/v1/telemetry", data=payload, content_type=content_type, headers=thing.headers)
    assert 400 <= answer.status_code < 500
    [told, *_] = answer.get_json()["rejected"]
    assert (told["code"], told["limit"], told["allowed"]) == (code, limit, allowed)
    refusal = Refusal(found.code, found.reason, found.limit, allowed=found.allowed)
    assert refusal.receipt() == {
        "code": code,
        "reason": found.reason,
        "limit": limit,
        "allowed": allowed,
        "retry_after": None,
    }
    diagnostic = coap_exchange.refusal(refusal, known=True).answer().payload.decode()
    assert diagnostic.startswith(f"{code}: ")
    assert limit is None or f"limit {limit}, allowed {allowed}" in diagnostic


def test_what_the_tenants_quotas_refuse_names_them(person: Make) -> None:
    one = person(tenant=factories.make_tenant(signals_per_device=1, readings_per_day=2))
    thing = make_thing(one.tenant)
    factories.store(thing.uid, a=1.0)
    [refusal] = translate.outcome(factories.store(thing.uid, b=1.0)[0]).refusals
    assert refusal.receipt()["limit"] == "signals_per_device"
    assert (refusal.allowed, refusal.key, refusal.retry_after) == (1, "b", None)
    factories.store(thing.uid, a=2.0)
    [refusal] = translate.outcome(factories.store(thing.uid, a=3.0)[0]).refusals
    assert (refusal.code, refusal.limit, refusal.allowed) == ("readings-quota", "readings_per_day", 2)
    assert refusal.retry_after is not None
    assert 1 <= refusal.retry_after <= 86_400
    answer = coap_exchange.refusal(refusal, known=True).answer()
    assert (str(answer.code), answer.opt.max_age) == ("4.29 Too Many Requests", refusal.retry_after)
    http = one.client.post("/api/v1/telemetry", json={"a": 4}, headers=thing.headers)
    problem = check_problem(http, 429, "quota-exceeded")
    assert (problem["quota"], problem["allowed"]) == ("readings_per_day", 2)
    assert problem["retry_after"] == int(http.headers["Retry-After"])


def test_a_wrong_type_names_the_right_one(admin: Person, thing: Thing) -> None:
    factories.store(thing.uid, a=1.0)
    [refusal] = translate.outcome(factories.store(thing.uid, a="text")[0]).refusals
    assert (refusal.code, refusal.limit, refusal.allowed) == ("wrong-type", "signal_type", "number")


def test_a_wrong_status_names_the_words(thing: Thing) -> None:
    message = Message(thing.uid, "status", b"dancing", "t", lambda *_: None)
    error = translate.incoming(message, "mqtt").error
    assert error is not None
    assert (error.code, error.limit, error.allowed) == ("status-invalid", "status", "online, offline")


def test_an_answer_that_is_too_large_names_the_limit() -> None:
    error = command_delivery.parse_answer("a" * 26, "b" * 26, b"x" * 20_000).error
    assert error is not None
    assert (error.code, error.limit, error.allowed) == ("too-large", "answer_bytes", 16_384)
    content = json.dumps({"status": "done", "result": "x" * 9_000}).encode()
    error = command_delivery.parse_answer("a" * 26, "b" * 26, content).error
    assert error is not None
    assert (error.code, error.limit, error.allowed) == ("answer-invalid", "json_bytes", 8_192)


def flood() -> Refusal:
    """What a device hears that asks more often over CoAP than it may."""
    guard = coap_guard.Guard(1, 1)
    answers = (guard.request("u" * 26) for _ in range(coap_guard.SOURCE_BURST * 2))
    return next(each for each in answers if each is not None)


def test_rates_name_what_they_allow_and_when_to_come_back(admin: Person, thing: Thing) -> None:
    adapter = Devices("coap")
    for _ in range(20):
        assert adapter.authenticate(thing.uid, "wrong", "192.0.2.1") is not None
    limited = adapter.authenticate(thing.uid, "wrong", "192.0.2.1")
    assert isinstance(limited, Refusal)
    assert (limited.code, limited.limit, limited.allowed) == ("rate-limited", "device-sign-in", "20/min")
    assert limited.retry_after is not None
    told = coap_exchange.refusal(flood(), known=True).answer()
    assert (str(told.code), told.opt.max_age) == ("4.29 Too Many Requests", 1)
    assert b"limit requests_per_second, allowed 200, retry after 1 s" in told.payload
    wrong = {"Authorization": thing.headers["Authorization"][:-6] + "AAAA=="}
    answers = [admin.client.post("/api/v1/telemetry", json={"a": 1}, headers=wrong) for _ in range(21)]
    problem = check_problem(answers[-1], 429, "rate-limited")
    assert (problem["limit"], problem["allowed"]) == ("device-sign-in", "20/min")
    assert problem["retry_after"] == int(answers[-1].headers["Retry-After"])
