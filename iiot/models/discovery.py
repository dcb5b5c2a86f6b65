"""What gateways bring along: homes of the smart-home scheme, entities of devices, and what waits for somebody's word."""

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column, relationship
from sqlalchemy.types import Text

from iiot.models.base import Base, Big, Created, Moment, RowId
from iiot.models.fleet import Device
from iiot.tenancy import TenantOwned


def _of_device(table: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["tenant_id", "device_id"],
        ["iiot.device.tenant_id", "iiot.device.id"],
        ondelete="CASCADE",
        name=f"fk_{table}_device",
    )


class Home(TenantOwned, Base):
    """A home of the smart-home scheme, `home/<name>/…`: one of its kind in the whole installation. `device_id`: the gateway that speaks for it."""

    __tablename__ = "home"
    __table_args__ = (_of_device("home"), Index("ix_home_tenant_id_device_id", "tenant_id", "device_id"))

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(unique=True)
    device_id: Mapped[int]
    created_at: Mapped[Created]
    device: Mapped[Device] = relationship(viewonly=True)

    @property
    def device_uid(self) -> str:
        """The id of the gateway, as everybody outside knows it."""
        return self.device.uid


class Entity(TenantOwned, Base):
    """A part of a device that can be controlled or read as one, made of the signals `<kind>/<name>/…`.

    `address`: the topic of the smart-home scheme without its last word, `home/<home>/<node>/<kind>/<entity>`; None for entities of other devices.
    """

    __tablename__ = "entity"
    __table_args__ = (_of_device("entity"), UniqueConstraint("tenant_id", "device_id", "kind", "name"))

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    device_id: Mapped[int]
    kind: Mapped[str]
    name: Mapped[str]
    address: Mapped[str | None]
    created_at: Mapped[Created]
    device: Mapped[Device] = relationship(viewonly=True)


class Discovery(TenantOwned, Base):
    """Something that a gateway speaks of and nobody has approved yet: a device below it, or an entity of one. `device_id`: the gateway.

    `name`: the gateway's name of the device, `<home>/<node>` in the smart-home scheme; an entity has `/<kind>/<entity>` after it. `entities`: what a
    node has shown so far. `payload`: its newest message, which is stored when it is approved.
    """

    __tablename__ = "discovery"
    __table_args__ = (
        _of_device("discovery"),
        UniqueConstraint("tenant_id", "device_id", "kind", "name"),
        CheckConstraint("kind IN ('device', 'entity')", name="kind"),
        CheckConstraint("state IN ('waiting', 'ignored')", name="state"),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    device_id: Mapped[int]
    kind: Mapped[str]
    name: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="waiting")
    # Why it waits although the tenant takes what comes: a quota.
    reason: Mapped[str] = mapped_column(server_default="")
    messages: Mapped[Big] = mapped_column(server_default=text("0"))
    entities: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    protocol: Mapped[str] = mapped_column(server_default="")
    topic: Mapped[str] = mapped_column(server_default="")
    payload: Mapped[bytes | None] = mapped_column(LargeBinary)
    first_seen_at: Mapped[Created]
    last_seen_at: Mapped[Moment]
    device: Mapped[Device] = relationship(viewonly=True)

    @property
    def gateway_uid(self) -> str:
        """The id of the gateway, as everybody outside knows it."""
        return self.device.uid


__all__ = ["Discovery", "Entity", "Home"]
