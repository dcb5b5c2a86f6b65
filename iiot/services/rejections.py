"""Messages that were refused: found, mended and sent again through the one door, or thrown away.

A message goes to the door as its device, at the time at which it came first: readings without a time of their own get that time, so sending it twice
stores nothing twice. What the door says is kept with the message, and the message itself is never changed.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Select, func, select
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session, defer, selectinload

from iiot import auth, clock, ids, payloads, tenancy
from iiot.errors import Conflict, NotFound
from iiot.models import Device, RejectedMessage
from iiot.payloads import PayloadError, Rejected
from iiot.services import audit
from iiot.services.ingest import KEPT_DETAILS, Incoming, Outcome, detail_of, ingest
from iiot.services.listing import Found, Wanted, find
from iiot.tenancy import Scope

log = structlog.get_logger(__name__)

# Of a payload so much is shown in a list; the message alone has all of it.
SHOWN_IN_LIST = 8 * 1024
# Messages of one step of a replay of many, and of what one step may hold in memory.
MOST_AT_ONCE = 100
NOT_MEASUREMENTS = re.compile(r"/up/(status$|result/|gateway/)|^home/|^result\.|/commands/")
PROTOCOL = "replay"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEWEST_FIRST = {"id": RejectedMessage.id}


@dataclass(frozen=True)
class Filters:
    """Which messages; None means any. `device`: its uid. `is_open`: something of it is not stored."""

    device: str | None = None
    code: str | None = None
    protocol: str | None = None
    start: datetime | None = None
    stop: datetime | None = None
    is_open: bool | None = None


@dataclass(frozen=True)
class Mended:
    """What somebody sends in the place of a refused message; None: as it came."""

    payload: bytes | None = None
    content_type: str | None = None


@dataclass
class Result:
    """What sending a message again came to: counts of readings, and what is still wrong."""

    accepted: int = 0
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def is_stored(self) -> bool:
        """Whether nothing of the message is missing any more."""
        return self.accepted > 0 and not self.rejected


@dataclass(frozen=True)
class Step:
    """What one step of a replay of many came to, in messages; `refused`: in whole or in part.

    `position`: where the next one goes on, None when there is nothing left.
    """

    stored: int
    refused: int
    skipped: int
    position: list[int] | None


def search(db: Session, filters: Filters, limit: int, position: list[Any] | None = None) -> Found[RejectedMessage]:
    """A page of the session's tenant's refused messages, newest first. Their payloads are not loaded: see `heads`."""
    statement = _filtered(filters).options(defer(RejectedMessage.payload), selectinload(RejectedMessage.device))
    return find(db, statement, _NEWEST_FIRST, RejectedMessage.id, Wanted("-id", limit, position))  # type: ignore[arg-type]


def heads(db: Session, messages: Sequence[RejectedMessage]) -> dict[str, bytes]:
    """uid → the beginning of the payload, for a list."""
    wanted = [message.uid for message in messages]
    head = func.substr(RejectedMessage.payload, 1, SHOWN_IN_LIST)
    rows = db.execute(select(RejectedMessage.uid, head).where(RejectedMessage.uid.in_(wanted)))
    return {uid: bytes(content) for uid, content in rows}


@dataclass(frozen=True)
class Kinds:
    """What there is to choose from in a list."""

    codes: list[str]
    protocols: list[str]


def kinds(db: Session) -> Kinds:
    """The codes and protocols among the newest ten thousand messages of the session's tenant."""
    newest = select(RejectedMessage.code, RejectedMessage.protocol).order_by(RejectedMessage.id.desc()).limit(10_000)
    found = db.execute(newest).all()
    return Kinds(sorted({row.code for row in found}), sorted({row.protocol for row in found}))


def count(db: Session, filters: Filters) -> int:
    """How many messages match."""
    return db.scalar(_filtered(filters).with_only_columns(func.count(RejectedMessage.id))) or 0


def _filtered(filters: Filters) -> Select[Any]:
    statement = select(RejectedMessage)
    for name in ("code", "protocol"):
        if getattr(filters, name) is not None:
            statement = statement.where(getattr(RejectedMessage, name) == getattr(filters, name))
    if filters.device is not None:
        own = select(Device.id).where(Device.uid == filters.device).scalar_subquery()
        statement = statement.where(RejectedMessage.device_id == own)
    if filters.start is not None:
        statement = statement.where(RejectedMessage.received_at >= filters.start)
    if filters.stop is not None:
        statement = statement.where(RejectedMessage.received_at < filters.stop)
    if filters.is_open is not None:
        done = RejectedMessage.replayed_at
        statement = statement.where(done.is_(None) if filters.is_open else done.is_not(None))
    return statement


def get(db: Session, uid: str, *, lock: bool = False) -> RejectedMessage:
    """One message with its payload; raises NotFound for any that is not the session's tenant's."""
    statement = select(RejectedMessage).where(RejectedMessage.uid == uid).options(selectinload(RejectedMessage.device))
    if lock:
        statement = statement.with_for_update(of=RejectedMessage)
    message = db.scalar(statement) if ids.is_uid(uid) else None
    if message is None:
        raise NotFound("rejected message")
    return message


def discard(db: Session, uid: str) -> None:
    """Throw a message away. Raises NotFound."""
    message = get(db, uid, lock=True)
    before = {"device": message.device.uid, "code": message.code, "reason": message.reason, "size": message.size}
    db.delete(message)
    db.flush()
    audit.record(db, "rejected.discard", ("rejected", uid), before=before)


