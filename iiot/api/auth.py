"""Sign-in, refresh, sign-out, registration, the password, and who one is."""

import re
from typing import Annotated, Literal

import structlog
from flask import Flask, Response
from pydantic import AfterValidator, AliasChoices, Field

from iiot import auth, config, tenancy, web
from iiot.api.tenants import TenantOut
from iiot.services import mail, passwords, registration, sessions, sign_in, users

api = web.Api("auth")

_ADDRESS = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f]{1,189}")


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text.strip()):
        raise ValueError("not an e-mail address; write it like anna@example.com")
    return text.strip()


def _plain(text: str) -> str:
    if any(ord(each) < 32 or ord(each) == 127 for each in text):
        raise ValueError("must not contain control characters")
    return text.strip()


Address = Annotated[str, Field(max_length=254), AfterValidator(_address)]
Name = Annotated[str, Field(max_length=200), AfterValidator(_plain)]
Password = Annotated[
    str, Field(min_length=1, max_length=auth.MAX_PASSWORD_BYTES, json_schema_extra={"format": "password"})
]


Code = Annotated[str, Field(min_length=1, max_length=32, description="Of the authenticator, or a recovery code.")]
Token = Annotated[str, Field(min_length=1, max_length=4096)]


class LoginIn(web.Body):
    """Who signs in; `tenant` (id or slug) matters only to members of several, `code` to those with a second factor."""

    email: Annotated[str, Field(max_length=254)]
    password: Password
    tenant: Annotated[str | None, Field(max_length=64)] = None
    code: Code | None = None


class RegisterIn(web.Body):
    """A new tenant and its admin."""

    email: Address
    password: Password
    name: Name = ""
    tenant: Annotated[
        Name, Field(validation_alias=AliasChoices("tenant", "tenant_name"), description="Name of the new tenant.")
    ] = ""


class TokenIn(web.Body):
    """The token of a link in a mail."""

    token: Token


class ForgotIn(web.Body):
    """Whose password was forgotten."""

    email: Annotated[str, Field(max_length=254)]


class ResetIn(TokenIn):
    """The token of a link, and the password that shall be."""

    new_password: Password


class SwitchIn(web.Body):
    """Another of one's tenants, by id or slug."""

    tenant: Annotated[str, Field(max_length=64)]


class CheckMailOut(web.Out):
    """A mail says how to go on, whoever has the address."""

    status: Literal["check-mail"] = "check-mail"


class MeIn(web.Body):
    """What one may change about oneself."""

    name: Name


class RefreshIn(web.Body):
    """The refresh token of the answer before; it works once."""

    refresh_token: Annotated[str, Field(max_length=4096)]


class PasswordIn(web.Body):
    """The password that is, and the one that shall be."""

    current_password: Password
    new_password: Password


class TokensOut(web.Out):
    """`expires_in`: seconds until the access token must be refreshed."""

    access_token: str
    refresh_token: str
    expires_in: int
    token_type: str = "Bearer"  # noqa: S105 - RFC 6750's name of the scheme
    must_change_password: bool = False


class UserOut(web.Out):
    """A person."""

    id: Annotated[str, Field(validation_alias="uid")]
    email: str
    name: str
    is_platform_admin: bool
    must_change_password: bool
    has_mfa: bool


class MembershipOut(web.Out):
    """A tenant one belongs to, and as what."""

    tenant: TenantOut
    role: str


class MeOut(web.Out):
    """Who one is: in the tenant of this session, and in which others one could sign in."""

    user: UserOut
    tenant: TenantOut | None
    role: str | None
    permissions: list[str]
    memberships: list[MembershipOut]


def tokens(opened: sessions.Opened) -> TokensOut:
    """What a program gets of a session just opened or renewed."""
    return TokensOut(
        access_token=web.access_token(opened),
        refresh_token=opened.refresh_token,
        expires_in=config.load().access_token_seconds,
        must_change_password=opened.principal.must_change_password,
    )


def client(ctx: web.Context) -> sessions.Client:
    """Where the request comes from."""
    return sessions.Client(ctx.address, ctx.user_agent)


def _check_mail() -> Response:
    return Response(CheckMailOut().model_dump_json(), 202, content_type="application/json; charset=utf-8")


@api.route(
    "POST",
    "/auth/register",
    auth="none",
    body=RegisterIn,
    out=TokensOut,
    others={202: CheckMailOut},
    status=201,
    problems=(403, 409, 503),
)
def register(ctx: web.Context, body: RegisterIn) -> TokensOut | Response:
    """Open a tenant and become its admin.

    Where the portal sends mail, the answer is 202 and a link comes by mail, whether the address has an account or not; else 201 with tokens, or 409.
    Can be switched off by the operator; the answer is then 403 with type …/registration-disabled.
    """
    web.spend("register", ctx.address)
    wanted = registration.Registration(body.email, body.password, body.name, body.tenant)
    if mail.configured() and not web.within("account-mail", wanted.address):
        return _check_mail()
    opened = registration.register(wanted, client(ctx))
    return _check_mail() if opened is None else tokens(opened)


