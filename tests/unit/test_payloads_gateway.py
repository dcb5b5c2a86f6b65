"""Messages of gateways and topics of the smart-home scheme: what is read, and that nothing else than PayloadError comes of anything."""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iiot.payloads import Parsed, PayloadError
from iiot.payloads.gateway import HomeTopic, is_child_name, parse_children, parse_state, parse_status, read_topic

NOW = 1_790_000_000_000
WORDS = st.from_regex(r"[A-Za-z0-9_.:-]{1,40}", fullmatch=True)
LEVELS = st.one_of(WORDS, st.text(max_size=45), st.sampled_from(["home", "state", "status", "set", "+", "#", ""]))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


def tried(call: Callable[[], Any]) -> tuple[Any, PayloadError | None]:
    """What came of it: a result, or the one kind of refusal that may come."""
    try:
        return call(), None
    except PayloadError as refused:
        return None, refused


@given(WORDS, WORDS, WORDS, WORDS)
def test_every_topic_of_the_scheme_is_read_back(home: str, node: str, kind: str, entity: str) -> None:
    topic = read_topic(f"home/{home}/{node}/{kind}/{entity}/state")
    assert topic == HomeTopic(home, node, kind, entity)
    assert (topic.child, topic.part) == (f"{home}/{node}", f"{kind}/{entity}")
    assert read_topic(f"home/{home}/{node}/status") == HomeTopic(home, node)


@given(st.lists(LEVELS, max_size=8))
def test_any_other_topic_is_refused_and_never_breaks(levels: list[str]) -> None:
    text = "/".join(levels)
    topic, refused = tried(lambda: read_topic(text))
    if refused:
        assert refused.code in ("unknown-topic", "topic-invalid")
        return
    rebuilt = f"home/{topic.child}/{topic.part}/state" if topic.kind else f"home/{topic.child}/status"
    assert rebuilt == text
    assert not {"+", "#", ""} & set(text.split("/"))


@given(st.one_of(st.binary(max_size=80), JSON.map(lambda value: json.dumps(value).encode())), WORDS, WORDS)
def test_a_state_is_readings_of_its_entity_or_a_reason(payload: bytes, kind: str, entity: str) -> None:
    topic = HomeTopic("h", "n", kind, entity)
    parsed, refused = tried(lambda: parse_state(topic, payload, NOW))
    if refused:
        assert refused.code
        assert refused.reason
        return
    assert parsed.items
    for _, values in parsed.items:
        assert values
        assert all(key.startswith(f"{kind}/{entity}/") and len(key) <= 128 for key in values)


@given(st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())))
def test_a_message_of_a_gateway_is_parts_or_a_reason(payload: bytes) -> None:
    parts, refused = tried(lambda: parse_children(payload, None, NOW))
    if refused:
        assert refused.code
        return
    for name, (said, part) in parts.items():
        assert isinstance(said, PayloadError) or is_child_name(name)
        json.loads(part)


STATES: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "a word": ("climate", b"heating", {"state": "heating"}),
    "ON": ("light", b"ON", {"state": "ON"}),
    "on in JSON": ("switch", b'{"state": "on"}', {"state": "ON"}),
    "a quoted word": ("light", b'"OFF"', {"state": "OFF"}),
    "a number": ("sensor", b" 21.5\n", {"state": 21.5}),
    "true": ("binary_sensor", b"true", {"state": True}),
    "an object": ("light", b'{"state": "ON", "brightness": 40}', {"state": "ON", "brightness": 40.0}),
    "brightness alone": ("light", b'{"brightness": 0}', {"brightness": 0.0}),
}


@pytest.mark.parametrize("name", STATES)
def test_states(name: str) -> None:
    kind, payload, values = STATES[name]
    parsed = parse_state(HomeTopic("h", "n", kind, "x"), payload, NOW)
    assert parsed.items == [(NOW, {f"{kind}/x/{what}": value for what, value in values.items()})]


