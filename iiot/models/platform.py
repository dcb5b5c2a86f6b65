"""Tenants, what they may use, and their sites."""

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Identity, Index, Integer, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from iiot import tenancy
from iiot.models.base import Base, Big, Created, Moment, RowId


class Limits:
    """The columns of a quota; a plan is a template of them. None is not a limit: every tenant has a number."""

    devices: Mapped[int] = mapped_column(server_default="1000")
    users: Mapped[int] = mapped_column(server_default="100")
    rules: Mapped[int] = mapped_column(server_default="200")
    signals_per_device: Mapped[int] = mapped_column(server_default="500")
    readings_per_day: Mapped[Big] = mapped_column(server_default="10000000000")
    api_requests_per_day: Mapped[Big] = mapped_column(server_default="10000000")
    connections: Mapped[int] = mapped_column(server_default="1000")


class Plan(Limits, Base):
    """What tenants of a kind may use; giving a tenant a plan copies its limits into the tenant's quota."""

    __tablename__ = "plan"
    __table_args__ = (Index("uq_plan_name", text("lower(name)"), unique=True),)

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    created_at: Mapped[Created]


class Tenant(Base):
    """A customer; owns everything below it. `delete_at`: when a tenant that is being deleted will be gone for good."""

    __tablename__ = "tenant"
    __table_args__ = (
        CheckConstraint("status IN ('active', 'suspended', 'deleting')", name="status"),
        CheckConstraint("discovery IN ('inbox', 'auto')", name="discovery"),
        CheckConstraint("(status = 'deleting') = (delete_at IS NOT NULL)", name="delete_at"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    slug: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str] = mapped_column(server_default="active")
    timezone: Mapped[str] = mapped_column(server_default="UTC")
    created_at: Mapped[Created]
    status_reason: Mapped[str] = mapped_column(server_default="")
    delete_at: Mapped[Moment | None]
    plan_id: Mapped[int | None] = mapped_column(ForeignKey("iiot.plan.id", ondelete="SET NULL"))
    require_mfa: Mapped[bool] = mapped_column(server_default=text("false"))
    # What becomes of devices that gateways bring: they wait in the inbox, or are taken at once.
    discovery: Mapped[str] = mapped_column(server_default="inbox")
    # Branding: `#rrggbb`, and a PNG, JPEG or WebP picture that was decoded and encoded anew.
    colour: Mapped[str | None]
    logo: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    logo_type: Mapped[str | None]
    updated_at: Mapped[Created]

    # Tenants' own role cannot read plans: who wants it asks for it.
    plan: Mapped[Plan | None] = relationship(lazy="raise")


class Quota(tenancy.TenantOwned, Limits, Base):
    """The limits of a tenant."""

    __tablename__ = "quota"

    tenant_id: Mapped[int] = mapped_column(ForeignKey("iiot.tenant.id", ondelete="CASCADE"), primary_key=True)


class Site(tenancy.TenantOwned, Base):
    """A place of a tenant that devices stand at."""

    __tablename__ = "site"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], ondelete="CASCADE", name="fk_site_tenant"),
        Index("uq_site_tenant_id_name", "tenant_id", text("lower(name)"), unique=True),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    created_at: Mapped[Created]


__all__ = ["Limits", "Plan", "Quota", "Site", "Tenant"]
