"""Reading the audit trail: filtered, newest first, page by page; and writing it out as CSV or JSON lines."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from iiot import clock, tenancy
from iiot.models import Audit
from iiot.services.listing import Found, Wanted, escape_like, find

NEWEST_FIRST = "-seq"
# Rows of an export per transaction: a slow reader of the file holds no connection.
BATCH = 1_000
SORTS: dict[str, Any] = {"seq": Audit.seq}
COLUMNS = (
    "seq", "at", "actor_kind", "actor_id", "actor", "address", "user_agent", "request_id", "action", "object_kind", "object_id",
    "before", "after", "hash",
)  # fmt: skip
# What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\x00")


@dataclass(frozen=True)
class Filters:
    """Which entries: `actor` and `object` are ids or names as they stand in the entry, `action` is whole ("device.create") or a noun ("device");
    `start` and `stop` are aware times, the first included, the last not; `q` is part of a name, id, action, address or request id."""

    actor: str | None = None
    action: str | None = None
    object: str | None = None
    start: datetime | None = None
    stop: datetime | None = None
    q: str | None = None


def search(db: Session, chain: int, filters: Filters, wanted: Wanted) -> Found[Audit]:
    """Entries of a chain: the tenant's of the session, or models.PLATFORM with the scope "platform"."""
    return find(db, _select(chain, filters), SORTS, SORTS["seq"], wanted)


def _select(chain: int, filters: Filters) -> Select[Any]:
    statement = select(Audit).where(Audit.tenant_id == chain)
    if filters.actor is not None:
        statement = statement.where(or_(Audit.actor_uid == filters.actor, Audit.actor_label == filters.actor))
    if filters.action is not None:
        statement = statement.where(
            Audit.action == filters.action
            if "." in filters.action
            else Audit.action.like(escape_like(filters.action) + ".%", escape="\\")
        )
    if filters.object is not None:
        statement = statement.where(or_(Audit.object_uid == filters.object, Audit.object_kind == filters.object))
    if filters.start is not None:
        statement = statement.where(Audit.at >= filters.start)
    if filters.stop is not None:
        statement = statement.where(Audit.at < filters.stop)
    if filters.q is not None:
        part = f"%{escape_like(filters.q)}%"
        columns = (Audit.actor_label, Audit.actor_uid, Audit.action, Audit.object_kind, Audit.object_uid)
        statement = statement.where(
            or_(*(each.ilike(part, escape="\\") for each in (*columns, Audit.address, Audit.request_id)))
        )
    return statement


def entries(scope: tenancy.Scope, chain: int, filters: Filters) -> Iterator[Audit]:
    """All entries that match, newest first, each batch in a transaction of its own."""
    last: int | None = None
    while True:
        statement = _select(chain, filters).order_by(Audit.seq.desc()).limit(BATCH)
        if last is not None:
            statement = statement.where(Audit.seq < last)
        with tenancy.work(scope) as db:
            batch = list(db.scalars(statement))
        yield from batch
        if len(batch) < BATCH:
            return
        last = batch[-1].seq


def as_row(entry: Audit) -> dict[str, Any]:
    """An entry with the names of COLUMNS."""
    values = (
        entry.seq, clock.rfc3339(entry.at), entry.actor_kind, entry.actor_uid, entry.actor_label, entry.address, entry.user_agent,
        entry.request_id, entry.action, entry.object_kind, entry.object_uid, entry.before, entry.after, entry.hash.hex(),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def as_json_lines(found: Iterator[Audit]) -> Iterator[str]:
    """One JSON object per line."""
    for entry in found:
        yield json.dumps(as_row(entry), ensure_ascii=False) + "\n"


def as_csv(found: Iterator[Audit]) -> Iterator[str]:
    """RFC 4180 with a heading; no cell can begin a formula."""
    yield _line(list(COLUMNS))
    for entry in found:
        yield _line([_cell(value) for value in as_row(entry).values()])


def _line(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "'" + text if text.startswith(FORMULA) else text
