"""Errors as RFC 9457 problem documents for programs, and as pages for people."""

import json
from typing import Any

import structlog
from flask import Flask, Response, render_template, request
from jinja2 import TemplateNotFound
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from iiot import tenancy
from iiot.errors import Problem

log = structlog.get_logger(__name__)

TYPE_PREFIX = "/problems/"

# What the documentation says about each kind of problem. A code missing here still works; the table in /docs is made of these.
CODES = {
    "bad-request": "The request cannot be understood.",
    "too-many-entities": "A device has at most 200 entities.",
    "ambiguous-credentials": "A cookie and an Authorization header came together; send one of them.",
    "unauthorized": "No credentials, wrong ones, or expired ones: sign in or refresh.",
    "forbidden": "The credentials are good and do not allow this.",
    "csrf": "A cookie was sent without the X-CSRF-Token of its page, or from another site.",
    "password-change-required": "The one-time password must be replaced first: POST /api/v1/auth/password/change.",
    "registration-disabled": "New tenants are made by the operator of this portal.",
    "quota-exceeded": "A limit of the tenant is reached; `quota`, `limit` and `used` say which.",
    "device-disabled": "The device is switched off in the portal.",
    "tenant-suspended": "The tenant is suspended.",
    "no-tenant": "The account belongs to no tenant, so there is nothing to show.",
    "not-found": "It does not exist, or it is not yours; both read the same.",
    "method-not-allowed": "This address does not take that method; `Allow` lists what it takes.",
    "conflict": "The request contradicts what is stored.",
    "not-for-keys": "Passwords, sessions and second factors belong to people: API keys are refused here.",
    "own-command": "Whoever asked for a command cannot approve it.",
    "too-many-certificates": "A device has at most five valid certificates at once, and a hundred revoked ones that have not ended.",
    "too-many-credentials": "A device has at most five credentials at once; revoke one first.",
    "precondition-failed": "Somebody changed it since you read it: read again, then repeat the change.",
    "precondition-required": "Send If-Match with the ETag you read.",
    "too-large": "The body is larger than this address takes.",
    "unsupported-media-type": "The Content-Type is not one that this address takes.",
    "invalid": "Understood, and wrong; `errors` lists every mistake with its place.",
    "rejected": "No reading of the message could be stored; `errors` says why.",
    "rate-limited": "Too many requests; Retry-After says when to come back.",
    "internal": "A fault of the portal; the log holds the request id.",
    "unavailable": "A part of the portal is down or busy; Retry-After says when to try again.",
}

_HTTP_CODES = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    409: "conflict",
}
_HTTP_CODES |= {
    413: "too-large",
    415: "unsupported-media-type",
    422: "invalid",
    429: "rate-limited",
    503: "unavailable",
}
_PASSED_HEADERS = frozenset(("Allow", "Retry-After", "WWW-Authenticate"))


def request_id() -> str:
    """The id of the request being served; it is in every answer and every log line."""
    return str(request.environ.get("iiot.request_id", ""))


def document(problem: Problem, request_id: str) -> dict[str, Any]:
    """The members of RFC 9457 section 3.1, the request's id, the seconds of Retry-After, and what the problem adds."""
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + problem.code,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
    }
    if problem.errors is not None:
        body["errors"] = problem.errors
    if problem.headers.get("Retry-After", "").isdigit():
        body["retry_after"] = int(problem.headers["Retry-After"])
    return body | problem.extra


def is_for_program(path: str) -> bool:
    """Whether errors below `path` are read by programs."""
    return path.startswith("/api/") or path in ("/health", "/ready")


def respond(problem: Problem) -> Response:
    """The problem as an answer: JSON for programs, a page for people."""
    if is_for_program(request.path):
        content = json.dumps(document(problem, request_id()), ensure_ascii=False)
        return Response(content, problem.status, problem.headers, content_type="application/problem+json")
    try:
        content = render_template("error.html", problem=problem, request_id=request_id())
        return Response(content, problem.status, problem.headers, content_type="text/html; charset=utf-8")
    except TemplateNotFound:
        content = f"{problem.title}\n\n{problem.detail}\n\nRequest {request_id()}\n"
        return Response(content, problem.status, problem.headers, content_type="text/plain; charset=utf-8")


def _from_http(error: HTTPException) -> Problem:
    status = error.code or 500
    headers = {name: value for name, value in error.get_headers() if name in _PASSED_HEADERS}
    detail = error.description or error.name
    if isinstance(error, RequestEntityTooLarge):
        limit = request.max_content_length
        detail = f"The body may have at most {limit} bytes. Send less at a time." if limit else "The body is too large."
    elif status == 404:
        detail = "There is nothing at this address."
    elif status == 405:
        detail = f"This address takes {headers.get('Allow', 'other methods')}."
    code = _HTTP_CODES.get(status)
    return Problem(status, code or f"http-{status}", detail, title=None if code else error.name, headers=headers)


def _is_outage(error: Exception) -> bool:
    return isinstance(error, PoolTimeout | OperationalError) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def init_app(app: Flask) -> None:
    """Every error of the application goes through `respond`."""

    def on_unexpected(error: Exception) -> Response:
        if isinstance(error, tenancy.NoTenant):
            return respond(
                Problem(
                    403,
                    "no-tenant",
                    "This account belongs to no tenant. Ask for an invitation, or pick a tenant when signing in.",
                )
            )
        if _is_outage(error):
            log.error("database unavailable", error=str(error.__cause__ or error)[:300])
            return respond(
                Problem(
                    503,
                    "unavailable",
                    "The database does not answer. Try again in a few seconds.",
                    headers={"Retry-After": "5"},
                )
            )
        log.exception("unhandled error", path=request.path)
        return respond(
            Problem(
                500,
                "internal",
                "The portal failed to answer; the fault was logged. Give this request id to the operator.",
            )
        )

    app.register_error_handler(Problem, respond)
    app.register_error_handler(HTTPException, lambda error: respond(_from_http(error)))
    app.register_error_handler(Exception, on_unexpected)
