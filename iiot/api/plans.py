"""Plans: templates of limits, for platform administrators."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from iiot import tenancy, web
from iiot.api.tenants import LimitsIn
from iiot.models import Plan
from iiot.services import plans
from iiot.services.listing import Wanted

api = web.Api("plans")


class PlanOut(web.Out):
    """A template of limits."""

    id: Annotated[str, Field(validation_alias="uid")]
    name: str
    created_at: datetime
    devices: int
    users: int
    rules: int
    signals_per_device: int
    readings_per_day: int
    api_requests_per_day: int
    connections: int


class PlanIn(LimitsIn):
    """A new plan; a limit that is left out is that of a new tenant."""

    name: Annotated[str, Field(max_length=plans.MAX_NAME)]


class PlanPatch(LimitsIn):
    """What to change; what is left out stays."""

    name: Annotated[str, Field(max_length=plans.MAX_NAME)] = ""


class PlanQuery(web.ListQuery):
    """Order of the list."""

    sort: Annotated[str, Field(max_length=40, description="name or created_at; `-` in front for descending.")] = "name"


class PlanPage(web.Page[PlanOut]):
    """Plans."""


@api.route("GET", "/plans", query=PlanQuery, out=PlanPage, platform=True)
def list_plans(ctx: web.Context, query: PlanQuery) -> PlanPage:
    """List the plans."""
    kind = f"plans {query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(tenancy.system("platform")) as db:
        found = plans.search(db, wanted)
    return PlanPage(**web.page(kind, found, [PlanOut.model_validate(plan) for plan in found.items]))


@api.route("POST", "/plans", body=PlanIn, out=PlanOut, status=201, platform=True, problems=(409,))
def create_plan(ctx: web.Context, body: PlanIn) -> Plan:
    """Create a plan."""
    limits = body.model_dump(exclude_unset=True)
    with tenancy.work(tenancy.system("platform")) as db:
        return plans.create(db, limits.pop("name"), limits)


@api.route("PATCH", "/plans/<plan_id>", body=PlanPatch, out=PlanOut, platform=True, problems=(404, 409))
def change_plan(ctx: web.Context, plan_id: str, body: PlanPatch) -> Plan:
    """Change a plan. Tenants that have it keep their quotas until they are given it again."""
    limits = body.model_dump(exclude_unset=True)
    with tenancy.work(tenancy.system("platform")) as db:
        return plans.change(db, plan_id, limits.pop("name", None), limits)


@api.route("DELETE", "/plans/<plan_id>", platform=True, problems=(404,))
def delete_plan(ctx: web.Context, plan_id: str) -> None:
    """Delete a plan. Tenants that have it keep their quotas."""
    with tenancy.work(tenancy.system("platform")) as db:
        plans.remove(db, plan_id)
