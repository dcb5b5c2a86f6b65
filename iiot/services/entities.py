"""Entities: parts of devices that are read and controlled as one, made of the signals `<kind>/<name>/<what>` of their device."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, selectinload

from iiot import ids
from iiot.errors import Conflict, Invalid, NotFound
from iiot.models import Command, Device, Entity, Latest, Signal
from iiot.payloads.gateway import READ_ONLY, WORD
from iiot.services import audit, command_life, commands, devices, roles
from iiot.services.listing import Found, Wanted, escape_like, find
from iiot.services.signals import value_of
from iiot.tenancy import ScopedSession

MOST_OF_DEVICE: Final = 200
CONTROL: Final = "control"
# A light that could not be switched for a minute shall not go on in an hour; who wants that says so with `ttl`.
TTL_SECONDS: Final = 60
SORTS: dict[str, Any] = {"name": Entity.name, "kind": Entity.kind, "created_at": Entity.created_at}


class TooMany(Conflict):
    """The device has as many entities as a device may have."""

    def __init__(self) -> None:
        super().__init__(f"A device has at most {MOST_OF_DEVICE} entities.", "too-many-entities")


@dataclass(frozen=True)
class Change:
    """What an entity shall become; at least one of them. `state`: ON or OFF, `brightness`: 0 to 100."""

    state: str | None = None
    brightness: int | None = None
    ttl: int = TTL_SECONDS
    idempotency_key: str | None = None


@dataclass(frozen=True)
class View:
    """An entity with its newest readings; `state` and `brightness` are those of these names, `attributes` all of them."""

    uid: str
    device_uid: str
    device_name: str
    kind: str
    name: str
    is_controllable: bool
    created_at: datetime
    state: Any
    brightness: Any
    attributes: dict[str, Any]
    updated_at: datetime | None


@dataclass(frozen=True)
class Report:
    """What a device said about an entity: the values by their last word, `{"state": "ON", "brightness": 40.0}`."""

    tenant_id: int
    entity_id: int
    values: dict[str, Any]


def add(db: Session, device_id: int, kind: str, name: str, address: str | None = None) -> Entity:
    """An entity of a device of the session's tenant. Raises TooMany, and Conflict when there is one of this kind and name."""
    have = db.scalar(select(func.count()).select_from(Entity).where(Entity.device_id == device_id)) or 0
    if have >= MOST_OF_DEVICE:
        raise TooMany
    entity = Entity(uid=ids.new_uid(), device_id=device_id, kind=kind, name=name, address=address)
    try:
        with db.begin_nested():
            db.add(entity)
    except IntegrityError as error:
        if "uq_entity_tenant_id_device_id_kind_name" not in str(error.orig):
            raise
        raise Conflict("The device has an entity of this kind and name.", "entity-exists") from None
    after = {"device": entity.device.uid, "kind": kind, "name": name, "address": address}
    audit.record(db, "entity.create", ("entity", entity.uid), after=after)
    return entity


def create(db: ScopedSession, device_uid: str, kind: str, name: str) -> View:
    """An entity that somebody declares; the device's signals `<kind>/<name>/…` are its state. Raises NotFound, Invalid, TooMany, Conflict."""
    roles.check_unlimited(db.scope)
    device = devices.locked(db, device_uid)
    mistakes = [
        {"loc": ["body", field], "msg": "1 to 40 characters of A-Za-z0-9_.:-"}
        for field, word in (("kind", kind), ("name", name))
        if re.fullmatch(WORD, word) is None
    ]
    if mistakes:
        raise Invalid("The entity is not valid.", mistakes)
    return _views(db, [add(db, device.id, kind, name)])[0]


def get(db: Session, uid: str) -> Entity:
    """An entity of the session's tenant; raises NotFound for any other."""
    statement = select(Entity).where(Entity.uid == uid).options(selectinload(Entity.device))
    entity = db.scalar(statement) if ids.is_uid(uid) else None
    if entity is None:
        raise NotFound("entity")
    return entity


def view(db: Session, uid: str) -> View:
    """One entity with its state; raises NotFound."""
    return _views(db, [get(db, uid)])[0]


def search(db: ScopedSession, device_uid: str | None, kind: str | None, wanted: Wanted) -> Found[View]:
    """A page of entities with their states; a device that is not the tenant's has none."""
    statement: Select[Any] = select(Entity).options(selectinload(Entity.device))
    if device_uid is not None:
        statement = statement.where(Entity.device_id.in_(select(Device.id).where(Device.uid == device_uid)))
    if kind is not None:
        statement = statement.where(Entity.kind == kind)
    found = find(db, statement, SORTS, Entity.id, wanted)  # type: ignore[arg-type]
    return Found(_views(db, found.items), found.next_position, found.total)


