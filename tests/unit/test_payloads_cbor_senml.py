"""CBOR and SenML: examples of every refusal, and properties that hold for every input."""

import json
import math
import sys
from typing import Any

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iiot import payloads
from iiot.payloads import Parsed, PayloadError, parse

NOW = 1_766_000_000_000
CBOR, SENML, SENML_CBOR = "application/cbor", "application/senml+json", "application/senml+cbor"
LABELS = {
    "bn": -2,
    "bt": -3,
    "bu": -4,
    "bv": -5,
    "bs": -6,
    "bver": -1,
    "n": 0,
    "u": 1,
    "v": 2,
    "vs": 3,
    "vb": 4,
    "s": 5,
}
LABELS |= {"t": 6, "ut": 7, "vd": 8}


def refused(payload: bytes, content_type: str) -> str:
    with pytest.raises(PayloadError) as caught:
        parse(payload, content_type, NOW)
    assert caught.value.reason
    return caught.value.code


def pack(*records: dict[str, Any]) -> Parsed:
    """The same answer for both forms of a pack."""
    text = parse(json.dumps(records).encode(), SENML, NOW)
    binary = cbor2.dumps([{LABELS.get(name, name): value for name, value in each.items()} for each in records])
    assert parse(binary, SENML_CBOR, NOW) == text
    return text


@pytest.mark.parametrize(
    ("code", "hexed"),
    {
        "a byte string": ("cbor-type", "a1616142ffff"),
        "undefined": ("cbor-type", "a16161f7"),
        "a simple value": ("cbor-type", "a16161f0"),
        "a number as a key": ("cbor-type", "a10102"),
        "a list as a key": ("cbor-type", "a18001"),
        "a time": ("cbor-type", "a16161c11a00000000"),
        "a big number": ("cbor-type", "a16161c240"),
        "a big float of any size": ("cbor-type", "a16161c5821b7fffffffffffffff01"),
        "a loop": ("cbor-type", "d81c81d81d00"),
        "a pattern": ("cbor-type", "a16161d8236128"),
        "an unknown tag": ("cbor-type", "a16161d9ffff00"),
        "NaN": ("not-finite", "a16161f97e00"),
        "infinity": ("not-finite", "a16161fb7ff0000000000000"),
        "a key that stands twice": ("duplicate-key", "a2616101616102"),
        "a text that is not UTF-8": ("not-utf8", "a16161 61ff"),
        "a text that is longer than the message": ("not-cbor", "7b7fffffffffffffff61"),
        "a list that is longer than the message": ("not-cbor", "9b00000fffffffffff"),
        "a reserved length": ("not-cbor", "1c"),
        "a break alone": ("not-cbor", "ff"),
        "two items": ("not-cbor", "a1616101a1616101"),
        "deep": ("too-deep", "81" * 1000 + "00"),
        "deep and endless": ("too-deep", "9f" * 100_000),
        "nothing": ("empty", ""),
        "an empty list": ("empty", "80"),
        "a number": ("not-an-object", "01"),
    }.values(),
)
def test_cbor_that_is_refused(code: str, hexed: str) -> None:
    assert refused(bytes.fromhex(hexed), CBOR) == code


def test_cbor_says_what_json_says() -> None:
    for document in ({"a": 1, "b": "x", "c": True}, [{"ts": NOW, "values": {"a": {"deep": [1, None]}}, "ack": True}]):
        expected = parse(json.dumps(document).encode(), None, NOW)
        assert parse(cbor2.dumps(document), CBOR, NOW) == expected
        assert parse(cbor2.dumps(document), "Application/CBOR; x=y", NOW) == expected


def test_cbor_of_indefinite_length_is_read() -> None:
    assert parse(bytes.fromhex("bf7f61616162ff01ff"), CBOR, NOW).items == [(NOW, {"ab": 1.0})]


def test_bases_are_joined() -> None:
    found = pack(
        {"bn": "urn:dev:1/", "bt": NOW / 1000, "bu": "Cel", "n": "a", "v": 1},
        {"n": "b", "v": 2, "t": -1.5},
        {"bn": "other/", "bv": 10, "n": "c", "v": 0.5},
        {"n": "d", "vs": "text"},
        {"n": "e", "vb": False},
    )
    assert found.rejected == []
    assert found.items == [
        (NOW, {"urn:dev:1/a": 1.0}),
        (NOW - 1500, {"urn:dev:1/b": 2.0}),
        (NOW, {"other/c": 10.5}),
        (NOW, {"other/d": "text"}),
        (NOW, {"other/e": False}),
    ]


@pytest.mark.parametrize(("seconds", "expected"), [(-60, NOW - 60_000), (0, NOW), (300, NOW + 300_000)])
def test_times_below_2_28_are_relative_to_now(seconds: float, expected: int) -> None:
    assert pack({"n": "a", "t": seconds, "v": 1}).items == [(expected, {"a": 1.0})]


def test_milliseconds_survive_seconds() -> None:
    assert pack({"n": "a", "bt": 1_766_000_000.001, "v": 1}).items == [(1_766_000_000_001, {"a": 1.0})]


