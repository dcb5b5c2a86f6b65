"""Tenants: their settings and life, quotas and figures."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt

from iiot import tenancy, web
from iiot.models import Tenant
from iiot.services import plans, tenants, usage
from iiot.services.listing import Wanted

api = web.Api("tenants")

INTEGER, BIG = 2**31 - 1, 2**53
Count = Annotated[StrictInt, Field(ge=0, le=INTEGER)]
BigCount = Annotated[StrictInt, Field(ge=0, le=BIG)]


class PlanRef(web.Out):
    """The plan a tenant was given."""

    id: Annotated[str, Field(validation_alias="uid")]
    name: str


class TenantOut(web.Out):
    """A customer of the portal; owns devices, users and rules. `delete_at`: when a tenant that is being deleted will be gone for good."""

    id: Annotated[str, Field(validation_alias="uid")]
    name: str
    slug: str
    status: str
    status_reason: str
    delete_at: datetime | None
    timezone: str
    require_mfa: bool
    discovery: str
    colour: str | None
    plan: PlanRef | None
    created_at: datetime


class TenantIn(web.Body):
    """A new tenant. `plan`: the id of a plan; without it the default limits."""

    name: Annotated[str, Field(max_length=tenants.MAX_NAME)]
    timezone: Annotated[str, Field(max_length=64)] = "UTC"
    plan: Annotated[str | None, Field(max_length=64)] = None


class TenantPatch(web.Body):
    """What to change; what is left out stays. `status` with `reason` suspends, lifts a suspension or restores."""

    name: Annotated[str, Field(max_length=tenants.MAX_NAME)] = ""
    timezone: Annotated[str, Field(max_length=64, description="IANA name.")] = "UTC"
    colour: Annotated[str | None, Field(max_length=7, description="`#rrggbb`; null: the portal's own.")] = None
    require_mfa: Annotated[StrictBool, Field(description="Admins must have a second factor.")] = False
    discovery: Annotated[
        Literal["inbox", "auto"],
        Field(description="What becomes of devices that gateways bring: they wait in the inbox, or are taken at once."),
    ] = "inbox"
    status: Literal["active", "suspended"] = "active"
    reason: Annotated[str, Field(max_length=tenants.MAX_REASON, description="Why a tenant is suspended.")] = ""


class LimitOut(web.Out):
    """What is allowed, what is used, and what will be used if things go on as they do."""

    limit: int
    used: int
    forecast: int


class QuotaOut(web.Out):
    """The limits of a tenant. `signals_per_device` shows the device that has most, what is per day that of today (UTC).

    `forecast`: at the end of the day for what is per day, in 30 days for the rest.
    """

    devices: LimitOut
    users: LimitOut
    rules: LimitOut
    signals_per_device: LimitOut
    readings_per_day: LimitOut
    api_requests_per_day: LimitOut
    connections: LimitOut


class LimitsIn(web.Body):
    """Limits to change; what is left out stays."""

    devices: Count = 0
    users: Count = 0
    rules: Count = 0
    signals_per_device: Count = 0
    readings_per_day: BigCount = 0
    api_requests_per_day: BigCount = 0
    connections: Count = 0


class QuotaIn(LimitsIn):
    """Limits to change, or a plan, which sets all of them."""

    plan: Annotated[str | None, Field(max_length=64, description="The id of a plan.")] = None


class StatsOut(web.Out):
    """Figures of now and of today (UTC), to limited members of the devices that they see; `readings_per_second` is the mean of the last minute.

    `readings_today` is counted per tenant: null for limited members.
    """

    devices: int
    online: int
    offline: int
    never_seen: int
    signals: int
    readings_today: int | None
    rejected_today: int
    readings_per_second: float


class TenantQuery(web.ListQuery):
    """Which tenants, in which order."""

    q: Annotated[str | None, Field(max_length=200, description="Part of the name or slug, or the id.")] = None
    status: Literal["active", "suspended", "deleting"] | None = None
    sort: Annotated[str, Field(max_length=40, description="name, slug or created_at; `-` in front for descending.")] = (
        "name"
    )


class TenantPage(web.Page[TenantOut]):
    """Tenants."""


def _scope(ctx: web.Context) -> tenancy.Scope:
    """The tenant that the path names, in the role that may also read plans and write the tenant's status and quota."""
    return tenancy.system("platform", ctx.principal.tenant_id)


def _answer(ctx: web.Context, tenant: Tenant) -> TenantOut:
    ctx.etag(tenants.version(tenant))
    return TenantOut.model_validate(tenant)


