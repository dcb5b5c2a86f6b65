"""People, their membership of tenants and their sessions."""

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Identity, Index, Integer, text
from sqlalchemy.orm import Mapped, mapped_column

from iiot import tenancy
from iiot.models.base import Base, Created, Moment

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
    status: Mapped[str] = mapped_column(server_default="active")
    epoch: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[Created]
    last_login_at: Mapped[Moment | None]


class Membership(tenancy.TenantOwned, Base):
    """A user in a tenant, with a role."""

    __tablename__ = "membership"
    __table_args__ = (
        CheckConstraint("role IN ('admin', 'engineer', 'operator', 'viewer')", name="role"),
        Index("ix_membership_user_id", "user_id"),
    )

    tenant_id: Mapped[int] = mapped_column(ForeignKey("iiot.tenant.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("iiot.user_account.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str]
    created_at: Mapped[Created]


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
