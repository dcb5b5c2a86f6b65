"""The one door for measurements: every protocol hands its messages to `ingest()`; nothing else writes telemetry.

A call is one transaction. When it returns, PostgreSQL has committed and the devices may hear "stored"; when it raises, nothing was stored and
nobody may. Redelivery is harmless: the primary key (tenant, signal, ts) drops what is there already.
"""

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
from sqlalchemy import CursorResult, insert
from sqlalchemy.orm import Session

from iiot import tenancy
from iiot.models import RejectedMessage
from iiot.payloads import Parsed, PayloadError, Rejected, Value
from iiot.services import metering
from iiot.services.presence import StatusEvent, status
from iiot.services.resolver import BOOLEAN, JSON, KEPT_OVER_QUOTA, NUMBER, STRING, TYPES, Resolved, Resolver

__all__ = ["KEPT_PAYLOAD", "Incoming", "Outcome", "Outcomes", "StatusEvent", "ingest", "status"]

KEPT_PAYLOAD = 64 * 1024
KEPT_DETAILS = 50

# NOTIFY wakes the tailers at commit. The arrays are parsed once and written twice: as rows, and as one row of the log.
INSERT = """
NOTIFY telemetry_batch;
WITH given AS MATERIALIZED (
    SELECT %s::integer AS tenant, %s::integer[] AS s, %s::bigint[] AS t, %s::double precision[] AS n, %s::text[] AS x
), logged AS (
    INSERT INTO iiot.telemetry_batch (tenant_id, signal_ids, ts, num, txt) SELECT tenant, s, t, n, x FROM given
)
INSERT INTO iiot.telemetry (tenant_id, signal_id, ts, num, txt)
SELECT given.tenant, u.s, to_timestamp(u.t / 1000e0), u.n, u.x FROM given, unnest(s, t, n, x) AS u(s, t, n, x)
ON CONFLICT DO NOTHING
"""


@dataclass(slots=True)
class Incoming:
    """One message of one device, parsed or refused by the parser. `uid` is proved by the edge, never taken from the payload."""

    uid: str
    parsed: Parsed | None
    error: PayloadError | None
    protocol: str
    topic: str
    payload: bytes


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


REFUSALS = {
    "unknown-device": "There is no such device. Create it in the portal and use its uid and token.",
    "device-disabled": "This device is disabled. Enable it in the portal.",
    "tenant-suspended": "The tenant of this device is suspended: nothing is stored until the platform administrator lets it in again.",
    "tenant-deleting": "The tenant of this device is being deleted: nothing is stored unless an admin restores it.",
    "readings-quota": "The tenant has stored all readings that its quota allows for today. The next day begins at midnight UTC.",
}

# One cache for the process. The lock keeps its users apart: one commit at a time is also what PostgreSQL serves best from one process.
_resolver = Resolver()
_one_at_a_time = threading.Lock()


def ingest(messages: Sequence[Incoming]) -> Outcomes:
    """Store a batch in one commit. Raises what the database raises; then nothing was stored and nothing may be acknowledged."""
    with _one_at_a_time:
        try:
            with tenancy.work(tenancy.system("ingest")) as db:
                return _Batch(db, messages).run()
        except BaseException:
            _resolver.forget({message.uid for message in messages})
            raise


