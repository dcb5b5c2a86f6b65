"""Measurements over HTTP, from devices and from people and programs on behalf of devices."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from flask import request
from pydantic import Field
from sqlalchemy import select
from werkzeug.exceptions import RequestEntityTooLarge

from iiot import clock, config, payloads, tenancy, web
from iiot.errors import Invalid, NotFound, Problem
from iiot.models import Device
from iiot.payloads import PayloadError
from iiot.services.ingest import KEPT_PAYLOAD, Incoming, Outcome, Outcomes, ingest, is_late

api = web.Api("telemetry")

TOPIC = "POST /api/v1/telemetry"
MAX_ENTRIES = 1000
STATUS = {
    "too-large": 413,
    "unsupported-content-type": 415,
    "not-json": 400,
    "not-utf8": 400,
    "empty": 400,
    "too-deep": 400,
    "not-finite": 400,
    "not-cbor": 400,
    "cbor-type": 400,
    "duplicate-key": 400,
    "not-senml": 400,
}


class RejectedOut(web.Out):
    """What was not stored, and why. `index`: place in the list that was sent; `item`: place in that entry's own list."""

    index: int
    code: str
    reason: str
    key: str | None = None
    limit: Annotated[str | None, Field(description="The name of the limit that was passed.")] = None
    allowed: Annotated[int | float | str | None, Field(description="What that limit allows.")] = None
    item: int | None = None


class StoredOut(web.Out):
    """Counts of readings, after the commit. A duplicate is one that was stored before: it changes nothing and is no error."""

    stored: int
    duplicate: int
    rejected: list[RejectedOut]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """What a person sends for one device; `data` is a payload of the device protocol."""

    device_id: str
    data: msgspec.Raw


_decode_entries = msgspec.json.Decoder(_Entry | list[_Entry]).decode


@api.route(
    "POST",
    "/telemetry",
    auth="user_or_device",
    raw=True,
    out=StoredOut,
    permission="telemetry:write",
    problems=(404,),
)
def post_telemetry(ctx: web.Context) -> StoredOut:
    """Store readings.

    A device (HTTP Basic uid:token) sends a payload as over MQTT: {"temperature": 21.5}, {"ts": …, "values": {…}} or a list. People send
    {"device_id": …, "data": payload}, or a list of these. The answer comes after the commit. What cannot be stored is listed under `rejected`
    and the rest is kept; when nothing could be stored the answer is 422 with type …/rejected and the same list.
    """
    if ctx.principal.kind == "device":
        return _from_device(ctx, ctx.principal.device_uid or "")
    return _from_person(ctx)


def _from_device(ctx: web.Context, uid: str) -> StoredOut:
    try:
        message = _incoming(uid, ctx.body(payloads.MAX_BYTES), ctx.media_type)
    except RequestEntityTooLarge:
        most = payloads.MAX_BYTES
        error = PayloadError("too-large", f"the message has more than {most} bytes; split it", "message_bytes", most)
        message = Incoming(uid, None, error, "http", TOPIC, ctx.beginning(KEPT_PAYLOAD), ctx.media_type)
        message.size = max(request.content_length or 0, most + 1)
    outcomes = ingest([message], late=_is_late([message]))
    if message.error is not None:
        raise _refusal(message.error)
    _check_quota(outcomes)
    return _answer(outcomes.stored, outcomes.duplicate, _rejections(outcomes[0]))


def _check_quota(outcomes: Outcomes | None) -> None:
    """Raises 429 when nothing could be stored because the tenant has used up its readings of the day."""
    spent = [each for each in outcomes or () if each.retry_after is not None]
    if outcomes and len(spent) == len(outcomes):
        limit = int(spent[0].allowed or 0)
        raise Problem(
            429,
            "quota-exceeded",
            f"The quota 'readings_per_day' allows {limit} and they are used up. {spent[0].reason}",
            headers={"Retry-After": str(spent[0].retry_after)},
            extra={
                "quota": spent[0].limit,
                "limit": limit,
                "used": limit,
                "allowed": limit,
                "retry_after": spent[0].retry_after,
            },
        )


