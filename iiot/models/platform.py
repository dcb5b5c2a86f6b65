"""Tenants and what they may use."""

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Integer
from sqlalchemy.orm import Mapped, mapped_column

from iiot import tenancy
from iiot.models.base import Base, Big, Created


class Tenant(Base):
    """A customer; owns everything below it."""

    __tablename__ = "tenant"
    __table_args__ = (CheckConstraint("status IN ('active', 'suspended', 'deleting')", name="status"),)

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    slug: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str] = mapped_column(server_default="active")
    timezone: Mapped[str] = mapped_column(server_default="UTC")
    created_at: Mapped[Created]


class Quota(tenancy.TenantOwned, Base):
    """The limits of a tenant."""

    __tablename__ = "quota"

    tenant_id: Mapped[int] = mapped_column(ForeignKey("iiot.tenant.id", ondelete="CASCADE"), primary_key=True)
    devices: Mapped[int] = mapped_column(server_default="1000")
    users: Mapped[int] = mapped_column(server_default="100")
    rules: Mapped[int] = mapped_column(server_default="200")
    signals_per_device: Mapped[int] = mapped_column(server_default="500")
    readings_per_day: Mapped[Big] = mapped_column(server_default="10000000000")
