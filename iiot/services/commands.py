"""Commands as people and programs see them: made, listed, called back. Handing them to devices: services.command_delivery."""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, literal, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session, selectinload

from iiot import auth, clock, events, ids, tenancy
from iiot.clock import rfc3339
from iiot.errors import Conflict, Invalid, NotFound
from iiot.models import Command, Device, Tenant
from iiot.services import audit, command_life, devices
from iiot.services.listing import Found, Wanted, find
from iiot.services.names import check_name
from iiot.tenancy import ScopedSession

MAX_NAME = 64
MAX_JSON = 8 * 1024
MAX_KEY = 200
TTL_SECONDS = 3600
MIN_TTL = 1
MAX_TTL = 30 * 86400
EXPIRED_AT_ONCE = 500
SORTS: dict[str, Any] = {"created_at": Command.created_at}

_WITH_DEVICE = selectinload(Command.device)


@dataclass(frozen=True)
class NewCommand:
    """What somebody orders. `ttl`: seconds until it expires. `idempotency_key`: the same one again gives the first command. `entity_id`: the part
    of the device that it controls, see services.entities."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)
    ttl: int = TTL_SECONDS
    idempotency_key: str | None = None
    entity_id: int | None = None


def json_mistake(value: Any) -> str | None:
    """Why a value cannot be params or a result: not JSON, more than 8 KiB, NUL or half a character in a text; None when it can be."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode("utf-8"))
    except (ValueError, TypeError, RecursionError):
        # UnicodeEncodeError, of half a surrogate pair, is a ValueError too.
        return "must be JSON without NaN, infinities, deep nesting and half characters"
    if size > MAX_JSON:
        return f"at most {MAX_JSON} bytes"
    if re.search(r"(?<!\\)(?:\\\\)*\\u0000", text):
        return "NUL characters are refused"
    return None


def create(db: ScopedSession, device_uid: str, new: NewCommand) -> Command:
    """Queue a command for a device of the session's tenant.

    Raises NotFound, Invalid, and Conflict when the device is disabled or the idempotency key was used for something else.
    """
    checked = _checked(new)
    # The lock puts the commands of one device in order.
    device = devices.locked(db, device_uid)
    if checked.idempotency_key is not None:
        first = db.scalar(_of(device.id).where(Command.idempotency_key == checked.idempotency_key))
        if first is not None:
            return _repeated(db, first, checked)
    if not device.enabled:
        raise Conflict("The device is disabled. Enable it before you send it commands.", "device-disabled")
    command = _new(db, device, checked)
    db.add(command)
    db.flush()
    after = {"device": device_uid, "name": command.name, "params": command.params, "expires_at": command.expires_at}
    audit.record(db, "command.create", ("command", command.uid), after=after)
    tell(db, command)
    return command


def _checked(new: NewCommand) -> NewCommand:
    name = check_name(new.name, "name", MAX_NAME)
    mistakes = []
    if mistake := json_mistake(new.params):
        mistakes.append({"loc": ["body", "params"], "msg": mistake})
    if not MIN_TTL <= new.ttl <= MAX_TTL:
        mistakes.append({"loc": ["body", "ttl"], "msg": f"{MIN_TTL} to {MAX_TTL} seconds"})
    if new.idempotency_key is not None and not 1 <= len(new.idempotency_key) <= MAX_KEY:
        mistakes.append({"loc": ["body", "idempotency_key"], "msg": f"1 to {MAX_KEY} characters"})
    if mistakes:
        raise Invalid("The command is not valid.", mistakes)
    return NewCommand(name, new.params, new.ttl, new.idempotency_key, new.entity_id)


def _new(db: Session, device: Device, new: NewCommand) -> Command:
    now, who = clock.now(), auth.acting()
    command = Command(
        uid=ids.new_uid(),
        device_id=device.id,
        entity_id=new.entity_id,
        seq=next_seq(db, device.id),
        name=new.name,
        params=new.params,
        idempotency_key=new.idempotency_key,
        created_by="system" if who is None else who.label or who.uid,
        created_by_uid="" if who is None else who.uid,
        expires_at=now + timedelta(seconds=new.ttl),
        approval="waiting" if device.needs_approval else None,
    )
    command_life.begin(command, now)
    return command


def next_seq(db: Session, device_id: int) -> int:
    """The place behind all commands of a device, whose row is locked."""
    last = db.scalar(select(func.max(Command.seq)).where(Command.device_id == device_id))
    return (last or 0) + 1


