"""Orders to devices."""

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from iiot.models.base import Base, BigRowId, Created, Moment
from iiot.models.discovery import Entity
from iiot.models.fleet import Device
from iiot.tenancy import TenantOwned

UNFINISHED = "state IN ('queued', 'sent', 'delivered')"


class Command(TenantOwned, Base):
    """An order to a device, with its life; see services.command_life. `seq` orders the commands of one device."""

    __tablename__ = "command"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            ondelete="CASCADE",
            name="fk_command_device",
        ),
        ForeignKeyConstraint(
            ["tenant_id", "entity_id"],
            ["iiot.entity.tenant_id", "iiot.entity.id"],
            ondelete="SET NULL (entity_id)",
            name="fk_command_entity",
        ),
        UniqueConstraint("tenant_id", "device_id", "seq"),
        UniqueConstraint("tenant_id", "device_id", "idempotency_key"),
        CheckConstraint(
            "state IN ('queued', 'sent', 'delivered', 'done', 'failed', 'expired', 'cancelled')", name="state"
        ),
        CheckConstraint("approval IN ('waiting', 'approved')", name="approval"),
        # Few commands are unfinished at any moment: what is due, and what waits for a protocol, is found among them.
        Index("ix_command_unfinished", "expires_at", postgresql_where=text(UNFINISHED)),
    )

    id: Mapped[BigRowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    device_id: Mapped[int]
    # The part of the device that it controls; None for any other command.
    entity_id: Mapped[int | None]
    seq: Mapped[int]
    name: Mapped[str]
    params: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    state: Mapped[str] = mapped_column(server_default="queued")
    # Which protocol took it to the device; None before that, and when two did.
    protocol: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    created_by: Mapped[str] = mapped_column(server_default="")
    created_by_uid: Mapped[str] = mapped_column(server_default="")
    # None: nobody has to approve it.
    approval: Mapped[str | None]
    approved_by: Mapped[str | None]
    approved_by_uid: Mapped[str | None]
    approved_at: Mapped[Moment | None]
    created_at: Mapped[Created]
    expires_at: Mapped[Moment]
    sent_at: Mapped[Moment | None]
    delivered_at: Mapped[Moment | None]
    finished_at: Mapped[Moment | None]
    result: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    # [{"state", "at"}], oldest first.
    history: Mapped[list[dict[str, str]]] = mapped_column(JSONB, server_default="[]")
    device: Mapped[Device] = relationship(viewonly=True)
    entity: Mapped[Entity | None] = relationship(viewonly=True)

    @property
    def device_uid(self) -> str:
        """The device's id, as everybody outside knows it."""
        return self.device.uid


__all__ = ["Command"]
