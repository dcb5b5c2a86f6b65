"""Homes of the smart-home scheme: whose topics `home/<name>/…` are."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from iiot import tenancy, web
from iiot.services import homes
from iiot.services.listing import Wanted

api = web.Api("homes")


class HomeIn(web.Body):
    """A home and the gateway that speaks for it."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=40,
            pattern=r"^[A-Za-z0-9_.:-]+$",
            description="The second level of its topics; one of its kind in the whole installation.",
        ),
    ]
    device_id: Annotated[str, Field(max_length=64, description="A gateway.")]


class HomeOut(web.Out):
    """A home; its gateway writes `home/<name>/<node>/…` and reads the commands for its entities there."""

    id: Annotated[str, Field(validation_alias="uid")]
    name: str
    device_id: Annotated[str, Field(validation_alias="device_uid")]
    created_at: datetime


class HomeQuery(web.ListQuery):
    """Order of the list."""

    sort: Annotated[str, Field(max_length=40, description="name or created_at; `-` in front for descending.")] = "name"


class HomePage(web.Page[HomeOut]):
    """Homes."""


@api.route("GET", "/homes", query=HomeQuery, out=HomePage, permission="device:read")
def list_homes(ctx: web.Context, query: HomeQuery) -> HomePage:
    """The homes of the tenant."""
    kind = f"homes {query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(ctx.scope) as db:
        found = homes.search(db, wanted)
    return HomePage(**web.page(kind, found, [HomeOut.model_validate(each) for each in found.items]))


@api.route(
    "POST",
    "/homes",
    body=HomeIn,
    out=HomeOut,
    status=201,
    permission="device:write",
    limit="home",
    problems=(404, 409),
)
def claim_home(ctx: web.Context, body: HomeIn) -> HomeOut:
    """Claim a home for a gateway.

    A name that cannot be had answers 409 in the same words, whoever has it. The gateway's connection ends, so that it comes back with its new rights.
    """
    with tenancy.work(ctx.scope) as db:
        made = HomeOut.model_validate(homes.claim(db, body.name, body.device_id))
    ctx.headers["Location"] = f"{web.PREFIX}/homes/{made.id}"
    return made


@api.route("DELETE", "/homes/<home_id>", permission="device:write")
def release_home(ctx: web.Context, home_id: str) -> None:
    """Give a home up: its name may be claimed by anybody, its devices stay."""
    with tenancy.work(ctx.scope) as db:
        homes.release(db, home_id)
