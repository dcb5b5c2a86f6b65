"""What a payload may hold, and how each mistake is refused."""

import json
import sys

import pytest

from iiot import payloads
from iiot.payloads import PayloadError, parse, reader

NOW = 1_766_000_000_000
DAY = 86_400_000


def items(payload: object) -> list[payloads.Item]:
    parsed = parse(json.dumps(payload).encode(), None, NOW)
    assert parsed.rejected == []
    return parsed.items


def rejection(payload: bytes) -> tuple[str, str | None]:
    parsed = parse(payload, None, NOW)
    assert len(parsed.rejected) == 1
    return parsed.rejected[0].code, parsed.rejected[0].key


def refusal(payload: bytes, content_type: str | None = None) -> PayloadError:
    with pytest.raises(PayloadError) as caught:
        parse(payload, content_type, NOW)
    return caught.value


def test_a_flat_object_gets_the_time_of_the_server() -> None:
    assert items({"temperature": 21.5, "running": True}) == [(NOW, {"temperature": 21.5, "running": True})]


def test_a_wrapped_object_has_its_own_time() -> None:
    assert items({"ts": NOW - 5, "values": {"t": 1}}) == [(NOW - 5, {"t": 1.0})]


def test_a_flat_object_may_carry_its_time_too() -> None:
    assert items({"ts": NOW - 5, "t": 1}) == [(NOW - 5, {"t": 1.0})]


def test_a_list_mixes_both_forms() -> None:
    assert items([{"a": 1}, {"ts": NOW - 1, "values": {"b": "x"}}]) == [(NOW, {"a": 1.0}), (NOW - 1, {"b": "x"})]


def test_values_may_name_signals_ts_and_ack() -> None:
    assert items({"values": {"ts": 1, "ack": 2, "values": 3}}) == [(NOW, {"ts": 1.0, "ack": 2.0, "values": 3.0})]


def test_values_that_is_no_object_is_a_signal() -> None:
    assert items({"values": 5}) == [(NOW, {"values": 5.0})]


@pytest.mark.parametrize(
    ("ts", "millis"),
    [
        (NOW, NOW),
        (NOW + 0.75, NOW),
        (None, NOW),
        ("2025-12-17T19:33:20Z", NOW),
        ("2025-12-17t19:33:20.5z", NOW + 500),
        ("2025-12-17 20:33:20.123456789+01:00", NOW + 123),
    ],
)
def test_times_are_milliseconds_or_rfc_3339(ts: object, millis: int) -> None:
    assert items({"ts": ts, "values": {"a": 1}}) == [(millis, {"a": 1.0})]


@pytest.mark.parametrize(
    "ts", [True, "yesterday", "2025-12-17T19:33:20", "20251217", str(NOW), [], {}, "2025-02-30T00:00:00Z"]
)
def test_anything_else_is_no_time(ts: object) -> None:
    assert rejection(json.dumps({"ts": ts, "values": {"a": 1}}).encode()) == ("ts-invalid", None)


@pytest.mark.parametrize(
    ("ts", "code"),
    [
        (NOW - 30 * DAY, None),
        (NOW - 30 * DAY - 1, "ts-too-old"),
        (NOW + 600_000, None),
        (NOW + 600_001, "ts-too-new"),
        (-(10**30), "ts-too-old"),
        (10**30, "ts-too-new"),
    ],
)
def test_the_window_of_time_has_sharp_edges(ts: int, code: str | None) -> None:
    parsed = parse(b'{"ts":%d,"values":{"a":1}}' % ts, None, NOW)
    assert [item.code for item in parsed.rejected] == ([code] if code else [])
    assert len(parsed.items) == (0 if code else 1)