@pytest.mark.parametrize(
    ("code", "record"),
    [
        ("senml-field", {"n": "a", "s": 5}),
        ("senml-field", {"n": "a", "vd": "aGk"}),
        ("senml-field", {"n": "a", "v": 1, "vs": "x"}),
        ("senml-field", {"n": "a", "v": True}),
        ("senml-field", {"n": "a", "v": None}),
        ("senml-field", {"n": "a", "vs": 1}),
        ("senml-field", {"n": "a", "vb": 1}),
        ("empty", {"n": "a"}),
        ("key-invalid", {"v": 1}),
        ("key-invalid", {"n": "a b", "v": 1}),
        ("key-invalid", {"n": 1, "v": 1}),
        ("key-invalid", {"n": "a" * 129, "v": 1}),
        ("ts-invalid", {"n": "a", "t": "x", "v": 1}),
        ("ts-invalid", {"n": "a", "t": 1e300, "v": 1}),
        ("ts-too-old", {"n": "a", "t": 1e9, "v": 1}),
        ("ts-too-new", {"n": "a", "t": 3600, "v": 1}),
        ("number-out-of-range", {"bv": 1e308, "n": "a", "v": 1.7e308}),
        ("unknown-field", {"n": "a", "v": 1, "must_": 1}),
    ],
)
def test_a_record_that_is_refused_leaves_the_others(code: str, record: dict[str, Any]) -> None:
    found = pack({"n": "good", "v": 1}, record, {"bv": 0, "n": "last", "v": 2})
    assert [(each.index, each.code) for each in found.rejected] == [(1, code)]
    if code == "number-out-of-range":
        assert (found.rejected[0].limit, found.rejected[0].allowed) == ("number", sys.float_info.max)
    assert [values for _, values in found.items] == [{"good": 1.0}, {"last": 2.0}]
    assert found.places == [0, 2]


def test_a_sum_beside_a_value_is_told_and_bases_alone_are_no_reading() -> None:
    found = pack({"bn": "a", "bt": -1}, {"v": 1, "s": 2, "u": "m", "ut": 3, "x": 1})
    assert found.items == [(NOW - 1000, {"a": 1.0})]
    assert [each.code for each in found.rejected] == ["senml-field"]


@pytest.mark.parametrize(
    ("code", "document"),
    [
        ("not-senml", {}),
        ("empty", []),
        ("not-senml", [1]),
        ("not-senml", [{"bn": 1}]),
        ("not-senml", [{"bt": True}]),
        ("not-senml", [{"bver": 11}]),
        ("too-many-readings", [{}] * 10_001),
    ],
)
def test_what_is_no_pack(code: str, document: Any) -> None:
    assert refused(json.dumps(document).encode(), SENML) == code
    assert refused(cbor2.dumps(document), SENML_CBOR) == code


def test_a_pack_without_time_of_its_own_in_a_list_keeps_places() -> None:
    assert refused(b"[", SENML) == "not-json"
    assert refused(b"\x9f", SENML_CBOR) == "not-cbor"
    assert refused(b'[{"v":NaN}]', SENML) == "not-finite"


@given(st.binary(max_size=300), st.sampled_from([CBOR, SENML, SENML_CBOR]))
@example(bytes.fromhex("d81c80"), CBOR)
def test_any_bytes_are_parsed_or_refused(payload: bytes, content_type: str) -> None:
    check(payload, content_type)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=3)
)
keys = st.sampled_from([*LABELS, *LABELS.values(), "x", "y_"]) | st.text(max_size=3)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5))


@given(trees, st.sampled_from([CBOR, SENML_CBOR]), st.binary(max_size=4), st.integers(0, 60))
def test_damaged_items_are_parsed_or_refused(tree: Any, content_type: str, noise: bytes, place: int) -> None:
    payload = cbor2.dumps(tree)
    check(payload, content_type)
    check(payload[:place] + noise + payload[place:], content_type)


def check(payload: bytes, content_type: str) -> None:
    try:
        parsed = parse(payload, content_type, NOW)
    except PayloadError:
        return
    for ts, values in parsed.items:
        assert NOW - payloads.MAX_AGE_MS <= ts <= NOW + payloads.MAX_AHEAD_MS
        for key, value in values.items():
            assert payloads.KEY_PATTERN.fullmatch(key)
            assert type(value) in (float, bool, str, dict, list)
            assert not isinstance(value, float) or math.isfinite(value)


records = st.fixed_dictionaries(
    {"n": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,60}", fullmatch=True)},
    optional={"t": st.integers(-86_400, 600), "u": st.just("Cel")},
).flatmap(
    lambda base: st.one_of(
        st.floats(allow_nan=False, allow_infinity=False).map(lambda value: base | {"v": value}),
        st.booleans().map(lambda value: base | {"vb": value}),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20).map(
            lambda value: base | {"vs": value}
        ),
    )
)


@given(st.lists(records, min_size=1, max_size=6))
def test_good_records_come_through_unchanged(given_records: list[dict[str, Any]]) -> None:
    found = pack(*given_records)
    assert found.rejected == []
    expected = [
        (NOW + 1000 * each.get("t", 0), {each["n"]: each.get("v", each.get("vs", each.get("vb")))})
        for each in given_records
    ]
    assert found.items == expected
