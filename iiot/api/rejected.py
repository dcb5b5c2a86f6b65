"""Messages of devices that were refused: listed, mended and sent again, thrown away."""

import base64
import binascii
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from iiot import tenancy, web
from iiot.errors import Invalid, Problem
from iiot.models import RejectedMessage
from iiot.services import devices, rejections
from iiot.services.listing import Found
from iiot.services.rejections import Filters, Mended, Result

api = web.Api("rejected")

Encoding = Literal["text", "base64"]
Short = Annotated[str | None, Field(max_length=128)]


class RefusalOut(web.Out):
    """What was wrong with a message or one of its readings; the limit that was passed, and what it allows."""

    index: int
    code: str
    reason: str
    key: str | None = None
    limit: str | None = None
    allowed: int | float | str | None = None


class ReplayedOut(web.Out):
    """What sending the message again came to the last time; `accepted` counts readings."""

    accepted: int
    mended: bool
    rejected: list[RefusalOut]


class RejectedOut(web.Out):
    """A refused message. `payload` is its text, or base64 when it is not UTF-8; lists show its first 8 KiB. `size` is the true length in
    bytes, and 256 KiB are kept. `replayed_at`: when it was sent again and something of it was stored."""

    id: Annotated[str, Field(validation_alias="uid")]
    device_id: str
    received_at: datetime
    protocol: str
    topic: str
    code: str
    reason: str
    content_type: str | None
    payload: str
    payload_encoding: Encoding
    size: int
    details: Annotated[
        list[dict[str, Any]] | None,
        Field(description="The readings refused: index, key, code, reason, limit, allowed."),
    ]
    replayed_at: datetime | None
    replayed_by: str | None
    replay: ReplayedOut | None


class RejectedQuery(web.ListQuery):
    """Which messages."""

    device: Annotated[str | None, Field(max_length=64, description="Id of a device.")] = None
    code: Short = None
    protocol: Short = None
    state: Annotated[Literal["open", "replayed"] | None, Field(description="Sent again with success, or not yet.")] = (
        None
    )
    start: Annotated[web.Moment | None, Field(alias="from", description="RFC 3339.")] = None
    stop: Annotated[web.Moment | None, Field(alias="to", description="RFC 3339; it does not belong to the range.")] = (
        None
    )


class ReplayIn(web.Body):
    """What to send in the place of the message; what is left out stays as it came."""

    payload: str | None = None
    payload_encoding: Encoding = "text"
    content_type: Annotated[str | None, Field(max_length=256)] = None


class ReplayOut(web.Out):
    """`accepted` readings are stored now, or were before; `rejected` says what is still wrong."""

    accepted: int
    rejected: list[RefusalOut]
    message: RejectedOut


class ReplayManyIn(web.Body):
    """Which open messages to send again as they came, and where to go on."""

    device: Annotated[str | None, Field(max_length=64)] = None
    code: Short = None
    protocol: Short = None
    start: Annotated[web.Moment | None, Field(alias="from")] = None
    stop: Annotated[web.Moment | None, Field(alias="to")] = None
    limit: Annotated[int, Field(ge=1, le=rejections.MOST_AT_ONCE)] = rejections.MOST_AT_ONCE
    cursor: Annotated[str | None, Field(max_length=2000, description="`next_cursor` of the step before.")] = None


class ReplayManyOut(web.Out):
    """Counts of messages; `next_cursor` is None when nothing is left."""

    stored: int
    refused: int
    skipped: int
    next_cursor: str | None


def _out(message: RejectedMessage, payload: bytes) -> RejectedOut:
    text, encoding = shown(payload, is_whole=len(payload) == message.size)
    names = ("uid", "received_at", "protocol", "topic", "code", "reason", "content_type", "size", "details")
    fields = {name: getattr(message, name) for name in (*names, "replayed_at", "replayed_by", "replay")}
    return RejectedOut(**fields, device_id=message.device.uid, payload=text, payload_encoding=encoding)


def shown(payload: bytes, *, is_whole: bool) -> tuple[str, Encoding]:
    """A payload in JSON: as text where it is one, else base64. A text may have been cut in the middle of a character."""
    try:
        return payload.decode(), "text"
    except UnicodeDecodeError as error:
        if not is_whole and error.start > 0 and len(payload) - error.start < 4:
            return payload[: error.start].decode(), "text"
        return base64.b64encode(payload).decode(), "base64"


def _page(kind: str, found: Found[RejectedMessage], heads: dict[str, bytes]) -> dict[str, Any]:
    return web.page(kind, found, [_out(message, heads.get(message.uid, b"")) for message in found.items])


