"""Pages of a list by keyset: the next page begins after the last item, whatever was inserted meanwhile."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import Session

from iiot.errors import Invalid

Item = TypeVar("Item")


@dataclass(frozen=True)
class Found(Generic[Item]):
    """One page: its items, the position the next one begins after (None: it was the last), and how many match in all."""

    items: list[Item]
    next_position: list[Any] | None
    total: int


@dataclass(frozen=True)
class Wanted:
    """Which page: at most `limit` items after `position`, ordered by the field `sort` (`-name`: descending)."""

    sort: str
    limit: int
    position: list[Any] | None = None


def find(
    db: Session,
    statement: Select[Any],
    columns: Mapping[str, ColumnElement[Any]],
    key: ColumnElement[Any],
    wanted: Wanted,
) -> Found[Any]:
    """Run a select of one entity as a page, ordered by a column of `columns` and then by `key`, which is unique.

    Columns must not be NULL: wrap those that may be in COALESCE. Raises Invalid for an unknown sort field.
    """
    name = wanted.sort.removeprefix("-")
    if name not in columns:
        allowed = ", ".join(sorted(columns))
        raise Invalid(
            "The query is not valid.",
            [{"loc": ["query", "sort"], "msg": f"one of {allowed}, with - in front for descending"}],
        )
    column, descending = columns[name], wanted.sort.startswith("-")
    everything = statement
    if wanted.position is not None:
        statement = statement.where(_after(column, key, wanted.position, descending))
    order = (column.desc(), key.desc()) if descending else (column.asc(), key.asc())
    rows = db.execute(statement.add_columns(column, key).order_by(*order).limit(wanted.limit + 1)).all()
    position = None
    if len(rows) > wanted.limit:
        rows = rows[: wanted.limit]
        position = [_plain(rows[-1][1]), rows[-1][2]]
    # A list that fits on its first page need not be counted.
    total = len(rows)
    if position is not None or wanted.position is not None:
        total = db.scalar(select(func.count()).select_from(everything.order_by(None).subquery())) or 0
    return Found([row[0] for row in rows], position, total)


def _plain(value: Any) -> Any:
    return {"at": value.isoformat()} if isinstance(value, datetime) else value


def _after(
    column: ColumnElement[Any], key: ColumnElement[Any], position: list[Any], descending: bool
) -> ColumnElement[bool]:
    value = position[0]
    if isinstance(value, dict):
        value = datetime.fromisoformat(value["at"])
    if descending:
        return or_(column < value, and_(column == value, key < position[1]))
    return or_(column > value, and_(column == value, key > position[1]))


def escape_like(text: str) -> str:
    """Text for LIKE … ESCAPE '\\' that matches itself."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
