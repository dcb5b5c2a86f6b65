"""When a device was connected, why not, and who was turned away in its name."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from iiot import tenancy, web
from iiot.models import ConnectionEvent
from iiot.services import devices, presence
from iiot.services.listing import Wanted

api = web.Api("connections")


class ConnectionOut(web.Out):
    """Something that happened to a device's connection. `state`: it came online or went offline; `refused`: a login was refused; `note`: its state
    stayed as it was."""

    at: datetime
    kind: Literal["state", "refused", "note"]
    online: Annotated[bool, Field(description="Whether it was online afterwards; false for a refused login.")]
    reason: Annotated[str, Field(description="A code, such as `telemetry`, `silence`, `token-revoked`.")]
    text: Annotated[str, Field(description="The same in words.")]
    protocol: str | None
    detail: Annotated[str, Field(description="How long, or from which address.")]


class ConnectionPage(web.Page[ConnectionOut]):
    """Events, the newest first."""


def _out(event: ConnectionEvent) -> ConnectionOut:
    names = ("at", "kind", "online", "reason", "protocol", "detail")
    return ConnectionOut(**{name: getattr(event, name) for name in names}, text=presence.text(event))


@api.route(
    "GET",
    "/devices/<device_id>/connections",
    query=web.ListQuery,
    out=ConnectionPage,
    permission="device:read",
    problems=(404,),
)
def list_connections(ctx: web.Context, device_id: str, query: web.ListQuery) -> ConnectionPage:
    """List when a device came online and went offline, and why, the newest first.

    Refused logins are noted where the portal sees them (HTTP, CoAP), five at once and then one in ten minutes.
    """
    kind = f"connections:{device_id}"
    wanted = Wanted("-id", query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(ctx.scope) as db:
        found = presence.history(db, devices.id_of(db, device_id), wanted)
    return ConnectionPage(**web.page(kind, found, [_out(event) for event in found.items]))
