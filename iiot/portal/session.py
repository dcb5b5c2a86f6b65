"""Signing in and out, signing up, changing a password."""

from urllib.parse import urlsplit

from flask import Response, current_app, make_response, redirect, render_template, request

from iiot import auth, cache, config, tenancy, web
from iiot.errors import Invalid, Problem
from iiot.portal import forms
from iiot.services import sessions, users

pages = web.pages("session")
REMEMBER_NAMES_SECONDS = 30.0
_names: cache.Memory[tuple[str, str], tuple[str, str]] = cache.Memory(REMEMBER_NAMES_SECONDS)


def names_of(principal: auth.Principal) -> tuple[str, str]:
    """E-mail of the person and name of the tenant, kept for half a minute."""
    key = (principal.user_uid or "", principal.tenant_uid or "")
    known = _names.get(key)
    if known is None:
        mark = _names.mark()
        with tenancy.work(tenancy.system("sign-in")) as db:
            user, tenant, _ = users.me(db, principal)
        known = (user.email, tenant.name if tenant else "No organisation")
        _names.put(key, known, mark)
    return known


def inside(target: str | None) -> str:
    """An address to return to, if it is a path of this portal; anything else becomes the home page."""
    text = target or ""
    parts = urlsplit(text)
    # Browsers read a backslash as a slash and drop control characters, so neither may be there.
    odd = "\\" in text or any(ord(each) < 0x20 for each in text) or text.startswith("//")
    return text if text.startswith("/") and not (odd or parts.scheme or parts.netloc) else "/"


def _signed_in(opened: sessions.Opened, target: str) -> Response:
    response = make_response(redirect(target, 303))
    web.set_session_cookie(current_app, response, opened)
    return response


def _client(ctx: web.Context) -> sessions.Client:
    return sessions.Client(ctx.address, ctx.user_agent)


@pages.route("GET", "/login", auth="none")
def login_page(ctx: web.Context) -> Response | str:
    """The sign-in form; somebody who is signed in goes where they wanted to."""
    target = inside(request.args.get("next"))
    if ctx.is_signed_in:
        return make_response(redirect(target, 303))
    return render_template("login.html", next=target, registration_enabled=config.load().registration_enabled)


@pages.route("POST", "/login", auth="none")
def login(ctx: web.Context) -> Response:
    """Sign in and go on to where the reader wanted to."""
    form = forms.texts("email", "next")
    try:
        web.spend_sign_in(form["email"])
        opened = sessions.sign_in(form["email"], request.form.get("password", ""), _client(ctx))
    except Problem as problem:
        shown = Problem(problem.status, problem.code, problem.detail, title="Not signed in", headers=problem.headers)
        return forms.refused(
            "login.html",
            shown,
            form=form,
            next=inside(form["next"]),
            registration_enabled=config.load().registration_enabled,
        )
    return _signed_in(opened, inside(form["next"]))


@pages.route("POST", "/logout", before_password_change=True)
def logout(ctx: web.Context) -> Response:
    """End the session."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        sessions.sign_out(db, ctx.principal.session_uid or "")
    response = make_response(redirect("/login", 303))
    web.clear_session_cookie(current_app, response)
    return response


@pages.route("GET", "/signup", auth="none")
def signup_page(_ctx: web.Context) -> Response | str:
    """The form for a new organisation, where the operator allows it."""
    settings = config.load()
    if not settings.registration_enabled:
        return make_response(redirect("/login", 303))
    return render_template("signup.html", password_min_length=settings.password_min_length)


@pages.route("POST", "/signup", auth="none")
def signup(ctx: web.Context) -> Response:
    """Open an organisation with its administrator, signed in."""
    form = forms.texts("tenant", "email")
    try:
        web.spend("register", ctx.address)
        wanted = users.Registration(_email(form["email"]), request.form.get("password", ""), "", form["tenant"])
        return _signed_in(users.register(wanted, _client(ctx)), "/")
    except Problem as problem:
        return forms.refused(
            "signup.html", problem, form={"password": "", **form}, password_min_length=config.load().password_min_length
        )


def _email(text: str) -> str:
    local, _, domain = text.partition("@")
    if not local or "." not in domain.strip(".") or len(text) > 254 or any(each.isspace() for each in text):
        raise Invalid(
            "The address is not valid.", [{"loc": ["body", "email"], "msg": "write it like anna@example.com"}]
        )
    return text


@pages.route("GET", "/password", before_password_change=True)
def password_page(ctx: web.Context) -> str:
    """The form to change the password; forced at the first sign-in."""
    return render_template(
        "password.html",
        forced=ctx.principal.must_change_password,
        password_min_length=config.load().password_min_length,
    )


@pages.route("POST", "/password", before_password_change=True)
def password(ctx: web.Context) -> Response:
    """Change the password; this session goes on, all others end."""
    current, new = request.form.get("current_password", ""), request.form.get("new_password", "")
    try:
        web.spend("password-change", ctx.principal.user_uid or "")
        if new != request.form.get("repeat_password", ""):
            raise Invalid(
                "The password was not changed.",
                [{"loc": ["body", "repeat_password"], "msg": "the two new passwords differ"}],
            )
        opened = sessions.change_password(ctx.principal, current, new, _client(ctx))
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
    return _signed_in(opened, "/")
