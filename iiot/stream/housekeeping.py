"""What has to be done now and then, by one process at a time: partitions, retention, sums, silence, the broker's users.

Deletions go in small transactions: the readers of the batch log wait for every open writer.
"""

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from sqlalchemy.orm import Session

from iiot import clock, config, metrics, tenancy
from iiot.services import batchlog, commands, erasure, metering
from iiot.stream import latest
from iiot.stream.log import lag
from iiot.tenancy import sql

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
DAYS_AHEAD = 7
# Readings are accepted from 30 days back, so the partitions of these days stay whatever the retention is.
DAYS_BACK = 31
CHUNK = 1_000

_LOCK = sql("SELECT pg_try_advisory_xact_lock(hashtextextended('iiot.duty.' || :name, 0))")
_ENSURE = sql("SELECT iiot.ensure_partitions(CAST(:first AS date), CAST(:last AS date))")
_DROP = sql("SELECT iiot.drop_partitions(CAST(:telemetry AS date), CAST(:log AS date))")
_LAST_DROPPED = sql(
    "SELECT xid::text, id FROM iiot.telemetry_batch b WHERE created_at < CAST(:day AS date) ORDER BY b.xid DESC, b.id DESC LIMIT 1"
)
_OLD_SESSIONS = sql(
    "DELETE FROM iiot.session WHERE id IN (SELECT id FROM iiot.session WHERE expires_at < :before LIMIT :n)"
)
_OLD_LINKS = sql(
    "DELETE FROM iiot.password_reset WHERE id IN (SELECT id FROM iiot.password_reset WHERE expires_at < :before LIMIT :n)"
)
_OLD_REGISTRATIONS = sql(
    "DELETE FROM iiot.pending_registration WHERE id IN "
    "(SELECT id FROM iiot.pending_registration WHERE expires_at < :before LIMIT :n)"
)
_OLD_REJECTED = sql(
    "DELETE FROM iiot.rejected_message WHERE (tenant_id, id) IN "
    "(SELECT tenant_id, id FROM iiot.rejected_message WHERE received_at < :before LIMIT :n)"
)
# The payload is kept up to 256 KiB; its true size is known without reading it.
_TOO_MUCH_REJECTED = sql(
    "DELETE FROM iiot.rejected_message WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM ("
    "SELECT tenant_id, id, sum(least(size, 262144)) OVER (PARTITION BY tenant_id ORDER BY id DESC) AS kept FROM iiot.rejected_message"
    ") AS summed WHERE kept > :most LIMIT :n)"
)
_OLD_CONNECTIONS = sql(
    "DELETE FROM iiot.connection_event WHERE (tenant_id, id) IN "
    "(SELECT tenant_id, id FROM iiot.connection_event WHERE at < :before LIMIT :n)"
)
_OLD_COMMANDS = sql(
    "DELETE FROM iiot.command WHERE (tenant_id, id) IN "
    "(SELECT tenant_id, id FROM iiot.command WHERE finished_at < :before LIMIT :n)"
)
_SILENT = sql(
    "UPDATE iiot.device d SET status = 'offline' FROM iiot.tenant t WHERE t.id = d.tenant_id AND d.status = 'online' "
    "AND NOT d.tells_status AND d.last_seen_at < :before RETURNING d.tenant_id, d.id, d.uid, t.uid, d.last_seen_at"
)
# A token that expired longer ago says nothing: the device may have come back by another way.
_SHUT_OUT = sql(
    """
    WITH gone AS (
        SELECT d.tenant_id, d.id, t.uid AS tenant_uid, CASE
            WHEN NOT d.enabled THEN 'device-disabled' WHEN t.status <> 'active' THEN 'tenant-' || t.status ELSE 'token-expired' END AS reason
        FROM iiot.device d JOIN iiot.tenant t ON t.id = d.tenant_id
        WHERE d.status = 'online' AND (NOT d.enabled OR t.status <> 'active' OR (
            EXISTS (SELECT FROM iiot.credential c WHERE c.tenant_id = d.tenant_id AND c.device_id = d.id AND c.revoked_at IS NULL
                    AND c.expires_at BETWEEN now() - interval '30 seconds' AND now())
            AND NOT EXISTS (SELECT FROM iiot.credential c WHERE c.tenant_id = d.tenant_id AND c.device_id = d.id
                            AND c.revoked_at IS NULL AND (c.expires_at IS NULL OR c.expires_at > now()))))
    )
    UPDATE iiot.device d SET status = 'offline' FROM gone WHERE d.tenant_id = gone.tenant_id AND d.id = gone.id AND d.status = 'online'
    RETURNING d.tenant_id, d.id, d.uid, gone.tenant_uid, d.last_seen_at, gone.reason
    """
)