@api.route("POST", "/auth/register/confirm", auth="none", body=TokenIn, out=TokensOut, status=201, problems=(409,))
def confirm_registration(ctx: web.Context, body: TokenIn) -> TokensOut:
    """Make the tenant that was registered, by the token of the link in the mail, and sign in. It works once, within 24 hours."""
    web.spend("link", ctx.address)
    return tokens(registration.confirm(body.token, client(ctx)))


@api.route("POST", "/auth/login", auth="none", body=LoginIn, out=TokensOut, problems=(401, 403, 503))
def login(ctx: web.Context, body: LoginIn) -> TokensOut:
    """Sign in.

    Five attempts a minute for an address and account, thirty for an address. Who has a second factor sends `code` too, or gets 401 with type
    …/mfa-required and an `mfa_token` for POST /auth/mfa/login. With "must_change_password": true the password must be replaced before anything else
    works.
    """
    web.spend_sign_in(body.email)
    try:
        opened = sign_in.sign_in(body.email, body.password, client(ctx), body.tenant)
    except sign_in.CodeNeeded as needed:
        if body.code is None:
            raise
        web.spend("second-factor", needed.user_uid)
        opened = sign_in.finish(needed.mfa_token, body.code, client(ctx))
    return tokens(opened)


@api.route("POST", "/auth/refresh", auth="none", body=RefreshIn, out=TokensOut, problems=(401,))
def refresh(ctx: web.Context, body: RefreshIn) -> TokensOut:
    """Exchange a refresh token for new tokens.

    Each works once. The same client may repeat the call within 20 seconds and gets the same answer; a later or foreign use ends the session.
    """
    return tokens(sessions.refresh(body.refresh_token, client(ctx)))


@api.route("POST", "/auth/logout", before_setup=True)
def logout(ctx: web.Context) -> None:
    """End this session: its access and refresh tokens stop working at once."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        sessions.sign_out(db, ctx.principal.session_uid or "")


@api.route("POST", "/auth/password/change", body=PasswordIn, out=TokensOut, before_setup=True, problems=(503,))
def change_password(ctx: web.Context, body: PasswordIn) -> TokensOut:
    """Replace one's password.

    This session goes on with the tokens of the answer; all other sessions and all earlier tokens end.
    """
    principal = ctx.principal
    web.spend("password-change", principal.uid)
    return tokens(passwords.change(principal, body.current_password, body.new_password, client(ctx)))


@api.route("POST", "/auth/password/forgot", auth="none", body=ForgotIn, out=CheckMailOut, status=202)
def forgot_password(ctx: web.Context, body: ForgotIn) -> CheckMailOut:
    """Have a link to a new password sent by mail.

    The answer is the same whether there is such an account or not. Three mails an hour go to an account; what is asked for beyond them is not sent.
    """
    web.spend("forgot", ctx.address)
    if web.within("account-mail", body.email.strip().lower()):
        passwords.forgot(body.email)
    return CheckMailOut()


@api.route("POST", "/auth/password/reset", auth="none", body=ResetIn, problems=(503,))
def reset_password(ctx: web.Context, body: ResetIn) -> None:
    """Set a new password by the token of a link.

    It works once, within an hour. All sessions and all tokens of the account end; sign in with the new password afterwards.
    """
    web.spend("link", ctx.address)
    passwords.reset(body.token, body.new_password)


@api.route("POST", "/auth/switch", body=SwitchIn, out=TokensOut, before_setup=True)
def switch_tenant(ctx: web.Context, body: SwitchIn) -> TokensOut:
    """Go on in another of one's tenants.

    The session stays and works with the tokens of the answer; those made before end.
    """
    principal = ctx.principal
    with tenancy.work(tenancy.system("sign-in")) as db:
        return tokens(sessions.switch(db, principal, body.tenant, client(ctx)))


@api.route("GET", "/auth/me", out=MeOut, before_setup=True)
def me(ctx: web.Context) -> MeOut:
    """Who one is, in which tenant, and what one may do there."""
    return _me(ctx)


@api.route("PATCH", "/auth/me", body=MeIn, out=MeOut)
def rename(ctx: web.Context, body: MeIn) -> MeOut:
    """Change one's own name."""
    principal = ctx.principal
    with tenancy.work(tenancy.system("sign-in")) as db:
        users.rename(db, principal, body.name)
    return _me(ctx)


def _me(ctx: web.Context) -> MeOut:
    with tenancy.work(tenancy.system("sign-in")) as db:
        user, tenant, memberships = users.me(db, ctx.principal)
    return MeOut(
        user=UserOut.model_validate(user),
        tenant=None if tenant is None else TenantOut.model_validate(tenant),
        role=ctx.principal.role,
        permissions=sorted(ctx.principal.permissions),
        memberships=[MembershipOut(tenant=TenantOut.model_validate(each), role=role) for each, role in memberships],
    )


def init_app(app: Flask) -> None:
    """Say it once when nobody can get a mail."""
    if app.extensions["iiot.settings"].env == "production" and not mail.configured():
        structlog.get_logger(__name__).warning(
            "no mail: set IIOT_SMTP_URL; until then people need an admin to get a new password"
        )
