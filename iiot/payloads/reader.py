"""What every form of payload comes to: the types of the answer, and the reader that checks keys, times and values.

What is wrong with one reading or list element rejects that one (`Rejected`); what is wrong with the bytes refuses the
whole message (`PayloadError`). Codes are for programs, reasons for people.
"""

from __future__ import annotations

import math
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

Value: TypeAlias = float | bool | str | dict[str, Any] | list[Any]
# What a limit allows: a number, or words where it is none.
Allowed: TypeAlias = int | float | str
Item: TypeAlias = tuple[int, dict[str, Value]]

MAX_BYTES: Final = 256 * 1024
MAX_KEY: Final = 128
MAX_STRING: Final = 1024
MAX_JSON_BYTES: Final = 8 * 1024
MAX_DEPTH: Final = 32
MAX_READINGS: Final = 10_000
MAX_AGE_MS: Final = 30 * 86_400_000
MAX_AHEAD_MS: Final = 10 * 60_000

KEY_RULE: Final = f"1 to {MAX_KEY} characters of A-Za-z0-9_.:/-"
KEY_PATTERN: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")

# RFC 3339 section 5.6, with an offset: a local time without one says nothing about the instant.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BESIDE_VALUES = frozenset({"ts", "ack", "values", "quality"})
# How far a value can be trusted: the severities of OPC UA's status codes (Part 4 section 7.39.1). What is not marked is good.
QUALITIES: Final = ("good", "uncertain", "bad")
GOOD: Final = 0

# Keys seen and found good. Looking a key up costs a tenth of matching it; the bound keeps strangers from filling it.
good_keys: set[str] = set()
_GOOD_KEYS_LIMIT: Final = 100_000


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """One reading (`key` set) or one whole list element (`key` None) that was not accepted. `limit`, `allowed`: see PayloadError."""

    index: int
    code: str
    reason: str
    limit: str | None = None
    key: str | None = None
    allowed: Allowed | None = None


class Parsed(msgspec.Struct, gc=False):
    """`items`: (milliseconds since the epoch, {key: value}) per element with a reading that can be stored; `places`: their indexes.

    `marks`: position in `items` → {key: place in QUALITIES} of the readings whose quality is not good.
    """

    items: list[Item]
    rejected: list[Rejected]
    ack: bool
    places: list[int] | None = None
    marks: dict[int, dict[str, int]] | None = None


