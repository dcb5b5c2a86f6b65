"""Devices, what proves them, what they send and when they were connected."""

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship
from sqlalchemy.types import Text

from iiot.models.base import Base, Big, BigRowId, Created, Moment, RowId
from iiot.models.platform import Site
from iiot.tenancy import TenantOwned


def _of_device(table: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["tenant_id", "device_id"],
        ["iiot.device.tenant_id", "iiot.device.id"],
        ondelete="CASCADE",
        name=f"fk_{table}_device",
    )


class Device(TenantOwned, Base):
    """A thing that sends or is commanded, addressed by `uid`."""

    __tablename__ = "device"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], ondelete="CASCADE", name="fk_device_tenant"),
        ForeignKeyConstraint(["tenant_id", "site_id"], ["iiot.site.tenant_id", "iiot.site.id"], name="fk_device_site"),
        ForeignKeyConstraint(
            ["tenant_id", "gateway_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            ondelete="SET NULL (gateway_id)",
            name="fk_device_gateway",
        ),
        UniqueConstraint("tenant_id", "external_id"),
        UniqueConstraint("tenant_id", "gateway_id", "child_name"),
        CheckConstraint("status IN ('new', 'online', 'offline')", name="status"),
        Index("ix_device_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
        Index("ix_device_tenant_id_name", "tenant_id", text("lower(name)")),
        Index("ix_device_tenant_id_status", "tenant_id", "status"),
        Index("ix_device_tenant_id_site_id", "tenant_id", "site_id"),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    type: Mapped[str] = mapped_column(server_default="default")
    external_id: Mapped[str | None]
    is_gateway: Mapped[bool] = mapped_column(server_default=text("false"))
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    site_id: Mapped[int | None]
    # The gateway that sends for this device, and what it calls it there.
    gateway_id: Mapped[int | None]
    child_name: Mapped[str | None]
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    status: Mapped[str] = mapped_column(server_default="new")
    # Whether the device tells its state itself (status topic, last will); only others go offline by silence.
    tells_status: Mapped[bool] = mapped_column(server_default=text("false"))
    # The protocol by which the device takes commands, as it was last seen to do; None: no protocol has seen it yet.
    command_protocol: Mapped[str | None]
    # Whether a second person has to approve each command before it goes out.
    needs_approval: Mapped[bool] = mapped_column(server_default=text("false"))
    version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    last_seen_at: Mapped[Moment | None]
    site: Mapped[Site | None] = relationship(viewonly=True)
    gateway: Mapped["Device | None"] = relationship(viewonly=True, remote_side="Device.tenant_id, Device.id")

    @property
    def gateway_uid(self) -> str | None:
        """The id of the gateway that sends for this device."""
        return self.gateway.uid if self.gateway_id is not None and self.gateway else None

    @property
    def site_uid(self) -> str | None:
        """The id of the site where the device stands, as everybody outside knows it."""
        return self.site.uid if self.site else None


class Credential(TenantOwned, Base):
    """A token of a device; only a keyed hash and the broker's verifier are stored."""

    __tablename__ = "credential"
    __table_args__ = (
        _of_device("credential"),
        Index("ix_credential_tenant_id_device_id", "tenant_id", "device_id"),
        Index(
            "uq_credential_tenant_id_device_id_slot",
            "tenant_id",
            "device_id",
            "slot",
            unique=True,
            postgresql_where=text("revoked_at IS NULL"),
        ),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    device_id: Mapped[int]
    token_hash: Mapped[str] = mapped_column(unique=True)
    mqtt_salt: Mapped[bytes] = mapped_column(LargeBinary)
    mqtt_hash: Mapped[bytes] = mapped_column(LargeBinary)
    mqtt_iterations: Mapped[int]
    # Four bytes of salt and the SHA-256, as RabbitMQ takes them; empty for tokens from before AMQP.
    amqp_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    # The first credential logs in at the broker as `<uid>`, the others as `<uid>.<slot>`: a broker knows one password per name.
    slot: Mapped[int] = mapped_column(server_default="1")
    name: Mapped[str] = mapped_column(server_default="")
    expires_at: Mapped[Moment | None]
    created_at: Mapped[Created]
    last_used_at: Mapped[Moment | None]
    revoked_at: Mapped[Moment | None]


class OscoreContext(TenantOwned, Base):
    """What a device and the portal share for OSCORE; see services.oscore. `kid` is the device's Sender ID, `own_id` the portal's."""

    __tablename__ = "oscore_context"
    __table_args__ = (
        _of_device("oscore_context"),
        Index("ix_oscore_context_tenant_id_device_id", "tenant_id", "device_id"),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    device_id: Mapped[int]
    name: Mapped[str] = mapped_column(server_default="")
    kid: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    own_id: Mapped[bytes] = mapped_column(LargeBinary)
    # Encrypted.
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    salt: Mapped[bytes] = mapped_column(LargeBinary)
    # All sequence numbers below were given away to a process that may have used them.
    sequence: Mapped[Big] = mapped_column(server_default="0")
    created_at: Mapped[Created]
    last_used_at: Mapped[Moment | None]
    revoked_at: Mapped[Moment | None]


class Signal(TenantOwned, Base):
    """One named series of a device."""

    __tablename__ = "signal"
    __table_args__ = (
        _of_device("signal"),
        UniqueConstraint("tenant_id", "device_id", "key"),
        CheckConstraint("type IN ('number', 'boolean', 'string', 'json')", name="type"),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    device_id: Mapped[int]
    key: Mapped[str]
    type: Mapped[str]
    unit: Mapped[str | None]
    minimum: Mapped[float | None]
    maximum: Mapped[float | None]
    # Whether people and programs may write it; what they write becomes a command to the device.
    writable: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[Created]


class RejectedMessage(TenantOwned, Base):
    """A message that was refused, whole or in part: the payload (of a too large one the beginning) and the reason are kept.

    `replayed_at`: when somebody sent it again and something of it was stored; `replay`: what the last attempt came to.
    """

    __tablename__ = "rejected_message"
    __table_args__ = (
        _of_device("rejected_message"),
        Index("ix_rejected_message_tenant_id_device_id_id", "tenant_id", "device_id", "id"),
    )

    id: Mapped[BigRowId] = mapped_column(primary_key=True)
    device_id: Mapped[int]
    received_at: Mapped[Created]
    protocol: Mapped[str]
    topic: Mapped[str]
    code: Mapped[str]
    reason: Mapped[str]
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    size: Mapped[int]
    details: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    uid: Mapped[str] = mapped_column(unique=True)
    content_type: Mapped[str | None]
    replayed_at: Mapped[Moment | None]
    replayed_by: Mapped[str | None]
    replay: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    device: Mapped[Device] = relationship(viewonly=True)


class ConnectionEvent(TenantOwned, Base):
    """A device came online or went offline, and why ("state"); a login was refused; or something else to know ("note")."""

    __tablename__ = "connection_event"
    __table_args__ = (
        _of_device("connection_event"),
        CheckConstraint("kind IN ('state', 'refused', 'note')", name="kind"),
        Index("ix_connection_event_tenant_id_device_id_id", "tenant_id", "device_id", "id"),
    )

    id: Mapped[BigRowId] = mapped_column(primary_key=True)
    device_id: Mapped[int]
    at: Mapped[Created]
    online: Mapped[bool]
    reason: Mapped[str]
    kind: Mapped[str] = mapped_column(server_default="state")
    protocol: Mapped[str | None]
    detail: Mapped[str] = mapped_column(server_default="")


class UsageDay(TenantOwned, Base):
    """Readings stored and API requests answered per tenant and day (UTC)."""

    __tablename__ = "usage_day"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id"], ["iiot.tenant.id"], ondelete="CASCADE", name="fk_usage_day_tenant"),
    )

    day: Mapped[Moment] = mapped_column(primary_key=True)
    readings: Mapped[Big] = mapped_column(server_default="0")
    messages: Mapped[Big] = mapped_column(server_default="0")
    api_requests: Mapped[Big] = mapped_column(server_default="0")


__all__ = ["ConnectionEvent", "Credential", "Device", "OscoreContext", "RejectedMessage", "Signal", "UsageDay"]
