"""Tables only, one file per aggregate. Every tenant table leads its keys with `tenant_id`."""

from iiot.models.base import SCHEMA, Base
from iiot.models.certificates import DeviceCertificate
from iiot.models.commands import Command
from iiot.models.discovery import Discovery, Entity, Home
from iiot.models.fleet import ConnectionEvent, Credential, Device, OscoreContext, RejectedMessage, Signal, UsageDay
from iiot.models.people import (
    ROLES,
    ApiKey,
    Invitation,
    Membership,
    MembershipLimit,
    PasswordReset,
    PendingRegistration,
    RecoveryCode,
    RefreshSession,
    Role,
    SecondFactor,
    ServiceAccount,
    User,
)
from iiot.models.platform import Limits, Plan, Quota, Site, Tenant
from iiot.models.telemetry import Latest, Rollup, StreamCursor, telemetry, telemetry_batch
from iiot.models.trail import PLATFORM, Audit, AuditHead

__all__ = [
    "PLATFORM",
    "ROLES",
    "SCHEMA",
    "ApiKey",
    "Audit",
    "AuditHead",
    "Base",
    "Command",
    "ConnectionEvent",
    "Credential",
    "Device",
    "DeviceCertificate",
    "Discovery",
    "Entity",
    "Home",
    "Invitation",
    "Latest",
    "Limits",
    "Membership",
    "MembershipLimit",
    "OscoreContext",
    "PasswordReset",
    "PendingRegistration",
    "Plan",
    "Quota",
    "RecoveryCode",
    "RefreshSession",
    "RejectedMessage",
    "Role",
    "Rollup",
    "SecondFactor",
    "ServiceAccount",
    "Signal",
    "Site",
    "StreamCursor",
    "Tenant",
    "UsageDay",
    "User",
    "telemetry",
    "telemetry_batch",
]
