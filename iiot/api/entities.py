"""Entities: parts of devices that are read and controlled as one."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt

from iiot import tenancy, web
from iiot.api.commands import CommandOut
from iiot.services import commands, entities
from iiot.services.listing import Wanted

api = web.Api("entities")

Word = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9_.:-]+$")]


class EntityIn(web.Body):
    """An entity of a device that is not discovered by itself."""

    device_id: Annotated[str, Field(max_length=64)]
    kind: Annotated[Word, Field(description="light, switch, sensor, …; sensor and binary_sensor are only read.")]
    name: Word


class EntityOut(web.Out):
    """A part of a device with its newest readings: the signals `<kind>/<name>/…` of the device.

    `state` and `brightness` are those of these names, `attributes` all of them.
    """

    id: Annotated[str, Field(validation_alias="uid")]
    device_id: Annotated[str, Field(validation_alias="device_uid")]
    kind: str
    name: str
    is_controllable: bool
    state: Any
    brightness: Any
    attributes: dict[str, Any]
    updated_at: datetime | None
    created_at: datetime


class EntityQuery(web.ListQuery):
    """Which entities, in which order."""

    device_id: Annotated[str | None, Field(max_length=64)] = None
    kind: Annotated[str | None, Field(max_length=40)] = None
    sort: Annotated[str, Field(max_length=40, description="name, kind or created_at; `-` in front for descending.")] = (
        "name"
    )


class EntityPage(web.Page[EntityOut]):
    """Entities."""


class ControlIn(web.Body):
    """What the entity shall become: at least one of state and brightness."""

    state: Literal["ON", "OFF"] | None = None
    brightness: Annotated[StrictInt | None, Field(ge=0, le=100)] = None
    ttl: Annotated[
        int,
        Field(
            ge=commands.MIN_TTL, le=commands.MAX_TTL, description="Seconds until it expires, if it is not confirmed."
        ),
    ] = entities.TTL_SECONDS
    idempotency_key: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=commands.MAX_KEY,
            description="The same key again answers with the first command and orders nothing. The header Idempotency-Key does the same.",
        ),
    ] = None


@api.route("GET", "/entities", query=EntityQuery, out=EntityPage, permission="entity:read")
def list_entities(ctx: web.Context, query: EntityQuery) -> EntityPage:
    """The entities of the tenant's devices with their states."""
    kind = f"entities:{query.device_id}:{query.kind}:{query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(ctx.scope) as db:
        found = entities.search(db, query.device_id, query.kind, wanted)
    return EntityPage(**web.page(kind, found, [EntityOut.model_validate(each) for each in found.items]))


@api.route(
    "POST",
    "/entities",
    body=EntityIn,
    out=EntityOut,
    status=201,
    permission="device:write",
    problems=(404, 409),
)
def create_entity(ctx: web.Context, body: EntityIn) -> EntityOut:
    """Declare a part of a device.

    Its signals `<kind>/<name>/…` become the entity's state; orders go to the device as commands named "control".
    """
    with tenancy.work(ctx.scope) as db:
        made = EntityOut.model_validate(entities.create(db, body.device_id, body.kind, body.name))
    ctx.headers["Location"] = f"{web.PREFIX}/entities/{made.id}"
    return made


@api.route("GET", "/entities/<entity_id>", out=EntityOut, permission="entity:read")
def get_entity(ctx: web.Context, entity_id: str) -> EntityOut:
    """Read an entity."""
    with tenancy.work(ctx.scope) as db:
        return EntityOut.model_validate(entities.view(db, entity_id))


@api.route("DELETE", "/entities/<entity_id>", permission="device:write")
def delete_entity(ctx: web.Context, entity_id: str) -> None:
    """Forget an entity; its signals stay. A node that still speaks of it brings it to the inbox again."""
    with tenancy.work(ctx.scope) as db:
        entities.remove(db, entity_id)


@api.route(
    "POST",
    "/entities/<entity_id>/control",
    body=ControlIn,
    out=CommandOut,
    status=201,
    permission="entity:control",
    limit="control",
    problems=(404, 409),
)
def control_entity(ctx: web.Context, entity_id: str, body: ControlIn) -> CommandOut:
    """Switch or dim an entity.

    Answers with a command of its device, named "control", with the same life as any other. A node of the smart-home scheme confirms it by its state.
    """
    change = entities.Change(body.state, body.brightness, body.ttl, ctx.idempotency_key(body.idempotency_key))
    with tenancy.work(ctx.scope) as db:
        made = CommandOut.model_validate(entities.control(db, entity_id, change))
    ctx.headers["Location"] = f"{web.PREFIX}/devices/{made.device_id}/commands/{made.id}"
    return made
