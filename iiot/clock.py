"""The one source of the current time."""

import time
from datetime import UTC, datetime


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def now_ms() -> int:
    """The current time in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def from_ms(ms: int) -> datetime:
    """Milliseconds since the epoch → aware datetime in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def to_ms(moment: datetime) -> int:
    """Aware datetime → milliseconds since the epoch."""
    return int(moment.timestamp() * 1000)


def in_utc(moment: datetime) -> datetime:
    """An aware moment in UTC; raises ValueError where UTC has no such year. PostgreSQL takes no offset of sixteen hours or more."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("a moment in the years 1 to 9999 of UTC") from None


def rfc3339(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC with milliseconds and `Z`; None stays None."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
