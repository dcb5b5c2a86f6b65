"""The pages of one device, a tab each."""

from typing import Any

from flask import Response, make_response, redirect, render_template, request
from sqlalchemy.orm import Session

from iiot import tenancy, web
from iiot.errors import Conflict, Invalid, Problem
from iiot.portal import connect, forms
from iiot.services import credentials, devices, homes, signals, sites

pages = web.pages("device")
DRAWABLE = ("number", "boolean")
SAVED = {
    "saved": "Saved.",
    "disabled": "The device is disabled and disconnected.",
    "enabled": "The device is enabled.",
    "approval": "Commands of this device now need a second person.",
    "no-approval": "Commands of this device now go out at once.",
    "home": "The home is claimed. The gateway was disconnected and may use its topics when it is back.",
    "no-home": "The home is given up. Its devices stay.",
    "revoked": "The token was revoked. It opens nothing any more.",
}


@pages.route("GET", "/devices/<uid>", permission="device:read")
def overview(ctx: web.Context, uid: str) -> str:
    """State and newest values."""
    with tenancy.work(ctx.scope) as db:
        device = devices.get(db, uid)
        latest = signals.latest(db, uid)
    return render_template("device_overview.html", tab="overview", device=device, latest=latest)


@pages.route("GET", "/devices/<uid>/connect", permission="device:read")
def connect_page(ctx: web.Context, uid: str) -> str:
    """How to connect the device."""
    return connect.page(ctx, uid)


@pages.route("POST", "/devices/<uid>/credentials", permission="device:write")
def new_token(ctx: web.Context, uid: str) -> Response:
    """Make a new token, beside the others or in their place, and show it once."""
    form = forms.texts("token_name", "days", "keep")
    try:
        with tenancy.work(ctx.scope) as db:
            device = devices.locked(db, uid)
            wanted = credentials.Wanted(form["token_name"], forms.end_after(form["days"]))
            issued = (credentials.add if form["keep"] == "true" else credentials.replace)(db, device, wanted)
    except (Invalid, Conflict) as problem:
        return _refused(ctx, uid, problem, form)
    return make_response(connect.page(ctx, uid, issued), 201)


@pages.route("POST", "/devices/<uid>/credentials/<credential_id>/revoke", permission="device:write")
def revoke_token(ctx: web.Context, uid: str, credential_id: str) -> Response:
    """Revoke one token."""
    with tenancy.work(ctx.scope) as db:
        credentials.revoke(db, devices.locked(db, uid), credential_id)
    return make_response(redirect(f"/devices/{uid}/settings?done=revoked", 303))


@pages.route("GET", "/devices/<uid>/chart", permission="telemetry:read")
def chart(ctx: web.Context, uid: str) -> str:
    """The chart of the signals that can be drawn."""
    with tenancy.work(ctx.scope) as db:
        device = devices.get(db, uid)
        drawable = [signal for signal in signals.list_signals(db, uid) if signal.type in DRAWABLE]
    return render_template("device_chart.html", tab="chart", device=device, signals=drawable)


def _settings_values(db: Session, uid: str) -> dict[str, Any]:
    """What the settings page shows; raises NotFound for a device that is not there."""
    device = devices.get(db, uid)
    form = {
        "name": device.name,
        "type": device.type,
        "tags": ", ".join(device.tags),
        "external_id": device.external_id or "",
        "site": device.site_uid or "",
        "confirm": "",
        "home": "",
    }
    tokens = credentials.list_all(db, device)
    return {
        "homes": homes.of_device(db, device),
        "tab": "settings",
        "device": device,
        "form": form,
        "tokens": tokens,
        "ends": forms.ENDS,
        "sites": sites.choices(db),
    }


@pages.route("GET", "/devices/<uid>/settings", permission="device:write")
def settings(ctx: web.Context, uid: str) -> str:
    """The description, access and deletion of the device."""
    with tenancy.work(ctx.scope) as db:
        values = _settings_values(db, uid)
    return render_template("device_settings.html", message=SAVED.get(request.args.get("done", "")), **values)


