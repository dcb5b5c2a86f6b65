"""Messages that were refused: of the tenant and of one device, and the page of one message, where it is mended and sent again."""

import re
from typing import Any
from urllib.parse import urlencode

from flask import Response, make_response, redirect, render_template, request

from iiot import tenancy, web
from iiot.errors import Conflict, Invalid
from iiot.models import RejectedMessage
from iiot.payloads import READ
from iiot.portal import forms
from iiot.services import devices, rejections
from iiot.services.rejections import Filters, Mended, Result

pages = web.pages("rejected")

PER_PAGE = 25
# A longer payload is not put into a form; it can be sent again as it came, or mended over REST.
LONGEST_EDITED = 64 * 1024
NAMES = ("device", "code", "protocol", "state", "from", "to")
COUNTS = ("total", "stored", "refused", "skipped")
DONE = {"discarded": "The message was discarded."}
ROW = 16
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _given(device: str | None = None) -> dict[str, str]:
    """What the address or the form says; what is empty or cannot be meant is dropped, as people edit addresses by hand."""
    found = {name: request.values.get(name, "").replace("\x00", "").strip()[:128] for name in NAMES}
    if device is not None:
        found["device"] = device
    if found["state"] not in ("open", "replayed"):
        found["state"] = ""
    for name in ("from", "to"):
        if forms.day(found[name]) is None:
            found[name] = ""
    return {name: value for name, value in found.items() if value}


def _filters(given: dict[str, str]) -> Filters:
    """Days are those of UTC; `to` is the last day."""
    first, last = forms.day(given.get("from", "")), forms.day(given.get("to", ""))
    state = given.get("state")
    return Filters(
        given.get("device"),
        given.get("code"),
        given.get("protocol"),
        forms.midnight(first),
        forms.midnight(last, days_later=1),
        None if state is None else state == "open",
    )


def address(given: dict[str, str], **changes: str | None) -> str:
    """The address of the tenant's list with some parameters changed; None removes one."""
    values = {name: value for name, value in (given | changes).items() if value}
    return "/rejected" + (f"?{urlencode(values)}" if values else "")


def _list_values(ctx: web.Context, given: dict[str, str], device: str | None = None) -> dict[str, Any]:
    """What a list shows; raises NotFound for a device that is not there."""
    filters = _filters(given)
    kind = f"page:rejected:{filters}"
    cursor = request.args.get("cursor")
    try:
        position = web.decode_cursor(kind, cursor)
    except Invalid:
        position = cursor = None
    with tenancy.work(ctx.scope) as db:
        row = None if device is None else devices.get(db, device)
        found = rejections.search(db, filters, PER_PAGE, position)
        heads = rejections.heads(db, found.items)
        known = rejections.kinds(db)
    return {
        "device": row,
        "found": found,
        "heads": heads,
        "given": given,
        "codes": known.codes,
        "protocols": known.protocols,
        "is_narrowed": bool(given.keys() - ({"device"} if device else set())),
        "cursor": cursor,
        "next_cursor": web.encode_cursor(kind, found.next_position),
        "address": address,
        "can_replay": "telemetry:write" in ctx.principal.permissions,
    }


@pages.route("GET", "/rejected", permission="telemetry:read")
def show_all(ctx: web.Context) -> str:
    """The refused messages of all devices, newest first."""
    message = DONE.get(request.args.get("done", ""))
    return render_template("rejected.html", message=message, **_list_values(ctx, _given()))


@pages.route("GET", "/devices/<uid>/rejected", permission="telemetry:read")
def show_of_device(ctx: web.Context, uid: str) -> str:
    """The refused messages of a device, newest first."""
    return render_template("device_rejected.html", tab="rejected", **_list_values(ctx, _given(uid), uid))


# --- one message -------------------------------------------------------------------------------------------------------------------------------


