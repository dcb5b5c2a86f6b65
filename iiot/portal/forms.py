"""Form fields as the services take them, and refusals as the page shows them: at the field they speak of."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from flask import Response, make_response, render_template, request

from iiot import clock
from iiot.errors import Invalid, Problem

# How long a new key or token works: days as the form sends them, and in words.
ENDS = (("", "Until it is revoked"), ("7", "7 days"), ("30", "30 days"), ("90", "90 days"), ("365", "1 year"))


@dataclass(frozen=True)
class Notice:
    """A refusal as the page shows it."""

    title: str
    detail: str


def texts(*names: str) -> dict[str, str]:
    """The named fields of the form, stripped; a missing one is empty."""
    return {name: request.form.get(name, "").strip() for name in names}


def tags(text: str) -> list[str]:
    """`"hall-b, pumps,"` → `["hall-b", "pumps"]`."""
    return [tag for tag in (part.strip() for part in text.split(",")) if tag]


def email(text: str) -> str:
    """An address as it is; raises Invalid for what cannot be one."""
    local, _, domain = text.partition("@")
    odd = any(each.isspace() or not each.isprintable() for each in text)
    if not local or "." not in domain.strip(".") or "@" in domain or len(text) > 254 or odd:
        raise Invalid(
            "The address is not valid.", [{"loc": ["body", "email"], "msg": "write it like anna@example.com"}]
        )
    return text


def end_after(days: str) -> datetime | None:
    """When something that works for so many days ends; one of `ENDS`, else Invalid."""
    if days not in dict(ENDS):
        raise Invalid("The end is not valid.", [{"loc": ["body", "days"], "msg": "choose one of the list"}])
    return clock.now() + timedelta(days=int(days)) if days else None


def day(text: str) -> date | None:
    """A day as a date field or an address has it; None for anything else."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def midnight(of: date | None, days_later: int = 0) -> datetime | None:
    """When a day begins in UTC, or one some days later; None of none, and beyond the calendar."""
    if of is None or of > date.max - timedelta(days=days_later):
        return None
    return datetime.combine(of + timedelta(days=days_later), time(), UTC)


def by_field(problem: Problem) -> dict[str, str]:
    """The errors of a problem by the last name in their place: `{"loc": ["body", "tags", 0], …}` belongs to `tags`."""
    found: dict[str, str] = {}
    for error in problem.errors or []:
        names = [str(part) for part in error["loc"] if isinstance(part, str) and part != "body"]
        message = str(error["msg"])
        found.setdefault(names[0] if names else "", message[:1].upper() + message[1:])
    return found


def refused(template: str, problem: Problem, **values: Any) -> Response:
    """The page once more, with what was wrong beside it and the status of the refusal."""
    errors = by_field(problem)
    notice = None if errors.keys() & values.get("form", {}).keys() else Notice(problem.title, problem.detail)
    content = render_template(template, problem=notice, errors=errors, **values)
    return make_response(content, problem.status, problem.headers)
