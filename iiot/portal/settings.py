"""The settings of the reader's tenant: name, time zone, look, second factor, deletion."""

from typing import Any

from flask import Response, make_response, redirect, render_template, request

from iiot import tenancy, web
from iiot.errors import Invalid, Problem
from iiot.models import Tenant
from iiot.portal import forms
from iiot.services import logos, tenants

pages = web.pages("settings")
DONE = {
    "saved": "Saved.",
    "logo": "The logo is saved.",
    "no-logo": "The logo is removed.",
    "deleting": "The tenant will be deleted. Until then you can restore it here.",
    "restored": "The tenant is restored; its devices may send again.",
}
STANDARD_COLOUR = "#0b6b74"


def _scope(ctx: web.Context) -> tenancy.Scope:
    return tenancy.system("platform", tenancy.of(ctx.principal).tenant_id)


def _values(tenant: Tenant) -> dict[str, Any]:
    form = {
        "name": tenant.name,
        "timezone": tenant.timezone,
        "colour": tenant.colour or STANDARD_COLOUR,
        "own_colour": "true" if tenant.colour else "",
        "require_mfa": "true" if tenant.require_mfa else "",
        "discovery": tenant.discovery,
        "confirm": "",
        "logo": "",
    }
    return {
        "tenant": tenant,
        "version_read": tenants.version(tenant),
        "form": form,
        "timezones": sorted(tenants.timezones()),
        "has_logo": tenant.logo_type is not None,
        "grace_days": tenants.GRACE.days,
    }


def _done(what: str) -> Response:
    return make_response(redirect(f"/settings?done={what}", 303))


def _refused(ctx: web.Context, problem: Problem, form: dict[str, str]) -> Response:
    with tenancy.work(_scope(ctx)) as db:
        values = _values(tenants.own(db))
    values["form"] |= form
    return forms.refused("settings.html", problem, **values)


@pages.route("GET", "/settings", permission="tenant:write", any_status=True)
def settings_page(ctx: web.Context) -> str:
    """The settings; while the tenant is suspended or being deleted they can be read, and a deletion can be undone."""
    with tenancy.work(_scope(ctx)) as db:
        values = _values(tenants.own(db))
    return render_template("settings.html", message=DONE.get(request.args.get("done", "")), **values)


@pages.route("POST", "/settings", permission="tenant:write")
def save_settings(ctx: web.Context) -> Response:
    """Save name, time zone, colour, second factor of admins and discovery, unless somebody else changed them meanwhile."""
    form = forms.texts("name", "timezone", "colour", "own_colour", "require_mfa", "discovery", "version")
    changes = {
        "name": form["name"],
        "timezone": form["timezone"],
        "colour": form["colour"] if form["own_colour"] == "true" else None,
        "require_mfa": form["require_mfa"] == "true",
        "discovery": "auto" if form["discovery"] == "auto" else "inbox",
    }
    try:
        with tenancy.work(_scope(ctx)) as db:
            tenants.change(db, changes, form["version"] or None)
    except Problem as problem:
        return _refused(ctx, problem, form)
    return _done("saved")


@pages.route("POST", "/settings/logo", permission="tenant:write")
def save_logo(ctx: web.Context) -> Response:
    """Take a logo, or remove it."""
    try:
        removes = request.form.get("remove") == "true"
        given = request.files.get("logo")
        content = None if removes else logos.normalised(given.read(logos.MAX_BYTES + 1) if given else b"")
        with tenancy.work(_scope(ctx)) as db:
            tenants.change(db, {"logo": content})
    except Problem as problem:
        return _refused(ctx, problem, {})
    return _done("no-logo" if content is None else "logo")


@pages.route("POST", "/settings/delete", permission="tenant:write")
def delete_tenant(ctx: web.Context) -> Response:
    """Delete the tenant in 30 days, after its name was typed."""
    confirm = request.form.get("confirm", "").strip()
    try:
        with tenancy.work(_scope(ctx)) as db:
            if confirm != tenants.own(db).name:
                raise Invalid(
                    "The tenant was not deleted.",
                    [{"loc": ["body", "confirm"], "msg": "this is not the tenant's name"}],
                )
            tenants.start_deletion(db)
    except Invalid as problem:
        return _refused(ctx, problem, {"confirm": confirm})
    return _done("deleting")


@pages.route("POST", "/settings/restore", permission="tenant:write", any_status=True)
def restore_tenant(ctx: web.Context) -> Response:
    """Keep a tenant that is being deleted."""
    try:
        with tenancy.work(_scope(ctx)) as db:
            tenants.set_status(db, "active", "", ctx.principal)
    except Problem as problem:
        return _refused(ctx, problem, {})
    return _done("restored")
