"""What devices prove themselves with: several tokens at once, so that one can be replaced while the other still works."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from iiot import tenancy, web
from iiot.api.devices import DeviceOut, DeviceWithToken
from iiot.services import credentials, devices
from iiot.services.names import LONGEST

api = web.Api("credentials")


class CredentialIn(web.Body):
    """A new token. With `keep_others` it works beside those that the device has, at most five at once; without it they stop working at once."""

    name: Annotated[str, Field(max_length=LONGEST, description="For people, as `new firmware`.")] = ""
    keep_others: bool = False
    expires_at: Annotated[
        web.Moment | None, Field(description="It works until then, RFC 3339 with a zone; null: until it is revoked.")
    ] = None


class CredentialOut(web.Out):
    """A token of a device without the token, which nobody can read again.

    `mqtt_username`: what the device logs in with at the MQTT broker; its client id is the device's id in any case. `last_used_at`: over HTTP, to
    the minute, and over MQTT where the portal checks the login itself (the embedded broker amqtt); Mosquitto does not tell.
    `amqp_username`: the user at RabbitMQ; null for a token from before AMQP, which does not open it: make a new one.
    """

    id: Annotated[str, Field(validation_alias="uid")]
    name: str
    slot: int
    mqtt_username: str
    amqp_username: str | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    is_expired: bool


class CredentialList(web.Page[CredentialOut]):
    """The tokens of a device; there are at most five, so the list is one page."""


class DeviceWithCredential(DeviceWithToken):
    """A device with its new token, which is shown here and never again."""

    credential_id: str
    mqtt_username: str


@api.route("GET", "/devices/<device_id>/credentials", out=CredentialList, permission="device:read")
def list_credentials(ctx: web.Context, device_id: str) -> CredentialList:
    """The credentials of a device, without their secrets."""
    with tenancy.work(ctx.scope) as db:
        found = credentials.list_all(db, devices.get(db, device_id))
    items = [CredentialOut.model_validate(each) for each in found]
    return CredentialList(items=items, next_cursor=None, total=len(items))


@api.route(
    "POST",
    "/devices/<device_id>/credentials",
    body=CredentialIn,
    optional_body=True,
    out=DeviceWithCredential,
    status=201,
    permission="device:write",
    problems=(409,),
)
def make_credential(ctx: web.Context, device_id: str, body: CredentialIn) -> DeviceWithCredential:
    """Give a device a new token.

    The ones before stop working at once, unless `keep_others` says that they shall go on: then give the device the new one, see it used, and
    revoke the old one. The body may be left out.
    """
    wanted = credentials.Wanted(body.name, body.expires_at)
    with tenancy.work(ctx.scope) as db:
        device = devices.locked(db, device_id)
        issued = (credentials.add if body.keep_others else credentials.replace)(db, device, wanted)
        shown = dict(DeviceOut.model_validate(device))
    return DeviceWithCredential.model_construct(
        **shown, token=issued.token, credential_id=issued.credential.uid, mqtt_username=issued.user_name
    )


@api.route("DELETE", "/devices/<device_id>/credentials/<credential_id>", permission="device:write")
def revoke_credential(ctx: web.Context, device_id: str, credential_id: str) -> None:
    """Revoke one credential: it stops working at once in every protocol, and an open connection with it ends."""
    with tenancy.work(ctx.scope) as db:
        credentials.revoke(db, devices.locked(db, device_id), credential_id)
