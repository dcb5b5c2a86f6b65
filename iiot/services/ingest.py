"""The one door for measurements: every protocol hands its messages to `ingest()`; nothing else writes telemetry.

A call is one transaction. When it returns, PostgreSQL has committed and the devices may hear "stored"; when it raises, nothing was stored and
nobody may. Redelivery is harmless: the primary key (tenant, signal, ts) drops what is there already.
"""

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import msgspec
from sqlalchemy import CursorResult, insert
from sqlalchemy.orm import Session

from iiot import clock, tenancy
from iiot.ids import new_uid
from iiot.models import RejectedMessage
from iiot.payloads import MAX_BYTES, Allowed, Parsed, PayloadError, Rejected, Value
from iiot.services import metering
from iiot.services.presence import StatusEvent, status
from iiot.services.resolver import BOOLEAN, JSON, KEPT_OVER_QUOTA, NUMBER, STRING, TYPES, Resolved, Resolver

__all__ = ["KEPT_PAYLOAD", "Incoming", "Outcome", "Outcomes", "StatusEvent", "detail_of", "ingest", "is_late", "status"]

# A message of the largest size that is taken is kept whole, so that it can be sent again; of a larger one the beginning.
KEPT_PAYLOAD = MAX_BYTES
KEPT_DETAILS = 50

# NOTIFY wakes the tailers at commit. The arrays are parsed once and written twice: as rows, and as one row of the log.
INSERT = """
NOTIFY telemetry_batch;
WITH given AS MATERIALIZED (
    SELECT %s::integer AS tenant, %s::integer[] AS s, %s::bigint[] AS t, %s::double precision[] AS n, %s::text[] AS x,
           %s::smallint[] AS q, %s::boolean AS late, %s::text AS protocol
), logged AS (
    INSERT INTO iiot.telemetry_batch (tenant_id, signal_ids, ts, num, txt, quality, late, protocol) SELECT tenant, s, t, n, x, q, late, protocol FROM given
)
INSERT INTO iiot.telemetry (tenant_id, signal_id, ts, num, txt, quality)
SELECT given.tenant, u.s, to_timestamp(u.t / 1000e0), u.n, u.x, u.q FROM given, unnest(s, t, n, x, q) AS u(s, t, n, x, q)
ON CONFLICT DO NOTHING
"""


@dataclass(slots=True)
class Incoming:
    """One message of one device, parsed or refused by the parser. `uid` is proved by the edge, never taken from the payload.

    `content_type` and `received_ms` are kept with a message that is refused, so that it can be read again as it was read
    then. `is_replay`: somebody sends it again for the device; when it is refused once more it is not kept twice. `size`: the true
    length in bytes where `payload` is only the beginning.
    """

    uid: str
    parsed: Parsed | None
    error: PayloadError | None
    protocol: str
    topic: str
    payload: bytes
    content_type: str | None = None
    received_ms: int | None = None
    is_replay: bool = False
    size: int | None = None


@dataclass(slots=True)
class Outcome:
    """What became of a message: `stored` when at least one reading was accepted (a duplicate counts as accepted)."""

    status: str
    accepted: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    newest_ts: int | None = None
    code: str | None = None
    reason: str | None = None
    limit: str | None = None
    ack: bool = False
    retry_after: int | None = None
    allowed: Allowed | None = None


class Outcomes(list[Outcome]):
    """One outcome per message, in order; `stored` and `duplicate` count the readings of the whole batch."""

    stored: int = 0
    duplicate: int = 0


@dataclass(slots=True)
class _Columns:
    """The readings of one tenant in this batch, column by column."""

    signals: list[int] = field(default_factory=list)
    ts: list[int] = field(default_factory=list)
    num: list[float | None] = field(default_factory=list)
    txt: dict[int, str] = field(default_factory=dict)
    quality: dict[int, int] = field(default_factory=dict)


REFUSALS = {
    "unknown-device": "There is no such device. Create it in the portal and use its uid and token.",
    "device-disabled": "This device is disabled. Enable it in the portal.",
    "tenant-suspended": "The tenant of this device is suspended: nothing is stored until the platform administrator lets it in again.",
    "tenant-deleting": "The tenant of this device is being deleted: nothing is stored unless an admin restores it.",
    "readings-quota": "The tenant has stored all readings that its quota allows for today. The next day begins at midnight UTC.",
}


class _Lane:
    """One cache and one commit at a time, which is also what PostgreSQL serves best from one process."""

    def __init__(self) -> None:
        self.resolver = Resolver()
        self.lock = threading.Lock()


