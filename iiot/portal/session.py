"""Signing in and out, in two steps for those with a second factor; the present password; another of one's organisations."""

from typing import NamedTuple
from urllib.parse import urlsplit

from flask import Response, current_app, make_response, redirect, render_template, request

from iiot import auth, cache, config, tenancy, web
from iiot.errors import Invalid, Problem, Unauthorized
from iiot.portal import forms
from iiot.services import passwords, sessions, sign_in, users

pages = web.pages("session")
REMEMBER_NAMES_SECONDS = 30.0


class Names(NamedTuple):
    """What the shell of a page shows of its reader; `tenants`: uid and name of all they belong to."""

    email: str
    tenant: str
    tenants: tuple[tuple[str, str], ...]


_names: cache.Memory[tuple[str, str], Names] = cache.Memory(REMEMBER_NAMES_SECONDS)


def names_of(principal: auth.Principal) -> Names:
    """Names of the person and the tenant, kept for half a minute."""
    key = (principal.user_uid or "", principal.tenant_uid or "")
    known = _names.get(key)
    if known is None:
        mark = _names.mark()
        with tenancy.work(tenancy.system("sign-in")) as db:
            user, tenant, memberships = users.me(db, principal)
        mine = tuple((each.uid, each.name) for each, _ in memberships)
        known = Names(user.email, tenant.name if tenant else "No organisation", mine)
        _names.put(key, known, mark)
    return known


def inside(target: str | None) -> str:
    """An address to return to, if it is a path of this portal; anything else becomes the home page."""
    text = target or ""
    parts = urlsplit(text)
    # Browsers read a backslash as a slash and drop control characters, so neither may be there.
    odd = "\\" in text or any(ord(each) < 0x20 for each in text) or text.startswith("//")
    return text if text.startswith("/") and not (odd or parts.scheme or parts.netloc) else "/"


def signed_in(opened: sessions.Opened, target: str) -> Response:
    """On to a page, with the cookie of a session just opened or renewed."""
    response = make_response(redirect(target, 303))
    web.set_session_cookie(current_app, response, opened)
    return response


def client(ctx: web.Context) -> sessions.Client:
    """Where the request comes from."""
    return sessions.Client(ctx.address, ctx.user_agent)


MESSAGES = {
    "reset": "Your password was changed. Sign in with the new one.",
    "confirmed": "Your address was confirmed already. Sign in.",
}


@pages.route("GET", "/login", auth="none")
def login_page(ctx: web.Context) -> Response | str:
    """The sign-in form; somebody who is signed in goes where they wanted to."""
    target = inside(request.args.get("next"))
    if ctx.is_signed_in:
        return make_response(redirect(target, 303))
    message = MESSAGES.get(request.args.get("done", ""))
    open_to_all = config.load().registration_enabled
    return render_template("login.html", next=target, registration_enabled=open_to_all, message=message)


@pages.route("POST", "/login", auth="none")
def login(ctx: web.Context) -> Response:
    """Sign in and go on to where the reader wanted to, or ask for the code of their second factor."""
    form = forms.texts("email", "next")
    target = inside(form["next"])
    try:
        web.spend_sign_in(form["email"])
        opened = sign_in.sign_in(form["email"], request.form.get("password", ""), client(ctx))
    except sign_in.CodeNeeded as needed:
        return make_response(render_template("login_code.html", mfa_token=needed.mfa_token, next=target))
    except Problem as problem:
        return _not_signed_in(problem, form)
    return signed_in(opened, target)


def _not_signed_in(problem: Problem, form: dict[str, str]) -> Response:
    shown = Problem(problem.status, problem.code, problem.detail, title="Not signed in", headers=problem.headers)
    open_to_all = config.load().registration_enabled
    return forms.refused("login.html", shown, form=form, next=inside(form["next"]), registration_enabled=open_to_all)


@pages.route("POST", "/login/code", auth="none")
def login_code(ctx: web.Context) -> Response:
    """The second step: a code of the authenticator, or a recovery code."""
    form = forms.texts("mfa_token", "code", "next")
    target = inside(form["next"])
    try:
        web.spend("second-factor", sign_in.holder(form["mfa_token"]))
        opened = sign_in.finish(form["mfa_token"], form["code"], client(ctx))
    except Unauthorized as problem:
        return _not_signed_in(problem, {"email": "", "next": target})
    except Problem as problem:
        return forms.refused("login_code.html", problem, form={}, mfa_token=form["mfa_token"], next=target)
    return signed_in(opened, target)


@pages.route("POST", "/logout", before_setup=True)
def logout(ctx: web.Context) -> Response:
    """End the session."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        sessions.sign_out(db, ctx.principal.session_uid or "")
    response = make_response(redirect("/login", 303))
    web.clear_session_cookie(current_app, response)
    return response


@pages.route("POST", "/switch", before_setup=True)
def switch(ctx: web.Context) -> Response:
    """Go on in another of one's organisations."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        opened = sessions.switch(db, ctx.principal, request.form.get("tenant", ""), client(ctx))
    return signed_in(opened, "/")


@pages.route("GET", "/password", before_setup=True)
def password_page(ctx: web.Context) -> str:
    """The form to change the password; forced at the first sign-in."""
    return render_template(
        "password.html",
        forced=ctx.principal.must_change_password,
        password_min_length=config.load().password_min_length,
    )


@pages.route("POST", "/password", before_setup=True)
def password(ctx: web.Context) -> Response:
    """Change the password; this session goes on, all others end."""
    current, new = request.form.get("current_password", ""), request.form.get("new_password", "")
    try:
        web.spend("password-change", ctx.principal.user_uid or "")
        check_repeated(new)
        opened = passwords.change(ctx.principal, current, new, client(ctx))
    except Problem as problem:
        fields = dict.fromkeys(("current_password", "new_password", "repeat_password"), "")
        minimum = config.load().password_min_length
        return forms.refused(
            "password.html",
            problem,
            form=fields,
            forced=ctx.principal.must_change_password,
            password_min_length=minimum,
        )
    return signed_in(opened, "/")


def check_repeated(new: str) -> None:
    """Raise Invalid unless the new password was typed twice alike."""
    if new != request.form.get("repeat_password", ""):
        raise Invalid(
            "The password was not changed.",
            [{"loc": ["body", "repeat_password"], "msg": "the two new passwords differ"}],
        )
