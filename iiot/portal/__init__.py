"""The pages: thin views over the services, Jinja templates, native custom elements for what moves. No bundler, nothing inline."""

from typing import Any

from flask import Flask, Response, send_from_directory
from flask import g as flask_g

import iiot
from iiot.portal import brand, render, session
from iiot.web import Context

# Address, name, icon, and the permission it takes to see it.
NAVIGATION = (
    ("/", "Home", "home", "device:read"),
    ("/devices", "Devices", "devices", "device:read"),
    ("/rejected", "Rejected", "return", "telemetry:read"),
    ("/team", "Team", "team", "member:read"),
    ("/usage", "Usage & limits", "gauge", "tenant:read"),
    ("/audit", "Audit", "list", "audit:read"),
    ("/settings", "Settings", "settings", "tenant:write"),
)
PLATFORM_NAVIGATION = ("/platform/tenants", "Platform", "platform")
FOREVER = "public, max-age=31536000, immutable"


def init_app(app: Flask) -> None:
    """Filters and values for templates, and the address of static files."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(render.FILTERS)
    app.jinja_env.globals.update(
        asset=render.asset,
        navigation=(),
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
    principal = ctx.principal
    names = session.names_of(principal)
    # What is held counts, not what may be used now: the settings of a tenant that is being deleted are where it is restored.
    shown = [entry[:3] for entry in NAVIGATION if entry[3] in principal.held]
    can_write = "device:write" in principal.permissions
    if principal.is_platform_admin:
        shown.append(PLATFORM_NAVIGATION)
    return {
        "user_email": names.email,
        "tenant_name": names.tenant,
        "other_tenants": [each for each in names.tenants if each[0] != principal.tenant_uid],
        "navigation": shown,
        "brand": brand.of(principal),
        "permissions": principal.permissions,
        "can_write": can_write,
        # To make devices and decide what gateways bring: members who are limited to some devices may not.
        "can_add": can_write and not principal.is_limited,
    }


def _asset(version: str, name: str) -> Response:
    """A static file. The address changes with any file, so a browser never asks twice; another version is served, not kept."""
    response = send_from_directory(render.STATIC, name)
    response.headers["Cache-Control"] = FOREVER if version == render.assets_version() else "no-store"
    return response
