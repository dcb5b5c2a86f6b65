"""Pages for people who cannot sign in yet: a new organisation, a forgotten password."""

from flask import Response, make_response, redirect, render_template, request

from iiot import config, web
from iiot.errors import Conflict, Invalid, Problem
from iiot.portal import forms
from iiot.portal.session import check_repeated, client, signed_in
from iiot.services import mail, passwords, registration

pages = web.pages("signup")


@pages.route("GET", "/signup", auth="none")
def signup_page(_ctx: web.Context) -> Response | str:
    """The form for a new organisation, where the operator allows it."""
    settings = config.load()
    if not settings.registration_enabled:
        return make_response(redirect("/login", 303))
    return render_template("signup.html", password_min_length=settings.password_min_length)


@pages.route("POST", "/signup", auth="none")
def signup(ctx: web.Context) -> Response:
    """Open an organisation with its administrator, signed in; where there is mail, after the link in it was opened."""
    form = forms.texts("tenant", "email")
    try:
        web.spend("register", ctx.address)
        wanted = registration.Registration(
            forms.email(form["email"]), request.form.get("password", ""), "", _tenant(form["tenant"])
        )
        opened = None
        if not mail.configured() or web.within("account-mail", wanted.address):
            opened = registration.register(wanted, client(ctx))
    except Problem as problem:
        return forms.refused(
            "signup.html", problem, form={"password": "", **form}, password_min_length=config.load().password_min_length
        )
    if opened is None:
        return make_response(render_template("check_mail.html", email=form["email"], purpose="signup"))
    return signed_in(opened, "/")


def _tenant(text: str) -> str:
    if len(text) > 200 or not text.isprintable():
        raise Invalid(
            "The name is not valid.", [{"loc": ["body", "tenant"], "msg": "at most 200 characters in one line"}]
        )
    return text


@pages.route("GET", "/signup/confirm", auth="none")
def confirm_page(_ctx: web.Context) -> str:
    """A button, because programs that look through mails open every link."""
    return render_template("signup_confirm.html", token=request.args.get("token", "")[:200])


@pages.route("POST", "/signup/confirm", auth="none")
def confirm(ctx: web.Context) -> Response:
    """Make the organisation and sign in."""
    token = request.form.get("token", "")
    try:
        web.spend("link", ctx.address)
        return signed_in(registration.confirm(token, client(ctx)), "/")
    except Conflict:
        return make_response(redirect("/login?done=confirmed", 303))
    except Problem as problem:
        return forms.refused("signup_confirm.html", problem, form={}, token=token)


@pages.route("GET", "/forgot", auth="none")
def forgot_page(_ctx: web.Context) -> str:
    """Ask for a link to a new password."""
    return render_template("forgot.html", has_mail=mail.configured())


@pages.route("POST", "/forgot", auth="none")
def forgot(ctx: web.Context) -> Response:
    """Send a link, if there is such an account; the page says the same either way."""
    email = forms.texts("email")["email"][:254]
    try:
        web.spend("forgot", ctx.address)
        if web.within("account-mail", email.lower()):
            passwords.forgot(email)
    except Problem as problem:
        return forms.refused("forgot.html", problem, form={"email": email}, has_mail=mail.configured())
    return make_response(render_template("check_mail.html", email=email, purpose="reset", has_mail=mail.configured()))


@pages.route("GET", "/reset", auth="none")
def reset_page(_ctx: web.Context) -> str:
    """Choose a new password by a link."""
    minimum = config.load().password_min_length
    return render_template("reset.html", token=request.args.get("token", "")[:200], password_min_length=minimum)


@pages.route("POST", "/reset", auth="none")
def reset(ctx: web.Context) -> Response:
    """Set the new password; the person signs in with it afterwards."""
    token, new = request.form.get("token", ""), request.form.get("new_password", "")
    try:
        web.spend("link", ctx.address)
        check_repeated(new)
        passwords.reset(token, new)
    except Problem as problem:
        fields = dict.fromkeys(("new_password", "repeat_password"), "")
        minimum = config.load().password_min_length
        return forms.refused("reset.html", problem, form=fields, token=token, password_min_length=minimum)
    return make_response(redirect("/login?done=reset", 303))