def remove(db: ScopedSession, uid: str) -> None:
    """Forget an entity; its signals stay. One of the smart-home scheme comes back to the inbox when its node speaks of it again."""
    roles.check_unlimited(db.scope)
    entity = get(db, uid)
    before = {"device": entity.device.uid, "kind": entity.kind, "name": entity.name, "address": entity.address}
    db.delete(entity)
    db.flush()
    audit.record(db, "entity.delete", ("entity", uid), before=before)


def _views(db: Session, found: Sequence[Entity]) -> list[View]:
    """The entities with the newest readings of their signals, in order."""
    readings: dict[tuple[int, str], dict[str, tuple[Any, datetime]]] = {}
    if found:
        columns = (Signal.device_id, Signal.key, Signal.type, Latest.ts, Latest.num, Latest.txt)
        prefixes = sorted({f"{each.kind}/{each.name}/" for each in found})
        statement = (
            select(*columns)
            .join(Latest, (Latest.tenant_id == Signal.tenant_id) & (Latest.signal_id == Signal.id))
            .where(Signal.device_id.in_({each.device_id for each in found}))
            .where(or_(*[Signal.key.like(f"{escape_like(prefix)}%", escape="\\") for prefix in prefixes]))
        )
        for device_id, key, kind, ts, num, txt in db.execute(statement):
            part, _, what = key.rpartition("/")
            readings.setdefault((device_id, part), {})[what] = (value_of(kind, num, txt), ts)
    return [_view(each, readings.get((each.device_id, f"{each.kind}/{each.name}"), {})) for each in found]


def _view(entity: Entity, readings: dict[str, tuple[Any, datetime]]) -> View:
    values = {what: value for what, (value, _) in sorted(readings.items())}
    return View(
        entity.uid,
        entity.device.uid,
        entity.device.name,
        entity.kind,
        entity.name,
        entity.kind not in READ_ONLY,
        entity.created_at,
        values.get("state"),
        values.get("brightness"),
        values,
        max((ts for _, ts in readings.values()), default=None),
    )


# --- control ---------------------------------------------------------------------------------------------------------------------------------


def control(db: ScopedSession, uid: str, change: Change) -> Command:
    """Order an entity to become something: a command of its device, with the same life. Raises NotFound, Invalid, Conflict."""
    entity = get(db, uid)
    params = {name: getattr(change, name) for name in ("state", "brightness") if getattr(change, name) is not None}
    mistakes = []
    if not params:
        mistakes.append({"loc": ["body"], "msg": "give state, brightness or both"})
    if change.state is not None and change.state not in ("ON", "OFF"):
        mistakes.append({"loc": ["body", "state"], "msg": "ON or OFF"})
    if change.brightness is not None and not 0 <= change.brightness <= 100:
        mistakes.append({"loc": ["body", "brightness"], "msg": "0 to 100"})
    if mistakes:
        raise Invalid("The order is not valid.", mistakes)
    if entity.kind == "switch" and change.brightness is not None:
        reason = "a switch has no brightness; give state"
        raise Invalid("The order is not valid.", [{"loc": ["body", "brightness"], "msg": reason}])
    if entity.kind in READ_ONLY:
        raise Conflict(f"An entity of the kind {entity.kind} is only read.", "entity-read-only")
    params = {"entity": f"{entity.kind}/{entity.name}", **params}
    new = commands.NewCommand(CONTROL, params, change.ttl, change.idempotency_key, entity.id)
    return commands.create(db, entity.device.uid, new)


def confirm(db: Session, reports: Sequence[Report]) -> None:
    """End the orders that these states fulfil: a node of the smart-home scheme has no other way to answer. `db`: scope "ingest"."""
    if not reports:
        return
    statement = (
        select(Command)
        .where(Command.entity_id.in_({report.entity_id for report in reports}))
        .where(Command.state.in_(command_life.UNFINISHED))
        .options(selectinload(Command.device))
        .order_by(Command.id)
        .with_for_update(of=Command)
    )
    # Waiting for the lock of an order that is just being handed over, so an answer that comes at once is not missed.
    outstanding = [each for each in db.scalars(statement) if each.state != "queued"]
    for report in reports:
        for command in outstanding:
            if (command.tenant_id, command.entity_id) == (report.tenant_id, report.entity_id):
                _confirm(db, command, report)


def _confirm(db: Session, command: Command, report: Report) -> None:
    asked = {name: value for name, value in command.params.items() if name != "entity"}
    if command_life.is_finished(command) or any(report.values.get(name) != value for name, value in asked.items()):
        return
    commands.finish(db, command, "done", {name: report.values[name] for name in asked})
