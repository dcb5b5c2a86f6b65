"""Following an invitation: with a new account, with the one somebody has, or as who is signed in already."""

from typing import Any

from flask import Response, make_response, render_template, request

from iiot import config, web
from iiot.errors import Problem
from iiot.portal import forms
from iiot.portal.session import client, signed_in
from iiot.services import invitations, sessions, sign_in

pages = web.pages("accept")


def _values(ctx: web.Context, token: str) -> dict[str, Any]:
    """What the link asks, and as whom it would be followed; raises Problem for a link that does not work."""
    asked = invitations.look(token)
    me = ctx.principal.label if ctx.is_signed_in else None
    return {
        "asked": asked,
        "token": token,
        "me": me,
        "is_me": me is not None and me.lower() == asked.email,
        "password_min_length": config.load().password_min_length,
    }


@pages.route("GET", "/invitations/accept", auth="none")
def accept_page(ctx: web.Context) -> Response:
    """The invitation and what it takes to follow it."""
    web.spend("invitation-accept", ctx.address)
    try:
        values = _values(ctx, request.args.get("token", "")[:256])
    except Problem as problem:
        return make_response(render_template("accept.html", asked=None, problem=problem), problem.status)
    return make_response(render_template("accept.html", **values))


@pages.route("POST", "/invitations/accept", auth="none")
def accept(ctx: web.Context) -> Response:
    """Follow the invitation and go in."""
    form = forms.texts("token", "name", "code")
    token, password = form["token"][:256], request.form.get("password", "")
    try:
        web.spend("invitation-accept", ctx.address)
        values = _values(ctx, token)
    except Problem as problem:
        return make_response(render_template("accept.html", asked=None, problem=problem), problem.status)
    try:
        opened = _follow(ctx, values, form, password)
    except Problem as problem:
        form |= {"password": "", "needs_code": "yes" if problem.code in ("mfa-required", "mfa-wrong-code") else ""}
        return forms.refused("accept.html", problem, form=form, **values)
    return signed_in(opened, "/")


def _count_code(user_uid: str) -> None:
    web.spend("second-factor", user_uid)


def _follow(ctx: web.Context, values: dict[str, Any], form: dict[str, str], password: str) -> sessions.Opened:
    asked: invitations.Asked = values["asked"]
    if values["is_me"]:
        return invitations.accept_as(values["token"], ctx.principal, client(ctx))
    if asked.has_account:
        web.spend_sign_in(asked.email)
        proved = sign_in.prove(asked.email, password, form["code"], client(ctx), _count_code)
        return invitations.accept_as(values["token"], proved.principal, client(ctx))
    return invitations.accept_new(values["token"], invitations.Newcomer(form["name"][:200], password), client(ctx))
