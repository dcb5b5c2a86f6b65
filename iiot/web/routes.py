"""`Api`: one decorator that turns a function into a documented, authenticated, validated route.

    api = web.Api("devices")

    @api.route("GET", "/devices/<device_id>", out=DeviceOut, permission="device:read")
    def get_device(ctx: web.Context, device_id: str) -> DeviceOut:
        '''Read a device.'''
        with tenancy.work(ctx.scope) as db: ...

Order: authentication, permission, then validation, so that strangers learn nothing from error messages.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypedDict, TypeVar, Unpack, get_origin

from flask import Flask, Response, request
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, RootModel, ValidationError

from iiot import auth, clock
from iiot.errors import Forbidden, Invalid, Problem
from iiot.services import standing
from iiot.web import identity, limits
from iiot.web.context import Context

PREFIX = "/api/v1"
MAX_BODY = 1024 * 1024
JSON = "application/json"
JSON_HEADER = "application/json; charset=utf-8"

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
# A moment in a query or a body, in UTC.
Moment = Annotated[AwareDatetime, AfterValidator(clock.in_utc)]
View = TypeVar("View", bound=Callable[..., Any])


class Body(BaseModel):
    """Base of request bodies: what is not declared is refused, so nobody sets `tenant_id`, `role` or `id` on the side."""

    model_config = ConfigDict(extra="forbid")


class Query(BaseModel):
    """Base of query parameters: a misspelt one is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")


class Out(BaseModel):
    """Base of answers: what is not declared never leaves."""

    model_config = ConfigDict(from_attributes=True)


class RouteOptions(TypedDict, total=False):
    """What `Api.route` takes besides method and rule.

    `query`, `body`, `out`: pydantic models (a view without `out` answers 204, or returns a Response). `others`: documents the bodies
    of Responses with other statuses that the view may return instead. `raw`: the view reads
    the body itself with `ctx.body(longest)`; `consumes` then only documents its media types, as `produces` does for an
    answer that is no JSON. `max_body`: bytes. `auth`: who
    may call. `permission`: what the caller's role must hold; with `of_tenant` in the tenant that the path names as `<tenant_id>`,
    which `ctx.principal` and `ctx.scope` are then of. `platform`: for platform administrators alone. `keys`: API keys may
    come in, although the route names no permission; without one a route is a person's own. `before_setup`:
    works for people who have yet to replace their one-time password or to set their second factor up. `optional_body`: no
    body at all counts as `{}`. `problems`: further statuses for the documents.
    """

    query: type[BaseModel]
    body: type[BaseModel]
    out: type[BaseModel]
    others: Mapping[int, type[BaseModel]]
    status: int
    permission: str
    auth: Literal["user", "device", "user_or_device", "none"]
    raw: bool
    consumes: Sequence[str]
    produces: Sequence[str]
    max_body: int
    before_setup: bool
    of_tenant: bool
    optional_body: bool
    keys: bool
    platform: bool
    any_status: bool
    limit: str
    problems: Sequence[int]


@dataclass(frozen=True)
class Operation:
    """One route, as the router, the documents and the tests see it."""

    method: str
    rule: str
    name: str
    tag: str
    summary: str
    description: str
    options: RouteOptions = field(default_factory=RouteOptions)

    @property
    def endpoint(self) -> str:
        return f"{self.tag}.{self.name}"

    @property
    def auth(self) -> str:
        return self.options.get("auth", "user")


class Api:
    """The routes of one resource. `create_app` finds every module of iiot.api that has one under the name `api`."""

    def __init__(self, tag: str, prefix: str = PREFIX) -> None:
        self.tag = tag
        self.prefix = prefix
        self.views: list[tuple[Operation, Callable[..., Any]]] = []

    def route(self, method: Method, rule: str, **options: Unpack[RouteOptions]) -> Callable[[View], View]:
        """Register the decorated `view(ctx, **path, query=, body=)`; see RouteOptions."""
        permission = options.get("permission")
        if permission is not None and permission not in auth.ALL_PERMISSIONS:
            raise ValueError(f"unknown permission {permission!r}")
        if options.get("of_tenant") and (permission is None or "<tenant_id>" not in rule):
            raise ValueError(f"{rule}: of_tenant needs a permission and <tenant_id> in the path")
        if options.get("limit", "control") not in limits.LIMITS:
            raise ValueError(f"{rule}: no limit is called {options['limit']!r}")
        body = options.get("body")
        if body is not None and not issubclass(body, RootModel) and body.model_config.get("extra") != "forbid":
            raise ValueError(f"{body.__name__} must forbid what it does not declare: derive it from web.Body")

        def register(view: View) -> View:
            text = inspect.getdoc(view) or view.__name__.replace("_", " ")
            summary, _, description = text.partition("\n")
            operation = Operation(
                method, self.prefix + rule, view.__name__, self.tag, summary.strip(), description.strip(), options
            )
            self.views.append((operation, view))
            return view

        return register

    def init_app(self, app: Flask) -> None:
        """Add the routes to the application."""
        for operation, view in self.views:
            app.add_url_rule(
                operation.rule,
                endpoint=operation.endpoint,
                view_func=_serve(app, operation, view),
                methods=[operation.method],
                provide_automatic_options=False,
            )
            app.extensions.setdefault("iiot.operations", []).append(operation)


