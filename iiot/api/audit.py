"""The audit trail: read it, filter it, take it along."""

from datetime import datetime
from typing import Annotated, Any, Literal

from flask import Response
from pydantic import Field

from iiot import tenancy, web
from iiot.models import PLATFORM, Audit
from iiot.services import audit, trail
from iiot.services.listing import Wanted

api = web.Api("audit")

Text = Annotated[str, Field(min_length=1, max_length=254)]
FORMATS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}


class TrailQuery(web.Query):
    """Which entries."""

    actor: Annotated[Text | None, Field(description="Id or name of who did it.")] = None
    action: Annotated[Text | None, Field(description="`device.create`, or `device` for all of a kind.")] = None
    object: Annotated[Text | None, Field(description="Id or kind of what it was done to.")] = None
    start: Annotated[web.Moment | None, Field(alias="from", description="RFC 3339.")] = None
    stop: Annotated[web.Moment | None, Field(alias="to", description="RFC 3339; not included.")] = None
    q: Annotated[Text | None, Field(description="Part of a name, an id, an action, an address or a request id.")] = None

    def filters(self) -> trail.Filters:
        """For the service."""
        return trail.Filters(self.actor, self.action, self.object, self.start, self.stop, self.q)


class ListTrailQuery(TrailQuery, web.ListQuery):
    """Which entries, page by page."""


class ExportQuery(TrailQuery):
    """Which entries, and as what."""

    format: Annotated[
        Literal["csv", "jsonl"], Field(description="CSV with a heading, or one JSON object per line.")
    ] = "csv"


class PartyOut(web.Out):
    """Who did it, or what it was done to."""

    kind: str
    id: str
    name: str | None = None


class EntryOut(web.Out):
    """One act. `before` and `after` hold the fields that changed, never secrets; `hash` chains the entry to the one before."""

    seq: int
    at: datetime
    actor: PartyOut
    address: str
    user_agent: str
    request_id: str
    action: str
    object: PartyOut
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    hash: str


class EntryPage(web.Page[EntryOut]):
    """Entries, the newest first."""


def _out(entry: Audit) -> EntryOut:
    return EntryOut(
        seq=entry.seq,
        at=entry.at,
        actor=PartyOut(kind=entry.actor_kind, id=entry.actor_uid, name=entry.actor_label),
        address=entry.address,
        user_agent=entry.user_agent,
        request_id=entry.request_id,
        action=entry.action,
        object=PartyOut(kind=entry.object_kind, id=entry.object_uid),
        before=entry.before,
        after=entry.after,
        hash=entry.hash.hex(),
    )


def _page(scope: tenancy.Scope, chain: int, query: ListTrailQuery) -> EntryPage:
    kind = f"audit {chain}"
    wanted = Wanted(trail.NEWEST_FIRST, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(scope) as db:
        found = trail.search(db, chain, query.filters(), wanted)
    return EntryPage(**web.page(kind, found, [_out(entry) for entry in found.items]))


def _export(scope: tenancy.Scope, chain: int, query: ExportQuery) -> Response:
    """The file, streamed; that it was taken is an entry, too."""
    with tenancy.work(scope) as db:
        asked = query.model_dump(mode="json", by_alias=True, exclude_none=True)
        audit.record(db, "audit.export", ("audit", ""), after=asked)
    found = trail.entries(scope, chain, query.filters())
    lines = trail.as_csv(found) if query.format == "csv" else trail.as_json_lines(found)
    headers = {"Content-Disposition": f'attachment; filename="audit.{query.format}"'}
    return Response(lines, content_type=FORMATS[query.format], headers=headers)


@api.route("GET", "/audit", query=ListTrailQuery, out=EntryPage, permission="audit:read")
def list_entries(ctx: web.Context, query: ListTrailQuery) -> EntryPage:
    """List who did what in the tenant, the newest first."""
    return _page(ctx.scope, ctx.scope.tenant_id or PLATFORM, query)


@api.route("GET", "/audit/export", query=ExportQuery, permission="audit:read", produces=tuple(FORMATS.values()))
def export_entries(ctx: web.Context, query: ExportQuery) -> Response:
    """Take the trail along as a file, the newest entry first.

    Cells of the CSV that a spreadsheet would run as a formula begin with an apostrophe. The export itself becomes an entry."""
    return _export(ctx.scope, ctx.scope.tenant_id or PLATFORM, query)


@api.route("GET", "/platform/audit", query=ListTrailQuery, out=EntryPage, platform=True)
def list_platform_entries(_ctx: web.Context, query: ListTrailQuery) -> EntryPage:
    """List what belongs to no tenant: sign-ins of strangers, platform administrators at work."""
    return _page(tenancy.system("platform"), PLATFORM, query)


@api.route("GET", "/platform/audit/export", query=ExportQuery, platform=True, produces=tuple(FORMATS.values()))
def export_platform_entries(_ctx: web.Context, query: ExportQuery) -> Response:
    """Take the platform's own trail along as a file."""
    return _export(tenancy.system("platform"), PLATFORM, query)
