"""What tenants use: readings counted where the batch log is read, and the whole table of use, limits and forecasts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from iiot import clock
from iiot.models import Device, Membership, Quota, Signal, Tenant, UsageDay
from iiot.services import metering, quotas
from iiot.services.batchlog import Row

HORIZON = timedelta(days=30)


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


@dataclass(frozen=True)
class Use:
    """A quota: what is allowed, what is used, and what will be used if things go on as they do."""

    limit: int
    used: int
    forecast: int


@dataclass(frozen=True)
class Day:
    """What a tenant used on one day (UTC)."""

    day: datetime
    readings: int
    api_requests: int


def report(db: Session) -> dict[str, Use]:
    """Limit, use and forecast of the seven quotas of the session's tenant. `db`: a scope with a tenant that is not limited to some devices.

    Forecasts are simple on purpose:
    - devices, users: the use in 30 days, if the next 30 days bring as many new ones as the last 30 brought that are still there;
    - signals_per_device: the same for the device that has most; that one's number is also the use;
    - rules, connections: the use of now, as nothing is known of how they grow;
    - readings_per_day, api_requests_per_day: the sum at the end of the day (UTC), if the rest of it goes like the last 24 hours on average.
    """
    limits = db.scalars(select(Quota)).one()
    tenant = db.scalars(select(Tenant).where(Tenant.id == limits.tenant_id)).one()
    today, yesterday = _two_days(db)
    requests = max(today.api_requests, metering.requests_today(tenant.uid))
    live = metering.connections(tenant.uid)
    rules = quotas.in_use(db, "rules")
    found = {
        "devices": _growing(quotas.in_use(db, "devices"), _since(db, Device)),
        "users": _growing(quotas.in_use(db, "users"), _since(db, Membership)),
        "rules": (rules, rules),
        "signals_per_device": _fullest_device(db),
        "readings_per_day": (today.readings, at_end_of_day(today.readings, yesterday.readings)),
        "api_requests_per_day": (requests, at_end_of_day(requests, yesterday.api_requests)),
        "connections": (live, live),
    }
    return {name: Use(getattr(limits, name), *found[name]) for name in quotas.NAMES}


def _growing(used: int, new: int) -> tuple[int, int]:
    return used, used + new


def _since(db: Session, model: Any) -> int:
    recent = select(func.count()).select_from(model).where(model.created_at > clock.now() - HORIZON)
    return db.scalar(recent) or 0


def _fullest_device(db: Session) -> tuple[int, int]:
    """Signals of the device that has most, and that number with as many more as the last 30 days brought it."""
    new = func.count().filter(Signal.created_at > clock.now() - HORIZON)
    fullest = select(func.count().label("n"), new.label("new")).group_by(Signal.device_id)
    row = db.execute(fullest.order_by(func.count().desc(), new.desc()).limit(1)).one_or_none()
    return (0, 0) if row is None else (row[0], row[0] + row[1])


def at_end_of_day(today: int, yesterday: int, now: datetime | None = None) -> int:
    """The sum of a day at its end: today's so far, and for the rest of it the mean of the last 24 hours."""
    moment = now or clock.now()
    passed = (moment - _midnight(moment)).total_seconds() / metering.DAY
    last_24_hours = today + yesterday * (1 - passed)
    return round(today + last_24_hours * (1 - passed))


def _midnight(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _two_days(db: Session) -> tuple[Day, Day]:
    found = days(db, 2)
    return found[1], found[0]


def days(db: Session, number: int = 30) -> list[Day]:
    """The use of the last `number` days of the session's tenant, oldest first, days without any included; the last is today."""
    today = _midnight(clock.now())
    first = today - timedelta(days=number - 1)
    rows = db.execute(select(UsageDay.day, UsageDay.readings, UsageDay.api_requests).where(UsageDay.day >= first)).all()
    known = {row[0]: Day(row[0], row[1], row[2]) for row in rows}
    every = [first + timedelta(days=each) for each in range(number)]
    return [known.get(day) or Day(day, 0, 0) for day in every]
