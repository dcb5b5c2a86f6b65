"""Usage & limits: what the tenant may have, has, and will have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flask import render_template

from iiot import tenancy, web
from iiot.services import usage
from iiot.services.usage import Day, Use

pages = web.pages("usage")

# Name of a quota → how people call it, and what its forecast speaks of.
WORDS = {
    "devices": ("Devices", "in 30 days"),
    "users": ("People", "in 30 days"),
    "rules": ("Rules", "in 30 days"),
    "signals_per_device": ("Signals of the fullest device", "in 30 days"),
    "readings_per_day": ("Readings today", "at midnight UTC"),
    "api_requests_per_day": ("API requests today", "at midnight UTC"),
    "connections": ("Live connections now", ""),
}
NEAR = 0.8
HEIGHT = 100


@dataclass(frozen=True)
class Line:
    """One quota as the page shows it. `level`: "ok", "warn" (nearly used up, or will be) or "bad" (used up)."""

    name: str
    title: str
    when: str
    use: Use

    @property
    def percent(self) -> int:
        """How much is used, 0 to 100."""
        if self.use.limit <= 0:
            return 100
        return min(100, round(100 * self.use.used / self.use.limit))

    @property
    def level(self) -> str:
        """How near the limit is."""
        if self.use.used >= self.use.limit:
            return "bad"
        near = self.use.used >= NEAR * self.use.limit or self.use.forecast >= self.use.limit
        return "warn" if near else "ok"


@dataclass(frozen=True)
class Bar:
    """A day of a chart; y and height on a scale of 100, so that even a little is seen."""

    day: Day
    value: int
    y: float
    height: float


def lines(report: dict[str, Use]) -> list[Line]:
    """The quotas in their order."""
    return [Line(name, *WORDS[name], use) for name, use in report.items()]


def bars(days: Sequence[Day], value: Callable[[Day], int]) -> list[Bar]:
    """The days as bars, the highest of them 100 high."""
    highest = max((value(day) for day in days), default=0) or 1
    made = []
    for day in days:
        number = value(day)
        height = max(1.5, HEIGHT * number / highest) if number else 0.0
        made.append(Bar(day, number, round(HEIGHT - height, 2), round(height, 2)))
    return made


@pages.route("GET", "/usage", permission="tenant:read")
def usage_page(ctx: web.Context) -> str:
    """Bars of use, limits and forecasts, and the last 30 days."""
    with tenancy.work(ctx.scope) as db:
        report, days = usage.report(db), usage.days(db)
    charts = (
        ("Readings per day", "readings", bars(days, lambda day: day.readings)),
        ("API requests per day", "requests", bars(days, lambda day: day.api_requests)),
    )
    return render_template("usage.html", lines=lines(report), charts=charts)
