"""The outermost layer: request id, host check, security headers, metrics and the access log, for every answer of every status.

It is a WSGI wrapper, not a set of Flask hooks: it also covers what never reaches Flask, and costs a few microseconds.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import structlog

from iiot import auth, logs, metrics
from iiot.config import Settings
from iiot.errors import Problem
from iiot.web import problems

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = structlog.get_logger("iiot.access")

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = [
    ("Content-Security-Policy", CSP),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
]
HSTS = ("Strict-Transport-Security", "max-age=63072000")
NO_STORE = ("Cache-Control", "no-store")
VARY = ("Vary", "Cookie")

_SAFE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}").fullmatch


def _request_id(offered: str | None) -> str:
    return offered if offered and _SAFE_ID(offered) else os.urandom(12).hex()


class Front:
    """Wraps the application. `environ["iiot.notes"]` holds the request's id, and what the routes write down: route and tenant.

    It is a dictionary of its own because Flask-SocketIO hands the application a copy of `environ`.
    """

    def __init__(self, app: "WSGIApplication", settings: Settings) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._debug = settings.log_level == "debug"
        self._counters: dict[tuple[str, str, int], Any] = {}
        self._timers: dict[str, Any] = {}

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        started = time.perf_counter()
        request_id = environ["iiot.request_id"] = _request_id(environ.get("HTTP_X_REQUEST_ID"))
        notes: dict[str, Any] = {"request_id": request_id}
        environ["iiot.notes"] = notes
        path = environ.get("PATH_INFO", "")
        status = 0

        def start(line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            nonlocal status
            status = int(line[:3])
            headers.extend(HEADERS)
            headers.append(("X-Request-ID", request_id))
            if not any(name.lower() == "cache-control" for name, _ in headers):
                headers.append(NO_STORE)
                headers.append(VARY)
            if environ.get("wsgi.url_scheme") == "https":
                headers.append(HSTS)
            return start_response(line, headers, exc_info) if exc_info else start_response(line, headers)

        logs.request.set(notes)
        # Set for strangers too: a connection that is kept open carries requests of several people behind a proxy.
        auth.set_current(None)
        auth.set_origin(
            auth.Origin(environ.get("REMOTE_ADDR") or "", environ.get("HTTP_USER_AGENT", "")[:256], request_id)
        )
        if self._hosts and not self._is_served(environ.get("HTTP_HOST", "")):
            return self._refuse_host(environ, start)
        if path.startswith("/socket.io"):
            # A socket lives for hours: it is counted by Socket.IO's own metrics.
            return self._app(environ, start)
        metrics.http_in_progress.inc()
        try:
            return self._app(environ, start)
        finally:
            # What this greenlet does after the request is nobody's act.
            auth.set_current(None)
            auth.set_origin(auth.Origin())
            metrics.http_in_progress.dec()
            self._record(environ, status, time.perf_counter() - started)

    def _is_served(self, host: str) -> bool:
        name = host.lower()
        if name in self._hosts:
            return True
        bare = name.rpartition(":")[0] if not name.endswith("]") and ":" in name else name
        return bare in self._hosts

    def _refuse_host(self, environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        problem = Problem(
            400,
            "bad-request",
            "This portal does not answer to that host name. The operator lists the names in IIOT_ALLOWED_HOSTS.",
        )
        body = json.dumps(problems.document(problem, environ["iiot.request_id"])).encode()
        start("400 BAD REQUEST", [("Content-Type", "application/problem+json"), ("Content-Length", str(len(body)))])
        return [body]

    def _record(self, environ: "WSGIEnvironment", status: int, seconds: float) -> None:
        method = environ.get("REQUEST_METHOD", "")
        route = environ["iiot.notes"].get("route", "(none)")
        key = (method, route, status)
        counter = self._counters.get(key)
        if counter is None:
            # Methods are free text; unknown ones share one label so that nobody can grow the metrics.
            known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
            counter = metrics.http_requests.labels(known, route, str(status))
            if known == method:
                self._counters[key] = counter
        counter.inc()
        timer = self._timers.get(route)
        if timer is None:
            timer = self._timers[route] = metrics.http_seconds.labels(route)
        timer.observe(seconds)
        if self._debug or status >= 400 or method not in ("GET", "HEAD"):
            log.info(
                "request",
                method=method[:16],
                path=environ.get("PATH_INFO", "")[:256],
                route=route,
                status=status,
                ms=round(seconds * 1000, 1),
            )
