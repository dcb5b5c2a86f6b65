"""Readings, their newest values and hourly sums, and the batch log that live, rules and scorer read."""

from datetime import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from iiot import tenancy
from iiot.models.base import Base, Big, Created, Moment


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id, which never wraps."""

    cache_ok = True

    def get_col_spec(self, **_kw: object) -> str:
        return "xid8"


# A Core table, as nothing loads readings one object at a time. No foreign key, for speed: the resolver in services.ingest is the guard.
# Daily range partitions on ts are made by iiot.ensure_partitions().
telemetry = Table(
    "telemetry",
    Base.metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("signal_id", Integer, primary_key=True),
    Column("ts", DateTime(timezone=True), primary_key=True),
    Column("num", Double),
    Column("txt", Text),
    Column("quality", SmallInteger),
    postgresql_partition_by="RANGE (ts)",
)

# One row per tenant and commit: the same readings once more, in columns. Read in the order (xid, id), below the snapshot's xmin.
telemetry_batch = Table(
    "telemetry_batch",
    Base.metadata,
    Column("tenant_id", Integer, primary_key=True),
    Column("created_at", DateTime(timezone=True), primary_key=True, server_default=func.now()),
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("xid", Xid8(), nullable=False, server_default=text("pg_current_xact_id()")),
    Column("signal_ids", ARRAY(Integer), nullable=False),
    Column("ts", ARRAY(BigInteger), nullable=False),
    Column("num", ARRAY(Double), nullable=False),
    Column("txt", ARRAY(Text)),
    # Places in payloads.QUALITIES, NULL where a reading is good; NULL altogether where all are.
    Column("quality", ARRAY(SmallInteger)),
    # Late: all of it was measured long before it came; nobody is told of it live.
    Column("late", Boolean, nullable=False, server_default=text("false")),
    Column("protocol", Text),
    Index("ix_telemetry_batch_xid_id", "xid", "id"),
    postgresql_partition_by="RANGE (created_at)",
)


class StreamCursor(Base):
    """How far a tailer has read the batch log. Belongs to the portal, not to a tenant."""

    __tablename__ = "stream_cursor"

    name: Mapped[str] = mapped_column(primary_key=True)
    xid: Mapped[int] = mapped_column(Xid8(), server_default=text("'0'::xid8"))
    id: Mapped[Big] = mapped_column(server_default="0")
    updated_at: Mapped[Created]


class Latest(tenancy.TenantOwned, Base):
    """The newest reading of a signal."""

    __tablename__ = "latest"
    __table_args__ = ({"postgresql_with": {"fillfactor": 50}},)

    tenant_id: Mapped[int] = mapped_column(primary_key=True)
    signal_id: Mapped[int] = mapped_column(primary_key=True)
    ts: Mapped[Moment]
    num: Mapped[float | None] = mapped_column(Double)
    txt: Mapped[str | None]
    quality: Mapped[int | None] = mapped_column(SmallInteger)


class Rollup(tenancy.TenantOwned, Base):
    """One hour (UTC) of a numeric signal, summed up from the raw readings; n = 0 says that it has changed since, see services.rollups.

    `sumsq` is the sum of squared deviations from the hour's mean: plain squares would lose the variance of large values.
    """

    __tablename__ = "rollup_1h"
    __table_args__ = (Index("ix_rollup_1h_changed", "hour", postgresql_where=text("n = 0")),)

    tenant_id: Mapped[int] = mapped_column(primary_key=True)
    signal_id: Mapped[int] = mapped_column(primary_key=True)
    hour: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    n: Mapped[int]
    minimum: Mapped[float] = mapped_column(Double)
    maximum: Mapped[float] = mapped_column(Double)
    total: Mapped[float] = mapped_column(Double)
    sumsq: Mapped[float] = mapped_column(Double)
    first: Mapped[float] = mapped_column(Double)
    last: Mapped[float] = mapped_column(Double)
    first_ts: Mapped[Moment]
    last_ts: Mapped[Moment]
    # The least and the greatest reading of every ten seconds, for charts; NULL where the hour holds few readings. See services.rollups.
    extremes: Mapped[bytes | None] = mapped_column(LargeBinary)


__all__ = ["Latest", "Rollup", "StreamCursor", "telemetry", "telemetry_batch"]
