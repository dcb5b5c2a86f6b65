"""Cursors: where the next page of a list begins, sealed so that nobody writes one by hand."""

import base64
import binascii
import hashlib
import hmac
import json
from functools import cache
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field

from iiot import config
from iiot.errors import Invalid
from iiot.services.listing import Found
from iiot.web.routes import Out, Query

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
_SEAL = 10

Item = TypeVar("Item")


class ListQuery(Query):
    """What every list takes."""

    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT, description="Items per page.")] = DEFAULT_LIMIT
    cursor: Annotated[
        str | None,
        Field(max_length=2000, description="`next_cursor` of the page before, with the same filters and sort."),
    ] = None


class Page(Out, Generic[Item]):
    """One page of a list; `total` counts all items that match."""

    items: list[Item]
    next_cursor: str | None
    total: int


@cache
def _key() -> bytes:
    return config.load().derived_key("cursor")


def encode_cursor(kind: str, position: list[Any] | None) -> str | None:
    """Seal a position; `kind` names the list with its sort, and must be the same when it is read."""
    if position is None:
        return None
    content = json.dumps(position, separators=(",", ":")).encode()
    seal = hmac.new(_key(), kind.encode() + b"\x00" + content, hashlib.sha256).digest()[:_SEAL]
    return base64.urlsafe_b64encode(seal + content).rstrip(b"=").decode("ascii")


def decode_cursor(kind: str, cursor: str | None) -> list[Any] | None:
    """The position in a cursor; raises Invalid for one of another list, sort or portal."""
    if cursor is None:
        return None
    try:
        data = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        seal, content = data[:_SEAL], data[_SEAL:]
        if not hmac.compare_digest(
            seal, hmac.new(_key(), kind.encode() + b"\x00" + content, hashlib.sha256).digest()[:_SEAL]
        ):
            raise ValueError
        position: list[Any] = json.loads(content)
    except (ValueError, binascii.Error):
        message = "not a cursor of this list in this order; start again without it"
        raise Invalid("The query is not valid.", [{"loc": ["query", "cursor"], "msg": message}]) from None
    return position


def page(kind: str, found: Found[Any], items: list[Any]) -> dict[str, Any]:
    """The members of a `Page` for what a service found."""
    return {"items": items, "next_cursor": encode_cursor(kind, found.next_position), "total": found.total}
