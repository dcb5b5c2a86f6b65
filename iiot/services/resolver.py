"""Who a uid is: tenant, device and its signals, from a cache that is never older than `MAX_AGE` seconds or the last revocation on this machine.

Telemetry has no foreign key, so this is the guard: a reading is only ever stored under the tenant and the signal found here.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import select, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from iiot import cache
from iiot.models import Device, Quota, Signal, Tenant, UsageDay

MAX_AGE = 3.0
MAX_ENTRIES = 200_000
NUMBER, BOOLEAN, STRING, JSON = range(4)
TYPES = ("number", "boolean", "string", "json")
DAY = 86_400
# Why nothing of a tenant's devices is taken, by the tenant's status.
TENANT_REFUSALS = {"suspended": "tenant-suspended", "deleting": "tenant-deleting"}
# Of what is refused for its quota this many messages are kept each time that the quota is read; keeping all would cost more than storing them.
KEPT_OVER_QUOTA = 10


@dataclass(slots=True)
class Budget:
    """What a tenant may still store today (UTC), as this process knows it.

    `used` is the larger one of what the table of use says, read every three seconds, and what was known before plus what this process stored
    since. So a tenant passes its limit by one message, and by what the other processes stored in the last three seconds and the tailer that fills
    the table has not read. It never takes anybody for over the limit who is not.
    """

    tenant_uid: str
    limit: int = 0
    used: int = 0
    day: int = 0
    kept: int = 0

    @property
    def is_spent(self) -> bool:
        """Whether nothing more may be stored today."""
        return self.used >= self.limit


@dataclass(slots=True)
class Resolved:
    """A device as ingest needs it. `signals`: key → (signal id, type as index into `TYPES`)."""

    uid: str
    tenant_id: int
    device_id: int
    refused: str | None
    signal_limit: int
    loaded_at: float
    budget: Budget
    signals: dict[str, tuple[int, int]] = field(default_factory=dict)


class Resolver:
    """The cache of one process. Not for several threads at once; one ingest runs at a time per thread."""

    def __init__(self) -> None:
        self._known: dict[str, Resolved] = {}
        self._budgets: dict[str, Budget] = {}
        self._revocations = b""

    def resolve(self, db: Session, uids: Iterable[str]) -> dict[str, Resolved]:
        """uid → device for the uids that exist; what is missing or old is loaded in bulk."""
        now = time.monotonic()
        known = self._known
        revocations = cache.revocations()
        if revocations != self._revocations:
            known.clear()
            self._revocations = revocations
        wanted = set(uids)
        stale = [uid for uid in wanted if (entry := known.get(uid)) is None or now - entry.loaded_at > MAX_AGE]
        if stale:
            self._load(db, stale, now)
        return {uid: entry for uid in wanted if (entry := known.get(uid)) is not None}

    def forget(self, uids: Iterable[str]) -> None:
        """Drop what was learnt in a transaction that failed."""
        for uid in uids:
            entry = self._known.pop(uid, None)
            if entry is not None:
                self._budgets.pop(entry.budget.tenant_uid, None)

    def _load(self, db: Session, uids: list[str], now: float) -> None:
        if len(self._known) > MAX_ENTRIES:
            self._known.clear()
            self._budgets.clear()
        for uid in uids:
            self._known.pop(uid, None)
        columns = (Device.uid, Device.tenant_id, Device.id, Device.enabled, Tenant.status)
        rows = db.execute(
            select(*columns, Quota.signals_per_device, Quota.readings_per_day, Tenant.uid)
            .join(Tenant, Tenant.id == Device.tenant_id)
            .outerjoin(Quota, Quota.tenant_id == Device.tenant_id)
            .where(Device.uid.in_(uids))
        ).all()
        self._load_budgets(db, {row[1]: (row[7], row[6] or 0) for row in rows})
        by_id: dict[tuple[int, int], Resolved] = {}
        for uid, tenant_id, device_id, enabled, status, limit, _, tenant_uid in rows:
            refused = TENANT_REFUSALS.get(status) if enabled else "device-disabled"
            budget = self._budgets[tenant_uid]
            by_id[tenant_id, device_id] = Resolved(uid, tenant_id, device_id, refused, limit or 0, now, budget)
        self._load_signals(db, by_id)
        self._known.update({entry.uid: entry for entry in by_id.values()})

    def _load_budgets(self, db: Session, limits: dict[int, tuple[str, int]]) -> None:
        """Bring the budgets of these tenants up to date, tenant id → (uid, limit); the objects stay, as devices share them."""
        if not limits:
            return
        day = int(time.time() // DAY)
        today = datetime.fromtimestamp(day * DAY, UTC)
        rows = db.execute(
            select(UsageDay.tenant_id, UsageDay.readings).where(
                UsageDay.tenant_id.in_(list(limits)), UsageDay.day == today
            )
        ).all()
        stored = {row[0]: row[1] for row in rows}
        for tenant_id, (uid, limit) in limits.items():
            budget = self._budgets.setdefault(uid, Budget(uid))
            known = budget.used if budget.day == day else 0
            budget.limit, budget.day, budget.kept = limit, day, 0
            budget.used = max(known, stored.get(tenant_id, 0))

    @staticmethod
    def _load_signals(db: Session, by_id: dict[tuple[int, int], Resolved]) -> None:
        if not by_id:
            return
        rows = db.execute(
            select(Signal.tenant_id, Signal.device_id, Signal.key, Signal.id, Signal.type).where(
                tuple_(Signal.tenant_id, Signal.device_id).in_(list(by_id))
            )
        )
        for tenant_id, device_id, key, signal_id, kind in rows:
            by_id[tenant_id, device_id].signals[key] = (signal_id, TYPES.index(kind))

    def create_signals(self, db: Session, wanted: dict[str, dict[str, int]]) -> None:
        """Create signals, uid → {key: type}, within each device's quota; what does not fit stays unknown.

        The device rows are locked in order, so that two processes neither overshoot the quota nor wait for each other in a circle.
        """
        entries = sorted((self._known[uid] for uid in wanted), key=lambda entry: (entry.tenant_id, entry.device_id))
        ids = [(entry.tenant_id, entry.device_id) for entry in entries]
        locked = (
            select(Device.id).where(tuple_(Device.tenant_id, Device.id).in_(ids)).order_by(Device.tenant_id, Device.id)
        )
        db.execute(locked.with_for_update(key_share=True)).all()
        by_id = {(entry.tenant_id, entry.device_id): entry for entry in entries}
        self._load_signals(db, by_id)
        rows = []
        for entry in entries:
            room = entry.signal_limit - len(entry.signals)
            new = [(key, kind) for key, kind in wanted[entry.uid].items() if key not in entry.signals]
            rows += [
                {"tenant_id": entry.tenant_id, "device_id": entry.device_id, "key": key, "type": TYPES[kind]}
                for key, kind in new[: max(room, 0)]
            ]
        if rows:
            db.execute(upsert(Signal).inline().on_conflict_do_nothing(), rows)
            self._load_signals(db, by_id)


__all__ = ["BOOLEAN", "JSON", "KEPT_OVER_QUOTA", "NUMBER", "STRING", "TYPES", "Budget", "Resolved", "Resolver"]
