"""The inbox: what gateways have brought and nobody has approved yet."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from iiot import tenancy, web
from iiot.api.devices import DeviceOut, Kind, Name, SiteId
from iiot.models import Discovery
from iiot.services import discoveries
from iiot.services.discoveries import Approval, Filters
from iiot.services.listing import Wanted

api = web.Api("discoveries")

Id = Annotated[str, Field(max_length=64)]


class DiscoveryOut(web.Out):
    """Something that a gateway speaks of: a device below it, or an entity of one.

    `name` is the gateway's: of the smart-home scheme `<home>/<node>`, of its entities with `/<kind>/<entity>` after it. `messages` of it came so far;
    the newest one is kept in `payload` (None when it is longer than 16 KiB) and stored when it is approved. `entities`: what a node has shown.
    `reason`: why it waits although the tenant takes all by itself.
    """

    id: Annotated[str, Field(validation_alias="uid")]
    gateway_id: Annotated[str, Field(validation_alias="gateway_uid")]
    kind: Literal["device", "entity"]
    name: str
    state: Literal["waiting", "ignored"]
    reason: str
    messages: int
    entities: list[str]
    protocol: str
    topic: str
    payload: str | None
    first_seen_at: datetime
    last_seen_at: datetime


class DiscoveryQuery(web.ListQuery):
    """Which things, in which order."""

    state: Literal["waiting", "ignored"] | None = None
    gateway: Annotated[str | None, Field(max_length=64, description="Id of a gateway.")] = None
    sort: Annotated[
        str, Field(max_length=40, description="name, first_seen_at or last_seen_at; `-` in front for descending.")
    ] = "-last_seen_at"


class DiscoveryPage(web.Page[DiscoveryOut]):
    """Things of the inbox."""


class ApprovalIn(web.Body):
    """What shall be different from what the gateway said; for devices alone."""

    name: Name | None = None
    type: Kind | None = None
    site: SiteId | None = None


class MergeIn(web.Body):
    """The device that it is."""

    device_id: Id


class ManyIn(web.Body):
    """Things to approve as they are."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=discoveries.AT_ONCE)]


class FailureOut(web.Out):
    """What could not be approved, and why."""

    id: str
    code: str
    reason: str


class ManyOut(web.Out):
    """What became of each."""

    approved: list[DeviceOut]
    failed: list[FailureOut]


def _out(row: Discovery) -> DiscoveryOut:
    text = None if row.payload is None else row.payload.decode("utf-8", "backslashreplace")
    values = {name: getattr(row, name) for name in DiscoveryOut.model_fields if name not in ("id", "gateway_id")}
    return DiscoveryOut.model_validate(values | {"uid": row.uid, "gateway_uid": row.gateway_uid, "payload": text})


@api.route("GET", "/discoveries", query=DiscoveryQuery, out=DiscoveryPage, permission="device:read")
def list_discoveries(ctx: web.Context, query: DiscoveryQuery) -> DiscoveryPage:
    """What waits and what is ignored."""
    kind = f"discoveries:{query.state}:{query.gateway}:{query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(ctx.scope) as db:
        found = discoveries.search(db, Filters(query.state, query.gateway), wanted)
        items = [_out(row) for row in found.items]
    return DiscoveryPage(**web.page(kind, found, items))


@api.route(
    "POST",
    "/discoveries/<discovery_id>/approve",
    body=ApprovalIn,
    optional_body=True,
    out=DeviceOut,
    permission="device:write",
    problems=(409,),
)
def approve_discovery(ctx: web.Context, discovery_id: str, body: ApprovalIn) -> DeviceOut:
    """Take a device or an entity.

    A device is made below the gateway, with the entities it has shown; its newest message is stored. Answers with the device.
    """
    with tenancy.work(ctx.scope) as db:
        device = discoveries.approve(db, discovery_id, Approval(body.name, body.type, body.site))
        return DeviceOut.model_validate(device)


@api.route("POST", "/discoveries/approve", body=ManyIn, out=ManyOut, permission="device:write")
def approve_discoveries(ctx: web.Context, body: ManyIn) -> ManyOut:
    """Take many as they are; each that cannot be taken is named with its reason."""
    with tenancy.work(ctx.scope) as db:
        taken, failed = discoveries.approve_many(db, body.ids)
        approved = [DeviceOut.model_validate(device) for device in taken]
    reasons = [FailureOut(id=each.uid, code=each.problem.code, reason=each.problem.detail) for each in failed]
    return ManyOut(approved=approved, failed=reasons)


@api.route(
    "POST",
    "/discoveries/<discovery_id>/merge",
    body=MergeIn,
    out=DeviceOut,
    permission="device:write",
    problems=(409,),
)
def merge_discovery(ctx: web.Context, discovery_id: str, body: MergeIn) -> DeviceOut:
    """Say that it is a device which exists: from now on the gateway sends for that one."""
    with tenancy.work(ctx.scope) as db:
        return DeviceOut.model_validate(discoveries.merge(db, discovery_id, body.device_id))


@api.route("POST", "/discoveries/<discovery_id>/ignore", out=DiscoveryOut, permission="device:write")
def ignore_discovery(ctx: web.Context, discovery_id: str) -> DiscoveryOut:
    """Hear nothing more of it; it is remembered, and comes back only when it is restored."""
    with tenancy.work(ctx.scope) as db:
        return _out(discoveries.ignore(db, discovery_id))


@api.route("POST", "/discoveries/<discovery_id>/restore", out=DiscoveryOut, permission="device:write")
def restore_discovery(ctx: web.Context, discovery_id: str) -> DiscoveryOut:
    """Let something that was ignored wait again."""
    with tenancy.work(ctx.scope) as db:
        return _out(discoveries.restore(db, discovery_id))