def editable(payload: bytes) -> tuple[str, bool]:
    """(the payload as it is edited, whether that is hexadecimal): what is no plain text is edited byte by byte."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return payload.hex(" "), True
    return (payload.hex(" "), True) if CONTROL.search(text) else (text, False)


def dump(payload: bytes, most: int = 4096) -> str:
    """Bytes as programmers read them: place, sixteen bytes, and what of them is printable ASCII."""
    lines = []
    for start in range(0, min(len(payload), most), ROW):
        row = payload[start : start + ROW]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:06x}  {row.hex(' '):<{ROW * 3}} {text}")
    return "\n".join(lines) + ("\n…" if len(payload) > most else "")


def _message_values(ctx: web.Context, message: RejectedMessage) -> dict[str, Any]:
    payload = bytes(message.payload)
    text, is_hex = editable(payload)
    return {
        "message": message,
        "payload": payload,
        "dump": dump(payload) if is_hex else None,
        "is_hex": is_hex,
        "is_cut": rejections.is_cut(message),
        "obstacle": rejections.obstacle(message),
        "is_long": len(payload) > LONGEST_EDITED,
        "content_types": READ,
        "result": None,
        "form": {"payload": text, "content_type": message.content_type or ""},
        "can_replay": "telemetry:write" in ctx.principal.permissions,
    }


@pages.route("GET", "/rejected/<rejected_id>", permission="telemetry:read")
def show(ctx: web.Context, rejected_id: str) -> str:
    """One message: what was wrong, what it said, and a form to mend it."""
    with tenancy.work(ctx.scope) as db:
        message = rejections.get(db, rejected_id)
    return render_template("rejected_message.html", **_message_values(ctx, message))


@pages.route("POST", "/rejected/<rejected_id>/replay", permission="telemetry:write")
def replay(ctx: web.Context, rejected_id: str) -> Response:
    """Send it again as the form says, and show what came of it."""
    with tenancy.work(ctx.scope) as db:
        message = rejections.get(db, rejected_id)
    values = _message_values(ctx, message)
    try:
        message, result = rejections.replay(ctx.scope, rejected_id, _mended(values))
    except (Invalid, Conflict) as problem:
        return forms.refused("rejected_message.html", problem, **values | {"form": values["form"] | _typed()})
    return _answer(ctx, message, result)


def _typed() -> dict[str, str]:
    return {name: request.form[name] for name in ("payload", "content_type") if name in request.form}


def _mended(values: dict[str, Any]) -> Mended:
    """What the form changes of the message. Browsers send line ends as CR LF, whatever stood there."""
    given, before = _typed(), values["form"]
    text = given.get("payload")
    content_type = given.get("content_type", before["content_type"])
    payload = None
    if text is not None and _lines(text) != _lines(before["payload"]):
        payload = _bytes(text) if values["is_hex"] else _lines(text).encode()
    return Mended(payload, content_type if content_type != before["content_type"] else None)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n")


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        message = "write bytes as pairs of hexadecimal digits, like a1 61 74 01"
        raise Invalid("The payload is not valid.", [{"loc": ["body", "payload"], "msg": message}]) from None


def _answer(ctx: web.Context, message: RejectedMessage, result: Result) -> Response:
    values = _message_values(ctx, message)
    values["result"] = result
    values["form"] |= _typed()
    return make_response(render_template("rejected_message.html", **values), 200 if result.accepted else 422)


@pages.route("POST", "/rejected/<rejected_id>/delete", permission="telemetry:write")
def discard(ctx: web.Context, rejected_id: str) -> Response:
    """Throw it away."""
    with tenancy.work(ctx.scope) as db:
        rejections.discard(db, rejected_id)
    return make_response(redirect("/rejected?done=discarded", 303))


# --- many at once ------------------------------------------------------------------------------------------------------------------------------


@pages.route("POST", "/rejected/replay", permission="telemetry:write")
def replay_many(ctx: web.Context) -> str:
    """One step of sending the open messages of the list again; the page asks for the next one by itself until nothing is left."""
    given = _given()
    filters = _filters(given | {"state": "open"})
    kind = f"page:replay:{filters}"
    position = web.decode_cursor(kind, request.form.get("cursor") or None)
    counts = {name: int(text) if (text := request.form.get(name, "")).isdecimal() else 0 for name in COUNTS}
    if position is None:
        with tenancy.work(ctx.scope) as db:
            counts = dict.fromkeys(COUNTS, 0) | {"total": rejections.count(db, filters)}
    step = rejections.replay_many(ctx.scope, filters, rejections.MOST_AT_ONCE, position)
    for name in COUNTS[1:]:
        counts[name] += getattr(step, name)
    values = {
        "given": given,
        "counts": counts,
        "done": sum(counts[name] for name in COUNTS[1:]),
        "next_cursor": web.encode_cursor(kind, step.position),
        "address": address,
    }
    template = "_replay_step.html" if request.headers.get("HX-Request") == "true" else "rejected_replay.html"
    return render_template(template, **values)
