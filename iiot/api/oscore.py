"""Keys for CoAP with OSCORE (RFC 8613): issued once, listed without their secrets, revoked."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from iiot import tenancy, web
from iiot.models import OscoreContext
from iiot.services import devices, oscore
from iiot.services.names import LONGEST

api = web.Api("oscore")


class OscoreIn(web.Body):
    """A new key for a device, beside those that it has, at most five at once."""

    name: Annotated[str, Field(max_length=LONGEST, description="For people, as `new firmware`.")] = ""


class OscoreOut(web.Out):
    """A key without its secret, which nobody can read again. `kid`: the device's Sender ID, in hexadecimal digits."""

    id: str
    name: str
    kid: str
    created_at: datetime
    last_used_at: datetime | None


class OscoreList(web.Page[OscoreOut]):
    """The keys of a device; there are at most five, so the list is one page."""


class OscoreIssued(OscoreOut):
    """A new key with its secret, which is shown here and never again; bytes in hexadecimal digits.

    `aiocoap`: what goes into `secret.json` of the folder that a credentials file of aiocoap names. `libcoap`: the file for `coap-client -E`.
    """

    device_id: str
    sender_id: str
    recipient_id: str
    master_secret: str
    master_salt: str
    algorithm: str
    hkdf: str
    replay_window: int
    aiocoap: dict[str, Any]
    libcoap: str


def _shape(row: OscoreContext) -> dict[str, Any]:
    return {
        "id": row.uid,
        "name": row.name,
        "kid": row.kid.hex(),
        "created_at": row.created_at,
        "last_used_at": row.last_used_at,
    }


@api.route("GET", "/devices/<device_id>/oscore", out=OscoreList, permission="device:read")
def list_oscore(ctx: web.Context, device_id: str) -> OscoreList:
    """The OSCORE keys of a device, without their secrets."""
    with tenancy.work(ctx.scope) as db:
        found = oscore.list_all(db, devices.get(db, device_id))
    items = [OscoreOut.model_validate(_shape(row)) for row in found]
    return OscoreList(items=items, next_cursor=None, total=len(items))


@api.route(
    "POST",
    "/devices/<device_id>/oscore",
    body=OscoreIn,
    optional_body=True,
    out=OscoreIssued,
    status=201,
    permission="device:write",
    problems=(409,),
)
def make_oscore(ctx: web.Context, device_id: str, body: OscoreIn) -> OscoreIssued:
    """Give a device a key for CoAP with OSCORE.

    The device uses it from one place at a time and never goes back to an older state of it. The body may be left out.
    """
    with tenancy.work(ctx.scope) as db:
        device = devices.locked(db, device_id)
        issued = oscore.issue(db, device, body.name)
    row = issued.context
    return OscoreIssued(
        **_shape(row),
        device_id=device_id,
        sender_id=row.kid.hex(),
        recipient_id=row.own_id.hex(),
        master_secret=issued.secret.hex(),
        master_salt=row.salt.hex(),
        algorithm=oscore.ALGORITHM,
        hkdf="HKDF SHA-256",
        replay_window=oscore.WINDOW,
        aiocoap=issued.settings(),
        libcoap=issued.configuration(),
    )


@api.route("DELETE", "/devices/<device_id>/oscore/<context_id>", permission="device:write")
def revoke_oscore(ctx: web.Context, device_id: str, context_id: str) -> None:
    """Revoke one OSCORE key: it stops working at once."""
    with tenancy.work(ctx.scope) as db:
        oscore.revoke(db, devices.locked(db, device_id), context_id)
