"""The inbox of the devices area: what gateways have brought, to be approved, merged with a device, or ignored."""

from collections.abc import Callable
from typing import Any

from flask import Response, make_response, redirect, render_template, request

from iiot import tenancy, web
from iiot.errors import Invalid, NotFound, Problem
from iiot.portal import forms
from iiot.services import children, devices, discoveries, sites
from iiot.services.listing import Wanted

pages = web.pages("inbox")
PAGE_SIZE = 25
# Devices that a thing may be merged with are offered by name; any other can be named by its id.
OFFERED = 200
DONE = {
    "approved": "Approved. What the gateway sends for it is stored from now on.",
    "merged": "Merged. What the gateway sends for it is stored with that device.",
    "ignored": "Ignored. Nothing of it is kept until you restore it.",
    "restored": "It waits again.",
}


def _values(ctx: web.Context, state: str) -> dict[str, Any]:
    """What the page shows; a cursor that does not fit begins anew."""
    kind = f"page:inbox:{state}"
    try:
        position = web.decode_cursor(kind, request.args.get("cursor"))
    except Invalid:
        position = None
    with tenancy.work(ctx.scope) as db:
        found = discoveries.search(db, discoveries.Filters(state), Wanted("-last_seen_at", PAGE_SIZE, position))
        offered = devices.search(db, devices.Filters(is_gateway=False), Wanted("name", OFFERED)).items
        values = {
            "sites": sites.choices(db),
            "waiting": children.count_waiting(db),
            "full": discoveries.full_gateways(db),
        }
    return values | {
        "state": state,
        "found": found,
        "titles": {row.uid: discoveries.title(row) for row in found.items},
        "offered": [device for device in offered if device.gateway_id is None],
        "most": children.MOST_WAITING,
        "cursor": position is not None,
        "next_cursor": web.encode_cursor(kind, found.next_position),
    }


@pages.route("GET", "/devices/inbox", permission="device:read")
def inbox(ctx: web.Context) -> str:
    """What waits, or what is ignored."""
    state = "ignored" if request.args.get("state") == "ignored" else "waiting"
    return render_template("inbox.html", message=DONE.get(request.args.get("done", "")), **_values(ctx, state))


def _decide(
    ctx: web.Context, done: str, step: Callable[[tenancy.ScopedSession], Any], form: dict[str, str] | None = None
) -> Response:
    """Take a step and show the inbox with what was done, or why it could not be. `form`: what was typed, and for which discovery."""
    state = "ignored" if done == "restored" else "waiting"
    try:
        with tenancy.work(ctx.scope) as db:
            step(db)
    except NotFound:
        problem = Problem(404, "not-found", "It is no longer here. Somebody has decided about it already.")
    except Problem as refused:
        problem = refused
    else:
        return make_response(redirect(f"/devices/inbox?done={done}&state={state}", 303))
    return _refused(ctx, problem, state, form)


def _refused(
    ctx: web.Context, problem: Problem, state: str = "waiting", form: dict[str, str] | None = None
) -> Response:
    values = _values(ctx, state)
    if form and form["discovery"] in {each.uid for each in values["found"].items}:
        values["form"] = form
    return forms.refused("inbox.html", problem, **values)


@pages.route("POST", "/devices/inbox/<discovery_id>/approve", permission="device:write")
def approve(ctx: web.Context, discovery_id: str) -> Response:
    """Approve one, perhaps under another name."""
    form = forms.texts("name", "type", "site")
    approval = discoveries.Approval(form["name"] or None, form["type"] or None, form["site"] or None)
    return _decide(ctx, "approved", lambda db: discoveries.approve(db, discovery_id, approval))


@pages.route("POST", "/devices/inbox/<discovery_id>/merge", permission="device:write")
def merge(ctx: web.Context, discovery_id: str) -> Response:
    """Say that it is a device which exists."""
    form = forms.texts("device")

    def step(db: tenancy.ScopedSession) -> None:
        discoveries.get(db, discovery_id)
        _check_target(db, form["device"])
        discoveries.merge(db, discovery_id, form["device"])

    return _decide(ctx, "merged", step, form | {"discovery": discovery_id})


def _check_target(db: tenancy.ScopedSession, uid: str) -> None:
    """Raise Invalid at the field for what is no device."""
    try:
        devices.get(db, uid)
    except NotFound as missing:
        errors = [{"loc": ["body", "device"], "msg": missing.detail}]
        raise Invalid("The device to merge with was not found.", errors) from None


@pages.route("POST", "/devices/inbox/<discovery_id>/ignore", permission="device:write")
def ignore(ctx: web.Context, discovery_id: str) -> Response:
    """Hear nothing more of it."""
    return _decide(ctx, "ignored", lambda db: discoveries.ignore(db, discovery_id))


@pages.route("POST", "/devices/inbox/<discovery_id>/restore", permission="device:write")
def restore(ctx: web.Context, discovery_id: str) -> Response:
    """Let it wait again."""
    return _decide(ctx, "restored", lambda db: discoveries.restore(db, discovery_id))


@pages.route("POST", "/devices/inbox/approve", permission="device:write")
def approve_many(ctx: web.Context) -> Response:
    """Approve those that were chosen; what could not be approved stays, and the page says why."""
    chosen = request.form.getlist("ids")
    if not chosen:
        return _refused(ctx, Problem(422, "invalid", "Tick what shall be approved.", title="Choose at least one"))
    with tenancy.work(ctx.scope) as db:
        _, failed = discoveries.approve_many(db, chosen)
    if failed:
        first = failed[0].problem
        detail = first.detail if len(failed) == 1 else f"{first.detail} {len(failed)} could not be approved."
        return _refused(ctx, Problem(first.status if first.status != 404 else 409, first.code, detail))
    return make_response(redirect("/devices/inbox?done=approved", 303))
