"""Tables only, one file per aggregate. Every tenant table leads its keys with `tenant_id`."""

from iiot.models.base import SCHEMA, Base
from iiot.models.fleet import ConnectionEvent, Credential, Device, RejectedMessage, Signal, UsageDay
from iiot.models.people import ROLES, Membership, RefreshSession, User
from iiot.models.platform import Quota, Tenant
from iiot.models.telemetry import Latest, Rollup, StreamCursor, telemetry, telemetry_batch

__all__ = [
    "ROLES",
    "SCHEMA",
    "Base",
    "ConnectionEvent",
    "Credential",
    "Device",
    "Latest",
    "Membership",
    "Quota",
    "RefreshSession",
    "RejectedMessage",
    "Rollup",
    "Signal",
    "StreamCursor",
    "Tenant",
    "UsageDay",
    "User",
    "telemetry",
    "telemetry_batch",
]
