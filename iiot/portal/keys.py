"""API keys: one's own below the account, and those of the whole tenant with its service accounts below the team."""

from typing import Any

from flask import Response, make_response, redirect, render_template, request

from iiot import auth, config, tenancy, web
from iiot.errors import Invalid, Problem
from iiot.portal import forms
from iiot.services import api_keys, roles, service_accounts
from iiot.services.listing import Wanted

pages = web.pages("keys")
PAGE_SIZE = 25
# Service accounts are few; what a page shows of them is not paged.
MOST_ACCOUNTS = 500
OWN, TEAM = "/account/keys", "/team/keys"
MANAGE = api_keys.MANAGE
DONE = {
    "revoked": "The key was revoked. It opens nothing any more.",
    "made": "The service account was made. Now give it a key.",
    "saved": "The service account was saved.",
    "deleted": "The service account and its keys were deleted.",
}


def _page(ctx: web.Context, *, mine: bool) -> dict[str, Any]:
    """A page of keys, newest first; a cursor that does not fit begins anew."""
    kind = f"page:keys:{mine}"
    cursor = request.args.get("cursor")
    try:
        position = web.decode_cursor(kind, cursor)
    except Invalid:
        position = None
    with tenancy.work(ctx.scope) as db:
        found = api_keys.search(db, ctx.principal, Wanted("-created_at", PAGE_SIZE, position), mine=mine)
        accounts, role_list = [], []
        if not mine:
            accounts = service_accounts.search(db, Wanted("name", MOST_ACCOUNTS)).items
            role_list = roles.list_all(db)
    return {
        "found": found,
        "accounts": accounts,
        "roles": role_list,
        "base": OWN if mine else TEAM,
        "is_cut": cursor is not None,
        "next_cursor": web.encode_cursor(kind, found.next_position),
        "message": DONE.get(request.args.get("done", "")),
        "groups": _groups(ctx.principal),
        "ends": forms.ENDS,
        "chosen": request.form.getlist("scope"),
    }


def _groups(principal: auth.Principal) -> list[tuple[str, list[str]]]:
    """The permissions that the caller can hand out, by what they concern: `("device", ["device:command", "device:read", …])`."""
    found: dict[str, list[str]] = {}
    for permission in sorted(principal.permissions):
        found.setdefault(permission.partition(":")[0], []).append(permission)
    return list(found.items())


def _create(ctx: web.Context, template: str, *, mine: bool) -> Response:
    """Make a key and show it, once; or the page again with what was wrong."""
    form = forms.texts("key_name", "days", "reach", "account")
    scopes = tuple(request.form.getlist("scope")) if form["reach"] == "some" else None
    try:
        wish = api_keys.Wish(form["key_name"], scopes, forms.end_after(form["days"]), form["account"] or None)
        with tenancy.work(ctx.scope) as db:
            listed, key = api_keys.create(db, ctx.principal, wish)
    except Problem as problem:
        # Under the names that the service calls the fields by, too, so that its complaints are shown at them.
        form |= {"name": form["key_name"], "service_account": form["account"], "expires_at": form["days"], "scopes": ""}
        return forms.refused(template, problem, form=form, new_open=True, **_page(ctx, mine=mine))
    base = (config.load().public_url or request.host_url).rstrip("/")
    example = f"curl -H 'Authorization: Bearer {key}' \\\n  {base}/api/v1/devices"
    content = render_template("key_new.html", key=key, listed=listed, example=example, base=OWN if mine else TEAM)
    return make_response(content, 201)


def _revoke(ctx: web.Context, key_id: str, base: str) -> Response:
    with tenancy.work(ctx.scope) as db:
        api_keys.revoke(db, ctx.principal, key_id)
    return make_response(redirect(f"{base}?done=revoked", 303))


@pages.route("GET", "/account/keys")
def own_keys(ctx: web.Context) -> str:
    """One's own keys."""
    return render_template("keys_own.html", new_open="new" in request.args, **_page(ctx, mine=True))


@pages.route("POST", "/account/keys")
def create_own(ctx: web.Context) -> Response:
    """Make a key of one's own."""
    return _create(ctx, "keys_own.html", mine=True)


@pages.route("POST", "/account/keys/<key_id>/revoke")
def revoke_own(ctx: web.Context, key_id: str) -> Response:
    """Revoke a key."""
    return _revoke(ctx, key_id, OWN)


@pages.route("GET", "/team/keys", permission=MANAGE)
def team_keys(ctx: web.Context) -> str:
    """All keys of the tenant, and its service accounts."""
    return render_template("keys_team.html", new_open="new" in request.args, **_page(ctx, mine=False))


@pages.route("POST", "/team/keys", permission=MANAGE)
def create_for_account(ctx: web.Context) -> Response:
    """Make a key of one's own or for a service account."""
    return _create(ctx, "keys_team.html", mine=False)


@pages.route("POST", "/team/keys/<key_id>/revoke", permission=MANAGE)
def revoke_any(ctx: web.Context, key_id: str) -> Response:
    """Revoke any key of the tenant."""
    return _revoke(ctx, key_id, TEAM)


@pages.route("POST", "/team/service-accounts", permission=MANAGE)
def create_account(ctx: web.Context) -> Response:
    """Make a service account."""
    form = forms.texts("name", "role")
    try:
        with tenancy.work(ctx.scope) as db:
            service_accounts.create(db, ctx.principal, form["name"], form["role"])
    except Problem as problem:
        return forms.refused("keys_team.html", problem, form=form, account_open="new", **_page(ctx, mine=False))
    return make_response(redirect(f"{TEAM}?done=made", 303))


@pages.route("POST", "/team/service-accounts/<account_id>", permission=MANAGE)
def change_account(ctx: web.Context, account_id: str) -> Response:
    """Save the name, the role and whether a service account may come in."""
    form = forms.texts("name", "role", "enabled")
    wanted = service_accounts.Change(form["name"], form["role"], form["enabled"] == "true")
    try:
        with tenancy.work(ctx.scope) as db:
            service_accounts.change(db, ctx.principal, account_id, wanted)
    except Problem as problem:
        if problem.status == 404:
            raise
        return forms.refused("keys_team.html", problem, form=form, account_open=account_id, **_page(ctx, mine=False))
    return make_response(redirect(f"{TEAM}?done=saved", 303))


@pages.route("POST", "/team/service-accounts/<account_id>/delete", permission=MANAGE)
def delete_account(ctx: web.Context, account_id: str) -> Response:
    """Delete a service account after its name was typed."""
    form = forms.texts("confirm")
    try:
        with tenancy.work(ctx.scope) as db:
            if form["confirm"] != service_accounts.get(db, account_id).name:
                message = "this is not the service account's name"
                raise Invalid("It was not deleted.", [{"loc": ["body", "confirm"], "msg": message}])
            service_accounts.remove(db, ctx.principal, account_id)
    except Problem as problem:
        if problem.status == 404:
            raise
        return forms.refused("keys_team.html", problem, form=form, delete_open=account_id, **_page(ctx, mine=False))
    return make_response(redirect(f"{TEAM}?done=deleted", 303))
