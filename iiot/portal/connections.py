"""The tab Connections of a device: when it came and went, why, and who was turned away in its name."""

from flask import render_template, request

from iiot import tenancy, web
from iiot.services import devices, presence
from iiot.services.listing import Wanted

pages = web.pages("connections")

PER_PAGE = 50


@pages.route("GET", "/devices/<uid>/connections", permission="device:read")
def show(ctx: web.Context, uid: str) -> str:
    """The history of a device's connection, newest first."""
    kind, cursor = f"page:connections:{uid}", request.args.get("cursor")
    wanted = Wanted("-id", PER_PAGE, web.decode_cursor(kind, cursor))
    with tenancy.work(ctx.scope) as db:
        device = devices.get(db, uid)
        found = presence.history(db, device.id, wanted)
    return render_template(
        "device_connections.html",
        tab="connections",
        device=device,
        found=found,
        text=presence.text,
        cursor=cursor,
        next_cursor=web.encode_cursor(kind, found.next_position),
    )