# --- sending again ---------------------------------------------------------------------------------------------------------------------------


def obstacle(message: RejectedMessage) -> str | None:
    """Why a message can never be sent again as measurements; None when it can."""
    if NOT_MEASUREMENTS.search(message.topic):
        return "This message holds no measurements of this device alone, so it cannot be sent again from here. The device can."
    return None


def is_cut(message: RejectedMessage) -> bool:
    """Whether only the beginning of the payload was kept: then it can be sent again with another payload alone."""
    return message.size > payloads.MAX_BYTES


def replay(scope: Scope, uid: str, mended: Mended | None = None) -> tuple[RejectedMessage, Result]:
    """Send a message again as its device, mended or as it came; returns the message and what is still wrong.

    Raises NotFound, and Conflict for what cannot be sent again. What was stored before counts as accepted; the message stays open
    until nothing of it is refused.
    """
    mended = mended or Mended()
    with tenancy.work(scope) as db:
        message = get(db, uid)
    _check(message, mended)
    [result] = _send([_again(message, mended)])
    with tenancy.work(scope) as db:
        message = get(db, uid, lock=True)
        is_mended = mended != Mended()
        _note(message, result, is_mended)
        after = {"device": message.device.uid, "mended": is_mended, "accepted": result.accepted}
        audit.record(db, "rejected.replay", ("rejected", uid), after=after | {"refused": len(result.rejected)})
    return message, result


def _check(message: RejectedMessage, mended: Mended) -> None:
    if reason := obstacle(message):
        raise Conflict(reason, "not-replayable")
    if is_cut(message) and mended.payload is None:
        raise Conflict(
            f"The message had {message.size} bytes and only the beginning was kept. Send it in parts of at most {payloads.MAX_BYTES} bytes.",
            "payload-cut",
        )


def _again(message: RejectedMessage, mended: Mended) -> Incoming:
    """The message as its device would send it now; readings without a time get the one at which it came."""
    payload = message.payload if mended.payload is None else mended.payload
    content_type = message.content_type if mended.content_type is None else mended.content_type
    came = (message.received_at - _EPOCH) // timedelta(milliseconds=1)
    again = Incoming(message.device.uid, None, None, PROTOCOL, message.topic, bytes(payload), content_type, came, True)
    try:
        again.parsed = payloads.parse(again.payload, content_type, clock.now_ms(), came)
    except PayloadError as error:
        again.error = error
    return again


def _send(messages: list[Incoming]) -> list[Result]:
    """Through the one door, in the lane of late data; alone, if the database refuses one of them for its content."""
    try:
        return [_result(outcome) for outcome in ingest(messages, late=True)]
    except (DataError, IntegrityError, ValueError) as error:
        if len(messages) > 1:
            return [result for message in messages for result in _send([message])]
        log.error("message not storable", uid=messages[0].uid, error=str(error)[:500])
        refusal = PayloadError("not-storable", "the message could not be stored; the operator of the portal finds why")
        return _send([replace(messages[0], parsed=None, error=refusal)])


def _result(outcome: Outcome) -> Result:
    if outcome.rejected or outcome.status == "stored":
        return Result(outcome.accepted, outcome.rejected)
    reason = outcome.reason or "the message was not stored"
    return Result(0, [Rejected(0, outcome.code or "rejected", reason, outcome.limit, None, outcome.allowed)])


def _note(message: RejectedMessage, result: Result, is_mended: bool) -> None:
    who = auth.acting()
    message.replay = {
        "accepted": result.accepted,
        "mended": is_mended,
        "rejected": [detail_of(each) for each in result.rejected[:KEPT_DETAILS]],
    }
    if result.is_stored:
        message.replayed_at = clock.now()
        message.replayed_by = "system" if who is None else who.label or who.uid


def replay_many(scope: Scope, filters: Filters, limit: int, position: list[int] | None = None) -> Step:
    """Send the open messages that match again as they came, oldest first, `limit` at most; what cannot be sent again is skipped.

    `position`: of the step before. What is refused meanwhile does not belong to it.
    """
    with tenancy.work(scope) as db:
        last = position[1] if position else db.scalar(select(func.max(RejectedMessage.id))) or 0
        statement = _filtered(replace(filters, is_open=True)).options(selectinload(RejectedMessage.device))
        within = (RejectedMessage.id > (position[0] if position else 0), RejectedMessage.id <= last)
        found = list(db.scalars(statement.where(*within).order_by(RejectedMessage.id).limit(limit)))
    able = [message for message in found if not obstacle(message) and not is_cut(message)]
    results = _send([_again(message, Mended()) for message in able]) if able else []
    stored = sum(result.is_stored for result in results)
    step = Step(stored, len(results) - stored, len(found) - len(able), None)
    with tenancy.work(scope) as db:
        by_id = {message.id: result for message, result in zip(able, results, strict=True)}
        for message in db.scalars(select(RejectedMessage).where(RejectedMessage.id.in_(by_id))):
            _note(message, by_id[message.id], False)
        given = {name: str(value) for name, value in asdict(filters).items() if value is not None}
        after = given | {"stored": step.stored, "refused": step.refused, "skipped": step.skipped}
        audit.record(db, "rejected.replay-many", ("rejected", ""), after=after)
    return replace(step, position=[found[-1].id, last]) if len(found) == limit else step
