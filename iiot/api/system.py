"""Whether the portal lives, and whether it can do its work. Outside the prefix, open, and silent about details."""

import json
from typing import Any

from flask import Response

from iiot import __version__, web
from iiot.services import health

api = web.Api("system", prefix="")


class HealthOut(web.Out):
    """The process answers."""

    status: str
    version: str


class ReadyOut(web.Out):
    """`checks`: what each part said; `ok` when all is well. `optional`: the same of what the portal can do without."""

    status: str
    checks: dict[str, Any]
    optional: dict[str, Any]


@api.route("GET", "/health", auth="none", out=HealthOut)
def get_health(_ctx: web.Context) -> HealthOut:
    """Whether this process answers; asks nobody else."""
    return HealthOut(status="ok", version=__version__)


@api.route("GET", "/ready", auth="none", out=ReadyOut, others={503: ReadyOut})
def get_ready(_ctx: web.Context) -> Response:
    """Whether database, Redis and MQTT broker answer: 200, or 503 when one is down."""
    report = health.ready()
    content = {
        "status": "ok" if report.is_ready else "unavailable",
        "checks": report.checks,
        "optional": report.optional,
    }
    headers = {} if report.is_ready else {"Retry-After": "2"}
    return Response(
        json.dumps(content), 200 if report.is_ready else 503, headers, content_type="application/json; charset=utf-8"
    )