def _refusal(error: PayloadError) -> Problem:
    """A payload refused as a whole."""
    status = STATUS.get(error.code, 422)
    listed = RejectedOut(index=0, code=error.code, reason=error.reason, limit=error.limit, allowed=error.allowed)
    extra = {
        "code": error.code,
        "limit": error.limit,
        "allowed": error.allowed,
        **StoredOut(stored=0, duplicate=0, rejected=[listed]).model_dump(),
    }
    title = {413: "too-large", 415: "unsupported-media-type", 400: "bad-request"}.get(status, "rejected")
    return Problem(
        status,
        title,
        f"Refused: {error.reason.rstrip('.')}.",
        errors=[{"loc": ["body"], "msg": error.reason}],
        extra=extra,
    )


def _rejections(outcome: Outcome, entry: int | None = None) -> list[RejectedOut]:
    """The rejections of a message; those of a message inside a list carry the entry's place."""
    if outcome.status == "rejected" and not outcome.rejected:
        return [
            RejectedOut(
                index=entry or 0,
                code=outcome.code or "rejected",
                reason=outcome.reason or "",
                limit=outcome.limit,
                allowed=outcome.allowed,
            )
        ]
    return [
        RejectedOut(
            index=each.index if entry is None else entry,
            code=each.code,
            reason=each.reason,
            key=each.key,
            limit=each.limit,
            allowed=each.allowed,
            item=None if entry is None else each.index,
        )
        for each in outcome.rejected
    ]


def _answer(stored: int, duplicate: int, rejected: list[RejectedOut]) -> StoredOut:
    """What was stored, or 422 when there was something and nothing of it could be."""
    answer = StoredOut(stored=stored, duplicate=duplicate, rejected=rejected)
    if rejected and not stored and not duplicate:
        errors = [
            {"loc": ["body", each.index, *([each.key] if each.key else [])], "msg": each.reason}
            for each in rejected[:100]
        ]
        raise Problem(
            422,
            "rejected",
            f"Nothing was stored: {rejected[0].reason.rstrip('.')}.",
            errors=errors,
            extra=answer.model_dump(),
        )
    return answer


def _from_person(ctx: web.Context) -> StoredOut:
    try:
        decoded: _Entry | list[_Entry] = _decode_entries(_json_body(ctx))
    except (msgspec.ValidationError, RecursionError) as error:
        text = str(error) or "nested too deep"
        raise Invalid(
            'Send {"device_id": …, "data": …} or a list of these.', [{"loc": ["body"], "msg": text}]
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, "bad-request", f"The body is not valid JSON: {error}.") from None
    entries = decoded if isinstance(decoded, list) else [decoded]
    if not 1 <= len(entries) <= MAX_ENTRIES:
        raise Invalid("The body is not valid.", [{"loc": ["body"], "msg": f"1 to {MAX_ENTRIES} entries"}])
    known = _known(ctx, {entry.device_id for entry in entries})
    if not isinstance(decoded, list) and decoded.device_id not in known:
        raise NotFound("device")
    messages = [_incoming(entry.device_id, bytes(entry.data)) for entry in entries if entry.device_id in known]
    outcomes = ingest(messages, late=_is_late(messages)) if messages else None
    if len(messages) == len(entries):
        _check_quota(outcomes)
    remaining = iter(outcomes or ())
    rejected: list[RejectedOut] = []
    for index, entry in enumerate(entries):
        if entry.device_id in known:
            rejected += _rejections(next(remaining), index if isinstance(decoded, list) else None)
        else:
            rejected.append(RejectedOut(index=index, code="unknown-device", reason=NotFound("device").detail))
    return _answer(outcomes.stored if outcomes else 0, outcomes.duplicate if outcomes else 0, rejected)


def _json_body(ctx: web.Context) -> bytes:
    web.check_json()
    return ctx.body(payloads.MAX_BYTES)


def _known(ctx: web.Context, uids: set[str]) -> set[str]:
    """The devices among these that belong to the caller's tenant."""
    with tenancy.work(ctx.scope) as db:
        found: Sequence[Any] = db.scalars(
            select(Device.uid).where(Device.uid.in_([uid.replace("\x00", "") for uid in uids]))
        ).all()
    return set(found) & uids


def _incoming(uid: str, payload: bytes, content_type: str | None = None) -> Incoming:
    now = clock.now_ms()
    message = Incoming(uid, None, None, "http", TOPIC, payload, content_type, now)
    try:
        message.parsed = payloads.parse(payload, content_type, now)
    except PayloadError as error:
        message.error = error
    return message


def _is_late(messages: Sequence[Incoming]) -> bool:
    """Whether all of them hold nothing but readings of long ago: they do not make live data wait."""
    before = clock.now_ms() - config.load().late_after * 1000
    return all(is_late(message.parsed, before) for message in messages)
