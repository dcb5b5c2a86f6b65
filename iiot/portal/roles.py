"""The matrix of roles and permissions."""

from typing import Any

from flask import Response, make_response, redirect, render_template, request

from iiot import auth, tenancy, web
from iiot.errors import Problem
from iiot.portal import forms
from iiot.services import roles

pages = web.pages("roles")
DONE = {
    "made": "The role was made. Give it to members or invitations.",
    "saved": "The role was saved. It counts from the next click on.",
    "deleted": "The role was deleted.",
}
# What each permission lets somebody do, by what it concerns, as the matrix shows it.
MEANING = (
    ("Devices", {"device:read": "See devices and sites", "device:write": "Add, change and delete devices"}),
    ("Commands", {"device:command": "Send commands", "entity:read": "See entities", "entity:control": "Control entities"}),
    ("Telemetry", {"telemetry:read": "Read values and charts", "telemetry:write": "Send values for devices"}),
    ("Rules and alarms", {"rule:read": "See rules", "rule:write": "Change rules", "alarm:read": "See alarms", "alarm:write": "Handle alarms"}),
    ("Models and jobs", {"model:read": "See models and scores", "model:write": "Train and promote models", "job:read": "See jobs"}),
    ("Sites", {"site:write": "Add, rename and delete sites"}),
    ("Team", {"member:read": "See members", "member:write": "Manage members, roles and invitations", "api-key:write": "Manage all API keys"}),
    ("Organisation", {"tenant:read": "See usage and limits", "tenant:write": "Change settings", "audit:read": "Read the audit trail"}),
)  # fmt: skip


def groups() -> list[tuple[str, dict[str, str]]]:
    """(heading, permission → what it means) of every permission; one without a text yet is shown by its name."""
    told = {permission for _, meanings in MEANING for permission in meanings}
    more = {permission: permission for permission in sorted(auth.ALL_PERMISSIONS - told)}
    return [*MEANING, *([("More", more)] if more else [])]


def _values(ctx: web.Context) -> dict[str, Any]:
    with tenancy.work(ctx.scope) as db:
        found = roles.list_all(db)
    return {"tab": "roles", "roles": found, "groups": groups(), "message": DONE.get(request.args.get("done", ""))}


@pages.route("GET", "/team/roles", permission="member:read")
def role_matrix(ctx: web.Context) -> str:
    """The matrix."""
    return render_template("team_roles.html", new_open="new" in request.args, **_values(ctx))


@pages.route("POST", "/team/roles", permission="member:write")
def create_role(ctx: web.Context) -> Response:
    """Make a role."""
    chosen = request.form.getlist("permissions")
    form: dict[str, Any] = {"name": request.form.get("name", ""), "permissions": chosen}
    try:
        with tenancy.work(ctx.scope) as db:
            roles.create(db, ctx.principal, form["name"], chosen)
    except Problem as problem:
        return forms.refused("team_roles.html", problem, form=form, new_open=True, **_values(ctx))
    return make_response(redirect("/team/roles?done=made", 303))


@pages.route("POST", "/team/roles/<role_id>", permission="member:write")
def save_role(ctx: web.Context, role_id: str) -> Response:
    """Save name and permissions of a role."""
    try:
        with tenancy.work(ctx.scope) as db:
            roles.change(db, ctx.principal, role_id, request.form.get("name", ""), request.form.getlist("permissions"))
    except Problem as problem:
        return forms.refused("team_roles.html", problem, new_open=False, **_values(ctx))
    return make_response(redirect("/team/roles?done=saved", 303))


@pages.route("POST", "/team/roles/<role_id>/delete", permission="member:write")
def delete_role(ctx: web.Context, role_id: str) -> Response:
    """Delete a role that nobody has."""
    try:
        with tenancy.work(ctx.scope) as db:
            roles.remove(db, ctx.principal, role_id)
    except Problem as problem:
        return forms.refused("team_roles.html", problem, new_open=False, **_values(ctx))
    return make_response(redirect("/team/roles?done=deleted", 303))
