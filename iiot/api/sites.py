"""The sites of a tenant: places that devices stand at."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field

from iiot import tenancy, web
from iiot.services import sites
from iiot.services.listing import Wanted
from iiot.services.names import LONGEST

api = web.Api("sites")

SiteName = Annotated[str, Field(min_length=1, max_length=LONGEST)]


class SiteIn(web.Body):
    """A new site."""

    name: SiteName


def _not_null(value: str | None) -> str:
    if value is None:
        raise ValueError("must not be null; leave it out to keep it")
    return value


class SitePatch(web.Body):
    """What shall change."""

    name: Annotated[SiteName | None, AfterValidator(_not_null)] = None


class SiteOut(web.Out):
    """A place; `devices` counts those there that the caller sees."""

    id: Annotated[str, Field(validation_alias="uid")]
    name: str
    devices: int
    created_at: datetime


class SiteQuery(web.ListQuery):
    """Order of the list."""

    sort: Annotated[str, Field(max_length=40, description="name or created_at; `-` in front for descending.")] = "name"


class SitePage(web.Page[SiteOut]):
    """Sites."""


@api.route("GET", "/sites", query=SiteQuery, out=SitePage, permission="device:read")
def list_sites(ctx: web.Context, query: SiteQuery) -> SitePage:
    """The sites, with the number of devices at each."""
    kind = f"sites {query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(ctx.scope) as db:
        found = sites.search(db, wanted)
    return SitePage(**web.page(kind, found, [SiteOut.model_validate(each) for each in found.items]))


@api.route("POST", "/sites", body=SiteIn, out=SiteOut, status=201, permission="site:write", problems=(409,))
def create_site(ctx: web.Context, body: SiteIn) -> SiteOut:
    """Add a site; devices are put there by their field `site`."""
    with tenancy.work(ctx.scope) as db:
        return SiteOut.model_validate(sites.create(db, body.name))


@api.route("PATCH", "/sites/<site_id>", body=SitePatch, out=SiteOut, permission="site:write", problems=(409,))
def change_site(ctx: web.Context, site_id: str, body: SitePatch) -> SiteOut:
    """Rename a site."""
    with tenancy.work(ctx.scope) as db:
        return SiteOut.model_validate(sites.change(db, site_id, body.name))


@api.route("DELETE", "/sites/<site_id>", permission="site:write", problems=(409,))
def delete_site(ctx: web.Context, site_id: str) -> None:
    """Delete a site where no device stands; members who were limited to it see nothing of it any more."""
    with tenancy.work(ctx.scope) as db:
        sites.remove(db, site_id)