class _Batch:
    """The working set of one call."""

    def __init__(self, db: Session, messages: Sequence[Incoming]) -> None:
        self.db = db
        self.messages = messages
        self.columns: dict[int, _Columns] = defaultdict(_Columns)
        self.outcomes = Outcomes()
        self.kept: list[dict[str, Any]] = []

    def run(self) -> Outcomes:
        self.devices = _resolver.resolve(self.db, [message.uid for message in self.messages])
        if wanted := self._unknown_signals():
            _resolver.create_signals(self.db, wanted)
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
            return self._refuse(error.code, message, device, error.reason, error.limit)
        budget = device.budget
        if budget.used >= budget.limit:
            return self._over_quota(message, device)
        parsed = message.parsed
        columns = self.columns[device.tenant_id]
        before = len(columns.ts)
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
                        rejected.append(Rejected(index, refusal[0], refusal[1].format(key=key), refusal[2], key))
        accepted = len(columns.ts) - before
        budget.used += accepted
        if rejected:
            self._keep(message, device, rejected[0].code, rejected[0].reason, rejected)
        if not accepted and rejected:
            first = rejected[0]
            return Outcome("rejected", 0, rejected, None, first.code, first.reason, first.limit, parsed.ack)
        return Outcome("stored", accepted, rejected, newest or None, ack=parsed.ack)

    @staticmethod
    def _other(
        columns: _Columns, signal: tuple[int, int] | None, ts: int, value: Value, device: Resolved
    ) -> tuple[str, str, str | None] | None:
        """Everything but a number for a numeric signal: store it, or say (code, reason, limit)."""
        if signal is None:
            limit = str(device.signal_limit)
            return "signal-quota", f"'{{key}}' is a new signal and the device has all {limit} its quota allows.", limit
        kind = _kind(value)
        if kind != signal[1] and not (signal[1] == BOOLEAN and value in (0, 1) and kind == NUMBER):
            return "wrong-type", f"'{{key}}' is a {TYPES[signal[1]]} signal; this value is a {TYPES[kind]}.", None
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
        reason: str = "",
        limit: str | None = None,
    ) -> Outcome:
        reason = reason or REFUSALS.get(code, code)
        if message is not None and device is not None:
            self._keep(message, device, code, reason, None)
        return Outcome("rejected", code=code, reason=reason, limit=limit)

    def _over_quota(self, message: Incoming, device: Resolved) -> Outcome:
        """The day's readings are used up; the device may come back at midnight."""
        budget = device.budget
        budget.kept += 1
        kept = budget.kept <= KEPT_OVER_QUOTA
        outcome = self._refuse("readings-quota", message if kept else None, device, limit=str(budget.limit))
        outcome.retry_after = metering.until_midnight()
        return outcome

    def _keep(
        self, message: Incoming, device: Resolved, code: str, reason: str, details: Iterable[Rejected] | None
    ) -> None:
        listed = [
            {"index": item.index, "key": item.key, "code": item.code, "reason": item.reason}
            for item in itertools.islice(details or (), KEPT_DETAILS)
        ]
        self.kept.append(
            {
                "tenant_id": device.tenant_id,
                "device_id": device.device_id,
                "protocol": message.protocol,
                "topic": message.topic[:1024].replace("\0", ""),
                "code": code,
                "reason": reason,
                "payload": message.payload[:KEPT_PAYLOAD],
                "size": len(message.payload),
                "details": listed or None,
            }
        )

    def _write(self) -> None:
        connection = self.db.connection()
        given = stored = 0
        for tenant_id, columns in self.columns.items():
            if not columns.ts:
                continue
            result = cast(CursorResult[Any], connection.exec_driver_sql(INSERT, _parameters(tenant_id, columns)))
            given += len(columns.ts)
            stored += result.rowcount
        if self.kept:
            self.db.execute(insert(RejectedMessage).inline(), self.kept)
        self.outcomes.stored, self.outcomes.duplicate = stored, given - stored


def _parameters(tenant_id: int, columns: _Columns) -> tuple[Any, ...]:
    """Array literals are made here: a third of the time that the driver needs for Python lists."""
    texts = [columns.txt.get(place) for place in range(len(columns.num))] if columns.txt else None
    numbers = ",".join(map(repr, columns.num))
    return (
        tenant_id,
        "{" + ",".join(map(str, columns.signals)) + "}",
        "{" + ",".join(map(str, columns.ts)) + "}",
        "{" + (numbers.replace("None", "NULL") if texts else numbers) + "}",
        texts,
    )


def _kind(value: Value) -> int:
    if value.__class__ is bool:
        return BOOLEAN
    if isinstance(value, float | int):
        return NUMBER
    return STRING if isinstance(value, str) else JSON


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
