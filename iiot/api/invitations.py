"""Asking people into a tenant, and following such a call."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from iiot import tenancy, web
from iiot.api.auth import Address, Name, Password, TokensOut, tokens
from iiot.api.auth import client as client_of
from iiot.api.members import LimitsIn, LimitsOut, RoleId
from iiot.services import invitations, sign_in
from iiot.services.listing import Wanted

api = web.Api("invitations")


class InvitationIn(web.Body):
    """Who is asked in, with which role, and limited to which devices."""

    email: Address
    role: RoleId = "viewer"
    limited_to: LimitsIn | None = None


class InvitationOut(web.Out):
    """An invitation that waits, or has expired unanswered. It never shows its link."""

    id: Annotated[str, Field(validation_alias="uid")]
    email: str
    role: str
    role_name: str
    limited_to: LimitsOut | None
    invited_by: str
    created_at: datetime
    expires_at: datetime
    has_expired: bool


class InvitationSent(InvitationOut):
    """`link` is null when a mail was sent; else pass it on yourself: it is shown here and never again."""

    link: str | None


class InvitationQuery(web.ListQuery):
    """Order of the list."""

    sort: Annotated[
        str, Field(max_length=40, description="email, created_at or expires_at; `-` in front for descending.")
    ] = "-created_at"


class InvitationPage(web.Page[InvitationOut]):
    """Invitations."""


class AcceptIn(web.Body):
    """The token of the link. `password`: a new one, or for who has an account the one they have; `code`: of their second factor, if they have one."""

    token: Annotated[str, Field(min_length=1, max_length=256)]
    password: Password
    name: Name = ""
    code: Annotated[str | None, Field(max_length=64)] = None


@api.route(
    "GET",
    "/tenants/<tenant_id>/invitations",
    query=InvitationQuery,
    out=InvitationPage,
    permission="member:read",
    of_tenant=True,
)
def list_invitations(ctx: web.Context, tenant_id: str, query: InvitationQuery) -> InvitationPage:
    """The invitations that nobody has answered yet."""
    kind = f"invitations {tenant_id} {query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(ctx.scope) as db:
        found = invitations.search(db, wanted)
    return InvitationPage(**web.page(kind, found, [InvitationOut.model_validate(each) for each in found.items]))


@api.route(
    "POST",
    "/tenants/<tenant_id>/invitations",
    body=InvitationIn,
    out=InvitationSent,
    status=201,
    permission="member:write",
    of_tenant=True,
    problems=(409,),
)
def invite(ctx: web.Context, tenant_id: str, body: InvitationIn) -> InvitationSent:
    """Ask somebody into the tenant, for seven days.

    Open invitations count towards the quota of users. Where the operator has set a mail server up, the link is mailed and not in the answer.
    """
    web.spend("invite", tenant_id)
    limits = body.limited_to.wanted() if body.limited_to else None
    with tenancy.work(ctx.scope) as db:
        return InvitationSent.model_validate(invitations.create(db, ctx.principal, body.email, body.role, limits))


@api.route("DELETE", "/tenants/<tenant_id>/invitations/<invitation_id>", permission="member:write", of_tenant=True)
def revoke_invitation(ctx: web.Context, tenant_id: str, invitation_id: str) -> None:
    """Take an invitation back: its link is dead."""
    with tenancy.work(ctx.scope) as db:
        invitations.revoke(db, invitation_id)


@api.route(
    "POST",
    "/tenants/<tenant_id>/invitations/<invitation_id>/resend",
    out=InvitationSent,
    permission="member:write",
    of_tenant=True,
)
def resend_invitation(ctx: web.Context, tenant_id: str, invitation_id: str) -> InvitationSent:
    """Make a new link for seven more days; the one before is dead."""
    web.spend("invite", tenant_id)
    with tenancy.work(ctx.scope) as db:
        return InvitationSent.model_validate(invitations.resend(db, ctx.principal, invitation_id))


def _count_code(user_uid: str) -> None:
    web.spend("second-factor", user_uid)


@api.route(
    "POST", "/auth/invitations/accept", auth="none", body=AcceptIn, out=TokensOut, problems=(401, 403, 404, 409, 503)
)
def accept_invitation(ctx: web.Context, body: AcceptIn) -> TokensOut:
    """Become a member, and sign in.

    An address that is new here gets an account with this password; one that has an account proves it with its own password.
    A token that is wrong, used, revoked or expired answers 404 with type …/invitation-invalid, whichever it is.
    """
    web.spend("invitation-accept", ctx.address)
    client = client_of(ctx)
    asked = invitations.look(body.token)
    if asked.has_account:
        web.spend_sign_in(asked.email)
        proved = sign_in.prove(asked.email, body.password, body.code, client, _count_code)
        return tokens(invitations.accept_as(body.token, proved.principal, client))
    return tokens(invitations.accept_new(body.token, invitations.Newcomer(body.name, body.password), client))