@api.route("GET", "/tenants", query=TenantQuery, out=TenantPage, keys=True)
def list_tenants(ctx: web.Context, query: TenantQuery) -> TenantPage:
    """The tenants one belongs to; platform administrators see all."""
    if ctx.principal.api_key_uid is not None:
        # People see where they belong in any case; a key sees what it was made for.
        ctx.principal.require("tenant:read")
    kind = f"tenants {query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(tenancy.system("platform")) as db:
        found = tenants.visible(db, ctx.principal, wanted, tenants.Filters(query.q, query.status))
    return TenantPage(**web.page(kind, found, [TenantOut.model_validate(tenant) for tenant in found.items]))


@api.route("POST", "/tenants", body=TenantIn, out=TenantOut, status=201, platform=True)
def create_tenant(ctx: web.Context, body: TenantIn) -> TenantOut:
    """Create a tenant with its quota. Its first admin is invited by POST /tenants/{id}/invitations."""
    with tenancy.work(tenancy.system("platform")) as db:
        plan = None if body.plan is None else plans.named(db, body.plan)
        tenant = tenants.create(db, body.name, body.timezone, plan)
    ctx.headers["Location"] = f"{web.PREFIX}/tenants/{tenant.uid}"
    return _answer(ctx, tenant)


@api.route("GET", "/tenants/<tenant_id>", out=TenantOut, permission="tenant:read", of_tenant=True)
def get_tenant(ctx: web.Context, tenant_id: str) -> TenantOut:
    """Read a tenant."""
    with tenancy.work(_scope(ctx)) as db:
        return _answer(ctx, tenants.own(db))


@api.route(
    "PATCH",
    "/tenants/<tenant_id>",
    body=TenantPatch,
    out=TenantOut,
    permission="tenant:write",
    of_tenant=True,
    any_status=True,
    problems=(409, 412),
)
def change_tenant(ctx: web.Context, tenant_id: str, body: TenantPatch) -> TenantOut:
    """Change a tenant's settings or status.

    `status` alone changes the life: "suspended" with a reason and "active" for a suspended tenant are for platform administrators; "active" restores
    a tenant that is being deleted, and its own admins may do that. With If-Match a change that somebody else made meanwhile answers 412.
    """
    changes: dict[str, Any] = body.model_dump(exclude_unset=True)
    status, reason = changes.pop("status", None), changes.pop("reason", "")
    expected = ctx.expected_version()
    with tenancy.work(_scope(ctx)) as db:
        tenant = tenants.own(db)
        if status is not None:
            tenant = tenants.set_status(db, status, reason, ctx.principal, expected)
            expected = None
        if changes:
            if status is None or tenant.status != "active":
                # Settings stay as they are while the tenant is suspended or being deleted, unless this request restored it.
                ctx.principal.require("tenant:write")
            tenant = tenants.change(db, changes, expected)
    return _answer(ctx, tenant)


@api.route(
    "DELETE",
    "/tenants/<tenant_id>",
    out=TenantOut,
    status=202,
    permission="tenant:write",
    of_tenant=True,
    problems=(412,),
)
def delete_tenant(ctx: web.Context, tenant_id: str) -> TenantOut:
    """Delete a tenant in 30 days.

    Until `delete_at` its people can read and its admins can restore it with PATCH {"status": "active"}; its devices are refused at once.
    """
    with tenancy.work(_scope(ctx)) as db:
        return _answer(ctx, tenants.start_deletion(db, ctx.expected_version()))


@api.route("GET", "/tenants/<tenant_id>/quota", out=QuotaOut, permission="tenant:read", of_tenant=True)
def get_quota(ctx: web.Context, tenant_id: str) -> QuotaOut:
    """What a tenant may use, uses, and will use if things go on as they do."""
    with tenancy.work(ctx.scope) as db:
        return QuotaOut.model_validate(usage.report(db))


@api.route(
    "PUT",
    "/tenants/<tenant_id>/quota",
    body=QuotaIn,
    out=QuotaOut,
    permission="tenant:write",
    of_tenant=True,
    platform=True,
)
def set_quota(ctx: web.Context, tenant_id: str, body: QuotaIn) -> QuotaOut:
    """Change limits of a tenant, or give it a plan. A limit below the use takes nothing away; nothing new can be made."""
    limits = body.model_dump(exclude_unset=True)
    plan = limits.pop("plan", None)
    with tenancy.work(_scope(ctx)) as db:
        tenants.set_limits(db, limits, plan)
    with tenancy.work(ctx.scope) as db:
        return QuotaOut.model_validate(usage.report(db))


@api.route("GET", "/tenants/<tenant_id>/stats", out=StatsOut, permission="tenant:read", of_tenant=True)
def get_stats(ctx: web.Context, tenant_id: str) -> StatsOut:
    """Counts and the ingest rate of a tenant."""
    with tenancy.work(ctx.scope) as db:
        return StatsOut.model_validate(tenants.stats(db))
