"""CBOR to plain Python data (RFC 8949), with everything refused that JSON does not have.

Decoded by cbor2 without its tags: a tag may build numbers of any size, patterns and loops. Byte strings, `undefined` and
other simple values, keys that are no text, and NaN or infinities refuse the message, as does a key that stands twice in
one map (section 5.6). Strings and containers of indefinite length are read; a length that the message does not have
costs nothing, as cbor2 reads in small pieces.
"""

import io
import math
from collections.abc import Callable, Hashable
from typing import Any, Final, NoReturn

import cbor2

from iiot.payloads.reader import MAX_DEPTH, PayloadError

# A list, an object and its `values` around a value.
LEVELS: Final = MAX_DEPTH + 3


class _TagError(Exception):
    pass


def _refuse_tag(*_: Any) -> NoReturn:
    raise _TagError


class _NoTags(dict[int, Callable[..., Any]]):
    """Refuses every tag that cbor2 knows; those it does not know go to its `tag_hook`."""

    def __contains__(self, _tag: object) -> bool:
        return True

    def __missing__(self, _tag: int) -> Callable[..., Any]:
        return _refuse_tag

    def get(self, _tag: int, _default: Any = None) -> Any:
        return _refuse_tag


def decode(payload: bytes, key_types: tuple[type, ...] = (str,)) -> Any:
    """The one data item of `payload`; raises PayloadError. `key_types`: of the keys of maps, also `int` for SenML."""
    stream = io.BytesIO(payload)
    decoder = cbor2.CBORDecoder(
        stream,
        tag_hook=_refuse_tag,
        semantic_decoders=_NoTags(),
        max_depth=LEVELS,
        allow_duplicate_keys=False,
        strict_hashable_types=key_types == (str,),
    )
    try:
        data = decoder.decode()
    except Exception as error:
        # cbor2 wraps what went wrong, also the errors of a memory or a hash, into errors of its own.
        raise _explained(error) from None
    if stream.tell() < len(payload):
        raise PayloadError("not-cbor", f"there are {len(payload) - stream.tell()} bytes after the end of the CBOR item")
    _check(data, key_types)
    return data


def _explained(error: BaseException) -> PayloadError:
    """The refusal for what cbor2 raised."""
    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _TagError):
            return PayloadError("cbor-type", "tagged items are not read; send plain numbers, texts, lists and maps")
        if isinstance(cause, UnicodeDecodeError):
            return PayloadError("not-utf8", "a text of the CBOR message is not UTF-8")
        cause = cause.__cause__ or cause.__context__
    if "nesting depth" in text:
        reason = f"the CBOR is nested deeper than {MAX_DEPTH} levels"
        return PayloadError("too-deep", reason, "nesting_levels", MAX_DEPTH)
    if "Duplicate map key" in text:
        return PayloadError("duplicate-key", "a key stands twice in one map (RFC 8949 section 5.6)")
    if "hashable" in text or "map key" in text:
        return PayloadError("cbor-type", "the keys of a map are texts")
    return PayloadError("not-cbor", f"the message is not CBOR: {text[:160]}")


def _check(data: Any, key_types: tuple[type, ...]) -> None:
    """Refuse what JSON could not have said; level by level, so that depth costs no recursion."""
    level = [data]
    while level:
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                if not all(type(key) in key_types for key in node):
                    raise PayloadError("cbor-type", "the keys of a map are texts")
                below.extend(node.values())
            elif isinstance(node, list):
                below.extend(node)
            else:
                _check_scalar(node)
        level = below


def _check_scalar(value: Hashable) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise PayloadError("not-finite", "NaN and infinities are not values; leave the reading out")
    elif value is not None and type(value) not in (bool, int, str):
        reason = "byte strings, undefined and simple values are not read; send numbers, texts, lists and maps"
        raise PayloadError("cbor-type", reason)