@dataclass
class Duty:
    """Something to do every `seconds`. `work(db)` runs in a transaction that holds the duty's lock, and is repeated while it returns True."""

    name: str
    seconds: float
    work: Callable[[Session], bool | None]
    due: float = field(default=0.0)


def ensure_partitions(db: Session) -> None:
    """Partitions for a week ahead and for as far back as readings are accepted."""
    today = clock.now().date()
    first, last = today - timedelta(days=DAYS_BACK), today + timedelta(days=DAYS_AHEAD)
    made = db.scalar(_ENSURE, {"first": first, "last": last})
    if made:
        log.info("partitions made", count=made, last=str(last))


def drop_partitions(db: Session) -> None:
    """Retention: whole days are dropped. How far the log was dropped is noted, so that a reader who came too late is told."""
    settings = config.load()
    today = clock.now().date()
    log_day = today - timedelta(days=settings.log_retention_days)
    telemetry_day = today - timedelta(days=max(settings.telemetry_retention_days, DAYS_BACK))
    last = db.execute(_LAST_DROPPED, {"day": log_day}).first()
    if last is not None:
        dropped = batchlog.Cursor(int(last[0]), last[1])
        batchlog.move(db, batchlog.FLOOR, max(dropped, batchlog.floor(db)))
    count = db.scalar(_DROP, {"telemetry": telemetry_day, "log": log_day})
    if count:
        log.info("partitions dropped", count=count, telemetry_before=str(telemetry_day), log_before=str(log_day))


def remove_sessions(db: Session) -> bool:
    """Sign-ins that have expired."""
    return _chunk(db, _OLD_SESSIONS, 0)


def remove_links(db: Session) -> bool:
    """Links to a new password and registrations that nobody followed in time."""
    links, registrations = _chunk(db, _OLD_LINKS, 0), _chunk(db, _OLD_REGISTRATIONS, 0)
    return links or registrations


def remove_rejected(db: Session) -> bool:
    """Rejected messages older than their retention."""
    return _chunk(db, _OLD_REJECTED, config.load().rejected_retention_days)


def limit_rejected(db: Session) -> bool:
    """A tenant's rejected messages have a size; beyond it the oldest go, so that a broken device cannot fill the disk."""
    most = config.load().rejected_megabytes * 1024 * 1024
    result = db.execute(_TOO_MUCH_REJECTED, {"most": most, "n": CHUNK})
    return bool(result.rowcount == CHUNK)  # type: ignore[attr-defined]


def remove_connection_events(db: Session) -> bool:
    """Connection events are kept as long as readings."""
    return _chunk(db, _OLD_CONNECTIONS, config.load().telemetry_retention_days)


def remove_commands(db: Session) -> bool:
    """Finished commands are kept as long as readings."""
    return _chunk(db, _OLD_COMMANDS, config.load().telemetry_retention_days)


def _chunk(db: Session, statement: object, days: int) -> bool:
    result = db.execute(statement, {"before": clock.now() - timedelta(days=days), "n": CHUNK})  # type: ignore[call-overload]
    return bool(result.rowcount == CHUNK)


