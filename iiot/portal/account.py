"""One's own account: name, sessions, second factor."""

import segno
from flask import Response, make_response, redirect, render_template, request
from markupsafe import Markup

from iiot import tenancy, web
from iiot.errors import Problem
from iiot.portal import forms
from iiot.services import mfa, sessions, users

pages = web.pages("account")
DONE = {
    "name": "Your name was saved.",
    "session": "The session was ended.",
    "others": "All other sessions were ended.",
    "mfa-off": "The second factor is off.",
}


def _account(ctx: web.Context) -> dict[str, object]:
    with tenancy.work(tenancy.system("sign-in")) as db:
        user, _, memberships = users.me(db, ctx.principal)
        return {
            "user": user,
            "memberships": memberships,
            "sessions": sessions.mine(db, ctx.principal),
            "codes_left": mfa.codes_left(db, user.id) if user.has_mfa else 0,
        }


@pages.route("GET", "/account")
def account(ctx: web.Context) -> str:
    """Everything about one's own account."""
    values = _account(ctx)
    return render_template("account.html", message=DONE.get(request.args.get("done", "")), **values)


@pages.route("POST", "/account")
def rename(ctx: web.Context) -> Response:
    """Save one's name."""
    form = forms.texts("name")
    try:
        with tenancy.work(tenancy.system("sign-in")) as db:
            users.rename(db, ctx.principal, form["name"])
    except Problem as problem:
        return forms.refused("account.html", problem, form=form, **_account(ctx))
    return make_response(redirect("/account?done=name", 303))


@pages.route("POST", "/account/sessions/<session_id>/end")
def end_session(ctx: web.Context, session_id: str) -> Response:
    """End one of one's sessions."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        sessions.end_one(db, ctx.principal, session_id)
    return make_response(redirect("/account?done=session", 303))


@pages.route("POST", "/account/sessions/end-others")
def end_others(ctx: web.Context) -> Response:
    """End all of one's sessions but this one."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        sessions.end_others(db, ctx.principal)
    return make_response(redirect("/account?done=others", 303))


def _factor(ctx: web.Context) -> dict[str, object]:
    """What the page of the second factor shows in its present state."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        user, tenant, _ = users.me(db, ctx.principal)
        pending = mfa.pending(db, ctx.principal)
        left = mfa.codes_left(db, user.id)
    required = ctx.principal.must_set_up_mfa
    return {"user": user, "tenant": tenant, "required": required, "codes_left": left} | _shown(pending)


def _shown(pending: mfa.SetUp | None) -> dict[str, object]:
    if pending is None:
        return {"secret": None, "qr": None}
    # Dark on white in both themes: that is what cameras read.
    image = segno.make(pending.uri, error="m").svg_inline(scale=5, border=3, dark="#000", light="#fff", svgclass="qr")
    groups = " ".join(pending.secret[at : at + 4] for at in range(0, len(pending.secret), 4))
    return {"secret": groups, "qr": Markup(image)}  # noqa: S704 - made by segno of our own text


@pages.route("GET", "/account/mfa", before_setup=True)
def second_factor(ctx: web.Context) -> str:
    """The second factor: set it up, or look after it."""
    return render_template("account_mfa.html", **_factor(ctx))


@pages.route("POST", "/account/mfa/setup", before_setup=True)
def setup(ctx: web.Context) -> Response:
    """Make a seed and show it."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        mfa.start(db, ctx.principal)
    return make_response(redirect("/account/mfa", 303))


@pages.route("POST", "/account/mfa/confirm", before_setup=True)
def confirm(ctx: web.Context) -> Response:
    """Switch the factor on with a first code, and show the recovery codes once."""
    form = forms.texts("code")
    try:
        web.spend("second-factor", ctx.principal.uid)
        with tenancy.work(tenancy.system("sign-in")) as db:
            codes = mfa.confirm(db, ctx.principal, form["code"])
    except Problem as problem:
        return forms.refused("account_mfa.html", problem, form={"code": ""}, **_factor(ctx))
    return make_response(render_template("account_codes.html", codes=codes, is_new=True))


@pages.route("POST", "/account/mfa/codes")
def new_codes(ctx: web.Context) -> Response:
    """Ten new recovery codes, shown once."""
    form = forms.texts("code")
    try:
        web.spend("second-factor", ctx.principal.uid)
        codes = mfa.regenerate(ctx.principal, request.form.get("password", ""), form["code"])
    except Problem as problem:
        return _refused(ctx, problem, "codes")
    return make_response(render_template("account_codes.html", codes=codes, is_new=False))


@pages.route("POST", "/account/mfa/disable")
def disable(ctx: web.Context) -> Response:
    """Switch the factor off."""
    form = forms.texts("code")
    try:
        web.spend("second-factor", ctx.principal.uid)
        mfa.disable(ctx.principal, request.form.get("password", ""), form["code"])
    except Problem as problem:
        return _refused(ctx, problem, "disable")
    return make_response(redirect("/account?done=mfa-off", 303))


def _refused(ctx: web.Context, problem: Problem, which: str) -> Response:
    """The page once more; `which` of its two forms was refused."""
    return forms.refused("account_mfa.html", problem, form={"code": "", "password": ""}, which=which, **_factor(ctx))
