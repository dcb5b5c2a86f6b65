"""The audit trail: who did what, from where, and what it was before."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from flask import render_template, request

from iiot import tenancy, web
from iiot.errors import Invalid
from iiot.models import PLATFORM, Audit
from iiot.portal import forms
from iiot.services import trail
from iiot.services.listing import Wanted

pages = web.pages("audit")
PAGE_SIZE = 50
NAMES = ("q", "actor", "action", "object", "from", "to", "cursor")

LONGEST = 254


@dataclass(frozen=True)
class Trail:
    """One of the two trails: its address, the address of its export, whose it is."""

    address: str
    export: str
    title: str
    scope: tenancy.Scope
    chain: int

    def url(self, given: dict[str, str], **changes: str | None) -> str:
        """The address of this page with some parameters changed; None removes one."""
        values = {name: value for name, value in (given | changes).items() if value}
        return self.address + (f"?{urlencode(values)}" if values else "")

    def export_url(self, given: dict[str, str], kind: str) -> str:
        """Where the same entries are to be had as a file."""
        values = {name: value for name, value in given.items() if name not in ("from", "to", "cursor")}
        filters = _filters(given)
        moments = {"from": filters.start, "to": filters.stop}
        values |= {name: moment.isoformat() for name, moment in moments.items() if moment is not None}
        return f"{self.export}?{urlencode(values | {'format': kind})}"


def _given() -> dict[str, str]:
    """What the address says; what is empty or cannot be meant is dropped, as people edit addresses by hand."""
    found = {name: request.args.get(name, "").replace("\x00", "").strip()[:LONGEST] for name in NAMES[:-1]}
    found["cursor"] = request.args.get("cursor", "")
    for name in ("from", "to"):
        if forms.day(found[name]) is None:
            found[name] = ""
    return {name: value for name, value in found.items() if value}


def _filters(given: dict[str, str]) -> trail.Filters:
    """Days are those of UTC, as the times of the page are; `to` is the last day."""
    first, last = forms.day(given.get("from", "")), forms.day(given.get("to", ""))
    return trail.Filters(
        actor=given.get("actor"),
        action=given.get("action"),
        object=given.get("object"),
        start=forms.midnight(first),
        stop=forms.midnight(last, days_later=1),
        q=given.get("q"),
    )


def changes(entry: Audit) -> list[tuple[str, str, str]]:
    """(field, before, after) of an entry, as texts; what was not there is empty."""
    before, after = entry.before or {}, entry.after or {}
    return [(name, _shown(before, name), _shown(after, name)) for name in {**before, **after}]


def _shown(values: dict[str, Any], name: str) -> str:
    if name not in values:
        return ""
    value = values[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _render(which: Trail) -> str:
    given = _given()
    kind = f"page:audit {which.chain}"
    try:
        position = web.decode_cursor(kind, given.get("cursor"))
    except Invalid:
        position = None
    with tenancy.work(which.scope) as db:
        found = trail.search(db, which.chain, _filters(given), Wanted(trail.NEWEST_FIRST, PAGE_SIZE, position))
    return render_template(
        "audit.html",
        trail=which,
        given=given,
        is_narrowed=any(name != "cursor" for name in given),
        found=found,
        changes=changes,
        next_cursor=web.encode_cursor(kind, found.next_position),
    )


@pages.route("GET", "/audit", permission="audit:read")
def audit_page(ctx: web.Context) -> str:
    """The tenant's trail."""
    return _render(Trail("/audit", "/api/v1/audit/export", "Audit", ctx.scope, ctx.scope.tenant_id or PLATFORM))


@pages.route("GET", "/platform/audit", platform=True)
def platform_audit_page(_ctx: web.Context) -> str:
    """The platform's own trail."""
    scope = tenancy.system("platform")
    return _render(Trail("/platform/audit", "/api/v1/platform/audit/export", "Platform audit", scope, PLATFORM))
