"""The pages: thin views over the services, Jinja templates, native custom elements for what moves. No bundler, nothing inline."""

from typing import Any

from flask import Flask, Response, send_from_directory
from flask import g as flask_g

import iiot
from iiot.portal import render, session
from iiot.web import Context

NAVIGATION = (("/", "Home", "home"), ("/devices", "Devices", "devices"))
FOREVER = "public, max-age=31536000, immutable"


def init_app(app: Flask) -> None:
    """Filters and values for templates, and the address of static files."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(render.FILTERS)
    app.jinja_env.globals.update(
        asset=render.asset,
        navigation=NAVIGATION,
        version=iiot.__version__,
        form={},
        errors={},
        problem=None,
        message=None,
    )
    app.context_processor(_who)
    app.add_url_rule("/assets/<version>/<path:name>", endpoint="assets", view_func=_asset)


def _who() -> dict[str, Any]:
    """What the shell of a signed-in page shows of its reader."""
    ctx: Context | None = flask_g.get("iiot_context")
    if ctx is None or not ctx.is_signed_in:
        return {}
    email, tenant = session.names_of(ctx.principal)
    return {"user_email": email, "tenant_name": tenant, "can_write": "device:write" in ctx.principal.permissions}


def _asset(version: str, name: str) -> Response:
    """A static file. The address changes with any file, so a browser never asks twice; another version is served, not kept."""
    response = send_from_directory(render.STATIC, name)
    response.headers["Cache-Control"] = FOREVER if version == render.assets_version() else "no-store"
    return response
