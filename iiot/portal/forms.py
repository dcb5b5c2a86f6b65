"""Form fields as the services take them, and refusals as the page shows them: at the field they speak of."""

from dataclasses import dataclass
from typing import Any

from flask import Response, make_response, render_template, request

from iiot.errors import Problem


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
