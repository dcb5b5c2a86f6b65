"""The one door of HTTP: authentication, limits, tenancy, validation, problem documents, OpenAPI. See routes.py (programs) and pages.py (people)."""

import importlib
import pkgutil

from flask import Flask
from flask.sessions import SessionInterface
from werkzeug.middleware.proxy_fix import ProxyFix

from iiot.config import Settings
from iiot.web import identity, limits, openapi, problems
from iiot.web import pages as _pages
from iiot.web.context import Context
from iiot.web.front import Front
from iiot.web.identity import access_token, clear_session_cookie, principal_of_token, set_session_cookie
from iiot.web.limits import spend, spend_sign_in, within
from iiot.web.pages import Pages
from iiot.web.paging import ListQuery, Page, decode_cursor, encode_cursor, page
from iiot.web.routes import PREFIX, Api, Body, Moment, Operation, Out, Query, check_json

__all__ = [
    "PREFIX",
    "Api",
    "Body",
    "Context",
    "ListQuery",
    "Moment",
    "Operation",
    "Out",
    "Page",
    "Pages",
    "Query",
    "access_token",
    "check_json",
    "clear_session_cookie",
    "decode_cursor",
    "discover",
    "encode_cursor",
    "init_app",
    "page",
    "pages",
    "principal_of_token",
    "set_session_cookie",
    "spend",
    "spend_sign_in",
    "within",
    "wrap",
]


def pages(name: str) -> Pages:
    """A collection of portal pages; see iiot.web.pages."""
    return Pages(name)


class _NoFlaskSession(SessionInterface):
    """Flask's signed cookie session is not used: sign-in state lives in the database."""

    def open_session(self, app: Flask, request: object) -> None:
        return None


def init_app(app: Flask, settings: Settings) -> None:
    """Errors, identity and limits; before any route."""
    app.session_interface = _NoFlaskSession()
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.config["MAX_CONTENT_LENGTH"] = 1024 * 1024
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.extensions["iiot.settings"] = settings
    app.extensions["iiot.operations"] = []
    app.extensions["iiot.pages"] = {}
    problems.init_app(app)
    identity.init_app(app, settings)
    limits.init_app(app, settings)
    _pages.init_app(app)


def discover(app: Flask, package: str) -> None:
    """Add the routes of every module of a package that has an `api` or `pages`, and run its `init_app(app)` when it has one."""
    root = importlib.import_module(package)
    names = sorted(found.name for found in pkgutil.iter_modules(root.__path__))
    modules = [root, *(importlib.import_module(f"{package}.{name}") for name in names)]
    for module in modules:
        for name in ("api", "pages"):
            routes = vars(module).get(name)
            if isinstance(routes, Api | Pages):
                routes.init_app(app)
        set_up = vars(module).get("init_app")
        if callable(set_up) and getattr(set_up, "__module__", "") == module.__name__:
            set_up(app)


def wrap(app: Flask, settings: Settings) -> None:
    """The documents, then the outermost layer; after all routes and Socket.IO are in place."""
    openapi.init_app(app)
    app.wsgi_app = Front(app.wsgi_app, settings)  # type: ignore[method-assign]
    if settings.env == "production":
        # nginx is in front and overwrites these headers; without it they would be the client's word.
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=0)  # type: ignore[method-assign]
