"""Sign-in, refresh, sign-out, registration, the password, and who one is."""

import re
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, Field

from iiot import auth, config, tenancy, web
from iiot.api.tenants import TenantOut
from iiot.services import sessions, users

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


class LoginIn(web.Body):
    """Who signs in; `tenant` (id or slug) matters only to members of several."""

    email: Annotated[str, Field(max_length=254)]
    password: Password
    tenant: Annotated[str | None, Field(max_length=64)] = None


class RegisterIn(web.Body):
    """A new tenant and its admin."""

    email: Address
    password: Password
    name: Name = ""
    tenant: Annotated[
        Name, Field(validation_alias=AliasChoices("tenant", "tenant_name"), description="Name of the new tenant.")
    ] = ""


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


def _tokens(opened: sessions.Opened) -> TokensOut:
    return TokensOut(
        access_token=web.access_token(opened),
        refresh_token=opened.refresh_token,
        expires_in=config.load().access_token_seconds,
        must_change_password=opened.principal.must_change_password,
    )


def _client(ctx: web.Context) -> sessions.Client:
    return sessions.Client(ctx.address, ctx.user_agent)


@api.route("POST", "/auth/register", auth="none", body=RegisterIn, out=TokensOut, status=201, problems=(403, 409, 503))
def register(ctx: web.Context, body: RegisterIn) -> TokensOut:
    """Open a tenant and become its admin.

    Can be switched off by the operator; the answer is then 403 with type …/registration-disabled.
    """
    web.spend("register", ctx.address)
    wanted = users.Registration(body.email, body.password, body.name, body.tenant)
    return _tokens(users.register(wanted, _client(ctx)))


@api.route("POST", "/auth/login", auth="none", body=LoginIn, out=TokensOut, problems=(401, 403, 503))
def login(ctx: web.Context, body: LoginIn) -> TokensOut:
    """Sign in.

    Five attempts a minute for an address and account, thirty for an address. With "must_change_password": true the password must be replaced
    before anything else works.
    """
    web.spend_sign_in(body.email)
    return _tokens(sessions.sign_in(body.email, body.password, _client(ctx), body.tenant))


@api.route("POST", "/auth/refresh", auth="none", body=RefreshIn, out=TokensOut, problems=(401,))
def refresh(ctx: web.Context, body: RefreshIn) -> TokensOut:
    """Exchange a refresh token for new tokens.

    Each works once. The same client may repeat the call within 20 seconds and gets the same answer; a later or foreign use ends the session.
    """
    return _tokens(sessions.refresh(body.refresh_token, _client(ctx)))


@api.route("POST", "/auth/logout", before_password_change=True)
def logout(ctx: web.Context) -> None:
    """End this session: its access and refresh tokens stop working at once."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        sessions.sign_out(db, ctx.principal.session_uid or "")


@api.route(
    "POST", "/auth/password/change", body=PasswordIn, out=TokensOut, before_password_change=True, problems=(503,)
)
def change_password(ctx: web.Context, body: PasswordIn) -> TokensOut:
    """Replace one's password.

    This session goes on with the tokens of the answer; all other sessions and all earlier tokens end.
    """
    web.spend("password-change", ctx.principal.user_uid or "")
    return _tokens(sessions.change_password(ctx.principal, body.current_password, body.new_password, _client(ctx)))


@api.route("GET", "/auth/me", out=MeOut, before_password_change=True)
def me(ctx: web.Context) -> MeOut:
    """Who one is, in which tenant, and what one may do there."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        user, tenant, memberships = users.me(db, ctx.principal)
    return MeOut(
        user=UserOut.model_validate(user),
        tenant=None if tenant is None else TenantOut.model_validate(tenant),
        role=ctx.principal.role,
        permissions=sorted(ctx.principal.permissions),
        memberships=[MembershipOut(tenant=TenantOut.model_validate(each), role=role) for each, role in memberships],
    )