# Late data never makes live data wait, so it has a cache and a connection of its own. See docs/adr on the lane of late data.
_LIVE, _LATE = _Lane(), _Lane()


def ingest(messages: Sequence[Incoming], *, late: bool = False) -> Outcomes:
    """Store a batch in one commit. Raises what the database raises; then nothing was stored and nothing may be acknowledged.

    `late`: all of it was measured long ago (`is_late`). It is stored beside a live batch, and nobody is told of it live.
    """
    lane = _LATE if late else _LIVE
    with lane.lock:
        try:
            with tenancy.work(tenancy.system("ingest")) as db:
                return _Batch(db, messages, lane.resolver, late).run()
        except BaseException:
            lane.resolver.forget({message.uid for message in messages})
            raise


def is_late(parsed: Parsed | None, before: int) -> bool:
    """Whether there are readings, and all of them lie before `before` (milliseconds since the epoch)."""
    if parsed is None or not parsed.items or parsed.items[-1][0] >= before:
        return False
    return all(ts < before for ts, _ in parsed.items)


class _Batch:
    """The working set of one call."""

    def __init__(self, db: Session, messages: Sequence[Incoming], resolver: Resolver, late: bool) -> None:
        self.db = db
        self.messages = messages
        self.resolver = resolver
        self.late = late
        self.columns: dict[int, _Columns] = defaultdict(_Columns)
        self.outcomes = Outcomes()
        self.kept: list[dict[str, Any]] = []

    def run(self) -> Outcomes:
        self.devices = self.resolver.resolve(self.db, [message.uid for message in self.messages])
        if wanted := self._unknown_signals():
            self.resolver.create_signals(self.db, wanted)
        for message in self.messages:
            device = self.devices.get(message.uid)
            self.outcomes.append(self._take(message, device))
        self._write()
        return self.outcomes

    def _unknown_signals(self) -> dict[str, dict[str, int]]:
        wanted: dict[str, dict[str, int]] = defaultdict(dict)
        for message in self.messages:
            device = self.devices.get(message.uid)
            if device is None or device.refused or device.budget.is_spent or message.parsed is None:
                continue
            signals = device.signals
            for _, values in message.parsed.items:
                if values.keys() <= signals.keys():
                    continue
                for key in values.keys() - signals.keys():
                    wanted[message.uid].setdefault(key, _kind(values[key]))
        return wanted

    def _take(self, message: Incoming, device: Resolved | None) -> Outcome:
        if device is None:
            return self._refuse("unknown-device")
        if device.refused:
            return self._refuse(device.refused, message, device)
        if message.parsed is None:
            error = message.error or PayloadError("no-payload", "The message is empty.")
            return self._refuse(error.code, message, device, error)
        budget = device.budget
        if budget.used >= budget.limit:
            return self._over_quota(message, device)
        parsed = message.parsed
        columns = self.columns[device.tenant_id]
        before = len(columns.ts)
        rejected, newest = self._collect(parsed, device, columns)
        accepted = len(columns.ts) - before
        budget.used += accepted
        if rejected:
            self._keep(message, device, rejected[0].code, rejected[0].reason, rejected)
        if not accepted and rejected:
            first = rejected[0]
            return Outcome(
                "rejected", 0, rejected, None, first.code, first.reason, first.limit, parsed.ack, None, first.allowed
            )
        return Outcome("stored", accepted, rejected, newest or None, ack=parsed.ack)

    def _collect(self, parsed: Parsed, device: Resolved, columns: _Columns) -> tuple[list[Rejected], int]:
        """Add what can be stored to the columns; (what cannot, the newest time)."""
        rejected = list(parsed.rejected)
        newest = 0
        signals, add_signal, add_ts, add_num = (
            device.signals,
            columns.signals.append,
            columns.ts.append,
            columns.num.append,
        )
        for place, (ts, values) in enumerate(parsed.items):
            newest = max(newest, ts)
            marks = parsed.marks.get(place) if parsed.marks else None
            for key, value in values.items():
                signal = signals.get(key)
                if signal is not None and signal[1] == NUMBER and value.__class__ is float:
                    add_signal(signal[0])
                    add_ts(ts)
                    add_num(value)
                else:
                    refusal = self._other(columns, signal, ts, value, device)
                    if refusal:
                        index = parsed.places[place] if parsed.places else place
                        rejected.append(
                            Rejected(index, refusal[0], refusal[1].format(key=key), refusal[2], key, refusal[3])
                        )
                        continue
                if marks and key in marks:
                    columns.quality[len(columns.num) - 1] = marks[key]
        return rejected, newest

    @staticmethod
    def _other(
        columns: _Columns, signal: tuple[int, int] | None, ts: int, value: Value, device: Resolved
    ) -> tuple[str, str, str | None, Allowed | None] | None:
        """Everything but a number for a numeric signal: store it, or say (code, reason, limit, allowed)."""
        if signal is None:
            limit = device.signal_limit
            reason = f"'{{key}}' is a new signal and the device has all {limit} its quota allows."
            return "signal-quota", reason, "signals_per_device", limit
        kind = _kind(value)
        if kind != signal[1] and not (signal[1] == BOOLEAN and value in (0, 1) and kind == NUMBER):
            return (
                "wrong-type",
                f"'{{key}}' is a {TYPES[signal[1]]} signal; this value is a {TYPES[kind]}.",
                "signal_type",
                TYPES[signal[1]],
            )
        columns.signals.append(signal[0])
        columns.ts.append(ts)
        if signal[1] in (STRING, JSON):
            columns.txt[len(columns.num)] = value if isinstance(value, str) else _json(value)
            columns.num.append(None)
        else:
            columns.num.append(float(value))  # type: ignore[arg-type]
        return None

    def _refuse(
        self,
        code: str,
        message: Incoming | None = None,
        device: Resolved | None = None,
        error: PayloadError | None = None,
    ) -> Outcome:
        error = error or PayloadError(code, REFUSALS.get(code, code))
        if message is not None and device is not None:
            self._keep(message, device, code, error.reason, None)
        return Outcome("rejected", code=code, reason=error.reason, limit=error.limit, allowed=error.allowed)

    def _over_quota(self, message: Incoming, device: Resolved) -> Outcome:
        """The day's readings are used up; the device may come back at midnight."""
        budget = device.budget
        budget.kept += 1
        kept = budget.kept <= KEPT_OVER_QUOTA
        error = PayloadError("readings-quota", REFUSALS["readings-quota"], "readings_per_day", budget.limit)
        outcome = self._refuse(error.code, message if kept else None, device, error)
        outcome.retry_after = metering.until_midnight()
        return outcome

    def _keep(
        self, message: Incoming, device: Resolved, code: str, reason: str, details: Iterable[Rejected] | None
    ) -> None:
        if message.is_replay:
            return
        self.kept.append(
            {
                "uid": new_uid(),
                "tenant_id": device.tenant_id,
                "device_id": device.device_id,
                "protocol": message.protocol,
                "topic": message.topic[:1024].replace("\0", ""),
                "code": code,
                "reason": reason,
                "payload": message.payload[:KEPT_PAYLOAD],
                "size": message.size or len(message.payload),
                "content_type": message.content_type and message.content_type[:256].replace("\0", ""),
                "received_at": clock.now() if message.received_ms is None else clock.from_ms(message.received_ms),
                "details": [detail_of(item) for item in islice(details or (), KEPT_DETAILS)] or None,
            }
        )

    def _write(self) -> None:
        connection = self.db.connection()
        given = stored = 0
        for tenant_id, columns in self.columns.items():
            if not columns.ts:
                continue
            parameters = (*_parameters(tenant_id, columns), self.late, self.messages[0].protocol)
            result = cast(CursorResult[Any], connection.exec_driver_sql(INSERT, parameters))
            given += len(columns.ts)
            stored += result.rowcount
        if self.kept:
            self.db.execute(insert(RejectedMessage).inline(), self.kept)
        self.outcomes.stored, self.outcomes.duplicate = stored, given - stored


def detail_of(item: Rejected) -> dict[str, Any]:
    """A refusal as it is kept with its message, and shown to people."""
    names = ("index", "key", "code", "reason", "limit", "allowed")
    return {name: getattr(item, name) for name in names}


def _parameters(tenant_id: int, columns: _Columns) -> tuple[Any, ...]:
    """Array literals are made here: a third of the time that the driver needs for Python lists."""
    places = range(len(columns.num))
    texts = [columns.txt.get(place) for place in places] if columns.txt else None
    numbers = ",".join(map(repr, columns.num))
    return (
        tenant_id,
        "{" + ",".join(map(str, columns.signals)) + "}",
        "{" + ",".join(map(str, columns.ts)) + "}",
        "{" + (numbers.replace("None", "NULL") if texts else numbers) + "}",
        texts,
        [columns.quality.get(place) for place in places] if columns.quality else None,
    )


def _kind(value: Value) -> int:
    if value.__class__ is bool:
        return BOOLEAN
    if isinstance(value, float | int):
        return NUMBER
    return STRING if isinstance(value, str) else JSON


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
