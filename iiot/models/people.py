"""People, their membership of tenants and their sessions."""

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Identity, Index, Integer, LargeBinary, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Text

from iiot import tenancy
from iiot.models.base import Base, Big, Created, Moment, RowId

ROLES = ("admin", "engineer", "operator", "viewer")


class User(Base):
    """A person. Belongs to no tenant: memberships connect them."""

    __tablename__ = "user_account"
    __table_args__ = (
        CheckConstraint("status IN ('active', 'disabled')", name="status"),
        Index("uq_user_account_email", text("lower(email)"), unique=True),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str]
    name: Mapped[str] = mapped_column(server_default="")
    password_hash: Mapped[str]
    must_change_password: Mapped[bool] = mapped_column(server_default=text("false"))
    is_platform_admin: Mapped[bool] = mapped_column(server_default=text("false"))
    has_mfa: Mapped[bool] = mapped_column(server_default=text("false"))
    status: Mapped[str] = mapped_column(server_default="active")
    epoch: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[Created]
    last_login_at: Mapped[Moment | None]


def _of_role(table: str) -> tuple[CheckConstraint, ForeignKeyConstraint]:
    """`role` names a built-in role, or is "custom" and `role_id` says which."""
    return (
        CheckConstraint("role IN ('admin', 'engineer', 'operator', 'viewer', 'custom')", name="role"),
        ForeignKeyConstraint(
            ["tenant_id", "role_id"], ["iiot.role.tenant_id", "iiot.role.id"], name=f"fk_{table}_role"
        ),
    )


def _custom_role() -> CheckConstraint:
    return CheckConstraint("(role = 'custom') = (role_id IS NOT NULL)", name="role_id")


class Role(tenancy.TenantOwned, Base):
    """A role that a tenant made: a name and permissions out of auth.ALL_PERMISSIONS."""

    __tablename__ = "role"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], ondelete="CASCADE", name="fk_role_tenant"),
        Index("uq_role_tenant_id_name", "tenant_id", text("lower(name)"), unique=True),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    permissions: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[Created]


class Membership(tenancy.TenantOwned, Base):
    """A user in a tenant, with a role. `is_limited`: the member sees the devices alone that a row of `membership_limit` names.

    It is a column of its own, so that a member whose last device or site was deleted sees nothing, not everything.
    """

    __tablename__ = "membership"
    __table_args__ = (*_of_role("membership"), _custom_role(), Index("ix_membership_user_id", "user_id"))

    tenant_id: Mapped[int] = mapped_column(ForeignKey("iiot.tenant.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("iiot.user_account.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str]
    role_id: Mapped[int | None]
    is_limited: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[Created]


class MembershipLimit(tenancy.TenantOwned, Base):
    """One thing that a limited member may see: a device, the devices of a site, or those with a tag."""

    __tablename__ = "membership_limit"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "user_id"],
            ["iiot.membership.tenant_id", "iiot.membership.user_id"],
            ondelete="CASCADE",
            name="fk_membership_limit_membership",
        ),
        ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            ondelete="CASCADE",
            name="fk_membership_limit_device",
        ),
        ForeignKeyConstraint(
            ["tenant_id", "site_id"],
            ["iiot.site.tenant_id", "iiot.site.id"],
            ondelete="CASCADE",
            name="fk_membership_limit_site",
        ),
        CheckConstraint("num_nonnulls(device_id, site_id, tag) = 1", name="one"),
        Index("ix_membership_limit_tenant_id_user_id", "tenant_id", "user_id"),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    device_id: Mapped[int | None]
    site_id: Mapped[int | None]
    tag: Mapped[str | None]


class Invitation(tenancy.TenantOwned, Base):
    """Somebody is asked into a tenant. The token is in the mail or the link alone; only its hash is stored."""

    __tablename__ = "invitation"
    __table_args__ = (
        *_of_role("invitation"),
        _custom_role(),
        ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], ondelete="CASCADE", name="fk_invitation_tenant"),
        Index("ix_invitation_tenant_id_email", "tenant_id", text("lower(email)")),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str]
    role: Mapped[str]
    role_id: Mapped[int | None]
    limited_to: Mapped[dict[str, list[str]] | None] = mapped_column(JSONB(none_as_null=True))
    token_hash: Mapped[str] = mapped_column(unique=True)
    invited_by: Mapped[str]
    created_at: Mapped[Created]
    expires_at: Mapped[Moment]
    accepted_at: Mapped[Moment | None]
    revoked_at: Mapped[Moment | None]


