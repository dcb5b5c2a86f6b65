"""The audit trail: append-only by grant and by trigger, chained by hashes that the database computes."""

from typing import Any

from sqlalchemy import Index, LargeBinary
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from iiot import tenancy
from iiot.models.base import Base, Big, Created

# The chain of what belongs to no tenant: sign-ins of strangers, platform administrators at work.
PLATFORM = 0


class Audit(tenancy.TenantOwned, Base):
    """One act: who, from where, what, before and after. `seq`, `at`, `previous_hash` and `hash` are set by the trigger.

    No foreign key leads to the tenant: the trail outlives what it speaks of. `tenant_id` 0 is the platform's own chain.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index("ix_audit_tenant_id_at", "tenant_id", "at"),
        Index("ix_audit_tenant_id_object_uid_seq", "tenant_id", "object_uid", "seq"),
    )

    seq: Mapped[Big] = mapped_column(primary_key=True, server_default="0", autoincrement=False)
    at: Mapped[Created]
    actor_kind: Mapped[str]
    actor_uid: Mapped[str]
    actor_label: Mapped[str]
    address: Mapped[str]
    user_agent: Mapped[str]
    request_id: Mapped[str]
    action: Mapped[str]
    object_kind: Mapped[str]
    object_uid: Mapped[str]
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    previous_hash: Mapped[bytes] = mapped_column(LargeBinary, server_default="")
    hash: Mapped[bytes] = mapped_column(LargeBinary, server_default="")


class AuditHead(tenancy.TenantOwned, Base):
    """The newest entry of each chain: holders of its row lock append one after the other, and a cut-off end is noticed."""

    __tablename__ = "audit_head"

    seq: Mapped[Big]
    hash: Mapped[bytes] = mapped_column(LargeBinary)
