"""What tenants use: readings stored per tenant and day (UTC), counted where the batch log is read."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from iiot.models import UsageDay
from iiot.services.batchlog import Row


def count(db: Session, rows: Sequence[Row]) -> None:
    """Add the readings of log rows to their tenants' days. `db`: scope "stream", in the transaction that moves the cursor past them.

    A reading that was there already is counted again: the log does not know, and devices rarely repeat themselves.
    """
    sums: Counter[tuple[int, datetime]] = Counter()
    for row in rows:
        day = row.created_at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        sums[row.tenant_id, day] += row.size
    if not sums:
        return
    # Sorted, so that two writers cannot wait for each other.
    values = [{"tenant_id": tenant, "day": day, "readings": size} for (tenant, day), size in sorted(sums.items())]
    statement = insert(UsageDay).values(values)
    total = UsageDay.readings + statement.excluded.readings
    db.execute(statement.on_conflict_do_update(index_elements=["tenant_id", "day"], set_={"readings": total}))