WRONG = {
    "a lamp that is a fruit": ("light", b"banana", "state-invalid"),
    "a lamp that is a number": ("light", b"1", "state-invalid"),
    "too bright": ("light", b'{"brightness": 101}', "state-invalid"),
    "bright by a word": ("light", b'{"brightness": "full"}', "state-invalid"),
    "bright by truth": ("dimmer", b'{"brightness": true}', "state-invalid"),
    "half an object": ("light", b'{"state"', "not-json"),
    "control characters": ("sensor", b"a\x07b", "state-invalid"),
    "blank": ("sensor", b"   ", "empty"),
    "beyond every number": ("sensor", b"1" + b"0" * 400, "number-out-of-range"),
    "beyond every number, as a float": ("sensor", b"1e400", "number-out-of-range"),
    "below every number": ("sensor", b"-1.5E+999", "number-out-of-range"),
    "very long": ("sensor", b"x" * 256, "string-too-long"),
    "a long time ago": ("sensor", b'{"ts": 1000, "values": {"state": 1}}', "ts-too-old"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_state(name: str) -> None:
    kind, payload, code = WRONG[name]
    with pytest.raises(PayloadError) as refused:
        parse_state(HomeTopic("h", "n", kind, "x"), payload, NOW)
    assert refused.value.code == code
    if code == "number-out-of-range":
        assert (refused.value.limit, refused.value.allowed) == ("number", sys.float_info.max)


def test_a_state_and_a_child_keep_their_quality() -> None:
    topic = HomeTopic("villa", "hall", "light", "x")
    parsed = parse_state(topic, b'{"values":{"state":"ON","brightness":9},"quality":{"state":"bad"}}', NOW)
    assert parsed.marks == {0: {"light/x/state": 2}}
    [(child, _)] = parse_children(b'{"p":{"values":{"a":1},"quality":"uncertain"}}', None, NOW).values()
    assert isinstance(child, Parsed)
    assert child.marks == {0: {"a": 1}}


def test_what_is_wrong_beside_a_good_state_is_named() -> None:
    parsed = parse_state(HomeTopic("h", "n", "light", "x"), b'{"state": "ON", "brightness": 400}', NOW)
    assert parsed.items == [(NOW, {"light/x/state": "ON"})]
    assert [(each.code, each.key) for each in parsed.rejected] == [("state-invalid", "light/x/brightness")]


@pytest.mark.parametrize(("payload", "online"), [(b"online", True), (b" Offline\n", False)])
def test_a_status(payload: bytes, online: bool) -> None:
    assert parse_status(payload) is online


def test_a_gateway_may_send_both_forms_and_cbor_and_not_senml() -> None:
    import cbor2

    content: dict[str, Any] = {"a": [{"t": 1}, {"ts": NOW - 5, "values": {"t": 2}}], "b": {"u": True}}
    for payload, kind in ((json.dumps(content).encode(), None), (cbor2.dumps(content), "application/cbor")):
        parts = parse_children(payload, kind, NOW)
        said = {name: part[0] for name, part in parts.items()}
        assert all(isinstance(each, Parsed) for each in said.values())
        assert [each.items for each in said.values() if isinstance(each, Parsed)] == [
            [(NOW, {"t": 1.0}), (NOW - 5, {"t": 2.0})],
            [(NOW, {"u": True})],
        ]
    with pytest.raises(PayloadError, match="unsupported-content-type"):
        parse_children(b"[]", "application/senml+json", NOW)


def test_a_gateway_has_limits() -> None:
    with pytest.raises(PayloadError, match="too-many-children"):
        parse_children(json.dumps({str(number): {"t": 1} for number in range(1001)}).encode(), None, NOW)
    many = {str(child): [{"t": 1}] * 101 for child in range(100)}
    with pytest.raises(PayloadError, match="too-many-readings"):
        parse_children(json.dumps(many).encode(), None, NOW)
