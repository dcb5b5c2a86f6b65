"""Telemetry payloads: bytes of a message in, checked readings and rejections out.

Three shapes are understood (CONTRACT 4), the same in every protocol:

- flat: `{"temperature": 21.5, "running": true}`. `ts` and `ack` are reserved words at the top of an object;
- wrapped: `{"ts": 1766000000000, "values": {"temperature": 21.5}}`. An object whose `values` is itself an object is
  always this form; here any key, `ts` and `ack` too, may name a signal;
- a list of either. Each element has its own time; one `"ack": true` asks for an acknowledgement of the whole message.

`ts` is integer milliseconds since the epoch or an RFC 3339 string with an offset; fractions of a millisecond are cut
off; missing or null means the server's time. Integers become floats, as they are stored as double precision. A key
that stands twice in one object counts once, the last one, as in most JSON readers.

What is wrong with one reading or list element rejects that one (`Rejected`); what is wrong with the bytes refuses the
whole message (`PayloadError`). Codes are for programs, reasons for people. Nearly every message is small and correct:
the short way answers None where it is not sure, then `_parse_carefully` decides; a property test holds both together.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, NoReturn, TypeAlias

import msgspec

Value: TypeAlias = float | bool | str | dict[str, Any] | list[Any]
Item: TypeAlias = tuple[int, dict[str, Value]]

MAX_BYTES: Final = 256 * 1024
MAX_KEY: Final = 128
MAX_STRING: Final = 1024
MAX_JSON_BYTES: Final = 8 * 1024
MAX_DEPTH: Final = 32
MAX_READINGS: Final = 10_000
MAX_AGE_MS: Final = 30 * 86_400_000
MAX_AHEAD_MS: Final = 10 * 60_000

JSON_TYPES: Final = frozenset({"", "application/json", "text/json", "text/plain"})
KEY_PATTERN: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")

# RFC 3339 section 5.6, with an offset: a local time without one says nothing about the instant.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RESERVED = frozenset({"ts", "ack", "values"})

# Keys seen and found good. Looking a key up costs a tenth of matching it; the bound keeps strangers from filling it.
_good_keys: set[str] = set()
_GOOD_KEYS_LIMIT: Final = 100_000


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """One reading (`key` set) or one whole list element (`key` None) that was not accepted."""

    index: int
    code: str
    reason: str
    limit: str | None = None
    key: str | None = None


class Parsed(msgspec.Struct, gc=False):
    """`items`: (milliseconds since the epoch, {key: value}) per element with a good reading; `places`: their indexes."""

    items: list[Item]
    rejected: list[Rejected]
    ack: bool
    places: list[int] | None = None


class PayloadError(Exception):
    """The whole payload is refused. `code` is stable kebab-case, `reason` one sentence, `limit` what was passed."""

    def __init__(self, code: str, reason: str, limit: str | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.limit = limit


_PlainValue: TypeAlias = float | bool | Annotated[str, msgspec.Meta(max_length=MAX_STRING)]
if TYPE_CHECKING:
    _Values: TypeAlias = dict[str, Value]
else:
    _Values = Annotated[dict[str, _PlainValue], msgspec.Meta(min_length=1, max_length=MAX_READINGS)]


class _Wrapped(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The wrapped form with plain values only, checked while it is decoded."""

    values: _Values
    ts: int | None = None
    ack: bool = False


_decode_wrapped = msgspec.json.Decoder(_Wrapped).decode
_decode_wrapped_list = msgspec.json.Decoder(list[_Wrapped]).decode
_decode_flat = msgspec.json.Decoder(_Values).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_NOT_PLAIN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def parse(payload: bytes, content_type: str | None, now_ms: int) -> Parsed:
    """Read one telemetry payload.

    `now_ms` is the server's time in milliseconds since the epoch: the time of readings without one, and the middle of
    the accepted window. Raises PayloadError, and nothing else, whatever the bytes are.
    """
    if (content_type is None or _is_json(content_type)) and len(payload) <= MAX_BYTES:
        try:
            if payload[:1] == b"[":
                parsed = _plain_list(_decode_wrapped_list(payload), now_ms)
            elif b'"values"' in payload:
                item = _decode_wrapped(payload)
                parsed = _plain(item.ts, item.values, item.ack, now_ms)
            else:
                values = _decode_flat(payload)
                parsed = None if "ts" in values or "ack" in values else _plain(None, values, False, now_ms)
        except _NOT_PLAIN:
            parsed = None
        if parsed is not None and b"\\u0000" not in payload:
            return parsed
    return _parse_carefully(payload, content_type, now_ms)


