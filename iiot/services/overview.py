"""What the home page shows of a tenant: how many, how much, what happened last."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import literal, select
from sqlalchemy.orm import Session

from iiot import clock, tenancy
from iiot.models import ConnectionEvent, Device, RejectedMessage
from iiot.tenancy import ScopedSession

RATE_STEP = 5
RATE_STEPS = 60
ACTIVITY = 8
MOST_COUNTED = 10_000

# Everything that is one number, in one trip. Refusals are counted among the newest alone: a device that is refused all day must not slow it down.
_COUNTS = tenancy.sql(
    """
    SELECT count(*) AS devices, count(*) FILTER (WHERE status = 'online') AS online, count(*) FILTER (WHERE status = 'offline') AS offline,
        count(*) FILTER (WHERE status = 'new') AS never_seen,
        (SELECT count(*) FROM iiot.signal) AS signals,
        (SELECT coalesce(sum(readings), 0)::bigint FROM iiot.usage_day WHERE day >= :today) AS readings_today,
        (SELECT count(*) FROM (SELECT received_at FROM iiot.rejected_message ORDER BY id DESC LIMIT :most) AS newest WHERE received_at >= :today)
            AS rejected_today
    FROM iiot.device
    """
)
# One row of the batch log is one commit; its arrays have one element per reading.
_RATE = tenancy.sql(
    """
    SELECT floor(extract(epoch FROM created_at) / :step)::bigint AS slot, sum(cardinality(signal_ids)) AS readings
    FROM iiot.telemetry_batch WHERE created_at >= :since GROUP BY 1
    """
)
# The same for a limited member: readings of the signals that they see, which row-level security decides.
_RATE_SEEN = tenancy.sql(
    """
    SELECT floor(extract(epoch FROM b.created_at) / :step)::bigint AS slot, count(*) AS readings
    FROM iiot.telemetry_batch b, unnest(b.signal_ids) AS s
    WHERE b.created_at >= :since AND s = ANY (ARRAY(SELECT i.id FROM iiot.signal i)) GROUP BY 1
    """
)


@dataclass(frozen=True)
class Activity:
    """Something that happened to a device. kind: "online", "offline", "rejected" or "created"; `text` is the reason."""

    kind: str
    uid: str
    name: str
    at: datetime
    text: str


@dataclass(frozen=True)
class Counts:
    """Counts of now and of the present day in UTC; readings of a day are counted per tenant, so limited members are not told."""

    devices: int
    online: int
    offline: int
    never_seen: int
    signals: int
    readings_today: int | None
    rejected_today: int


@dataclass(frozen=True)
class Overview:
    """`rate` are readings per `rate_step` seconds, oldest first, the last ending at `rate_until`."""

    counts: Counts
    rate: list[int]
    rate_until: int
    rate_step: int
    activity: list[Activity]


def overview(db: ScopedSession) -> Overview:
    """The overview of the session's tenant, of what a limited member sees of it."""
    rate, until = rates(db)
    return Overview(counts(db), rate, until, RATE_STEP, _activity(db))


def counts(db: ScopedSession) -> Counts:
    """The counts of the session's tenant, of what a limited member sees of it."""
    today = clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    row = db.execute(_COUNTS, {"today": today, "most": MOST_COUNTED}).one()
    found = Counts(**row._mapping)
    return found if db.scope.limited_user is None else replace(found, readings_today=None)


def rates(db: ScopedSession, steps: int = RATE_STEPS) -> tuple[list[int], int]:
    """Readings per slot of the last minutes and the start of the newest slot, in seconds since the epoch."""
    newest = int(clock.now().timestamp()) // RATE_STEP
    first = newest - steps + 1
    statement = _RATE if db.scope.limited_user is None else _RATE_SEEN
    since = clock.from_ms(first * RATE_STEP * 1000)
    slots = {slot: int(readings) for slot, readings in db.execute(statement, {"step": RATE_STEP, "since": since})}
    return [slots.get(slot, 0) for slot in range(first, newest + 1)], newest * RATE_STEP


def _activity(db: Session) -> list[Activity]:
    """The newest events of three kinds, each read by its index, then merged."""
    recent = clock.now() - timedelta(days=7)
    connections = select(ConnectionEvent.online, ConnectionEvent.device_id, ConnectionEvent.at, ConnectionEvent.reason)
    refusals = select(literal(None), RejectedMessage.device_id, RejectedMessage.received_at, RejectedMessage.reason)
    events = [
        *db.execute(
            connections.where(ConnectionEvent.at >= recent, ConnectionEvent.kind == "state")
            .order_by(ConnectionEvent.id.desc())
            .limit(ACTIVITY)
        ),
        *db.execute(
            refusals.where(RejectedMessage.received_at >= recent).order_by(RejectedMessage.id.desc()).limit(ACTIVITY)
        ),
    ]
    devices = select(Device).order_by(Device.created_at.desc(), Device.id.desc()).limit(ACTIVITY)
    found = [Activity("created", each.uid, each.name, each.created_at, "") for each in db.scalars(devices)]
    names = {each.id: each for each in db.scalars(select(Device).where(Device.id.in_({event[1] for event in events})))}
    kinds = {None: "rejected", True: "online", False: "offline"}
    found += [
        Activity(kinds[kind], names[owner].uid, names[owner].name, at, reason)
        for kind, owner, at, reason in events
        if owner in names
    ]
    return sorted(found, key=lambda each: each.at, reverse=True)[:ACTIVITY]
