"""What tenants use: readings counted where the batch log is read, and the whole table of use, limits and forecasts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from iiot import clock, tenancy
from iiot.models import Quota, UsageDay
from iiot.services import metering, quotas
from iiot.services.batchlog import Row

HORIZON = timedelta(days=30)

# How many there are and how many of them are new: devices, users, and signals of the device that has most of them.
_IN_USE = tenancy.sql(
    """
    SELECT t.uid, d.used AS devices, d.new AS new_devices, m.used AS users, m.new AS new_users,
        coalesce(s.used, 0) AS signals, coalesce(s.new, 0) AS new_signals
    FROM iiot.tenant t
    CROSS JOIN (SELECT count(*) AS used, count(*) FILTER (WHERE created_at > :since) AS new FROM iiot.device) AS d
    CROSS JOIN (SELECT count(*) AS used, count(*) FILTER (WHERE created_at > :since) AS new FROM iiot.membership) AS m
    LEFT JOIN LATERAL (
        SELECT count(*) AS used, count(*) FILTER (WHERE created_at > :since) AS new
        FROM iiot.signal GROUP BY device_id ORDER BY 1 DESC, 2 DESC LIMIT 1
    ) AS s ON true
    WHERE t.id = :tenant
    """
)


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
    found = db.execute(_IN_USE, {"since": clock.now() - HORIZON, "tenant": limits.tenant_id}).one()
    today, yesterday = _two_days(db)
    requests = max(today.api_requests, metering.requests_today(found.uid))
    live = metering.connections(found.uid)
    rules = quotas.in_use(db, "rules")
    used = {
        "devices": (found.devices, found.devices + found.new_devices),
        "users": (found.users, found.users + found.new_users),
        "rules": (rules, rules),
        "signals_per_device": (found.signals, found.signals + found.new_signals),
        "readings_per_day": (today.readings, at_end_of_day(today.readings, yesterday.readings)),
        "api_requests_per_day": (requests, at_end_of_day(requests, yesterday.api_requests)),
        "connections": (live, live),
    }
    return {name: Use(getattr(limits, name), *used[name]) for name in quotas.NAMES}


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