def _plain(ts: int | None, values: dict[str, Value], ack: bool, now_ms: int) -> Parsed | None:
    """The answer for plain values with known keys inside the window of time; None for everything else."""
    if ts is None:
        ts = now_ms
    if now_ms - MAX_AGE_MS <= ts <= now_ms + MAX_AHEAD_MS and _good_keys.issuperset(values):
        return Parsed([(ts, values)], [], ack)
    return None


def _plain_list(elements: list[_Wrapped], now_ms: int) -> Parsed | None:
    """As `_plain`, for a list of wrapped objects."""
    oldest, newest = now_ms - MAX_AGE_MS, now_ms + MAX_AHEAD_MS
    items: list[Item] = []
    readings, ack = 0, False
    for element in elements:
        ts, values = element.ts, element.values
        if ts is None:
            ts = now_ms
        if not oldest <= ts <= newest or not _good_keys.issuperset(values):
            return None
        readings += len(values)
        ack = ack or element.ack
        items.append((ts, values))
    if not items or readings > MAX_READINGS:
        return None
    return Parsed(items, [], ack)


def _parse_carefully(payload: bytes, content_type: str | None, now_ms: int) -> Parsed:
    """The full rules. They decide alone; the short way in `parse` may only save time."""
    _check_envelope(payload, content_type)
    data = _decode(payload)
    elements = data if isinstance(data, list) else [data]
    if not isinstance(data, (dict, list)):
        raise PayloadError("not-an-object", f"a message is an object or a list of objects, not {_kind(data)}")
    if not elements:
        raise PayloadError("empty", "the message is an empty list: it holds no reading")
    reader = _Reader(now_ms)
    for index, element in enumerate(elements):
        reader.read(index, element)
    places = reader.places if len(reader.items) < len(elements) else None
    return Parsed(reader.items, reader.rejected, reader.ack, places)


def _check_envelope(payload: bytes, content_type: str | None) -> None:
    """Refuse by size and content type before a byte is interpreted."""
    if content_type is not None and not _is_json(content_type):
        reason = f"the content type {_shown(content_type)} is not supported; send JSON as application/json"
        raise PayloadError("unsupported-content-type", reason, "application/json")
    if len(payload) > MAX_BYTES:
        reason = f"the message has {len(payload)} bytes; at most {MAX_BYTES} are allowed, split it"
        raise PayloadError("too-large", reason, str(MAX_BYTES))
    if not payload.strip():
        raise PayloadError("empty", "the message has no content")


def _is_json(content_type: str) -> bool:
    """True for the JSON types with or without parameters (RFC 9110 section 8.3.1); SenML has types of its own."""
    return content_type.partition(";")[0].strip().lower() in JSON_TYPES


