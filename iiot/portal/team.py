"""The team: members and what each may do and see, and the invitations that wait."""

from typing import Any

from flask import Response, make_response, redirect, render_template, request
from sqlalchemy.orm import Session

from iiot import tenancy, web
from iiot.errors import Invalid, Problem
from iiot.portal import forms
from iiot.services import invitations, limited, members, passwords, roles, sites, users
from iiot.services.limited import LimitedTo
from iiot.services.listing import Wanted

pages = web.pages("team")
PAGE_SIZE = 50
DONE = {
    "removed": "The member was removed. Their sessions and keys in this organisation ended.",
    "role": "The role was changed. It counts from the next click on.",
    "limits": "What the member sees was changed.",
    "revoked": "The invitation was revoked. Its link opens nothing any more.",
    "sent": "The invitation was sent by mail.",
}


def _message() -> str | None:
    return DONE.get(request.args.get("done", ""))


def _choices(db: Session) -> dict[str, Any]:
    """What forms about a member offer."""
    return {"roles": roles.list_all(db), "sites": sites.choices(db)}


def _wanted_limits(db: Session) -> LimitedTo | None:
    """The limits in the form: all devices, or those of sites, with tags, or named. Raises Invalid at the field that is wrong."""
    if request.form.get("sees") != "some":
        return None
    devices = limited.named(db, forms.tags(request.form.get("devices", "")))
    return LimitedTo(devices, request.form.getlist("sites"), forms.tags(request.form.get("tags", "")))


def _limits_form() -> dict[str, Any]:
    """The same fields as the page shows them again."""
    given = forms.texts("sees", "devices", "tags")
    return {**given, "sites": request.form.getlist("sites"), "limited_to": ""}


# --- members ---------------------------------------------------------------------------------------------------------------------------------


@pages.route("GET", "/team", permission="member:read")
def member_list(ctx: web.Context) -> str:
    """The members."""
    q = request.args.get("q", "").replace("\x00", "").strip()[:200]
    kind = "page:members"
    try:
        position = web.decode_cursor(kind, request.args.get("cursor"))
    except Invalid:
        position = None
    with tenancy.work(ctx.scope) as db:
        found = members.search(db, Wanted("email", PAGE_SIZE, position), q or None)
    following = web.encode_cursor(kind, found.next_position)
    return render_template(
        "team.html",
        tab="members",
        found=found,
        q=q,
        next_cursor=following,
        is_cut=position is not None,
        message=_message(),
    )


def _member(ctx: web.Context, user_id: str) -> dict[str, Any]:
    with tenancy.work(ctx.scope) as db:
        member = members.get(db, user_id)
        limits = member.limited_to or LimitedTo()
        names = limited.names(db, limits.devices)
        choices = _choices(db)
    form = {
        "role": member.role,
        "sees": "some" if member.limited_to is not None else "all",
        "devices": ", ".join(names),
        "sites": limits.sites,
        "tags": ", ".join(limits.tags),
        "confirm": "",
    }
    return {"tab": "members", "member": member, "form": form, **choices}


@pages.route("GET", "/team/members/<user_id>", permission="member:read")
def member_page(ctx: web.Context, user_id: str) -> str:
    """One member: role, what they see, help when they are locked out, removal."""
    return render_template("team_member.html", message=_message(), **_member(ctx, user_id))


def _member_refused(ctx: web.Context, user_id: str, problem: Problem, form: dict[str, Any]) -> Response:
    values = _member(ctx, user_id)
    values["form"] |= form
    return forms.refused("team_member.html", problem, **values)


def _back(user_id: str, done: str) -> Response:
    return make_response(redirect(f"/team/members/{user_id}?done={done}", 303))


@pages.route("POST", "/team/members/<user_id>/role", permission="member:write")
def give_role(ctx: web.Context, user_id: str) -> Response:
    """Give the member another role."""
    form = forms.texts("role")
    try:
        with tenancy.work(ctx.scope) as db:
            members.change(db, ctx.principal, user_id, members.Changes(role=form["role"]))
    except Problem as problem:
        return _member_refused(ctx, user_id, problem, form)
    return _back(user_id, "role")