def _repeated(db: Session, first: Command, again: NewCommand) -> Command:
    """The first command of this idempotency key, when it is the same one."""
    seconds = (first.expires_at - first.created_at).total_seconds()
    if first.name != again.name or round(seconds) != again.ttl or not same_json(db, first.params, again.params):
        raise Conflict(
            "This idempotency key was used for another command of this device. Take a new key for a new command.",
            "idempotency-key-reused",
        )
    return first


def same_json(db: Session, first: Any, second: Any) -> bool:
    """Whether PostgreSQL holds them for the same: 1.0 is 1, true is not."""
    if first is None or second is None:
        return first is second
    statement = select(literal(first, JSONB) == literal(second, JSONB)).execution_options(reviewed=True)
    return bool(db.scalar(statement))


def _of(device_id: int) -> Any:
    return select(Command).where(Command.device_id == device_id).options(_WITH_DEVICE)


@dataclass(frozen=True)
class Filters:
    """Which commands of a device; None: all."""

    state: str | None = None
    approval: str | None = None


def search(db: ScopedSession, device_uid: str, filters: Filters, wanted: Wanted) -> Found[Command]:
    """A page of a device's commands; raises NotFound for a device that is not the tenant's."""
    statement = _of(devices.id_of(db, device_uid))
    if filters.state is not None:
        statement = statement.where(Command.state == filters.state)
    if filters.approval is not None:
        statement = statement.where(Command.approval == filters.approval)
    return find(db, statement, SORTS, Command.id, wanted)  # type: ignore[arg-type]


def get(db: ScopedSession, device_uid: str, uid: str, *, lock: bool = False) -> Command:
    """One command of a device; raises NotFound for any other. `lock`: until the end of the transaction."""
    statement = _of(devices.id_of(db, device_uid)).where(Command.uid == uid)
    if lock:
        statement = statement.with_for_update(of=Command)
    command: Command | None = db.scalar(statement) if ids.is_uid(uid) else None
    if command is None:
        raise NotFound("command")
    return command


def cancel(db: ScopedSession, device_uid: str, uid: str) -> Command:
    """Call back a command that no device has confirmed; raises NotFound, and Conflict when it is too late.

    One that was sent may be on its way: the device may still do it, and its answer is then refused."""
    command = get(db, device_uid, uid, lock=True)
    if not command_life.may(command, "cancelled"):
        raise Conflict(f"The command is {command.state} and can no longer be cancelled.", "command-state")
    before = {"state": command.state}
    command_life.advance(command, "cancelled", clock.now())
    audit.record(db, "command.cancel", ("command", uid), before=before, after={"state": "cancelled"})
    tell(db, command)
    return command


def shape(command: Command) -> dict[str, Any]:
    """A command as everybody outside sees it, in JSON."""
    return {
        "id": command.uid,
        "device_id": command.device_uid,
        "name": command.name,
        "params": command.params,
        "state": command.state,
        "created_by": command.created_by,
        "approval": command.approval,
        "approved_by": command.approved_by,
        "approved_at": rfc3339(command.approved_at),
        "created_at": rfc3339(command.created_at),
        "expires_at": rfc3339(command.expires_at),
        "history": command.history,
        "result": command.result,
    }


def finish(db: Session, command: Command, state: str, result: Any) -> None:
    """The device has shown what became of it: `done` or `failed`, through what lies before."""
    now = clock.now()
    command_life.confirm(command, now)
    command_life.advance(command, state, now)
    command.result = result
    tell(db, command)


def tell(db: Session, command: Command) -> None:
    """After the commit: the event `command` to those who watch, and a word to those who wait for the device's next command."""
    tenant_uid = db.scalar(select(Tenant.uid).where(Tenant.id == command.tenant_id)) or ""
    device_uid, data = command.device_uid, shape(command)
    tenancy.after_commit(db, lambda: events.command(tenant_uid, device_uid, data))
    if command.state == "queued" or command_life.is_finished(command):
        # Children's commands go to their gateway.
        waiting_uid = command.device.gateway_uid or device_uid
        tenancy.after_commit(db, lambda: events.publish_order(waiting_uid))


def expire(db: Session) -> bool:
    """End what was not finished in time; True while there is more. `db`: scope "stream"."""
    now = clock.now()
    due = (
        select(Command)
        .where(Command.state.in_(command_life.UNFINISHED), Command.expires_at <= now)
        .options(_WITH_DEVICE)
        .order_by(Command.expires_at)
        .limit(EXPIRED_AT_ONCE)
        .with_for_update(of=Command, skip_locked=True)
    )
    found = list(db.scalars(due))
    for command in found:
        command_life.advance(command, "expired", now)
        tell(db, command)
    return len(found) == EXPIRED_AT_ONCE


def is_due(command: Command, now: datetime) -> bool:
    """Whether its time is up, whatever housekeeping has noted so far."""
    return command.expires_at <= now
