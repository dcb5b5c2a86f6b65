"""Commands on their way to devices, and the answers: what every protocol uses.

Per device one command is out at a time, the oldest unfinished one; the next follows when that one is done, failed, expired or cancelled. The
protocol on which the device was last seen delivers it (`Device.command_protocol`): where adapters push it goes there, else it waits for the device's
own question. One that was never seen may only listen: `Reach` says who tries. A device that moves gets an unanswered command again where it is now:
at least once, known by its id. What is for a child goes to its gateway, which answers for it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast

import msgspec
from sqlalchemy import CursorResult, Text, all_, any_, case, exists, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session, aliased, selectinload

from iiot import clock, ids, tenancy
from iiot.models import Command, Device, Home, Tenant
from iiot.payloads import PayloadError
from iiot.services import command_life, commands
from iiot.tenancy import Scope

HTTP = "http"
# What was sent over these the device has taken itself.
FETCHED = (HTTP, "coap")
MAX_ANSWER = 16 * 1024
_OF_DEVICE = (Device.tenant_id == Command.tenant_id) & (Device.id == Command.device_id)
# Since when it may go out.
_SINCE = func.coalesce(Command.approved_at, Command.created_at)
# Nobody has to approve it, or somebody has.
_FREE = Command.approval.is_distinct_from("waiting")
_GATEWAY = aliased(Device)
_OF_GATEWAY = (_GATEWAY.tenant_id == Device.tenant_id) & (_GATEWAY.id == Device.gateway_id)
_ANSWER_HINT = 'an answer is {"status": "done" or "failed", "result": …}'


@dataclass(frozen=True)
class Reach:
    """Whose commands a protocol also hands over, beside those of the devices that were last seen on it; None: nobody's.

    `strangers`: those of devices that were never seen, after so long; `others`: those of devices that were last seen elsewhere, and that have not
    fetched them there, after so long. Only for a protocol that notices when nobody is there, or that keeps a command for the device.
    """

    strangers: timedelta | None = None
    others: timedelta | None = None


NO_FURTHER = Reach()


@dataclass(frozen=True)
class Order:
    """A command as a protocol hands it over to the device, or to the gateway of the child `child`.

    `address`: where the smart-home scheme has the entity that is controlled, `home/<home>/<node>/<kind>/<entity>`; None for any other command.
    """

    device_uid: str
    uid: str
    name: str
    params: dict[str, Any]
    expires_at: datetime
    child: str | None = None
    address: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a device says about a command; `device_uid` is proved by the edge. `error`: what was wrong with the message."""

    device_uid: str
    command_uid: str
    status: Literal["done", "failed"]
    result: Any = None
    error: PayloadError | None = None


class _AnswerBody(msgspec.Struct):
    status: Literal["done", "failed"]
    result: Any = None
    # Where the protocol itself does not say which command is meant.
    id: str = ""


_decode = msgspec.json.Decoder(_AnswerBody).decode


