"""The members of a tenant."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field

from iiot import tenancy, web
from iiot.services import limited, members
from iiot.services.listing import Wanted

api = web.Api("members")

Uid = Annotated[str, Field(max_length=64)]
RoleId = Annotated[
    str, Field(min_length=1, max_length=64, description="admin, engineer, operator, viewer or the id of a role.")
]


class LimitsIn(web.Body):
    """What a limited member may see: a device fits when it is named, stands at a named site or has a named tag."""

    devices: Annotated[list[Uid], Field(max_length=limited.MOST)] = []
    sites: Annotated[list[Uid], Field(max_length=limited.MOST)] = []
    tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=limited.MOST)] = []

    def wanted(self) -> limited.LimitedTo:
        """For the services."""
        return limited.LimitedTo(self.devices, self.sites, self.tags)


class LimitsOut(web.Out):
    """What a limited member may see."""

    devices: list[str]
    sites: list[str]
    tags: list[str]


class MemberOut(web.Out):
    """A person in a tenant. `role` is a built-in name or the id of a role; `limited_to` is null for who sees all devices."""

    id: Annotated[str, Field(validation_alias="uid")]
    email: str
    name: str
    role: str
    role_name: str
    status: str
    has_mfa: bool
    last_login_at: datetime | None
    limited_to: LimitsOut | None
    joined_at: datetime


def _not_null(value: str | None) -> str:
    if value is None:
        raise ValueError("must not be null; leave it out to keep it")
    return value


class MemberPatch(web.Body):
    """What shall change; what is left out stays. `limited_to` null: the member sees all devices."""

    role: Annotated[RoleId | None, AfterValidator(_not_null)] = None
    limited_to: LimitsIn | None = None


class MemberQuery(web.ListQuery):
    """Which members, in which order."""

    q: Annotated[str | None, Field(max_length=200, description="Part of the address or name.")] = None
    sort: Annotated[
        str, Field(max_length=40, description="email, name, role or joined_at; `-` in front for descending.")
    ] = "email"


class MemberPage(web.Page[MemberOut]):
    """Members."""


@api.route(
    "GET", "/tenants/<tenant_id>/users", query=MemberQuery, out=MemberPage, permission="member:read", of_tenant=True
)
def list_members(ctx: web.Context, tenant_id: str, query: MemberQuery) -> MemberPage:
    """The people of a tenant."""
    kind = f"members {tenant_id} {query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(ctx.scope) as db:
        found = members.search(db, wanted, query.q)
    return MemberPage(**web.page(kind, found, [MemberOut.model_validate(each) for each in found.items]))


@api.route(
    "PATCH",
    "/tenants/<tenant_id>/users/<user_id>",
    body=MemberPatch,
    out=MemberOut,
    permission="member:write",
    of_tenant=True,
    problems=(409,),
)
def change_member(ctx: web.Context, tenant_id: str, user_id: str, body: MemberPatch) -> MemberOut:
    """Give a member another role, or limit them to some devices.

    A tenant keeps at least one admin who can sign in: 409 with type …/last-admin. Admins cannot be limited.
    """
    limits = body.limited_to.wanted() if body.limited_to else None
    changes = members.Changes(body.role, "limited_to" in body.model_fields_set, limits)
    with tenancy.work(ctx.scope) as db:
        return MemberOut.model_validate(members.change(db, ctx.principal, user_id, changes))


@api.route("DELETE", "/tenants/<tenant_id>/users/<user_id>", permission="member:write", of_tenant=True, problems=(409,))
def remove_member(ctx: web.Context, tenant_id: str, user_id: str) -> None:
    """End a membership: the person's sessions and API keys in this tenant stop working at once; their account stays."""
    with tenancy.work(ctx.scope) as db:
        members.remove(db, ctx.principal, user_id)
