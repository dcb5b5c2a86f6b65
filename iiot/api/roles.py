"""The roles of a tenant: four built-in ones and its own."""

from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from iiot import auth, tenancy, web
from iiot.services import roles
from iiot.services.names import LONGEST

api = web.Api("roles")

T = TypeVar("T")

RoleName = Annotated[str, Field(min_length=1, max_length=LONGEST)]
Permissions = Annotated[
    list[Annotated[str, Field(max_length=40)]],
    Field(min_length=1, max_length=100, description="Out of: " + ", ".join(sorted(auth.ALL_PERMISSIONS)) + "."),
]


class RoleIn(web.Body):
    """A new role."""

    name: RoleName
    permissions: Permissions


def _not_null(value: T | None) -> T:
    if value is None:
        raise ValueError("must not be null; leave it out to keep it")
    return value


class RolePatch(web.Body):
    """What shall change; what is left out stays."""

    name: Annotated[RoleName | None, AfterValidator(_not_null)] = None
    permissions: Annotated[Permissions | None, AfterValidator(_not_null)] = None


class RoleOut(web.Out):
    """A role. Built-in ones have their name as id and cannot be changed. `used_by`: members, service accounts and open invitations."""

    id: Annotated[str, Field(validation_alias="uid")]
    name: str
    permissions: list[str]
    is_builtin: bool
    used_by: int


class RoleList(web.Page[RoleOut]):
    """All roles of a tenant; there are at most a hundred of its own, so the list is one page."""


@api.route("GET", "/tenants/<tenant_id>/roles", out=RoleList, permission="member:read", of_tenant=True)
def list_roles(ctx: web.Context, tenant_id: str) -> RoleList:
    """The built-in roles and those of the tenant, with their permissions."""
    with tenancy.work(ctx.scope) as db:
        found = [RoleOut.model_validate(each) for each in roles.list_all(db)]
    return RoleList(items=found, next_cursor=None, total=len(found))


@api.route(
    "POST",
    "/tenants/<tenant_id>/roles",
    body=RoleIn,
    out=RoleOut,
    status=201,
    permission="member:write",
    of_tenant=True,
    problems=(409,),
)
def create_role(ctx: web.Context, tenant_id: str, body: RoleIn) -> RoleOut:
    """Make a role of single permissions; nobody gives a role more than they hold."""
    with tenancy.work(ctx.scope) as db:
        return RoleOut.model_validate(roles.create(db, ctx.principal, body.name, body.permissions))


@api.route(
    "PATCH",
    "/tenants/<tenant_id>/roles/<role_id>",
    body=RolePatch,
    out=RoleOut,
    permission="member:write",
    of_tenant=True,
    problems=(409,),
)
def change_role(ctx: web.Context, tenant_id: str, role_id: str, body: RolePatch) -> RoleOut:
    """Change a role of the tenant; it counts for who has it from the next request on."""
    with tenancy.work(ctx.scope) as db:
        return RoleOut.model_validate(roles.change(db, ctx.principal, role_id, body.name, body.permissions))


@api.route("DELETE", "/tenants/<tenant_id>/roles/<role_id>", permission="member:write", of_tenant=True, problems=(409,))
def delete_role(ctx: web.Context, tenant_id: str, role_id: str) -> None:
    """Delete a role that nobody has."""
    with tenancy.work(ctx.scope) as db:
        roles.remove(db, ctx.principal, role_id)
