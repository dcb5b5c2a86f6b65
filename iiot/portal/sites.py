"""The sites that devices stand at."""

from typing import Any

from flask import Response, make_response, redirect, render_template, request

from iiot import tenancy, web
from iiot.errors import Invalid, Problem
from iiot.portal import forms
from iiot.services import sites
from iiot.services.listing import Wanted

pages = web.pages("sites")
PAGE_SIZE = 50
DONE = {"made": "The site was added.", "saved": "The site was renamed.", "deleted": "The site was deleted."}


def _values(ctx: web.Context) -> dict[str, Any]:
    kind = "page:sites"
    try:
        position = web.decode_cursor(kind, request.args.get("cursor"))
    except Invalid:
        position = None
    with tenancy.work(ctx.scope) as db:
        found = sites.search(db, Wanted("name", PAGE_SIZE, position))
    following = web.encode_cursor(kind, found.next_position)
    message = DONE.get(request.args.get("done", ""))
    may_write = "site:write" in ctx.principal.permissions and not ctx.principal.is_limited
    return {
        "tab": "sites",
        "found": found,
        "next_cursor": following,
        "is_cut": position is not None,
        "may_write": may_write,
        "message": message,
    }


@pages.route("GET", "/team/sites", permission="device:read")
def site_list(ctx: web.Context) -> str:
    """The sites."""
    return render_template("team_sites.html", new_open="new" in request.args, **_values(ctx))


@pages.route("POST", "/team/sites", permission="site:write")
def create_site(ctx: web.Context) -> Response:
    """Add a site."""
    form = forms.texts("name")
    try:
        with tenancy.work(ctx.scope) as db:
            sites.create(db, form["name"])
    except Problem as problem:
        return forms.refused("team_sites.html", problem, form=form, new_open=True, **_values(ctx))
    return make_response(redirect("/team/sites?done=made", 303))


@pages.route("POST", "/team/sites/<site_id>", permission="site:write")
def rename_site(ctx: web.Context, site_id: str) -> Response:
    """Rename a site."""
    try:
        with tenancy.work(ctx.scope) as db:
            sites.change(db, site_id, request.form.get("name", ""))
    except Problem as problem:
        return forms.refused("team_sites.html", problem, new_open=False, **_values(ctx))
    return make_response(redirect("/team/sites?done=saved", 303))


@pages.route("POST", "/team/sites/<site_id>/delete", permission="site:write")
def delete_site(ctx: web.Context, site_id: str) -> Response:
    """Delete a site where no device stands."""
    try:
        with tenancy.work(ctx.scope) as db:
            sites.remove(db, site_id)
    except Problem as problem:
        return forms.refused("team_sites.html", problem, new_open=False, **_values(ctx))
    return make_response(redirect("/team/sites?done=deleted", 303))
