"""The inbox: what gateways have brought and nobody has approved yet. Approving, merging and ignoring; `services.children` fills it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, selectinload

from iiot import clock, ids, tenancy
from iiot.errors import Conflict, NotFound, Problem
from iiot.models import Device, Discovery
from iiot.payloads import PayloadError, parse
from iiot.payloads.gateway import parse_state, parse_status, read_topic
from iiot.services import audit, children, devices, entities, roles
from iiot.services.ingest import Incoming, StatusEvent, ingest, status
from iiot.services.listing import Found, Wanted, find
from iiot.tenancy import ScopedSession

log = structlog.get_logger(__name__)

AT_ONCE = 100
SORTS: dict[str, Any] = {
    "name": Discovery.name,
    "first_seen_at": Discovery.first_seen_at,
    "last_seen_at": Discovery.last_seen_at,
}


@dataclass(frozen=True)
class Filters:
    """Which things a list shows; None means any. `gateway`: its id."""

    state: str | None = None
    gateway: str | None = None


@dataclass(frozen=True)
class Approval:
    """What somebody wants to be different from what the gateway said; None leaves it. For devices alone."""

    name: str | None = None
    type: str | None = None
    site: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why one of many could not be approved."""

    uid: str
    problem: Problem


def search(db: ScopedSession, filters: Filters, wanted: Wanted) -> Found[Discovery]:
    """A page of the inbox."""
    statement: Select[Any] = select(Discovery).options(selectinload(Discovery.device))
    if filters.state is not None:
        statement = statement.where(Discovery.state == filters.state)
    if filters.gateway is not None:
        statement = statement.where(Discovery.device_id.in_(select(Device.id).where(Device.uid == filters.gateway)))
    return find(db, statement, SORTS, Discovery.id, wanted)  # type: ignore[arg-type]


def full_gateways(db: Session) -> list[str]:
    """The names of the gateways in whose inboxes there is no room: what else they bring is refused."""
    statement = (
        select(Device.name)
        .join(Discovery, (Discovery.tenant_id == Device.tenant_id) & (Discovery.device_id == Device.id))
        .where(Discovery.state == "waiting")
        .group_by(Device.id, Device.name)
        .having(func.count() >= children.MOST_WAITING)
        .order_by(Device.name)
    )
    return list(db.scalars(statement))


def get(db: Session, uid: str) -> Discovery:
    """One thing of the session's tenant; raises NotFound for any other."""
    statement = select(Discovery).where(Discovery.uid == uid).options(selectinload(Discovery.device))
    row = db.scalar(statement) if ids.is_uid(uid) else None
    if row is None:
        raise NotFound("discovery")
    return row


def _locked(db: ScopedSession, uid: str) -> Discovery:
    """One thing, with its gateway locked, so that nothing is noted about it meanwhile."""
    roles.check_unlimited(db.scope)
    children.lock_gateways(db, [get(db, uid).device_id])
    statement = select(Discovery).where(Discovery.uid == uid).options(selectinload(Discovery.device))
    row = db.scalar(statement.execution_options(populate_existing=True))
    if row is None:
        raise NotFound("discovery")
    return row


def title(row: Discovery) -> str:
    """What a new device is called unless somebody says otherwise: its name at the gateway, for a node without its home."""
    return row.name.partition("/")[2] if is_node(row) else row.name


def is_node(row: Discovery) -> bool:
    """Whether it came by the smart-home scheme."""
    return row.topic.startswith("home/")


def approve(db: ScopedSession, uid: str, approval: Approval | None = None) -> Device:
    """Take it: the device is made, with the entities it has shown, or the entity of its device; its newest message is stored.

    Raises NotFound, Invalid, QuotaExceeded, Conflict, or Forbidden for limited members.
    """
    row = _locked(db, uid)
    wanted = approval or Approval()
    if row.kind == "entity":
        return _approve_entity(db, row, wanted)
    _check_free(db, row)
    new = devices.NewDevice(title(row) if wanted.name is None else wanted.name, wanted.type or "default")
    if wanted.site is not None:
        new = devices.NewDevice(new.name, new.type, site=wanted.site)
    device = devices.create_child(db, new, row.device_id, row.name)
    _take(db, row, device, "discovery.approve")
    return device


def merge(db: ScopedSession, uid: str, device_uid: str) -> Device:
    """It is a device that exists: from now on the gateway sends for that one. Raises NotFound, Conflict, or Forbidden for limited members."""
    row = _locked(db, uid)
    if row.kind == "entity":
        raise Conflict("An entity cannot be merged with a device. Approve or ignore it.", "not-a-device")
    _check_free(db, row)
    device = devices.join(db, device_uid, row.device_id, row.name)
    _take(db, row, device, "discovery.merge")
    return device