def _serve(app: Flask, operation: Operation, view: Callable[..., Any]) -> Callable[..., Response]:
    """The Flask view of an operation; everything that can be decided once is decided here."""
    options = operation.options
    guard = identity.GUARDS[operation.auth]
    before_setup = options.get("before_setup", False)
    read_query = _query_reader(options["query"]) if "query" in options else None
    read_body = _body_reader(options["body"], options.get("optional_body", False)) if "body" in options else None
    out = options.get("out")
    status = options.get("status", 200 if out else 204)
    max_body = options.get("max_body", MAX_BODY)
    limit = options.get("limit")

    def serve(**path: Any) -> Response:
        environ = request.environ
        notes = environ["iiot.notes"]
        notes["route"] = operation.rule
        principal = acting = guard(app)
        if principal is not None:
            auth.set_current(principal)
            notes["tenant"] = principal.tenant_uid
            if principal.tenant_id is not None:
                limits.meter(principal)
            if not before_setup:
                check_set_up(principal)
            acting = _acting(principal, options, path)
            if limit is not None:
                limits.spend(limit, principal.uid)
        ctx = Context(acting, environ["iiot.request_id"])
        if read_query is not None:
            path["query"] = read_query()
        if read_body is not None:
            request.max_content_length = max_body
            path["body"] = read_body()
        return _answer(view(ctx, **path), out, status, ctx)

    return serve


def _acting(principal: auth.Principal, options: RouteOptions, path: dict[str, Any]) -> auth.Principal:
    """The caller as the route lets them act: in their own tenant, or in the one that the path names. Raises NotFound and Forbidden."""
    permission = options.get("permission")
    if permission is None and principal.api_key_uid is not None and not options.get("keys"):
        raise NOT_FOR_KEYS
    if options.get("platform") and not principal.is_platform_admin:
        raise Forbidden("This is for platform administrators.", "not-platform-admin")
    if options.get("of_tenant"):
        principal = standing.enter(principal, path["tenant_id"])
    # Devices hold no permissions: routes that take them look after what they may do.
    if permission is not None and principal.kind != "device":
        check_permission(principal, permission, any_status=options.get("any_status", False))
    return principal


def check_permission(principal: auth.Principal, permission: str, *, any_status: bool) -> None:
    """Raises Forbidden unless the principal holds the permission; with `any_status` also while its tenant is suspended or being deleted."""
    (replace(principal, tenant_status="active") if any_status else principal).require(permission)


def check_set_up(principal: auth.Principal) -> None:
    """Raises Forbidden for people who have to replace a one-time password or to set their second factor up first."""
    if principal.must_change_password:
        raise PASSWORD_CHANGE_REQUIRED
    if principal.must_set_up_mfa:
        raise MFA_SETUP_REQUIRED


NOT_FOR_KEYS = Forbidden(
    "This belongs to a person: API keys cannot do it. Sign in with POST /api/v1/auth/login.", "not-for-keys"
)
MFA_SETUP_REQUIRED = Forbidden(
    "Your tenant asks its admins for a second factor: set one up with POST /api/v1/auth/mfa/setup and /auth/mfa/confirm.",
    "mfa-setup-required",
)
PASSWORD_CHANGE_REQUIRED = Forbidden(
    'Replace the one-time password first: POST /api/v1/auth/password/change with {"current_password", "new_password"}.',
    "password-change-required",
)


def _answer(result: Any, out: type[BaseModel] | None, status: int, ctx: Context) -> Response:
    if isinstance(result, Response):
        result.headers.extend(ctx.headers)
        return result
    if out is None:
        return Response(status=204, headers=ctx.headers)
    if result.__class__ is not out and not isinstance(result, out):
        result = out.model_validate(result, from_attributes=True)
    content = result.__pydantic_serializer__.to_json(result)
    return Response(content, status, ctx.headers, content_type=JSON_HEADER)


def _query_reader(model: type[BaseModel]) -> Callable[[], BaseModel]:
    several = {name for name, info in model.model_fields.items() if get_origin(info.annotation) is list}

    def read() -> BaseModel:
        values: dict[str, Any] = {}
        for name, given in request.args.lists():
            if "\x00" in name or any("\x00" in text for text in given):
                raise Invalid(
                    "The query is not valid.",
                    [{"loc": ["query", name.replace("\x00", "")], "msg": "NUL characters are refused"}],
                )
            if name in several:
                values[name] = given
            elif len(given) > 1:
                raise Invalid("The query is not valid.", [{"loc": ["query", name], "msg": "given more than once"}])
            else:
                values[name] = given[0]
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise invalid("query", error) from None

    return read


def check_json() -> None:
    """Raises 415 unless the request says that its body is JSON."""
    if request.mimetype != JSON:
        raise Problem(
            415, "unsupported-media-type", f"Send the body with Content-Type: {JSON}.", headers={"Accept": JSON}
        )


def _body_reader(model: type[BaseModel], is_optional: bool) -> Callable[[], BaseModel]:
    def read() -> BaseModel:
        if is_optional and not request.get_data():
            return model()
        check_json()
        data = request.get_data(cache=False)
        if b"\\u0000" in data and _holds_nul(data):
            raise Invalid("The body is not valid.", [{"loc": ["body"], "msg": "NUL characters are refused"}])
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            raise invalid("body", error) from None

    return read


def _holds_nul(data: bytes) -> bool:
    """Whether a text in the JSON really holds U+0000, which PostgreSQL cannot store. (A backslash before `u0000` may be escaped itself.)"""
    return re.search(rb"(?<!\\)(?:\\\\)*\\u0000", data) is not None


def invalid(where: str, error: ValidationError) -> Problem:
    """pydantic's complaint as a problem: 400 when the body is not JSON at all, else 422 with every mistake."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    if found and found[0]["type"] == "json_invalid":
        return Problem(
            400, "bad-request", f"The body is not valid JSON: {found[0]['msg'].removeprefix('Invalid JSON: ')}."
        )
    errors = [{"loc": [where, *item["loc"]], "msg": item["msg"].removeprefix("Value error, ")} for item in found[:100]]
    return Invalid(f"The {where} is not valid.", errors)