def parse_answer(device_uid: str, command_uid: str, payload: bytes) -> Answer:
    """Read `{"status", "result"}`, and `id` where `command_uid` is empty.

    What is wrong with it stands in `error`, as even that shows that the command has arrived.
    """
    try:
        if len(payload) > MAX_ANSWER:
            raise PayloadError("too-large", f"an answer has at most {MAX_ANSWER} bytes", "answer_bytes", MAX_ANSWER)
        body = _decode(payload)
        check_result(body.result)
    except PayloadError as error:
        return Answer(device_uid, command_uid, "failed", error=error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Answer(device_uid, command_uid, "failed", error=PayloadError("answer-invalid", _ANSWER_HINT))
    return Answer(device_uid, command_uid or body.id, body.status, body.result)


def check_result(result: Any) -> None:
    """Raises PayloadError for a result that cannot be stored."""
    if result is not None and (mistake := commands.json_mistake(result)):
        raise PayloadError("answer-invalid", f"the result is not valid: {mistake}", "json_bytes", commands.MAX_JSON)


def reached(protocol: str, device_uids: Collection[str]) -> bool:
    """Note that these devices were seen on an adapter's protocol: their commands go there from now on. True when that is news."""
    moved = (
        update(Device)
        .where(Device.uid.in_(device_uids), Device.command_protocol.is_distinct_from(protocol))
        .values(command_protocol=protocol)
        .execution_options(synchronize_session=False)
    )
    with tenancy.work(tenancy.system("ingest")) as db:
        return bool(cast(CursorResult[Any], db.execute(moved)).rowcount)


def deliver(
    protocol: str,
    give: Callable[[Order], bool],
    *,
    among: Collection[str] | None = None,
    without: Collection[str] = (),
    reach: Reach = NO_FURTHER,
) -> bool:
    """Hand the oldest command that waits for `protocol` to `give`; False when there is none, or when `give` could not take it.

    `among`: the uids of the devices that can take one now; None: all of them. `without`: of those that cannot.

    `give` is called while the command's row is locked, so nobody else hands it out, and an answer that comes at once waits for the commit.
    A crash between the two hands the command over twice: devices know it by its id.
    """
    with tenancy.work(tenancy.system("ingest")) as db:
        now = clock.now()
        waiting = _waiting(protocol, reach, now)
        # Those of children are handed to their gateway.
        recipient = func.coalesce(_GATEWAY.uid, Device.uid)
        if among is not None:
            waiting = waiting.where(recipient == any_(literal(list(among), ARRAY(Text))))
        if without:
            waiting = waiting.where(recipient != all_(literal(list(without), ARRAY(Text))))
        command = db.scalar(waiting)
        if command is None or not give(_order(db, command)):
            return False
        _send(db, command, protocol, now)
        return True


def _waiting(protocol: str, reach: Reach, now: datetime) -> Any:
    """The oldest command that is next for a device of this protocol; those at work elsewhere are passed over."""
    older = aliased(Command)
    is_behind = exists().where(
        older.tenant_id == Command.tenant_id,
        older.device_id == Command.device_id,
        older.seq < Command.seq,
        older.state.in_(command_life.UNFINISHED),
        older.approval.is_distinct_from("waiting"),
        older.expires_at > now,
    )
    return (
        select(Command)
        .join(Device, _OF_DEVICE)
        .join(Tenant, Tenant.id == Command.tenant_id)
        .outerjoin(_GATEWAY, _OF_GATEWAY)
        .where(Command.state.in_(("queued", "sent")), Command.expires_at > now, _FREE, ~is_behind)
        .where(Device.enabled, _GATEWAY.enabled.is_not(False), Tenant.status == "active")
        .where(_is_for(protocol, reach, now))
        .options(selectinload(Command.device))
        .order_by(_SINCE, Command.id)
        .limit(1)
        .with_for_update(of=Command, skip_locked=True)
    )


def _is_for(protocol: str, reach: Reach, now: datetime) -> Any:
    seen_on = case((_GATEWAY.id.is_not(None), _GATEWAY.command_protocol), else_=Device.command_protocol)
    since = func.coalesce(Command.sent_at, _SINCE)
    # Each further protocol takes it once: see `_send`.
    is_open = (Command.state == "queued") | (Command.protocol != protocol)
    whose = [(seen_on == protocol) & is_open]
    if reach.strangers is not None:
        whose.append(seen_on.is_(None) & is_open & (since <= now - reach.strangers))
    if reach.others is not None:
        is_fetched = (Command.state == "sent") & Command.protocol.in_(FETCHED)
        whose.append((seen_on != protocol) & is_open & ~is_fetched & (since <= now - reach.others))
    return or_(*whose)


def _send(db: Session, command: Command, protocol: str, now: datetime) -> None:
    if command.state == "queued":
        command.protocol = protocol
        command_life.advance(command, "sent", now)
    else:
        # A second one took it, and no third one shall.
        command.protocol = None
    commands.tell(db, command)


def _order(db: Session, command: Command) -> Order:
    device = command.device
    gateway_uid = device.gateway_uid
    return Order(
        gateway_uid or device.uid,
        command.uid,
        command.name,
        command.params,
        command.expires_at,
        device.child_name if gateway_uid else None,
        _address(db, command) if gateway_uid else None,
    )


def _address(db: Session, command: Command) -> str | None:
    """Where the entity is told, as long as its home is the gateway's: one that was given up may be somebody else's by now."""
    if command.entity is None or command.entity.address is None:
        return None
    home = command.entity.address.split("/")[1]
    own = (Home.tenant_id == command.tenant_id, Home.device_id == command.device.gateway_id, Home.name == home)
    return command.entity.address if db.scalar(select(Home.id).where(*own)) is not None else None


def poll(
    scope: Scope, device_id: int, protocol: str = HTTP, check: Callable[[Session], None] | None = None
) -> Order | None:
    """The command that a device who asks for it over HTTP, or another protocol, has to do now, or None.

    To a gateway also those of its children, one at a time.

    One that was handed out and is not answered is handed out again: the first answer may have been lost.

    `check` is called last, in the same transaction: when it raises, the command stays as it was.
    """
    with tenancy.work(scope) as db:
        order = _next(db, device_id, protocol)
        if check is not None:
            check(db)
        return order


def _next(db: Session, device_id: int, protocol: str) -> Order | None:
    now = clock.now()
    here = (Device.id == device_id, Device.command_protocol.is_distinct_from(protocol))
    db.execute(
        update(Device).where(*here).values(command_protocol=protocol).execution_options(synchronize_session=False)
    )
    oldest = (
        select(Command)
        .join(Device, _OF_DEVICE)
        .join(Tenant, Tenant.id == Command.tenant_id)
        # A poll may have waited while the device was shut out.
        .where(Device.enabled, Tenant.status == "active")
        .where(or_(Device.id == device_id, Device.gateway_id == device_id))
        .where(Command.state.in_(command_life.UNFINISHED), Command.expires_at > now, _FREE)
        .options(selectinload(Command.device))
        .order_by(_SINCE, Command.id)
        .limit(1)
        .with_for_update(of=Command)
    )
    command = db.scalar(oldest)
    if command is None:
        return None
    if command.state == "queued":
        _send(db, command, protocol, now)
    return _order(db, command)


def take(db: Session, answer: Answer) -> PayloadError | None:
    """Take one answer; says why when it is refused. The same answer again changes nothing and is no mistake."""
    now = clock.now()
    command = _asked(db, answer)
    if command is None:
        return PayloadError("unknown-command", "there is no such command of this device")
    if command_life.is_finished(command):
        if answer.error is None and _is_repeated(db, command, answer):
            return None
        return answer.error or _finished(command)
    if commands.is_due(command, now):
        command_life.advance(command, "expired", now)
        commands.tell(db, command)
        return answer.error or _finished(command)
    before = command.state
    command_life.confirm(command, now)
    if answer.error is None:
        command_life.advance(command, answer.status, now)
        command.result = answer.result
    if command.state != before:
        commands.tell(db, command)
    return answer.error


def _asked(db: Session, answer: Answer) -> Command | None:
    if not ids.is_uid(answer.command_uid):
        return None
    own = (
        select(Command)
        .join(Device, _OF_DEVICE)
        .outerjoin(_GATEWAY, _OF_GATEWAY)
        .where(or_(Device.uid == answer.device_uid, _GATEWAY.uid == answer.device_uid))
        .where(Device.enabled, Command.uid == answer.command_uid, _FREE)
        .options(selectinload(Command.device))
        .with_for_update(of=Command)
    )
    return db.scalar(own)


def _is_repeated(db: Session, command: Command, answer: Answer) -> bool:
    return command.state == answer.status and commands.same_json(db, command.result, answer.result)


def _finished(command: Command) -> PayloadError:
    return PayloadError("command-finished", f"the command is {command.state} already; this answer changes nothing")


def take_all(answers: Sequence[Answer]) -> list[PayloadError | None]:
    """Take a batch of answers, of devices of any tenant, in one commit; one refusal or None for each, in order."""
    with tenancy.work(tenancy.system("ingest")) as db:
        return [take(db, answer) for answer in answers]