def _check_free(db: Session, row: Discovery) -> None:
    statement = select(Device.id).where(Device.gateway_id == row.device_id, Device.child_name == row.name)
    if db.scalar(statement) is not None:
        raise Conflict("The gateway has a device of this name already.", "already-there")


def _approve_entity(db: ScopedSession, row: Discovery, wanted: Approval) -> Device:
    if wanted != Approval():
        raise Conflict("An entity takes its name from its topic; name, type and site are for devices.", "not-a-device")
    child, kind, name = row.name.rsplit("/", 2)
    device = db.scalar(select(Device).where(Device.gateway_id == row.device_id, Device.child_name == child))
    if device is None:
        raise Conflict("The device of this entity is no longer there. Ignore the entity.", "device-gone")
    entities.add(db, device.id, kind, name, f"home/{row.name}")
    _finish(db, row, device, "discovery.approve")
    return device


def _take(db: ScopedSession, row: Discovery, device: Device, action: str) -> None:
    """The entities that the node has shown are approved with it."""
    if is_node(row):
        for part in row.entities:
            kind, _, name = part.partition("/")
            entities.add(db, device.id, kind, name, f"home/{row.name}/{part}")
        own = select(Discovery).where(Discovery.device_id == row.device_id, Discovery.kind == "entity")
        for entity in db.scalars(own.where(Discovery.name.in_([f"{row.name}/{part}" for part in row.entities]))):
            db.delete(entity)
    _finish(db, row, device, action)


def _finish(db: Session, row: Discovery, device: Device, action: str) -> None:
    after = {"gateway": row.gateway_uid, "name": row.name, "kind": row.kind, "device": device.uid}
    audit.record(db, action, ("discovery", row.uid), after=after)
    kept = _Kept(device.uid, row.protocol, row.topic, row.payload, clock.to_ms(row.last_seen_at))
    tenancy.after_commit(db, kept.store)
    db.delete(row)
    db.flush()


@dataclass(frozen=True)
class _Kept:
    """The newest message of a thing that was approved."""

    device_uid: str
    protocol: str
    topic: str
    payload: bytes | None
    received_ms: int

    def store(self) -> None:
        """Through the one door, with the time of its arrival. The approval stands, whatever becomes of it."""
        if self.payload is None:
            return
        try:
            self._store(self.payload)
        except Exception as error:
            log.warning("the kept message was not stored", device=self.device_uid, error=str(error)[:200])

    def _store(self, payload: bytes) -> None:
        parsed, refused = None, None
        try:
            if not self.topic.startswith("home/"):
                parsed = parse(payload, None, self.received_ms)
            elif self.topic.endswith("/status"):
                status([StatusEvent(self.device_uid, parse_status(payload), "status")])
                return
            else:
                parsed = parse_state(read_topic(self.topic), payload, self.received_ms)
        except PayloadError as error:
            refused = error
        ingest([Incoming(self.device_uid, parsed, refused, self.protocol, self.topic, payload)])


def approve_many(db: ScopedSession, uids: Sequence[str]) -> tuple[list[Device], list[Failure]]:
    """Take many as they are, each or none of it; what cannot be taken says why. At most AT_ONCE."""
    taken: list[Device] = []
    failed: list[Failure] = []
    for uid in list(dict.fromkeys(uids))[:AT_ONCE]:
        marks = [len(db.info["before_commit"]), len(db.info["after_commit"])]
        try:
            with db.begin_nested():
                taken.append(approve(db, uid))
        except Problem as problem:
            failed.append(Failure(uid, problem))
            # What the failed one wanted to do at the commit.
            for name, mark in zip(("before_commit", "after_commit"), marks, strict=True):
                del db.info[name][mark:]
    return taken, failed


def ignore(db: ScopedSession, uid: str) -> Discovery:
    """Hear nothing more of it, until somebody restores it. Raises NotFound, or Forbidden for limited members."""
    return _enter(db, uid, "ignored", "discovery.ignore")


def restore(db: ScopedSession, uid: str) -> Discovery:
    """Let something that was ignored wait again."""
    return _enter(db, uid, "waiting", "discovery.restore")


def _enter(db: ScopedSession, uid: str, state: str, action: str) -> Discovery:
    row = _locked(db, uid)
    before = row.state
    row.state = state
    if state == "ignored":
        row.payload, row.reason = None, ""
    db.flush()
    if before != state:
        named = {"gateway": row.gateway_uid, "name": row.name}
        audit.record(db, action, ("discovery", uid), before=named | {"state": before}, after=named | {"state": state})
    return row
