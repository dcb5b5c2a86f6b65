"""Properties of the payload parser that hold for every input."""

import json
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from iiot import payloads
from iiot.payloads import Parsed, PayloadError, parse

NOW = 1_766_000_000_000

keys = st.one_of(st.sampled_from(["a", "temperature", "ts", "ack", "values", "bad key", ""]), st.text(max_size=4))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([NOW, "2025-12-17T19:33:20Z", "\0", "x" * 1025, 10**400]),
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)
words = st.sampled_from(["good", "uncertain", "bad", "fine", None, 1])
qualities = words | st.dictionaries(keys, words, max_size=3)
wrapped = st.fixed_dictionaries(
    {"values": st.dictionaries(keys, json_values, max_size=3)},
    optional={"ts": scalars, "ack": scalars, "quality": qualities},
)
documents = st.one_of(json_values, wrapped, st.lists(wrapped, max_size=3))


def outcome(payload: bytes) -> tuple[Any, ...]:
    """What `parse` says, comparable: NaN cannot be in it, which is checked here too."""
    try:
        parsed = parse(payload, None, NOW)
    except PayloadError as error:
        return error.code, error.reason, error.limit, error.allowed
    for ts, values in parsed.items:
        assert NOW - payloads.MAX_AGE_MS <= ts <= NOW + payloads.MAX_AHEAD_MS
        assert values
        for key, value in values.items():
            assert payloads.KEY_PATTERN.fullmatch(key)
            assert type(value) in (float, bool, str, dict, list)
            assert not isinstance(value, float) or math.isfinite(value)
    for place, marks in (parsed.marks or {}).items():
        assert marks.keys() <= parsed.items[place][1].keys()
        assert set(marks.values()) <= {1, 2}
    return parsed.items, parsed.rejected, parsed.ack, parsed.marks


def carefully(payload: bytes) -> tuple[Any, ...]:
    """The same by the full rules alone."""
    try:
        parsed: Parsed = payloads._parse_carefully(payload, None, NOW)
    except PayloadError as error:
        return error.code, error.reason, error.limit, error.allowed
    return parsed.items, parsed.rejected, parsed.ack, parsed.marks


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(payload: bytes) -> None:
    outcome(payload)


@settings(max_examples=max(400, settings().max_examples))
@given(documents)
def test_the_short_way_answers_like_the_full_rules(document: object) -> None:
    payload = json.dumps(document).encode()
    payloads.good_keys.clear()
    strange = outcome(payload)
    assert outcome(payload) == strange == carefully(payload)


@given(st.binary(max_size=12), documents, st.integers(0, 200))
def test_damaged_json_is_parsed_or_refused_alike(noise: bytes, document: object, place: int) -> None:
    payload = json.dumps(document).encode()
    payload = payload[:place] + noise + payload[place:]
    assert outcome(payload) == carefully(payload)


plain = st.dictionaries(
    st.from_regex(payloads.KEY_PATTERN, fullmatch=True).filter(lambda key: key not in ("ts", "ack", "values")),
    st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    min_size=1,
    max_size=5,
)


@given(plain, st.integers(NOW - payloads.MAX_AGE_MS, NOW + payloads.MAX_AHEAD_MS))
def test_good_readings_come_through_unchanged(values: dict[str, Any], ts: int) -> None:
    for document in (values, {"ts": ts, "values": values}, [{"ts": ts, **values}]):
        parsed = parse(json.dumps(document).encode(), None, NOW)
        assert parsed.items == [(NOW if document is values else ts, values)]
        assert parsed.rejected == []
