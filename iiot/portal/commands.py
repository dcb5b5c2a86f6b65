"""The tab Commands of a device: what was asked of it, what became of it, and a form to ask."""

import json
from collections.abc import Callable
from typing import Any

from flask import Response, make_response, redirect, render_template, request

from iiot import tenancy, web
from iiot.errors import Conflict, Forbidden, Invalid
from iiot.portal import forms
from iiot.services import command_approval, command_life, commands, devices
from iiot.services.listing import Wanted

pages = web.pages("commands")

PER_PAGE = 25
# Seconds as the form sends them, and in words.
TTLS = (("60", "1 minute"), ("600", "10 minutes"), ("3600", "1 hour"), ("86400", "1 day"), ("604800", "1 week"))
WORDS = {
    "queued": "Queued",
    "sent": "Sent",
    "delivered": "Delivered",
    "done": "Done",
    "failed": "Failed",
    "expired": "Expired",
    "cancelled": "Cancelled",
}


def _page_values(ctx: web.Context, uid: str, cursor: str | None) -> dict[str, Any]:
    """What the page shows; raises NotFound for a device that is not there."""
    kind = f"page:commands:{uid}"
    wanted = Wanted("-created_at", PER_PAGE, web.decode_cursor(kind, cursor))
    with tenancy.work(ctx.scope) as db:
        device = devices.get(db, uid)
        found = commands.search(db, uid, commands.Filters(), wanted)
    return {
        "tab": "commands",
        "device": device,
        "found": found,
        "words": WORDS,
        "ttls": TTLS,
        "can_command": "device:command" in ctx.principal.permissions,
        "can_cancel": {each.uid for each in found.items if command_life.may(each, "cancelled")},
        "can_approve": {each.uid for each in found.items if command_approval.may_approve(each, ctx.principal)},
        "cursor": cursor,
        "next_cursor": web.encode_cursor(kind, found.next_position),
    }


@pages.route("GET", "/devices/<uid>/commands", permission="device:read")
def show(ctx: web.Context, uid: str) -> str:
    """The commands of a device, newest first. htmx asks for the list alone."""
    values = _page_values(ctx, uid, request.args.get("cursor"))
    template = "_commands.html" if request.headers.get("HX-Request") == "true" else "device_commands.html"
    return render_template(template, form={"ttl": str(commands.TTL_SECONDS)}, **values)


@pages.route("POST", "/devices/<uid>/commands", permission="device:command")
def send(ctx: web.Context, uid: str) -> Response:
    """Send a command."""
    form = forms.texts("name", "params", "ttl")
    web.spend("control", ctx.principal.uid)
    try:
        new = commands.NewCommand(form["name"], _params(form["params"]), _ttl(form["ttl"]))
        with tenancy.work(ctx.scope) as db:
            commands.create(db, uid, new)
    except (Invalid, Conflict) as problem:
        return forms.refused("device_commands.html", problem, form=form, **_page_values(ctx, uid, None))
    return make_response(redirect(f"/devices/{uid}/commands", 303))


def _params(text: str) -> dict[str, Any]:
    """The field as a JSON object; empty is no parameters."""
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        message = 'write a JSON object, like {"speed": 3}'
        raise Invalid("The command is not valid.", [{"loc": ["body", "params"], "msg": message}])
    return found


def _ttl(text: str) -> int:
    if text not in dict(TTLS):
        raise Invalid("The command is not valid.", [{"loc": ["body", "ttl"], "msg": "choose one of the list"}])
    return int(text)


@pages.route("POST", "/devices/<uid>/commands/<command_id>/cancel", permission="device:command")
def cancel(ctx: web.Context, uid: str, command_id: str) -> Response:
    """Cancel a command that the device has not confirmed."""
    return _take_step(ctx, commands.cancel, uid, command_id)


@pages.route("POST", "/devices/<uid>/commands/<command_id>/approve", permission="device:command")
def approve(ctx: web.Context, uid: str, command_id: str) -> Response:
    """Approve a command that somebody else asked for."""
    return _take_step(ctx, command_approval.approve, uid, command_id)


def _take_step(
    ctx: web.Context, step: Callable[[tenancy.ScopedSession, str, str], Any], uid: str, command_id: str
) -> Response:
    try:
        with tenancy.work(ctx.scope) as db:
            step(db, uid, command_id)
    except (Conflict, Forbidden) as problem:
        form = {"ttl": str(commands.TTL_SECONDS)}
        return forms.refused("device_commands.html", problem, form=form, **_page_values(ctx, uid, None))
    return make_response(redirect(f"/devices/{uid}/commands", 303))
