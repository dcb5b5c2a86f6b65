"""Messages of a device that were refused."""

import base64
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from iiot import tenancy, web
from iiot.models import RejectedMessage
from iiot.services import devices, rejections

api = web.Api("rejected")


class RejectedOut(web.Out):
    """A refused message. `payload` is its text, or base64 when it is not UTF-8; at most 64 KiB are kept, `size` is the true length in bytes."""

    id: int
    received_at: datetime
    protocol: str
    topic: str
    code: str
    reason: str
    payload: str
    payload_encoding: Literal["text", "base64"]
    size: int
    details: Annotated[
        list[dict[str, Any]] | None, Field(description="The readings refused: index, key, code, reason.")
    ]


def _out(message: RejectedMessage) -> RejectedOut:
    try:
        payload, encoding = message.payload.decode(), "text"
    except UnicodeDecodeError:
        payload, encoding = base64.b64encode(message.payload).decode(), "base64"
    fields = {name: getattr(message, name) for name in RejectedOut.model_fields if hasattr(message, name)}
    return RejectedOut(**fields | {"payload": payload, "payload_encoding": encoding})


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
        device = devices.get(db, uid)
        found = rejections.list_rejected(db, device.id, before=position[0] if position else None, limit=query.limit)
    return web.page(kind, found, [_out(message) for message in found.items])
