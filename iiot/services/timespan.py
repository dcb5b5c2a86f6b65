"""Instants and bucket lengths as people write them: `2026-11-22T10:00:00Z`, milliseconds, `now-1h`; `15m`, `1d`, `1mo`."""

import re
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from iiot.errors import Invalid

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
# A nominal month is only used to estimate how many buckets a question has.
LENGTHS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY, "mo": 30 * DAY}
LONGEST = 3660 * DAY
LAST_INSTANT = 7_258_118_400_000  # 2200-01-01T00:00:00Z: beyond it calendars are guesswork.

_RELATIVE = re.compile(r"now(?:([+-])(\d{1,9})(s|m|h|d|w))?")
_INTERVAL = re.compile(r"(\d{1,9})(s|m|h|d|w|mo)?")


@dataclass(frozen=True)
class Interval:
    """A bucket's length: `count` of a unit. `s` counts from the epoch, all others follow the local calendar."""

    count: int
    unit: str

    @property
    def nominal_ms(self) -> int:
        """The usual length in milliseconds; days, weeks and months vary."""
        return self.count * LENGTHS[self.unit]


def invalid(name: str, message: str) -> Invalid:
    """A refusal of one query parameter; `message` says what is accepted."""
    return Invalid(f"{name}: {message}", errors=[{"loc": ["query", name], "msg": message}])


def parse_instant(name: str, text: str, now_ms: int) -> int:
    """Milliseconds since the epoch of the query parameter `name`; raises Invalid."""
    wanted = "use RFC 3339 with an offset (2026-11-22T10:00:00Z), milliseconds since the epoch, or now-1h, now-7d."
    relative = _RELATIVE.fullmatch(text)
    if relative:
        sign, count, unit = relative.groups()
        moment = now_ms + (int(f"{sign}{count}") * LENGTHS[unit] if unit else 0)
    elif text.isascii() and text.isdigit():
        moment = int(text)
    else:
        try:
            # A plus sign that was not percent-encoded arrives as a space.
            parsed = datetime.fromisoformat(text.replace(" ", "+"))
        except ValueError:
            raise invalid(name, wanted) from None
        if parsed.tzinfo is None:
            raise invalid(
                name, "a time without an offset means a different instant to every reader; append Z or +01:00."
            )
        moment = round(parsed.timestamp() * 1000)
    if not 0 <= moment <= LAST_INSTANT:
        raise invalid(name, "the time must lie between 1970 and 2200 (milliseconds since the epoch).")
    return moment


def parse_interval(text: str) -> Interval:
    """`90` (seconds), `30s`, `15m`, `1h`, `1d`, `1w`, `1mo`; raises Invalid."""
    found = _INTERVAL.fullmatch(text)
    if not found or int(found[1]) == 0:
        raise invalid("interval", "use seconds (90) or a count with s, m, h, d, w or mo (15m, 1h, 1d, 1w, 1mo).")
    interval = Interval(int(found[1]), found[2] or "s")
    if interval.nominal_ms > LONGEST:
        raise invalid("interval", "a bucket may be ten years long at most.")
    return interval


def parse_zone(text: str) -> ZoneInfo:
    """An IANA time zone; raises Invalid."""
    try:
        return ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise invalid("tz", "use an IANA name such as Europe/Berlin, Asia/Kolkata or UTC.") from None
