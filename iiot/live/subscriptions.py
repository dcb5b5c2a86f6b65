"""What a client listens to."""

from typing import Any

from sqlalchemy import select

from iiot import tenancy
from iiot.errors import Problem
from iiot.ids import is_uid
from iiot.live.clients import Client
from iiot.live.hub import Hub
from iiot.models import Device
from iiot.services import batchlog

MAX_DEVICES = 500
TAILER = "live"


def subscribe(hub: Hub, client: Client, data: Any) -> str:
    """Add devices or the whole tenant; when it returns, everything newer than the returned cursor will be sent.

    All devices of a request are taken, or none: a device of another tenant and one that does not exist are refused alike.
    """
    devices, tenant = _wanted(data)
    if tenant and client.principal.is_limited:
        detail = "You see some devices of this tenant alone: subscribe to them by id."
        raise Problem(403, "limited-member", detail)
    if len(client.devices | devices) > MAX_DEVICES:
        detail = f"At most {MAX_DEVICES} devices per connection. Subscribe to the tenant instead."
        raise Problem(403, "too-many-devices", detail, extra={"limit": MAX_DEVICES})
    _check_devices(client, devices)
    client.devices |= devices
    client.tenant = client.tenant or tenant
    if not hub.settle(client):
        raise Problem(503, "unavailable", "Live events cannot be reached at the moment. Try again.")
    heard = hub.connected
    with tenancy.work(client.scope) as db:
        cursor = str(batchlog.position(db, TAILER))
    client.cursor = client.cursor or cursor
    if not heard:
        # Redis is away, or came back while the cursor was read.
        hub.owe(client)
    return cursor


def unsubscribe(hub: Hub, client: Client, data: Any) -> None:
    """Take devices or the whole tenant away; what was not subscribed is no mistake."""
    devices, tenant = _wanted(data)
    client.devices -= devices
    if tenant:
        client.tenant = False
    hub.settle(client)


def _wanted(data: Any) -> tuple[set[str], bool]:
    """The devices and whether the tenant is meant; raises Problem for anything but `{"devices": [ids]}` or `{"tenant": true}`."""
    if isinstance(data, dict):
        devices, tenant = data.get("devices", []), data.get("tenant", False)
        if isinstance(devices, list) and isinstance(tenant, bool) and (devices or tenant):
            if len(devices) > MAX_DEVICES:
                raise Problem(403, "too-many-devices", f"At most {MAX_DEVICES} devices.", extra={"limit": MAX_DEVICES})
            if all(isinstance(uid, str) for uid in devices):
                return set(devices), tenant
    raise Problem(400, "invalid", 'Send {"devices": ["<id>", …]} or {"tenant": true}.')


def _check_devices(client: Client, devices: set[str]) -> None:
    asked = {uid for uid in devices if is_uid(uid)}
    known: set[str] = set()
    if asked:
        with tenancy.work(client.scope) as db:
            known = set(db.scalars(select(Device.uid).where(Device.uid.in_(asked))))
    if known != devices:
        unknown = sorted(uid[:64] for uid in devices - known)
        detail = "There is no such device, or it is not yours."
        raise Problem(404, "unknown-device", detail, extra={"devices": unknown[:20]})