@pages.route("POST", "/team/members/<user_id>/limits", permission="member:write")
def limit_member(ctx: web.Context, user_id: str) -> Response:
    """Let the member see everything, or some devices."""
    try:
        with tenancy.work(ctx.scope) as db:
            changes = members.Changes(set_limits=True, limited_to=_wanted_limits(db))
            members.change(db, ctx.principal, user_id, changes)
    except Problem as problem:
        return _member_refused(ctx, user_id, problem, _limits_form())
    return _back(user_id, "limits")


@pages.route("POST", "/team/members/<user_id>/reset-link", permission="member:write")
def reset_link(ctx: web.Context, user_id: str) -> Response:
    """Make a link to a new password and show it once."""
    values = _member(ctx, user_id)
    try:
        with tenancy.work(tenancy.system("sign-in")) as db:
            user = users.by_email(db, values["member"].email)
            if user is None:
                raise Invalid("The member left meanwhile.")
            link = passwords.admin_link(db, ctx.principal, user)
    except Problem as problem:
        return forms.refused("team_member.html", problem, **values)
    return make_response(render_template("team_member.html", reset=link, **values), 201)


@pages.route("POST", "/team/members/<user_id>/remove", permission="member:write")
def remove_member(ctx: web.Context, user_id: str) -> Response:
    """End the membership after the address was typed."""
    confirm = request.form.get("confirm", "").strip()
    try:
        with tenancy.work(ctx.scope) as db:
            if confirm.lower() != members.get(db, user_id).email.lower():
                raise Invalid(
                    "The member was not removed.",
                    [{"loc": ["body", "confirm"], "msg": "this is not the member's address"}],
                )
            members.remove(db, ctx.principal, user_id)
    except Problem as problem:
        return _member_refused(ctx, user_id, problem, {"confirm": confirm})
    return make_response(redirect("/team?done=removed", 303))


# --- invitations -----------------------------------------------------------------------------------------------------------------------------


def _invitations(ctx: web.Context) -> dict[str, Any]:
    kind = "page:invitations"
    try:
        position = web.decode_cursor(kind, request.args.get("cursor"))
    except Invalid:
        position = None
    with tenancy.work(ctx.scope) as db:
        found = invitations.search(db, Wanted("-created_at", PAGE_SIZE, position))
        choices = _choices(db)
    following = web.encode_cursor(kind, found.next_position)
    return {"tab": "invitations", "found": found, "next_cursor": following, "is_cut": position is not None, **choices}


@pages.route("GET", "/team/invitations", permission="member:read")
def invitation_list(ctx: web.Context) -> str:
    """The invitations that wait."""
    is_open = "new" in request.args
    return render_template("team_invitations.html", new_open=is_open, message=_message(), **_invitations(ctx))


@pages.route("POST", "/team/invitations", permission="member:write")
def invite(ctx: web.Context) -> Response:
    """Invite somebody; the link is shown once where no mail is sent."""
    form = {**_limits_form(), **forms.texts("email", "role")}
    try:
        web.spend("invite", ctx.principal.tenant_uid or "")
        address = forms.email(form["email"])
        with tenancy.work(ctx.scope) as db:
            limits = _wanted_limits(db)
            made = invitations.create(db, ctx.principal, address, form["role"] or "viewer", limits)
    except Problem as problem:
        return forms.refused("team_invitations.html", problem, form=form, new_open=True, **_invitations(ctx))
    return _sent(ctx, made)


def _sent(ctx: web.Context, made: invitations.Invited) -> Response:
    if made.link is None:
        return make_response(redirect("/team/invitations?done=sent", 303))
    return make_response(render_template("team_invitations.html", made=made, new_open=False, **_invitations(ctx)), 201)


@pages.route("POST", "/team/invitations/<invitation_id>/resend", permission="member:write")
def resend(ctx: web.Context, invitation_id: str) -> Response:
    """Make a new link; the one before is dead."""
    try:
        web.spend("invite", ctx.principal.tenant_uid or "")
        with tenancy.work(ctx.scope) as db:
            made = invitations.resend(db, ctx.principal, invitation_id)
    except Problem as problem:
        return forms.refused("team_invitations.html", problem, new_open=False, **_invitations(ctx))
    return _sent(ctx, made)


@pages.route("POST", "/team/invitations/<invitation_id>/revoke", permission="member:write")
def revoke(ctx: web.Context, invitation_id: str) -> Response:
    """Take an invitation back."""
    with tenancy.work(ctx.scope) as db:
        invitations.revoke(db, invitation_id)
    return make_response(redirect("/team/invitations?done=revoked", 303))