class ServiceAccount(tenancy.TenantOwned, Base):
    """A program with a role of its own in a tenant; it proves itself by API keys."""

    __tablename__ = "service_account"
    __table_args__ = (
        *_of_role("service_account"),
        _custom_role(),
        ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], ondelete="CASCADE", name="fk_service_account_tenant"),
        Index("uq_service_account_tenant_id_name", "tenant_id", text("lower(name)"), unique=True),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    role: Mapped[str]
    role_id: Mapped[int | None]
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    created_at: Mapped[Created]


class ApiKey(tenancy.TenantOwned, Base):
    """A key of a member or of a service account. `scopes` None: everything its owner may do; else at most these permissions."""

    __tablename__ = "api_key"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], ondelete="CASCADE", name="fk_api_key_tenant"),
        ForeignKeyConstraint(
            ["tenant_id", "user_id"],
            ["iiot.membership.tenant_id", "iiot.membership.user_id"],
            ondelete="CASCADE",
            name="fk_api_key_membership",
        ),
        ForeignKeyConstraint(
            ["tenant_id", "service_account_id"],
            ["iiot.service_account.tenant_id", "iiot.service_account.id"],
            ondelete="CASCADE",
            name="fk_api_key_service_account",
        ),
        CheckConstraint("num_nonnulls(user_id, service_account_id) = 1", name="owner"),
        Index("ix_api_key_tenant_id_user_id", "tenant_id", "user_id"),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    prefix: Mapped[str]
    key_hash: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[int | None]
    service_account_id: Mapped[int | None]
    scopes: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    created_at: Mapped[Created]
    expires_at: Mapped[Moment | None]
    last_used_at: Mapped[Moment | None]
    last_used_address: Mapped[str] = mapped_column(server_default="")
    revoked_at: Mapped[Moment | None]


class PasswordReset(Base):
    """A one-time link to a new password; only the token's hash is stored. It dies with the password it was made for (`epoch`)."""

    __tablename__ = "password_reset"
    __table_args__ = (
        Index("ix_password_reset_user_id", "user_id"),
        Index("ix_password_reset_expires_at", "expires_at"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("iiot.user_account.id", ondelete="CASCADE"))
    token_hash: Mapped[str] = mapped_column(unique=True)
    epoch: Mapped[int]
    created_at: Mapped[Created]
    expires_at: Mapped[Moment]


class PendingRegistration(Base):
    """Somebody wants a tenant and has yet to open the link in the mail that was sent to the address."""

    __tablename__ = "pending_registration"
    __table_args__ = (Index("ix_pending_registration_expires_at", "expires_at"),)

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    email: Mapped[str]
    name: Mapped[str]
    tenant_name: Mapped[str]
    password_hash: Mapped[str]
    token_hash: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[Created]
    expires_at: Mapped[Moment]


class SecondFactor(Base):
    """A user's authenticator (TOTP, RFC 6238). The seed is encrypted; `last_step` is the newest time step that was used (no code works twice)."""

    __tablename__ = "second_factor"

    user_id: Mapped[int] = mapped_column(ForeignKey("iiot.user_account.id", ondelete="CASCADE"), primary_key=True)
    seed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[Created]
    confirmed_at: Mapped[Moment | None]
    last_step: Mapped[Big] = mapped_column(server_default="0")


class RecoveryCode(Base):
    """A code that replaces the authenticator once; only its hash is stored."""

    __tablename__ = "recovery_code"
    __table_args__ = (Index("ix_recovery_code_user_id", "user_id"),)

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("iiot.user_account.id", ondelete="CASCADE"))
    code_hash: Mapped[str]
    used_at: Mapped[Moment | None]


class RefreshSession(Base):
    """One sign-in: a family of rotating refresh tokens (RFC 9700 section 4.14.2). Only hashes are stored."""

    __tablename__ = "session"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "user_id"],
            ["iiot.membership.tenant_id", "iiot.membership.user_id"],
            ondelete="CASCADE",
            name="fk_session_membership",
        ),
        Index("ix_session_user_id", "user_id"),
        Index("ix_session_tenant_id_user_id", "tenant_id", "user_id"),
        Index("ix_session_expires_at", "expires_at"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("iiot.user_account.id", ondelete="CASCADE"))
    tenant_id: Mapped[int | None]
    current_hash: Mapped[str] = mapped_column(unique=True)
    previous_hash: Mapped[str | None] = mapped_column(unique=True)
    rotated_at: Mapped[Moment | None]
    fingerprint: Mapped[str] = mapped_column(server_default="")
    user_agent: Mapped[str] = mapped_column(server_default="")
    address: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[Created]
    last_used_at: Mapped[Created]
    expires_at: Mapped[Moment]
    revoked_at: Mapped[Moment | None]
    revoked_why: Mapped[str | None]
