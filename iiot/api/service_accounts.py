"""Service accounts: programs with a role of their own, which prove themselves by API keys."""

from datetime import datetime
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, StrictBool

from iiot import tenancy, web
from iiot.services import service_accounts
from iiot.services.listing import Wanted
from iiot.services.names import LONGEST

api = web.Api("service-accounts")

T = TypeVar("T")
AccountName = Annotated[str, Field(min_length=1, max_length=LONGEST)]
RoleRef = Annotated[
    str, Field(max_length=64, description="admin, engineer, operator, viewer, or the id of a role of the tenant.")
]


def _not_null(value: T | None) -> T:
    if value is None:
        raise ValueError("must not be null; leave it out to keep it")
    return value


class AccountIn(web.Body):
    """A new service account."""

    name: AccountName
    role: RoleRef


class AccountPatch(web.Body):
    """What shall change; what is left out stays."""

    name: Annotated[AccountName | None, AfterValidator(_not_null)] = None
    role: Annotated[RoleRef | None, AfterValidator(_not_null)] = None
    enabled: Annotated[StrictBool | None, AfterValidator(_not_null)] = None


class AccountOut(web.Out):
    """A program with a role. `keys`: how many keys it has that work."""

    id: Annotated[str, Field(validation_alias="uid")]
    name: str
    role: str
    role_name: str
    enabled: bool
    created_at: datetime
    keys: int


class AccountQuery(web.ListQuery):
    """Order of the list."""

    sort: Annotated[str, Field(max_length=40, description="name or created_at; `-` in front for descending.")] = "name"


class AccountPage(web.Page[AccountOut]):
    """Service accounts."""


@api.route("GET", "/service-accounts", query=AccountQuery, out=AccountPage, permission="api-key:write")
def list_service_accounts(ctx: web.Context, query: AccountQuery) -> AccountPage:
    """The service accounts of the tenant."""
    kind = f"service-accounts {query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(ctx.scope) as db:
        found = service_accounts.search(db, wanted)
    return AccountPage(**web.page(kind, found, [AccountOut.model_validate(each) for each in found.items]))


@api.route(
    "POST",
    "/service-accounts",
    body=AccountIn,
    out=AccountOut,
    status=201,
    permission="api-key:write",
    problems=(409,),
)
def create_service_account(ctx: web.Context, body: AccountIn) -> AccountOut:
    """Make a service account; POST /api-keys with its id gives it a key. Nobody gives it a role that holds more than they do."""
    with tenancy.work(ctx.scope) as db:
        return AccountOut.model_validate(service_accounts.create(db, ctx.principal, body.name, body.role))


@api.route(
    "PATCH",
    "/service-accounts/<account_id>",
    body=AccountPatch,
    out=AccountOut,
    permission="api-key:write",
    problems=(409,),
)
def change_service_account(ctx: web.Context, account_id: str, body: AccountPatch) -> AccountOut:
    """Rename it, give it another role, or shut it out with `"enabled": false`; its keys follow at once."""
    wanted = service_accounts.Change(body.name, body.role, body.enabled)
    with tenancy.work(ctx.scope) as db:
        return AccountOut.model_validate(service_accounts.change(db, ctx.principal, account_id, wanted))


@api.route("DELETE", "/service-accounts/<account_id>", permission="api-key:write")
def delete_service_account(ctx: web.Context, account_id: str) -> None:
    """Delete a service account with its keys, which stop working at once."""
    with tenancy.work(ctx.scope) as db:
        service_accounts.remove(db, ctx.principal, account_id)