@pages.route("POST", "/devices/<uid>/settings", permission="device:write")
def save(ctx: web.Context, uid: str) -> Response:
    """Save the description, unless somebody else changed it meanwhile."""
    form = forms.texts("name", "type", "tags", "external_id", "site", "version")
    changes = {
        "name": form["name"],
        "type": form["type"] or "default",
        "tags": forms.tags(form["tags"]),
        "external_id": form["external_id"] or None,
    }
    if "site" in request.form:
        changes["site"] = form["site"] or None
    try:
        with tenancy.work(ctx.scope) as db:
            devices.change(db, uid, changes, form["version"] or None)
    except Problem as problem:
        return _refused(ctx, uid, problem, form)
    return make_response(redirect(f"/devices/{uid}/settings?done=saved", 303))


def _refused(ctx: web.Context, uid: str, problem: Problem, form: dict[str, str]) -> Response:
    """The settings page with what was wrong; NotFound when the device is not there at all."""
    with tenancy.work(ctx.scope) as db:
        values = _settings_values(db, uid)
    values["form"] |= form
    return forms.refused("device_settings.html", problem, **values)


@pages.route("POST", "/devices/<uid>/enabled", permission="device:write")
def enable(ctx: web.Context, uid: str) -> Response:
    """Let the device in, or shut it out."""
    enabled = request.form.get("enabled") == "true"
    with tenancy.work(ctx.scope) as db:
        devices.set_enabled(db, uid, enabled)
    return make_response(redirect(f"/devices/{uid}/settings?done={'enabled' if enabled else 'disabled'}", 303))


@pages.route("POST", "/devices/<uid>/approval", permission="device:write")
def ask_for_approval(ctx: web.Context, uid: str) -> Response:
    """Whether commands of this device need a second person."""
    needed = request.form.get("needed") == "true"
    with tenancy.work(ctx.scope) as db:
        devices.change(db, uid, {"needs_approval": needed})
    return make_response(redirect(f"/devices/{uid}/settings?done={'approval' if needed else 'no-approval'}", 303))


@pages.route("POST", "/devices/<uid>/homes", permission="device:write")
def claim_home(ctx: web.Context, uid: str) -> Response:
    """Claim a home for the gateway."""
    form = forms.texts("home")
    web.spend("home", ctx.principal.uid)
    try:
        with tenancy.work(ctx.scope) as db:
            homes.claim(db, form["home"], uid)
    except (Invalid, Conflict) as problem:
        errors = [{"loc": ["body", "home"], "msg": problem.detail}]
        return _refused(ctx, uid, Problem(problem.status, problem.code, problem.detail, errors=errors), form)
    return make_response(redirect(f"/devices/{uid}/settings?done=home", 303))


@pages.route("POST", "/devices/<uid>/homes/<home_id>/delete", permission="device:write")
def release_home(ctx: web.Context, uid: str, home_id: str) -> Response:
    """Give a home up."""
    with tenancy.work(ctx.scope) as db:
        devices.get(db, uid)
        homes.release(db, home_id)
    return make_response(redirect(f"/devices/{uid}/settings?done=no-home", 303))


@pages.route("POST", "/devices/<uid>/delete", permission="device:write")
def delete(ctx: web.Context, uid: str) -> Response:
    """Delete the device after its name was typed."""
    confirm = request.form.get("confirm", "").strip()
    try:
        with tenancy.work(ctx.scope) as db:
            if confirm != devices.get(db, uid).name:
                raise Invalid(
                    "The device was not deleted.",
                    [{"loc": ["body", "confirm"], "msg": "this is not the device's name"}],
                )
            devices.remove(db, uid)
    except Invalid as problem:
        return _refused(ctx, uid, problem, {"confirm": confirm})
    return make_response(redirect("/devices", 303))
