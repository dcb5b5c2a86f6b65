"""The composition root: puts the portal's web application together. `gunicorn app_advanced:app` serves it."""

from pathlib import Path
from typing import Any

from flask import Flask

from iiot import config, live, web

PORTAL = Path(__file__).parent / "iiot" / "portal"


def create_app(settings: config.Settings | None = None) -> Flask:
    """The Flask application with REST, pages and Socket.IO. Opens no connection: that happens at the first request, after any fork."""
    settings = settings or config.load()
    app = Flask("iiot", static_folder=str(PORTAL / "static"), template_folder=str(PORTAL / "templates"))
    web.init_app(app, settings)
    web.discover(app, "iiot.api")
    web.discover(app, "iiot.portal")
    live.init_app(app)
    web.wrap(app, settings)
    return app


def __getattr__(name: str) -> Any:
    """`app` is made when it is asked for, so that importing this module reads no settings."""
    if name == "app":
        return globals().setdefault("app", create_app())
    raise AttributeError(name)
