"""What gateways send for others: telemetry of their children, and states of the smart-home scheme.

iiot/<uid>/up/gateway/telemetry            {"<child>": <a message of CONTRACT 4>, …}
home/<home>/<node>/<kind>/<entity>/state   {"state": "ON", "brightness": 40} or ON, OFF, 21.5, true, a word
home/<home>/<node>/status                  online or offline
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from iiot.payloads import CBOR, Item, Parsed, PayloadError, Rejected, check_envelope, decode, form_of, parse
from iiot.payloads.reader import MAX_READINGS, TOO_BIG, Reader, Value, kind_of, shown

MAX_CHILDREN: Final = 1_000
MAX_CHILD_NAME: Final = 200
MAX_STATE: Final = 255
# Homes, nodes, kinds and entities: levels of a topic and, joined by slashes, the beginning of a signal's key.
WORD: Final = re.compile(r"[A-Za-z0-9_.:-]{1,40}", re.ASCII)
# Kinds whose state is ON or OFF, and kinds that are only read.
SWITCHED: Final = frozenset({"light", "switch"})
READ_ONLY: Final = frozenset({"sensor", "binary_sensor"})
# A number in JSON (RFC 8259 section 6).
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LEVELS_OF_STATE: Final = 6
_LEVELS_OF_STATUS: Final = 4
_SCHEME: Final = "the smart-home scheme has home/<home>/<node>/<kind>/<entity>/state and home/<home>/<node>/status"

Part = tuple[Parsed | PayloadError, bytes]


def is_child_name(name: str) -> bool:
    """Whether a gateway may call a child so: 1 to 200 characters without control characters or blanks at the ends."""
    if not name or len(name) > MAX_CHILD_NAME or name != name.strip():
        return False
    return not any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in name)


def parse_children(payload: bytes, content_type: str | None, now_ms: int) -> dict[str, Part]:
    """Child → (what it says, or why nothing of it counts; its part of the message as JSON). Raises PayloadError for the whole message."""
    form = form_of(content_type)
    if form not in ("", CBOR):
        raise PayloadError(
            "unsupported-content-type",
            "a gateway sends JSON or application/cbor",
            "content_type",
            f"application/json, {CBOR}",
        )
    check_envelope(payload)
    data = decode(payload, form)
    if not isinstance(data, dict):
        raise PayloadError("not-an-object", f'a gateway sends {{"<child>": [readings], …}}, not {kind_of(data)}')
    if not data:
        raise PayloadError("empty", "the message names no child")
    if len(data) > MAX_CHILDREN:
        raise PayloadError(
            "too-many-children",
            f"a message speaks of at most {MAX_CHILDREN} children",
            "children_per_message",
            MAX_CHILDREN,
        )
    parts: dict[str, Part] = {}
    readings = 0
    for name, content in data.items():
        parts[name] = (_part(name, content, now_ms), _encoded(content))
        said = parts[name][0]
        readings += sum(len(values) for _, values in said.items) if isinstance(said, Parsed) else 0
        if readings > MAX_READINGS:
            reason = f"a message holds at most {MAX_READINGS} readings, split it"
            raise PayloadError("too-many-readings", reason, "readings_per_message", MAX_READINGS)
    return parts


def _encoded(content: Any) -> bytes:
    """A part as JSON; nothing of what is nested deeper than the encoder goes, which is refused anyway."""
    try:
        return msgspec.json.encode(content)
    except RecursionError:
        return b""


def _part(name: str, content: Any, now_ms: int) -> Parsed | PayloadError:
    if not is_child_name(name):
        reason = f"{shown(name)} is not the name of a child: 1 to {MAX_CHILD_NAME} characters, no control characters"
        return PayloadError("child-name-invalid", reason, "child_name_characters", MAX_CHILD_NAME)
    if not isinstance(content, dict | list):
        return PayloadError("not-an-object", f"a child has an object or a list of objects, not {kind_of(content)}")
    elements = content if isinstance(content, list) else [content]
    if not elements:
        return PayloadError("empty", "the list of this child is empty")
    reader = Reader(now_ms)
    try:
        for index, element in enumerate(elements):
            reader.read(index, element)
    except PayloadError as error:
        return error
    places = reader.places if len(reader.items) < len(elements) else None
    return Parsed(reader.items, reader.rejected, reader.ack, places, reader.marks or None)


@dataclass(frozen=True, slots=True)
class HomeTopic:
    """A topic of the smart-home scheme. `kind` and `entity` are empty for the status of a node."""

    home: str
    node: str
    kind: str = ""
    entity: str = ""

    @property
    def child(self) -> str:
        """What the node is called below its gateway."""
        return f"{self.home}/{self.node}"

    @property
    def part(self) -> str:
        """The entity of the node, `<kind>/<entity>`; empty for the status."""
        return f"{self.kind}/{self.entity}" if self.kind else ""


def read_topic(topic: str) -> HomeTopic:
    """Read `home/<home>/<node>/<kind>/<entity>/state` or `home/<home>/<node>/status`; raises PayloadError for any other."""
    levels = topic.split("/")
    if len(levels) == _LEVELS_OF_STATE and levels[5] == "state":
        words = levels[1:5]
    elif len(levels) == _LEVELS_OF_STATUS and levels[3] == "status":
        words = levels[1:3]
    else:
        raise PayloadError("unknown-topic", f"nothing is expected on the topic {shown(topic)}; {_SCHEME}")
    for word in words:
        if WORD.fullmatch(word) is None:
            reason = f"{shown(word)} cannot be a level of the topic: 1 to 40 characters of A-Za-z0-9_.:-"
            raise PayloadError("topic-invalid", reason, "topic_level_characters", 40)
    if levels[0] != "home":
        raise PayloadError("unknown-topic", f"nothing is expected on the topic {shown(topic)}; {_SCHEME}")
    return HomeTopic(*words)


def parse_status(payload: bytes) -> bool:
    """Whether a node says that it is online; raises PayloadError for any other word."""
    word = payload.strip().lower()
    if word not in (b"online", b"offline"):
        raise PayloadError("status-invalid", "a status is the word online or offline", "status", "online, offline")
    return word == b"online"


def parse_state(topic: HomeTopic, payload: bytes, now_ms: int) -> Parsed:
    """The readings of an entity, as signals `<kind>/<entity>/<what>`; raises PayloadError for what is no state."""
    if payload.lstrip()[:1] in (b"{", b"["):
        parsed = parse(payload, None, now_ms)
    else:
        parsed = Parsed([(now_ms, {"state": _plain(payload)})], [], False)
    items: list[Item] = []
    places: list[int] = []
    rejected, marks = list(parsed.rejected), dict[int, dict[str, int]]()
    for place, (ts, values) in enumerate(parsed.items):
        index = parsed.places[place] if parsed.places else place
        good = {}
        for key, value in values.items():
            checked = _checked(topic.kind, key, value)
            full = f"{topic.part}/{key}"
            if isinstance(checked, PayloadError):
                rejected.append(Rejected(index, checked.code, checked.reason, checked.limit, full, checked.allowed))
            elif len(full) > 128:
                rejected.append(
                    Rejected(
                        index, "key-invalid", f"{shown(full)} is longer than 128 characters", "key_characters", key, 128
                    )
                )
            else:
                good[full] = checked
        if good:
            if parsed.marks and place in parsed.marks:
                marks[len(items)] = {f"{topic.part}/{key}": mark for key, mark in parsed.marks[place].items()}
            items.append((ts, good))
            places.append(index)
    if not items and rejected:
        first = rejected[0]
        raise PayloadError(first.code, first.reason, first.limit, first.allowed)
    return Parsed(items, rejected, False, places, marks or None)


def _plain(payload: bytes) -> Value:
    """A state that is no JSON object: a number, true, false or a word."""
    try:
        text = payload.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise PayloadError("not-utf8", f"the message is not UTF-8 text (byte {error.start})") from None
    if not text:
        raise PayloadError("empty", "the message has no content")
    try:
        value = msgspec.json.decode(text)
        if isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return _finite(value)
        if isinstance(value, str):
            text = value
    except (msgspec.DecodeError, RecursionError):
        # The decoder takes no number beyond double precision.
        if _NUMBER.fullmatch(text) is not None:
            raise PayloadError(*TOO_BIG) from None
    if len(text) > MAX_STATE:
        raise PayloadError(
            "string-too-long", f"a state has at most {MAX_STATE} characters", "state_characters", MAX_STATE
        )
    if not text.isprintable():
        raise PayloadError("state-invalid", "a state is ON, OFF, a number, true, false, a word or a JSON object")
    return text


def _finite(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise PayloadError(*TOO_BIG) from None


def _checked(kind: str, key: str, value: Value) -> Value | PayloadError:
    """The value, or why an entity of this kind cannot have it. ON and OFF are written in capitals, whatever the node writes."""
    if key == "state" and isinstance(value, str) and value.upper() in ("ON", "OFF"):
        return value.upper()
    if kind in SWITCHED and key == "state":
        return PayloadError("state-invalid", f"the state of a {kind} is ON or OFF", "state", "ON, OFF")
    if key == "brightness":
        is_number = isinstance(value, float | int) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= 100:  # type: ignore[operator]
            return PayloadError("state-invalid", "the brightness is a number from 0 to 100", "brightness", "0 to 100")
    return value
