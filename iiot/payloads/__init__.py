"""Telemetry payloads: bytes of a message in, checked readings and rejections out.

Three shapes are understood (CONTRACT 4), the same in every protocol, as JSON or as CBOR:

- flat: `{"temperature": 21.5, "running": true}`. `ts` and `ack` are reserved words at the top of an object;
- wrapped: `{"ts": 1766000000000, "values": {"temperature": 21.5}}`. An object whose `values` is itself an object is
  always this form; here any key, `ts` and `ack` too, may name a signal. Beside `values`, `"quality": "uncertain"` or
  `"quality": {"temperature": "bad"}` says how far they can be trusted;
- a list of either. Each element has its own time; one `"ack": true` asks for an acknowledgement of the whole message.

`ts` is integer milliseconds since the epoch or an RFC 3339 string with an offset; fractions of a millisecond are cut
off; missing or null means the server's time. Integers become floats, as they are stored as double precision. A key
that stands twice in one JSON object counts once, the last one, as in most JSON readers. By content type, SenML packs of
both kinds are read too (`iiot.payloads.senml`).

Nearly every message is small and correct JSON: the short way answers None where it is not sure, then `_parse_carefully`
decides; a property test holds both together.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeAlias

import msgspec

from iiot.payloads import cbor, senml
from iiot.payloads.reader import (
    GOOD,
    KEY_PATTERN,
    MAX_AGE_MS,
    MAX_AHEAD_MS,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_JSON_BYTES,
    MAX_KEY,
    MAX_READINGS,
    MAX_STRING,
    QUALITIES,
    TOO_BIG,
    Allowed,
    Item,
    Parsed,
    PayloadError,
    Reader,
    Rejected,
    Value,
    good_keys,
    kind_of,
    shown,
)

__all__ = [
    "GOOD", "KEY_PATTERN", "MAX_AGE_MS", "MAX_AHEAD_MS", "MAX_BYTES", "MAX_DEPTH", "MAX_JSON_BYTES", "MAX_KEY", "MAX_READINGS",
    "MAX_STRING", "QUALITIES", "READ", "Allowed", "Item", "Parsed", "PayloadError", "Rejected", "Value", "check_envelope",
    "decode", "form_of", "parse",
]  # fmt: skip

JSON_TYPES: Final = frozenset({"", "application/json", "text/json", "text/plain"})
CBOR, SENML_JSON, SENML_CBOR = "application/cbor", "application/senml+json", "application/senml+cbor"
# The content types that are read.
READ: Final = ("application/json", CBOR, SENML_JSON, SENML_CBOR)

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
_NOT_PLAIN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def parse(payload: bytes, content_type: str | None, now_ms: int, came_ms: int | None = None) -> Parsed:
    """Read one telemetry payload.

    `now_ms` is the server's time in milliseconds since the epoch: the time of readings without one, and the middle of
    the accepted window. `came_ms`: when the message came, if that is another time; then it is the time of readings without one.
    Raises PayloadError, and nothing else, whatever the bytes are.
    """
    if came_ms is None and (content_type is None or _is_json(content_type)) and len(payload) <= MAX_BYTES:
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
    return _parse_carefully(payload, content_type, now_ms, came_ms)


def _plain(ts: int | None, values: dict[str, Value], ack: bool, now_ms: int) -> Parsed | None:
    """The answer for plain values with known keys inside the window of time; None for everything else."""
    if ts is None:
        ts = now_ms
    if now_ms - MAX_AGE_MS <= ts <= now_ms + MAX_AHEAD_MS and good_keys.issuperset(values):
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
        if not oldest <= ts <= newest or not good_keys.issuperset(values):
            return None
        readings += len(values)
        ack = ack or element.ack
        items.append((ts, values))
    if not items or readings > MAX_READINGS:
        return None
    return Parsed(items, [], ack)


def _parse_carefully(payload: bytes, content_type: str | None, now_ms: int, came_ms: int | None = None) -> Parsed:
    """The full rules. They decide alone; the short way in `parse` may only save time."""
    form = form_of(content_type)
    check_envelope(payload)
    reader = Reader(now_ms, came_ms)
    if form in (SENML_JSON, SENML_CBOR):
        data = _decode(payload) if form == SENML_JSON else cbor.decode(payload, (int, str))
        senml.read(data, reader)
        return Parsed(reader.items, reader.rejected, False, reader.places)
    data = decode(payload, form)
    elements = data if isinstance(data, list) else [data]
    if not isinstance(data, (dict, list)):
        raise PayloadError("not-an-object", f"a message is an object or a list of objects, not {kind_of(data)}")
    if not elements:
        raise PayloadError("empty", "the message is an empty list: it holds no reading")
    if len(elements) > MAX_READINGS:
        raise PayloadError(
            "too-many-readings",
            f"a message holds at most {MAX_READINGS} readings, split it",
            "readings_per_message",
            MAX_READINGS,
        )
    for index, element in enumerate(elements):
        reader.read(index, element)
    places = reader.places if len(reader.items) < len(elements) else None
    return Parsed(reader.items, reader.rejected, reader.ack, places, reader.marks or None)


def form_of(content_type: str | None) -> str:
    """The media type without parameters (RFC 9110 section 8.3.1), "" for JSON; refused before a byte is interpreted."""
    if content_type is None or _is_json(content_type):
        return ""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in (CBOR, SENML_JSON, SENML_CBOR):
        return media_type
    reason = (
        f"the content type {shown(content_type)} is not supported; send JSON as application/json, or {CBOR}, {SENML_JSON} "
        f"or {SENML_CBOR}"
    )
    raise PayloadError("unsupported-content-type", reason, "content_type", ", ".join(READ))


def check_envelope(payload: bytes) -> None:
    """Refuse by size before a byte is interpreted."""
    if len(payload) > MAX_BYTES:
        reason = f"the message has {len(payload)} bytes; at most {MAX_BYTES} are allowed, split it"
        raise PayloadError("too-large", reason, "message_bytes", MAX_BYTES)
    if not payload.strip():
        raise PayloadError("empty", "the message has no content")


def decode(payload: bytes, form: str) -> Any:
    """JSON or CBOR to Python; raises PayloadError. `form`: see `form_of`."""
    return cbor.decode(payload) if form == CBOR else _decode(payload)


def _is_json(content_type: str) -> bool:
    """True for the JSON types with or without parameters; SenML has types of its own."""
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
        reason = f"the JSON is nested deeper than {MAX_DEPTH} levels"
        raise PayloadError("too-deep", reason, "nesting_levels", MAX_DEPTH) from None
    except msgspec.ValidationError:
        # Without a type to validate against, msgspec raises this for numbers alone.
        raise PayloadError(*TOO_BIG) from None
    except msgspec.DecodeError as error:
        _raise_not_json(payload, str(error))


def _raise_not_json(payload: bytes, message: str) -> NoReturn:
    """Name the commonest mistake: Python and JavaScript programs write NaN and Infinity, which JSON does not have."""
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(payload, parse_constant=_refuse_constant)
    raise PayloadError("not-json", f"the message is not JSON: {message.removeprefix('JSON is malformed: ')}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise PayloadError("not-finite", f"{name} is not a number in JSON; leave the reading out")
