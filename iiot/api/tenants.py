"""Tenants, their quotas and figures."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated

from pydantic import Field

from iiot import tenancy, web
from iiot.models import Tenant
from iiot.services import tenants
from iiot.services.listing import Wanted

api = web.Api("tenants")


class TenantOut(web.Out):
    """A customer of the portal; owns devices, users and rules."""

    id: Annotated[str, Field(validation_alias="uid")]
    name: str
    slug: str
    status: str
    timezone: str
    created_at: datetime


class LimitOut(web.Out):
    """What is allowed and what is used."""

    limit: int
    used: int


class QuotaOut(web.Out):
    """The limits of a tenant. `signals_per_device` shows the use of the device that has most, `readings_per_day` that of today (UTC)."""

    devices: LimitOut
    users: LimitOut
    rules: LimitOut
    signals_per_device: LimitOut
    readings_per_day: LimitOut


class StatsOut(web.Out):
    """Figures of now and of today (UTC); `readings_per_second` is the mean of the last minute."""

    devices: int
    online: int
    offline: int
    never_seen: int
    signals: int
    readings_today: int
    rejected_today: int
    readings_per_second: float


class TenantQuery(web.ListQuery):
    """Order of the list."""

    sort: Annotated[str, Field(max_length=40, description="name, slug or created_at; `-` in front for descending.")] = (
        "name"
    )


class TenantPage(web.Page[TenantOut]):
    """Tenants."""


def _scope_of(ctx: web.Context, tenant: Tenant) -> tenancy.Scope:
    """The scope of a tenant that `tenants.get` has let the caller see, which need not be the one of his session."""
    return tenancy.of(replace(ctx.principal, tenant_id=tenant.id, tenant_uid=tenant.uid))


def _visible(ctx: web.Context, tenant_id: str) -> Tenant:
    with tenancy.work(tenancy.system("platform")) as db:
        return tenants.get(db, ctx.principal, tenant_id)


@api.route("GET", "/tenants", query=TenantQuery, out=TenantPage)
def list_tenants(ctx: web.Context, query: TenantQuery) -> TenantPage:
    """The tenants one belongs to; platform administrators see all."""
    kind = f"tenants {query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(tenancy.system("platform")) as db:
        found = tenants.visible(db, ctx.principal, wanted)
    return TenantPage(**web.page(kind, found, [TenantOut.model_validate(tenant) for tenant in found.items]))


@api.route("GET", "/tenants/<tenant_id>", out=TenantOut)
def get_tenant(ctx: web.Context, tenant_id: str) -> Tenant:
    """Read a tenant."""
    return _visible(ctx, tenant_id)


@api.route("GET", "/tenants/<tenant_id>/quota", out=QuotaOut)
def get_quota(ctx: web.Context, tenant_id: str) -> QuotaOut:
    """What a tenant may use and uses."""
    tenant = _visible(ctx, tenant_id)
    with tenancy.work(_scope_of(ctx, tenant)) as db:
        return QuotaOut.model_validate(tenants.quota(db))


@api.route("GET", "/tenants/<tenant_id>/stats", out=StatsOut)
def get_stats(ctx: web.Context, tenant_id: str) -> StatsOut:
    """Counts and the ingest rate of a tenant."""
    tenant = _visible(ctx, tenant_id)
    with tenancy.work(_scope_of(ctx, tenant)) as db:
        return StatsOut.model_validate(tenants.stats(db))
