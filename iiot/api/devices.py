"""Devices and their credentials."""

from datetime import datetime
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

from iiot import tenancy, web
from iiot.models import Device
from iiot.services import devices
from iiot.services.listing import Wanted

api = web.Api("devices")

T = TypeVar("T")
Name = Annotated[str, Field(min_length=1, max_length=devices.MAX_NAME)]
Kind = Annotated[str, Field(min_length=1, max_length=devices.MAX_TYPE)]
Tag = Annotated[str, Field(min_length=1, max_length=devices.MAX_TAG)]
Tags = Annotated[list[Tag], Field(max_length=devices.MAX_TAGS)]
SiteId = Annotated[str, Field(max_length=64, description="Id of the site where the device stands.")]


class DeviceIn(web.Body):
    """A new device."""

    name: Name
    type: Kind = "default"
    external_id: Name | None = None
    is_gateway: bool = False
    tags: Tags = []
    site: SiteId | None = None


def _not_null(value: T | None) -> T:
    if value is None:
        raise ValueError("must not be null; leave it out to keep it")
    return value


class DevicePatch(web.Body):
    """What shall change; what is left out stays. Only `external_id` and `site` may be null."""

    name: Annotated[Name | None, AfterValidator(_not_null)] = None
    type: Annotated[Kind | None, AfterValidator(_not_null)] = None
    external_id: Name | None = None
    is_gateway: Annotated[bool | None, AfterValidator(_not_null)] = None
    tags: Annotated[Tags | None, AfterValidator(_not_null)] = None
    site: SiteId | None = None
    enabled: Annotated[bool | None, AfterValidator(_not_null)] = None
    needs_approval: Annotated[
        bool | None,
        AfterValidator(_not_null),
        Field(description="Whether a second person has to approve each command before it goes out."),
    ] = None


class DeviceOut(web.Out):
    """A thing that sends or is commanded; `id` is also its user name in every protocol."""

    id: Annotated[str, Field(validation_alias="uid")]
    name: str
    type: str
    status: str
    is_gateway: bool
    tags: list[str]
    created_at: datetime
    last_seen_at: datetime | None
    enabled: bool
    external_id: str | None
    site: Annotated[str | None, Field(validation_alias="site_uid", description="Id of the site where it stands.")]
    needs_approval: bool
    gateway: Annotated[
        str | None, Field(validation_alias="gateway_uid", description="Id of the gateway that sends for it.")
    ]
    child_name: Annotated[str | None, Field(description="What that gateway calls it.")]


class DeviceWithToken(DeviceOut):
    """A device with its token, which is shown here and never again."""

    token: str


class DeviceQuery(web.ListQuery):
    """Which devices, in which order."""

    q: Annotated[str | None, Field(max_length=200, description="Part of the name or external id, or the id.")] = None
    type: Annotated[str | None, Field(max_length=devices.MAX_TYPE)] = None
    status: Literal["new", "online", "offline"] | None = None
    tag: Annotated[str | None, Field(max_length=devices.MAX_TAG)] = None
    is_gateway: bool | None = None
    enabled: bool | None = None
    site: SiteId | None = None
    gateway: Annotated[str | None, Field(max_length=64, description="Id of the gateway that sends for them.")] = None
    sort: Annotated[
        str,
        Field(
            max_length=40, description="name, type, status, created_at or last_seen_at; `-` in front for descending."
        ),
    ] = "name"


class DevicePage(web.Page[DeviceOut]):
    """Devices."""


def _with_token(device: Device, token: str) -> DeviceWithToken:
    return DeviceWithToken.model_construct(**dict(DeviceOut.model_validate(device)), token=token)


@api.route("GET", "/devices", query=DeviceQuery, out=DevicePage, permission="device:read")
def list_devices(ctx: web.Context, query: DeviceQuery) -> DevicePage:
    """Search and list devices."""
    kind = f"devices {query.sort}"
    wanted = Wanted(query.sort, query.limit, web.decode_cursor(kind, query.cursor))
    filters = devices.Filters(**query.model_dump(exclude={"sort", "limit", "cursor"}))
    with tenancy.work(ctx.scope) as db:
        found = devices.search(db, filters, wanted)
    return DevicePage(**web.page(kind, found, [DeviceOut.model_validate(device) for device in found.items]))


@api.route(
    "POST", "/devices", body=DeviceIn, out=DeviceWithToken, status=201, permission="device:write", problems=(409,)
)
def create_device(ctx: web.Context, body: DeviceIn) -> DeviceWithToken:
    """Create a device.

    The answer holds its token, once. Over the quota: 403 with type …/quota-exceeded, `quota`, `limit` and `used`.
    """
    new = devices.NewDevice(body.name, body.type, body.external_id, body.is_gateway, tuple(body.tags), body.site)
    with tenancy.work(ctx.scope) as db:
        device, token = devices.create(db, new)
    ctx.etag(device.version)
    ctx.headers["Location"] = f"{web.PREFIX}/devices/{device.uid}"
    return _with_token(device, token)


@api.route("GET", "/devices/<device_id>", out=DeviceOut, permission="device:read")
def get_device(ctx: web.Context, device_id: str) -> DeviceOut:
    """Read a device."""
    with tenancy.work(ctx.scope) as db:
        device = devices.read(db, device_id)
    ctx.etag(device.version)
    return DeviceOut.model_validate(device)


@api.route(
    "PATCH", "/devices/<device_id>", body=DevicePatch, out=DeviceOut, permission="device:write", problems=(409, 412)
)
def change_device(ctx: web.Context, device_id: str, body: DevicePatch) -> DeviceOut:
    """Change a device.

    With If-Match (the ETag that was read) a change that somebody else made meanwhile answers 412.
    """
    with tenancy.work(ctx.scope) as db:
        device = devices.change(db, device_id, body.model_dump(exclude_unset=True), ctx.expected_version())
    ctx.etag(device.version)
    return DeviceOut.model_validate(device)


@api.route("DELETE", "/devices/<device_id>", permission="device:write")
def delete_device(ctx: web.Context, device_id: str) -> None:
    """Delete a device: it is shut out at once, and its id is never used again."""
    with tenancy.work(ctx.scope) as db:
        devices.remove(db, device_id)
