"""The entities of the devices area: what they are now, and switching and dimming them."""

from typing import Any

from flask import Response, make_response, redirect, render_template, request

from iiot import tenancy, web
from iiot.errors import Invalid, Problem
from iiot.portal import forms
from iiot.services import children, entities
from iiot.services.entities import Change
from iiot.services.listing import Wanted

pages = web.pages("entities")
PAGE_SIZE = 50
DONE = {"sent": "The order is on its way. The list shows the new state as soon as the device has confirmed it."}


def _values(ctx: web.Context) -> dict[str, Any]:
    """What the page shows; a cursor that does not fit begins anew."""
    kind = "page:entities"
    try:
        position = web.decode_cursor(kind, request.args.get("cursor"))
    except Invalid:
        position = None
    with tenancy.work(ctx.scope) as db:
        found = entities.search(db, None, None, Wanted("name", PAGE_SIZE, position))
        waiting = children.count_waiting(db)
    return {
        "found": found,
        "waiting": waiting,
        "can_control": "entity:control" in ctx.principal.permissions,
        "cursor": request.args.get("cursor") if position is not None else None,
        "next_cursor": web.encode_cursor(kind, found.next_position),
    }


@pages.route("GET", "/devices/entities", permission="entity:read")
def entity_list(ctx: web.Context) -> str:
    """The entities with their states; htmx asks for the list alone."""
    ctx.headers["Vary"] = "HX-Request, Cookie"
    template = "_entities.html" if request.headers.get("HX-Request") == "true" else "entities.html"
    return render_template(template, message=DONE.get(request.args.get("done", "")), **_values(ctx))


@pages.route("POST", "/devices/entities/<entity_id>/control", permission="entity:control")
def control(ctx: web.Context, entity_id: str) -> Response:
    """Switch or dim one."""
    form = forms.texts("state", "brightness")
    web.spend("control", ctx.principal.uid)
    try:
        change = Change(form["state"] or None, _number(form["brightness"]))
        with tenancy.work(ctx.scope) as db:
            entities.control(db, entity_id, change)
    except Problem as problem:
        if problem.status == 404:
            raise
        return forms.refused("entities.html", problem, **_values(ctx))
    return make_response(redirect("/devices/entities?done=sent", 303))


def _number(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 3):
        raise Invalid(
            "The brightness is a whole number from 0 to 100.", [{"loc": ["body", "brightness"], "msg": "0 to 100"}]
        )
    return int(text)