def _decode(payload: bytes) -> Any:
    """JSON to Python, every failure told apart. A byte order mark is skipped (RFC 8259 section 8.1 allows it)."""
    payload = payload.removeprefix(b"\xef\xbb\xbf")
    try:
        payload.decode("utf-8")
        return _decode_any(payload)
    except UnicodeDecodeError as error:
        raise PayloadError("not-utf8", f"the message is not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise PayloadError("too-deep", f"the JSON is nested deeper than {MAX_DEPTH} levels", str(MAX_DEPTH)) from None
    except msgspec.ValidationError:
        # Without a type to validate against, msgspec raises this for numbers alone.
        raise PayloadError(*_TOO_BIG) from None
    except msgspec.DecodeError as error:
        _raise_not_json(payload, str(error))


def _raise_not_json(payload: bytes, message: str) -> NoReturn:
    """Name the commonest mistake: Python and JavaScript programs write NaN and Infinity, which JSON does not have."""
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(payload, parse_constant=_refuse_constant)
    raise PayloadError("not-json", f"the message is not JSON: {message.removeprefix('JSON is malformed: ')}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise PayloadError("not-finite", f"{name} is not a number in JSON; leave the reading out")


class _Reader:
    """Collects items and rejections of one payload, element by element."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.items: list[Item] = []
        self.places: list[int] = []
        self.rejected: list[Rejected] = []
        self.ack = False
        self.readings = 0

    def read(self, index: int, element: Any) -> None:
        """Take one object of either form."""
        if not isinstance(element, dict):
            reason = f"an element of the list is an object, not {_kind(element)}"
            self.rejected.append(Rejected(index, "not-an-object", reason))
            return
        values = element.get("values")
        if isinstance(values, dict):
            for key in element.keys() - _RESERVED:
                reason = f"{_shown(key)} stands beside values; put it inside values to store it"
                self.rejected.append(Rejected(index, "unknown-field", reason, None, _shown(key)))
        else:
            values = {key: value for key, value in element.items() if key not in ("ts", "ack")}
        self._read_ack(index, element.get("ack"))
        self._count(len(values))
        if not values:
            self.rejected.append(Rejected(index, "empty", "there is no reading beside ts and ack"))
            return
        ts = self._read_ts(index, element.get("ts"))
        good = self._read_values(index, values)
        if ts is not None and good:
            self.items.append((ts, good))
            self.places.append(index)

    def _count(self, readings: int) -> None:
        self.readings += readings
        if self.readings > MAX_READINGS:
            reason = f"a message holds at most {MAX_READINGS} readings, split it"
            raise PayloadError("too-many-readings", reason, str(MAX_READINGS))

    def _read_ack(self, index: int, ack: Any) -> None:
        if isinstance(ack, bool):
            self.ack = self.ack or ack
        elif ack is not None:
            reason = 'ack is true or false; send a signal of that name as {"values": {"ack": …}}'
            self.rejected.append(Rejected(index, "ack-not-boolean", reason, None, "ack"))

    def _read_ts(self, index: int, ts: Any) -> int | None:
        if ts is None:
            return self.now_ms
        millis = _milliseconds(ts)
        if millis is None:
            reason = f"ts is {_kind(ts)}; it must be integer milliseconds since 1970 or an RFC 3339 time with offset"
            self.rejected.append(Rejected(index, "ts-invalid", reason))
        elif millis < self.now_ms - MAX_AGE_MS:
            reason = "ts is more than 30 days in the past"
            if 0 < millis * 1000 - self.now_ms + MAX_AGE_MS < 2 * MAX_AGE_MS:
                reason += "; it looks like seconds, milliseconds are expected"
            self.rejected.append(Rejected(index, "ts-too-old", reason, "30d"))
        elif millis > self.now_ms + MAX_AHEAD_MS:
            reason = "ts is more than 10 minutes in the future; check the clock of the device"
            self.rejected.append(Rejected(index, "ts-too-new", reason, "10min"))
        else:
            return millis
        return None

    def _read_values(self, index: int, values: dict[str, Any]) -> dict[str, Value]:
        good: dict[str, Value] = {}
        for key, value in values.items():
            if key not in _good_keys and not _learn_key(key):
                reason = f"{_shown(key)} is not a key: 1 to {MAX_KEY} characters of A-Za-z0-9_.:/-"
                self.rejected.append(Rejected(index, "key-invalid", reason, str(MAX_KEY), _shown(key)))
                continue
            checked = _check_value(value)
            if isinstance(checked, _Flaw):
                self.rejected.append(Rejected(index, checked.code, checked.reason, checked.limit, key))
            else:
                good[key] = checked
        return good


class _Flaw(NamedTuple):
    code: str
    reason: str
    limit: str | None = None


_TOO_BIG = _Flaw("number-out-of-range", "a number does not fit into double precision", "1.7976931348623157e308")
_NUL = _Flaw("string-invalid", "a string must not contain the character NUL (\\u0000)")


def _check_value(value: Any) -> Value | _Flaw:
    """The value as it is stored, or what is wrong with it."""
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _TOO_BIG
    if isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            return _TOO_BIG
    if isinstance(value, str):
        if len(value) > MAX_STRING:
            return _Flaw("string-too-long", f"a string has at most {MAX_STRING} characters", str(MAX_STRING))
        return _NUL if "\0" in value else value
    if isinstance(value, (dict, list)):
        return _check_json(value)
    return _Flaw("value-null", "null is not a value; leave the reading out")


def _check_json(value: dict[str, Any] | list[Any]) -> Value | _Flaw:
    """A JSON value of at most 8 KiB (encoded without spaces), 32 levels, and without NUL, which PostgreSQL refuses."""
    if _depth_exceeds(value, MAX_DEPTH):
        return _Flaw("too-deep", f"the value is nested deeper than {MAX_DEPTH} levels", str(MAX_DEPTH))
    encoded = _encode(value)
    if len(encoded) > MAX_JSON_BYTES:
        return _Flaw("json-too-large", f"a JSON value has at most {MAX_JSON_BYTES} bytes", str(MAX_JSON_BYTES))
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
    if len(_good_keys) >= _GOOD_KEYS_LIMIT:
        _good_keys.clear()
    _good_keys.add(key)
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


def _kind(value: Any) -> str:
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


def _shown(text: str) -> str:
    """Text of a stranger, cut and printable: it goes to logs, the database and back to the device."""
    cut = text if len(text) <= MAX_KEY else text[: MAX_KEY - 1] + "…"
    return "".join(char if char.isprintable() else "\ufffd" for char in cut)