@api.route("GET", "/rejected", query=RejectedQuery, out=web.Page[RejectedOut], permission="telemetry:read")
def list_all_rejected(ctx: web.Context, query: RejectedQuery) -> Any:
    """List the refused messages of all devices, the newest first.

    They are kept for 30 days unless the operator chose otherwise."""
    is_open = None if query.state is None else query.state == "open"
    filters = Filters(query.device, query.code, query.protocol, query.start, query.stop, is_open)
    kind = f"all rejected:{filters}"
    with tenancy.work(ctx.scope) as db:
        found = rejections.search(db, filters, query.limit, web.decode_cursor(kind, query.cursor))
        heads = rejections.heads(db, found.items)
    return _page(kind, found, heads)


@api.route(
    "GET",
    "/devices/<uid>/rejected",
    query=web.ListQuery,
    out=web.Page[RejectedOut],
    permission="telemetry:read",
    problems=(404,),
)
def list_rejected(ctx: web.Context, uid: str, query: web.ListQuery) -> Any:
    """List a device's refused messages, the newest first, with what was wrong.

    They are kept for 30 days unless the operator chose otherwise."""
    kind = f"rejected:{uid}"
    position = web.decode_cursor(kind, query.cursor)
    with tenancy.work(ctx.scope) as db:
        devices.id_of(db, uid)
        found = rejections.search(db, Filters(device=uid), query.limit, position)
        heads = rejections.heads(db, found.items)
    return _page(kind, found, heads)


@api.route("GET", "/rejected/<rejected_id>", out=RejectedOut, permission="telemetry:read", problems=(404,))
def get_rejected(ctx: web.Context, rejected_id: str) -> RejectedOut:
    """Read a refused message with all that was kept of its payload."""
    with tenancy.work(ctx.scope) as db:
        message = rejections.get(db, rejected_id)
        return _out(message, bytes(message.payload))


@api.route(
    "POST",
    "/rejected/<rejected_id>/replay",
    body=ReplayIn,
    out=ReplayOut,
    optional_body=True,
    permission="telemetry:write",
    problems=(404, 409, 422),
)
def replay_rejected(ctx: web.Context, rejected_id: str, body: ReplayIn) -> ReplayOut:
    """Send a refused message again as its device, mended or as it came.

    Readings without a time get the time at which the message came first, so sending it twice stores nothing twice. When nothing of it could be
    stored the answer is 422 with what is still wrong.
    """
    message, result = rejections.replay(ctx.scope, rejected_id, _mended(body))
    if not result.accepted:
        raise refused_again(result)
    return ReplayOut(
        accepted=result.accepted,
        rejected=[RefusalOut.model_validate(each) for each in result.rejected],
        message=_out(message, bytes(message.payload)),
    )


def _mended(body: ReplayIn) -> Mended:
    payload = None
    if body.payload is not None:
        payload = body.payload.encode("utf-8", "surrogatepass")
        if body.payload_encoding == "base64":
            try:
                payload = base64.b64decode(body.payload, validate=True)
            except (ValueError, binascii.Error):
                raise Invalid("The body is not valid.", [{"loc": ["body", "payload"], "msg": "not base64"}]) from None
    return Mended(payload, body.content_type)


def refused_again(result: Result) -> Problem:
    """422: nothing of the message could be stored."""
    listed = [RefusalOut.model_validate(each).model_dump() for each in result.rejected]
    errors = [{"loc": ["body", "payload"], "msg": each.reason} for each in result.rejected[:100]]
    detail = (
        f"Nothing was stored: {result.rejected[0].reason.rstrip('.')}." if listed else "There was nothing to store."
    )
    return Problem(422, "rejected", detail, errors=errors, extra={"accepted": 0, "rejected": listed})


@api.route(
    "POST", "/rejected/replay", body=ReplayManyIn, out=ReplayManyOut, optional_body=True, permission="telemetry:write"
)
def replay_many_rejected(ctx: web.Context, body: ReplayManyIn) -> ReplayManyOut:
    """Send refused messages again as they came, oldest first, after their cause was mended.

    A step takes up to 100; call again with `next_cursor` until it is null. What was refused meanwhile, was cut, or holds no measurements is left out.
    """
    filters = Filters(body.device, body.code, body.protocol, body.start, body.stop)
    kind = f"replay:{filters}"
    step = rejections.replay_many(ctx.scope, filters, body.limit, web.decode_cursor(kind, body.cursor))
    return ReplayManyOut(
        stored=step.stored,
        refused=step.refused,
        skipped=step.skipped,
        next_cursor=web.encode_cursor(kind, step.position),
    )


@api.route("DELETE", "/rejected/<rejected_id>", permission="telemetry:write", problems=(404,))
def discard_rejected(ctx: web.Context, rejected_id: str) -> None:
    """Throw a refused message away."""
    with tenancy.work(ctx.scope) as db:
        rejections.discard(db, rejected_id)
