"""Certificates by which devices prove themselves at the MQTT broker."""

from sqlalchemy import ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from iiot.models.base import Base, Created, Moment, RowId
from iiot.tenancy import TenantOwned


class DeviceCertificate(TenantOwned, Base):
    """A certificate that the portal has signed for a device. Its private key is stored nowhere.

    `serial` is the certificate's own number, in hexadecimal digits; `pem` the certificate itself, which is no secret.
    """

    __tablename__ = "device_certificate"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "device_id"],
            ["iiot.device.tenant_id", "iiot.device.id"],
            ondelete="CASCADE",
            name="fk_device_certificate_device",
        ),
        Index("ix_device_certificate_tenant_id_device_id", "tenant_id", "device_id"),
    )

    id: Mapped[RowId] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(unique=True)
    device_id: Mapped[int]
    serial: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(server_default="")
    pem: Mapped[str]
    created_at: Mapped[Created]
    expires_at: Mapped[Moment]
    revoked_at: Mapped[Moment | None]
