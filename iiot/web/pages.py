"""`Pages`: the routes of the portal's HTML pages. The session cookie signs people in; unsafe methods need the CSRF token of the session.

    pages = web.pages("devices")

    @pages.route("GET", "/devices/<device_id>", permission="device:read")
    def device_page(ctx: web.Context, device_id: str) -> str: ...

A view gets the same Context as an API view and returns a text (HTML) or a Response. Who is not signed in is sent to /login?next=…; who has yet to
replace a one-time password to /password, and who must set a
second factor up to /account/mfa. Pages render `<meta name="csrf-token" content="{{ csrf_token }}">` and scripts send it as X-CSRF-Token;
a plain form may send it as the field `csrf_token`. `csrf_token`, `principal` and `request_id` are known to every template.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, TypeVar, Unpack
from urllib.parse import quote

from flask import Flask, Response, make_response, redirect, request
from flask import g as flask_g

from iiot import auth
from iiot.errors import Forbidden, Problem, Unauthorized
from iiot.web import identity
from iiot.web.context import Context
from iiot.web.routes import MAX_BODY, check_permission

LOGIN = "/login"
PASSWORD = "/password"  # noqa: S105 - an address, not a password
MFA = "/account/mfa"

View = TypeVar("View", bound=Callable[..., Any])


class PageOptions(TypedDict, total=False):
    """`auth`: "page" (signed in; the default) or "none". `permission`: what the role must hold. The others: see routes.RouteOptions."""

    auth: Literal["page", "none"]
    permission: str
    platform: bool
    any_status: bool
    before_setup: bool


class Pages:
    """Pages of one resource. `create_app` finds every module of iiot.portal that has some under the name `pages`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.views: list[tuple[Sequence[str], str, Callable[..., Any], PageOptions]] = []

    def route(self, method: str | Sequence[str], rule: str, **options: Unpack[PageOptions]) -> Callable[[View], View]:
        """Register the decorated `view(ctx, **path)` for a method, or several."""
        methods = (method,) if isinstance(method, str) else tuple(method)

        def register(view: View) -> View:
            self.views.append((methods, rule, view, options))
            return view

        return register

    def init_app(self, app: Flask) -> None:
        """Add the pages to the application."""
        for methods, rule, view, options in self.views:
            endpoint = f"pages.{self.name}.{view.__name__}"
            function = _serve(app, rule, view, options)
            app.add_url_rule(
                rule, endpoint=endpoint, view_func=function, methods=list(methods), provide_automatic_options=False
            )
            app.extensions.setdefault("iiot.pages", {})[endpoint] = options


def _serve(app: Flask, rule: str, view: Callable[..., Any], options: PageOptions) -> Callable[..., Response]:
    is_open = options.get("auth") == "none"
    permission = options.get("permission")

    def serve(**path: Any) -> Response:
        environ = request.environ
        notes = environ["iiot.notes"]
        notes["route"] = rule
        request.max_content_length = MAX_BODY
        try:
            principal = _person(app, is_open)
        except Unauthorized:
            return _to_login(app)
        if principal is not None:
            auth.set_current(principal)
            notes["tenant"] = principal.tenant_uid
            if not is_open and not options.get("before_setup", False):
                if principal.must_change_password:
                    return _redirect(PASSWORD)
                if principal.must_set_up_mfa:
                    return _redirect(MFA)
            if options.get("platform") and not principal.is_platform_admin:
                raise Forbidden("This is for platform administrators.", "not-platform-admin")
            if permission is not None:
                check_permission(principal, permission, any_status=options.get("any_status", False))
        ctx = flask_g.iiot_context = Context(principal, environ["iiot.request_id"])
        response = make_response(view(ctx, **path))
        response.headers.extend(ctx.headers)
        return response

    return serve


def _person(app: Flask, is_open: bool) -> auth.Principal | None:
    """The person behind the cookie. An open page serves strangers too, but takes no request that another site's page sent."""
    if not is_open:
        if "Authorization" in request.headers:
            raise Problem(400, "ambiguous-credentials", "Pages take the session cookie alone.")
        return identity.person(app)
    if request.method not in identity.SAFE_METHODS and not identity.is_same_origin(request):
        raise Forbidden("The request came from another site. Open the portal and try again.", "csrf")
    cookie = request.cookies.get(app.config["IIOT_COOKIE"])
    try:
        return identity.principal_of_token(cookie, "page") if cookie else None
    except (Unauthorized, Forbidden):
        return None


def _redirect(target: str) -> Response:
    """A redirect; htmx follows HX-Redirect, as a plain one would land inside the page's fragment."""
    if request.headers.get("HX-Request") == "true":
        return Response(status=204, headers={"HX-Redirect": target})
    return make_response(redirect(target, 303))


def _to_login(app: Flask) -> Response:
    target = LOGIN
    if request.method == "GET" and request.headers.get("HX-Request") != "true" and request.full_path != "/?":
        target += "?next=" + quote(request.full_path.rstrip("?"), safe="/")
    response = _redirect(target)
    if request.cookies.get(app.config["IIOT_COOKIE"]):
        identity.clear_session_cookie(app, response)
    return response


def init_app(app: Flask) -> None:
    """Give the context's values to every template."""

    @app.context_processor
    def _context_values() -> dict[str, Any]:
        ctx: Context | None = flask_g.get("iiot_context")
        if ctx is None:
            return {"principal": None, "csrf_token": "", "request_id": request.environ.get("iiot.request_id", "")}
        return {
            "principal": ctx.principal if ctx.is_signed_in else None,
            "csrf_token": ctx.csrf_token,
            "request_id": ctx.request_id,
        }
