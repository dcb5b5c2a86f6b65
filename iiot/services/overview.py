"""What the home page shows of a tenant: how many, how much, what happened last."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, literal, select
from sqlalchemy.orm import Session

from iiot import clock, tenancy
from iiot.models import ConnectionEvent, Device, RejectedMessage, UsageDay
from iiot.tenancy import ScopedSession

RATE_STEP = 5
RATE_STEPS = 60
ACTIVITY = 8
MOST_COUNTED = 10_000

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
class Overview:
    """Counts are of now and of the present day in UTC; readings of a day are counted per tenant, so limited members are not told.

    `rate` are readings per `rate_step` seconds, oldest first, the last ending at `rate_until`.
    """

    devices: int
    online: int
    offline: int
    never_seen: int
    readings_today: int | None
    rejected_today: int
    rate: list[int]
    rate_until: int
    rate_step: int
    activity: list[Activity]


def overview(db: ScopedSession) -> Overview:
    """The overview of the session's tenant, of what a limited member sees of it."""
    rows = db.execute(select(Device.status, func.count()).group_by(Device.status)).all()
    states = {row[0]: int(row[1]) for row in rows}
    today = clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    rate, until = _rate(db)
    return Overview(
        devices=sum(states.values()),
        online=states.get("online", 0),
        offline=states.get("offline", 0),
        never_seen=states.get("new", 0),
        readings_today=None if db.scope.limited_user is not None else _readings_since(db, today),
        rejected_today=_rejected_since(db, today),
        rate=rate,
        rate_until=until,
        rate_step=RATE_STEP,
        activity=_activity(db),
    )


def _readings_since(db: Session, moment: datetime) -> int:
    return db.scalar(select(func.coalesce(func.sum(UsageDay.readings), 0)).where(UsageDay.day >= moment)) or 0


def _rejected_since(db: Session, moment: datetime) -> int:
    """Counted among the newest messages only: a device that is refused all day must not slow the page down."""
    newest = select(RejectedMessage.received_at).order_by(RejectedMessage.id.desc()).limit(MOST_COUNTED).subquery()
    return db.scalar(select(func.count()).select_from(newest).where(newest.c.received_at >= moment)) or 0


def _rate(db: ScopedSession) -> tuple[list[int], int]:
    """Readings per slot of the last minutes and the start of the newest slot, in seconds since the epoch."""
    newest = int(clock.now().timestamp()) // RATE_STEP
    since = clock.from_ms((newest - RATE_STEPS + 1) * RATE_STEP * 1000)
    statement = _RATE if db.scope.limited_user is None else _RATE_SEEN
    slots = {slot: int(readings) for slot, readings in db.execute(statement, {"step": RATE_STEP, "since": since})}
    return [slots.get(slot, 0) for slot in range(newest - RATE_STEPS + 1, newest + 1)], newest * RATE_STEP


def _activity(db: Session) -> list[Activity]:
    """The newest events of three kinds, each read by its index, then merged."""
    recent = clock.now() - timedelta(days=7)
    connections = select(ConnectionEvent.online, ConnectionEvent.device_id, ConnectionEvent.at, ConnectionEvent.reason)
    refusals = select(literal(None), RejectedMessage.device_id, RejectedMessage.received_at, RejectedMessage.reason)
    events = [
        *db.execute(
            connections.where(ConnectionEvent.at >= recent).order_by(ConnectionEvent.id.desc()).limit(ACTIVITY)
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
