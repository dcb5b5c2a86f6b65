"""Removing tenants for good, when the grace period of their deletion has ended. The audit trail stays.

Readings have no foreign key and may be many, so they go first, in chunks of a transaction each; the tenant's row takes the rest with it by
cascade. Logins at the broker are removed by the reconciler (services.provisioning).
"""

from typing import Any

import structlog
from sqlalchemy import CursorResult
from sqlalchemy.orm import Session

from iiot import cache, clock, tenancy
from iiot.models import PLATFORM
from iiot.services import audit

log = structlog.get_logger(__name__)

CHUNK = 10_000

_DUE = tenancy.sql(
    "SELECT id, uid, name, slug FROM iiot.tenant WHERE status = 'deleting' AND delete_at < :now ORDER BY delete_at LIMIT 1"
)
# A row's place on disk finds it again at once; it is unique within a partition, so a chunk never reaches over a day.
_SOME_DAY = "SELECT date_trunc('day', {moment}, 'UTC') FROM iiot.{table} WHERE tenant_id = :tenant LIMIT 1"
_OF_DAY = (
    "DELETE FROM iiot.{table} WHERE ctid = ANY (ARRAY (SELECT ctid FROM iiot.{table} WHERE {same} LIMIT :n)) AND {same}"
)
_SAME_DAY = "tenant_id = :tenant AND {moment} >= :day AND {moment} < CAST(:day AS timestamptz) + interval '1 day'"
_PARTITIONED = {"telemetry": "ts", "telemetry_batch": "created_at"}
_DAYS = {table: tenancy.sql(_SOME_DAY.format(table=table, moment=moment)) for table, moment in _PARTITIONED.items()}
_DAY = {
    table: tenancy.sql(_OF_DAY.format(table=table, same=_SAME_DAY.format(moment=moment)))
    for table, moment in _PARTITIONED.items()
}
_ROWS = {
    table: tenancy.sql(
        f"DELETE FROM iiot.{table} WHERE ctid = ANY (ARRAY (SELECT ctid FROM iiot.{table} WHERE tenant_id = :tenant LIMIT :n))"  # noqa: S608
    )
    for table in ("latest", "rollup_1h", "rejected_message", "connection_event")
}
_TENANT = tenancy.sql("DELETE FROM iiot.tenant WHERE id = :tenant AND status = 'deleting' AND delete_at < :now")


def purge(db: Session) -> bool:
    """Remove a part of one tenant whose time is up; True while there is more to do. `db`: scope "stream"."""
    now = clock.now()
    due = db.execute(_DUE, {"now": now}).one_or_none()
    if due is None:
        return False
    if _some_readings(db, due.id) or _some_rows(db, due.id):
        return True
    if _count(db, _TENANT, {"tenant": due.id, "now": now}):
        before = {"name": due.name, "slug": due.slug}
        # In the platform's own chain: nobody is left to read the tenant's.
        audit.record(db, "tenant.remove", ("tenant", due.uid), before=before)
        tenancy.after_commit(db, cache.forget_everywhere)
        log.info("tenant removed for good", tenant=due.uid, chain=PLATFORM)
    return True


def _some_readings(db: Session, tenant_id: int) -> bool:
    for table in _PARTITIONED:
        day = db.scalar(_DAYS[table], {"tenant": tenant_id})
        if day is not None:
            return _count(db, _DAY[table], {"tenant": tenant_id, "day": day, "n": CHUNK}) > 0
    return False


def _some_rows(db: Session, tenant_id: int) -> bool:
    return any(_count(db, statement, {"tenant": tenant_id, "n": CHUNK}) > 0 for statement in _ROWS.values())


def _count(db: Session, statement: Any, values: dict[str, Any]) -> int:
    result: CursorResult[Any] = db.execute(statement, values)  # type: ignore[assignment]
    return result.rowcount