def mark_silent(db: Session) -> None:
    """Devices that do not tell their state go offline after some minutes without a reading; not while the log is read late."""
    after = config.load().device_offline_after
    if lag(db, "latest").seconds > min(after / 2, 30):
        return
    silent = db.execute(_SILENT, {"before": clock.now() - timedelta(seconds=after)}).all()
    gone = [(row[0], row[1], None) for row in silent]
    latest.record_transitions(db, gone, online=False, reason="silence", detail=f"for {after} s")
    for _, _, uid, tenant_uid, last_seen_at in silent:
        latest.announce(db, tenant_uid, uid, "offline", last_seen_at)


def mark_shut_out(db: Session) -> None:
    """Devices that can no longer be connected are offline: disabled ones, those of suspended tenants, those whose last token has just expired."""
    found = db.execute(_SHUT_OUT).all()
    for reason in {row.reason for row in found}:
        gone = [(row.tenant_id, row.id, None) for row in found if row.reason == reason]
        latest.record_transitions(db, gone, online=False, reason=reason)
    for row in found:
        latest.announce(db, row.tenant_uid, row.uid, "offline", row.last_seen_at)


def _sums(_db: Session) -> None:
    from iiot.stream import rollup

    rollup.refresh()


def _broker(_db: Session) -> None:
    from iiot.services import provisioning

    provisioning.reconcile()


def _certificates(_db: Session) -> None:
    from iiot.services import revocations

    with tenancy.work(tenancy.system("provision")) as db:
        revocations.reconcile(db)


def _rabbitmq(_db: Session) -> None:
    from iiot.services import provisioning_amqp

    provisioning_amqp.reconcile()


def duties() -> Iterator[Duty]:
    """Everything that is done here, with its period in seconds."""
    yield Duty("partitions", 3600, ensure_partitions)
    yield Duty("retention", 3600, drop_partitions)
    yield Duty("sessions", 3600, remove_sessions)
    yield Duty("links", 3600, remove_links)
    yield Duty("rejected", 3600, remove_rejected)
    yield Duty("rejected-size", 600, limit_rejected)
    yield Duty("connection-events", 3600, remove_connection_events)
    yield Duty("old-commands", 3600, remove_commands)
    yield Duty("commands", 1, commands.expire)
    yield Duty("silence", 10, mark_silent)
    yield Duty("shut-out", 10, mark_shut_out)
    yield Duty("rollups", 30, _sums)
    yield Duty("requests", 30, metering.store)
    yield Duty("tenants", 600, erasure.purge)
    if importlib.util.find_spec("iiot.services.provisioning"):
        yield Duty("broker", 60, _broker)
        yield Duty("certificates", 60, _certificates)
    yield Duty("rabbitmq", 60, _rabbitmq)


def perform(duty: Duty, stop: threading.Event | None = None) -> bool:
    """Do it now, unless another process is doing it; False when it failed. Never raises: one failing duty stops no other."""
    try:
        again = True
        while again and not (stop and stop.is_set()):
            with tenancy.work(tenancy.system("stream")) as db:
                if not db.scalar(_LOCK, {"name": duty.name}):
                    return True
                again = bool(duty.work(db))
    except Exception as error:
        metrics.housekeeping_failures.labels(duty.name).inc()
        log.error("duty failed", duty=duty.name, exc_info=error)
        return False
    metrics.housekeeping_success.labels(duty.name).set_to_current_time()
    return True


def run(stop: threading.Event) -> None:
    """Do every duty at once and then in its period, until `stop` is set. A failed one is tried again after a tenth of its period."""
    waiting = list(duties())
    while not stop.is_set():
        for duty in waiting:
            now = time.monotonic()
            if now >= duty.due and not stop.is_set():
                succeeded = perform(duty, stop)
                duty.due = now + (duty.seconds if succeeded else max(1.0, duty.seconds / 10))
        stop.wait(TICK_SECONDS)