class PayloadError(Exception):
    """The whole payload is refused. `code` is stable kebab-case, `reason` one sentence, `limit` the name of the limit that was
    passed (`message_bytes`) and `allowed` its value; both are None where no limit is at fault."""

    def __init__(self, code: str, reason: str, limit: str | None = None, allowed: Allowed | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.limit = limit
        self.allowed = allowed


_encode = msgspec.json.Encoder().encode


class Reader:
    """Collects items and rejections of one payload, element by element."""

    def __init__(self, now_ms: int, came_ms: int | None = None) -> None:
        """`now_ms`, `came_ms`: see `iiot.payloads.parse`."""
        self.now_ms = now_ms
        self.came_ms = now_ms if came_ms is None else came_ms
        self.items: list[Item] = []
        self.places: list[int] = []
        self.rejected: list[Rejected] = []
        self.marks: dict[int, dict[str, int]] = {}
        self.ack = False
        self.readings = 0

    def read(self, index: int, element: Any) -> None:
        """Take one object of either form."""
        if not isinstance(element, dict):
            reason = f"an element of the list is an object, not {kind_of(element)}"
            self.rejected.append(Rejected(index, "not-an-object", reason))
            return
        values, marks = element.get("values"), dict[str, int]()
        if isinstance(values, dict):
            for key in element.keys() - _BESIDE_VALUES:
                reason = f"{shown(key)} stands beside values; put it inside values to store it"
                self.rejected.append(Rejected(index, "unknown-field", reason, None, shown(key)))
            self._count(len(values))
            marks, values = self._read_quality(index, element.get("quality"), values)
        else:
            values = {key: value for key, value in element.items() if key not in ("ts", "ack")}
            self._count(len(values))
        self._read_ack(index, element.get("ack"))
        if not values:
            if element.get("values"):
                # Of none was the quality understood, which has been said.
                return
            self.rejected.append(Rejected(index, "empty", "there is no reading beside ts and ack"))
            return
        self.take(index, element.get("ts"), values, marks)

    def take(self, index: int, time: Any, values: dict[str, Any], marks: dict[str, int] | None = None) -> None:
        """Take the values of one moment: `time` is milliseconds, an RFC 3339 string, or None for when the message came; `marks`: see Parsed."""
        ts = self._read_ts(index, time)
        good = self._read_values(index, values)
        if ts is not None and good:
            if marks and (kept := {key: mark for key, mark in marks.items() if key in good}):
                self.marks[len(self.items)] = kept
            self.items.append((ts, good))
            self.places.append(index)

    def _count(self, readings: int) -> None:
        self.readings += readings
        if self.readings > MAX_READINGS:
            reason = f"a message holds at most {MAX_READINGS} readings, split it"
            raise PayloadError("too-many-readings", reason, "readings_per_message", MAX_READINGS)

    def _read_ack(self, index: int, ack: Any) -> None:
        if isinstance(ack, bool):
            self.ack = self.ack or ack
        elif ack is not None:
            reason = 'ack is true or false; send a signal of that name as {"values": {"ack": …}}'
            self.rejected.append(Rejected(index, "ack-not-boolean", reason, None, "ack"))

    def _read_quality(self, index: int, quality: Any, values: dict[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
        """(marks, the values whose quality is understood): one word for all of them, or an object that names some."""
        words = quality if isinstance(quality, dict) else dict.fromkeys(values, quality)
        if quality is None or not values:
            return {}, values
        marks, unread = {}, set[str]()
        for key, word in words.items():
            if key not in values:
                reason = f"quality names {shown(key)}, which is not among the values"
                self.rejected.append(Rejected(index, "unknown-field", reason, None, shown(key)))
            elif word not in QUALITIES:
                unread.add(key)
                reason = f"the quality of a reading is one of {', '.join(QUALITIES)}"
                self.rejected.append(
                    Rejected(index, "quality-invalid", reason, "quality", shown(key), ", ".join(QUALITIES))
                )
            elif word != QUALITIES[GOOD]:
                marks[key] = QUALITIES.index(word)
        return marks, {key: value for key, value in values.items() if key not in unread} if unread else values

    def _read_ts(self, index: int, ts: Any) -> int | None:
        millis = self.came_ms if ts is None else _milliseconds(ts)
        if millis is None:
            reason = f"ts is {kind_of(ts)}; it must be integer milliseconds since 1970 or an RFC 3339 time with offset"
            self.rejected.append(Rejected(index, "ts-invalid", reason))
        elif millis < self.now_ms - MAX_AGE_MS:
            reason = "ts is more than 30 days in the past"
            if 0 < millis * 1000 - self.now_ms + MAX_AGE_MS < 2 * MAX_AGE_MS:
                reason += "; it looks like seconds, milliseconds are expected"
            self.rejected.append(Rejected(index, "ts-too-old", reason, "ts_age_seconds", None, MAX_AGE_MS // 1000))
        elif millis > self.now_ms + MAX_AHEAD_MS:
            reason = "ts is more than 10 minutes in the future; check the clock of the device"
            self.rejected.append(Rejected(index, "ts-too-new", reason, "ts_ahead_seconds", None, MAX_AHEAD_MS // 1000))
        else:
            return millis
        return None

    def _read_values(self, index: int, values: dict[str, Any]) -> dict[str, Value]:
        good: dict[str, Value] = {}
        for key, value in values.items():
            if key not in good_keys and not _learn_key(key):
                reason = f"{shown(key)} is not a key: {KEY_RULE}"
                self.rejected.append(Rejected(index, "key-invalid", reason, "key_characters", shown(key), KEY_RULE))
                continue
            checked = _check_value(value)
            if isinstance(checked, _Flaw):
                self.rejected.append(Rejected(index, *checked[:3], key, checked.allowed))
            else:
                good[key] = checked
        return good


class _Flaw(NamedTuple):
    code: str
    reason: str
    limit: str | None = None
    allowed: Allowed | None = None


TOO_BIG = _Flaw("number-out-of-range", "a number does not fit into double precision", "number", sys.float_info.max)
_NUL = _Flaw("string-invalid", "a string must not contain the character NUL (\\u0000)")


def _check_value(value: Any) -> Value | _Flaw:
    """The value as it is stored, or what is wrong with it."""
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else TOO_BIG
    if isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            return TOO_BIG
    if isinstance(value, str):
        if len(value) > MAX_STRING:
            return _Flaw(
                "string-too-long", f"a string has at most {MAX_STRING} characters", "string_characters", MAX_STRING
            )
        return _NUL if "\0" in value else value
    if isinstance(value, (dict, list)):
        return _check_json(value)
    return _Flaw("value-null", "null is not a value; leave the reading out")


def _check_json(value: dict[str, Any] | list[Any]) -> Value | _Flaw:
    """A JSON value of at most 8 KiB (encoded without spaces), 32 levels, and without NUL, which PostgreSQL refuses."""
    if _depth_exceeds(value, MAX_DEPTH):
        return _Flaw("too-deep", f"the value is nested deeper than {MAX_DEPTH} levels", "nesting_levels", MAX_DEPTH)
    encoded = _encode(value)
    if len(encoded) > MAX_JSON_BYTES:
        return _Flaw("json-too-large", f"a JSON value has at most {MAX_JSON_BYTES} bytes", "json_bytes", MAX_JSON_BYTES)
    # The encoder writes NUL as \u0000 and a backslash as two, so an odd run of backslashes before it means NUL.
    if b"\\u0000" in encoded and re.search(rb"(?<!\\)(?:\\\\)*\\u0000", encoded):
        return _NUL
    return value


def _depth_exceeds(value: Any, levels: int) -> bool:
    """Walk level by level, so that depth costs no recursion."""
    level = [value]
    for _ in range(levels):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _learn_key(key: str) -> bool:
    """True for a well-formed key, remembered for the short way."""
    if KEY_PATTERN.fullmatch(key) is None:
        return False
    if len(good_keys) >= _GOOD_KEYS_LIMIT:
        good_keys.clear()
    good_keys.add(key)
    return True


def _milliseconds(ts: Any) -> int | None:
    """Milliseconds since the epoch of an integer, a float or an RFC 3339 string; None if it is none of them."""
    if isinstance(ts, bool):
        return None
    if isinstance(ts, (int, float)):
        return math.floor(ts)
    if not isinstance(ts, str) or _RFC3339.fullmatch(ts) is None:
        return None
    try:
        moment = datetime.fromisoformat(ts.upper())
    except ValueError:
        return None
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def kind_of(value: Any) -> str:
    """The JSON name of a value's type, for a reason."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def shown(text: str) -> str:
    """Text of a stranger, cut and printable: it goes to logs, the database and back to the device."""
    cut = text if len(text) <= MAX_KEY else text[: MAX_KEY - 1] + "…"
    return "".join(char if char.isprintable() else "\ufffd" for char in cut)