def test_seconds_are_recognised() -> None:
    assert "looks like seconds" in parse(b'{"ts":%d,"a":1}' % (NOW // 1000), None, NOW).rejected[0].reason


def test_one_bad_element_does_not_spoil_the_others() -> None:
    parsed = parse(b'[{"a":1},7,{"ts":1,"values":{"b":2}},{},{"c":3}]', None, NOW)
    assert parsed.items == [(NOW, {"a": 1.0}), (NOW, {"c": 3.0})]
    assert [(item.index, item.code) for item in parsed.rejected] == [
        (1, "not-an-object"),
        (2, "ts-too-old"),
        (3, "empty"),
    ]


def test_readings_have_a_quality_of_one_word_or_each_its_own() -> None:
    all_of_them = parse(b'{"values":{"a":1,"b":2},"quality":"uncertain"}', None, NOW)
    assert (all_of_them.items, all_of_them.marks) == ([(NOW, {"a": 1.0, "b": 2.0})], {0: {"a": 1, "b": 1}})
    content = b'[{"values":{"a":1}},{},{"values":{"a":1,"b":2,"c":3},"quality":{"a":"bad","b":"good"}}]'
    some = parse(content, None, NOW)
    assert (some.marks, some.places) == ({1: {"a": 2}}, [0, 2])
    assert parse(b'{"values":{"a":1},"quality":"good"}', None, NOW).marks is None
    assert parse(b'{"values":{"a":1},"quality":null}', None, NOW).marks is None
    # Without `values` it is a signal like any other.
    assert parse(b'{"a":1,"quality":"bad"}', None, NOW).items == [(NOW, {"a": 1.0, "quality": "bad"})]


@pytest.mark.parametrize("quality", ['"fine"', "1", "true", "[]", '{"a":"fine"}', '{"a":null}', '{"a":["bad"]}'])
def test_a_reading_whose_quality_is_not_understood_is_not_stored_as_good(quality: str) -> None:
    parsed = parse(f'{{"values":{{"a":1}},"ack":true,"quality":{quality}}}'.encode(), None, NOW)
    assert (parsed.items, parsed.ack, parsed.marks) == ([], True, None)
    [refused] = parsed.rejected
    assert (refused.code, refused.key, refused.limit) == ("quality-invalid", "a", "quality")
    assert refused.allowed == "good, uncertain, bad"


def test_readings_of_a_quality_that_is_not_understood_count_towards_the_limit() -> None:
    values = ",".join(f'"k{number}":1' for number in range(payloads.MAX_READINGS + 1))
    with pytest.raises(PayloadError, match="at most 10000 readings"):
        parse(f'{{"values":{{{values}}},"quality":"fine"}}'.encode(), None, NOW)


def test_the_quality_of_something_else_is_refused_and_the_readings_stored() -> None:
    parsed = parse(b'{"values":{"a":1},"quality":{"a":"bad","b":"bad"}}', None, NOW)
    assert (parsed.items, parsed.marks) == ([(NOW, {"a": 1.0})], {0: {"a": 2}})
    assert [(item.code, item.key) for item in parsed.rejected] == [("unknown-field", "b")]


def test_one_bad_reading_does_not_spoil_the_others() -> None:
    parsed = parse(b'{"good":1,"not good":2,"none":null}', None, NOW)
    assert parsed.items == [(NOW, {"good": 1.0})]
    assert [(item.code, item.key) for item in parsed.rejected] == [("key-invalid", "not good"), ("value-null", "none")]


@pytest.mark.parametrize(
    ("payload", "code", "allowed"),
    [
        (b"", "empty", None),
        (b"  \n", "empty", None),
        (b"[]", "empty", None),
        (b"{", "not-json", None),
        (b'{"a":1}x', "not-json", None),
        (b"{'a':1}", "not-json", None),
        (b'{"a":"\\ud800"}', "not-json", None),
        (b"\xff\xfe", "not-utf8", None),
        (b'{"a":"\xed\xa0\x80"}', "not-utf8", None),
        ('{"a":1}'.encode("utf-16"), "not-utf8", None),
        (b'{"a":NaN}', "not-finite", None),
        (b'{"a":-Infinity}', "not-finite", None),
        (b'{"a":1e400}', "number-out-of-range", sys.float_info.max),
        (b'{"a":' + b"9" * 5000 + b"}", "number-out-of-range", sys.float_info.max),
        (b"[" * 10_000, "too-deep", 32),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "too-deep", 32),
        (b"[" * 10_000 + b"]" * 10_000, "too-deep", 32),
        (b"5", "not-an-object", None),
        (b"null", "not-an-object", None),
        (b'"text"', "not-an-object", None),
        (b'{"a":"' + b"x" * 262_144 + b'"}', "too-large", 262144),
        (json.dumps({f"k{n}": n for n in range(10_001)}).encode(), "too-many-readings", 10000),
        (json.dumps([{"a": 1}] * 10_001).encode(), "too-many-readings", 10000),
        (b'[' + b",".join([b'{"values":{"a":1}}'] * 10_001) + b"]", "too-many-readings", 10000),
    ],
)  # fmt: skip
def test_a_bad_message_is_refused_whole(payload: bytes, code: str, allowed: float | None) -> None:
    error = refusal(payload)
    assert (error.code, error.allowed) == (code, allowed)
    assert (error.limit is None) == (allowed is None)
    assert error.reason


@pytest.mark.parametrize(
    ("payload", "code", "key"),
    [
        (b'{"":1}', "key-invalid", ""),
        (json.dumps({"k" * 129: 1}).encode(), "key-invalid", "k" * 127 + "…"),
        (b'{"<b>":1}', "key-invalid", "<b>"),
        (b'{"a\\u0000":1}', "key-invalid", "a\ufffd"),
        (b'{"\\u00e9":1}', "key-invalid", "é"),
        (json.dumps({"a": "x" * 1025}).encode(), "string-too-long", "a"),
        (b'{"a":"\\u0000"}', "string-invalid", "a"),
        (b'{"a":["\\u0000"]}', "string-invalid", "a"),
        (b'{"a":{"\\\\\\u0000":1}}', "string-invalid", "a"),
        (json.dumps({"a": ["x" * 8190]}).encode(), "json-too-large", "a"),
        (b'{"a":' + b"[" * 33 + b"]" * 33 + b"}", "too-deep", "a"),
        (b'{"a":' + b"9" * 400 + b"}", "number-out-of-range", "a"),
        (b'{"a":null}', "value-null", "a"),
    ],
)
def test_a_bad_reading_is_rejected_by_name(payload: bytes, code: str, key: str) -> None:
    assert rejection(payload) == (code, key)


def test_what_is_just_within_the_limits_is_stored() -> None:
    deep: object = 1
    for _ in range(31):
        deep = [deep]
    values = {
        "k" * 128: "x" * 1024,
        "A-Za/z0:9_.": ["x" * 8188],
        "deep": [deep],
        "text": "\\u0000",
        "json": ["\\u0000"],
    }
    assert items(values) == [(NOW, values)]


def test_large_integers_become_the_nearest_float() -> None:
    assert items({"a": 2**70, "b": -(2**63)}) == [(NOW, {"a": float(2**70), "b": float(-(2**63))})]


def test_the_last_of_two_equal_keys_counts() -> None:
    assert parse(b'{"a":1,"a":2}', None, NOW).items == [(NOW, {"a": 2.0})]


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse(b'\xef\xbb\xbf{"a":1}', None, NOW).items == [(NOW, {"a": 1.0})]


@pytest.mark.parametrize(
    "payload", [b'{"a":1,"ack":true}', b'{"ack":true,"values":{"a":1}}', b'[{"a":1},{"a":2,"ack":true}]']
)
def test_an_acknowledgement_can_be_asked_for(payload: bytes) -> None:
    assert parse(payload, None, NOW).ack


def test_ack_that_is_no_boolean_is_explained() -> None:
    parsed = parse(b'{"a":1,"ack":5}', None, NOW)
    assert (parsed.ack, parsed.items, parsed.rejected[0].code) == (False, [(NOW, {"a": 1.0})], "ack-not-boolean")


def test_fields_beside_values_are_named() -> None:
    parsed = parse(b'{"values":{"a":1},"device":"x"}', None, NOW)
    assert parsed.items == [(NOW, {"a": 1.0})]
    assert [(item.code, item.key) for item in parsed.rejected] == [("unknown-field", "device")]


@pytest.mark.parametrize(
    "content_type", [None, "", "application/json", "Application/JSON; charset=utf-8", "text/plain"]
)
def test_json_by_any_name(content_type: str | None) -> None:
    assert parse(b'{"a":1}', content_type, NOW).items == [(NOW, {"a": 1.0})]


@pytest.mark.parametrize("content_type", ["application/xml", "application/senml-exi", "image/png\n<script>"])
def test_other_content_types_are_refused(content_type: str) -> None:
    error = refusal(b'{"a":1}', content_type)
    assert (error.code, error.limit) == ("unsupported-content-type", "content_type")
    assert error.allowed == "application/json, application/cbor, application/senml+json, application/senml+cbor"
    assert "\n" not in error.reason


def test_strangers_cannot_fill_the_memory_of_known_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_GOOD_KEYS_LIMIT", 10)
    for number in range(100):
        assert items({f"k{number}": 1}) == [(NOW, {f"k{number}": 1.0})]
    assert len(payloads.good_keys) <= 10
