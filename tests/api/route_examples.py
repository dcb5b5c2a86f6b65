"""One example of every route: which object each parameter of its path names, and a body that passes validation.

The isolation matrix and the audit coverage are driven by the URL map and look here; a route without an example fails them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flask import Flask

from iiot import web

NOWHERE = "a" * 26
Ids = Mapping[str, str]
Example = Callable[[Ids, int], Any]

# Whoever adds a route that strangers may call writes it down here.
PUBLIC = {
    "POST /api/v1/auth/invitations/accept",
    "POST /api/v1/auth/login",
    "POST /api/v1/auth/mfa/login",
    "POST /api/v1/auth/password/forgot",
    "POST /api/v1/auth/password/reset",
    "POST /api/v1/auth/refresh",
    "POST /api/v1/auth/register",
    "POST /api/v1/auth/register/confirm",
    "GET /api/v1/openapi.json",
    "GET /api/v1/docs",
    "GET /api/v1/docs.css",
    "GET /health",
    "GET /ready",
    "GET /static/<path:filename>",
    "GET /assets/<version>/<path:name>",
    "GET /login",
    "POST /login",
    "POST /login/code",
    "GET /signup",
    "POST /signup",
    "GET /signup/confirm",
    "POST /signup/confirm",
    "GET /forgot",
    "POST /forgot",
    "GET /reset",
    "GET /invitations/accept",
    "POST /invitations/accept",
    "POST /reset",
}

# Parameter of a path → which of a side's objects it names; the value is a key of `Side.ids`.
OBJECTS = {
    "account_id": "account",
    "certificate_id": "certificate",
    "command_id": "command",
    "context_id": "oscore",
    "credential_id": "credential",
    "device_id": "device",
    "discovery_id": "discovery",
    "entity_id": "entity",
    "home_id": "home",
    "invitation_id": "invitation",
    "key_id": "key",
    "plan_id": "plan",
    "rejected_id": "rejected",
    "role_id": "role",
    "session_id": "session",
    "signal_key": "signal",
    "site_id": "site",
    "tenant_id": "tenant",
    "uid": "device",
    "user_id": "member",
}
_LATER = "2099-01-01T00:00:00Z"
_SIX = "000000"

# Bodies of the API: (ids of the objects that they name, a number nobody had yet) → JSON.
BODIES: dict[str, Example] = {
    "POST /api/v1/api-keys": lambda ids, n: {"name": f"key {n}", "service_account": ids["account"]},
    "PATCH /api/v1/auth/me": lambda ids, n: {"name": f"Name {n}"},
    "POST /api/v1/auth/mfa/confirm": lambda ids, n: {"code": _SIX},
    "POST /api/v1/auth/mfa/disable": lambda ids, n: {"code": _SIX, "password": "wrong"},
    "POST /api/v1/auth/mfa/recovery-codes": lambda ids, n: {"code": _SIX, "password": "wrong"},
    "POST /api/v1/auth/password/change": lambda ids, n: {
        "current_password": "wrong",
        "new_password": "nine iron kettles",
    },
    "POST /api/v1/auth/switch": lambda ids, n: {"tenant": ids["tenant"]},
    "POST /api/v1/devices": lambda ids, n: {"name": f"device {n}", "site": ids["site"]},
    "PATCH /api/v1/devices/<device_id>": lambda ids, n: {"name": f"mine {n}", "site": ids["site"]},
    "POST /api/v1/commands/<command_id>/result": lambda ids, n: {"status": "done", "result": n},
    "POST /api/v1/devices/<device_id>/commands": lambda ids, n: {"name": f"order {n}", "params": {"n": n}},
    "PATCH /api/v1/devices/<uid>/signals/<path:signal_key>": lambda ids, n: {"unit": f"u{n}", "writable": bool(n % 2)},
    "POST /api/v1/devices/<device_id>/credentials": lambda ids, n: {
        "name": "x",
        "keep_others": True,
        "expires_at": _LATER,
    },
    "POST /api/v1/devices/<device_id>/certificates": lambda ids, n: {"name": f"certificate {n}", "days": 30},
    "POST /api/v1/devices/<device_id>/oscore": lambda ids, n: {"name": f"key {n}"},
    "POST /api/v1/discoveries/approve": lambda ids, n: {"ids": [ids["discovery"]]},
    "POST /api/v1/discoveries/<discovery_id>/approve": lambda ids, n: {"name": f"child {n}", "site": ids["site"]},
    "POST /api/v1/discoveries/<discovery_id>/merge": lambda ids, n: {"device_id": ids["device"]},
    "POST /api/v1/entities": lambda ids, n: {"device_id": ids["device"], "kind": "light", "name": f"light-{n}"},
    "POST /api/v1/entities/<entity_id>/control": lambda ids, n: {"state": "ON", "brightness": n % 101},
    "POST /api/v1/homes": lambda ids, n: {"name": f"home-{n}", "device_id": ids["gateway"]},
    "POST /api/v1/plans": lambda ids, n: {"name": f"plan {n}"},
    "PATCH /api/v1/plans/<plan_id>": lambda ids, n: {"devices": 5 + n},
    "POST /api/v1/rejected/<rejected_id>/replay": lambda ids, n: {"payload": f'{{"t": {n}}}'},
    "POST /api/v1/rejected/replay": lambda ids, n: {"device": ids["device"]},
    "POST /api/v1/service-accounts": lambda ids, n: {"name": f"account {n}", "role": ids["role"]},
    "PATCH /api/v1/service-accounts/<account_id>": lambda ids, n: {"name": f"account {n}", "role": ids["role"]},
    "POST /api/v1/sites": lambda ids, n: {"name": f"site {n}"},
    "PATCH /api/v1/sites/<site_id>": lambda ids, n: {"name": f"site {n}"},
    "POST /api/v1/telemetry": lambda ids, n: {"device_id": ids["device"], "data": {"t": n}},
    "POST /api/v1/tenants": lambda ids, n: {"name": f"tenant {n}", "plan": ids["plan"]},
    "PATCH /api/v1/tenants/<tenant_id>": lambda ids, n: {
        "timezone": ("UTC", "Europe/Berlin")[n % 2],
        "name": f"name {n}",
    },
    "PUT /api/v1/tenants/<tenant_id>/quota": lambda ids, n: {"plan": ids["plan"]},
    "POST /api/v1/tenants/<tenant_id>/invitations": lambda ids, n: {
        "email": f"guest{n}@example.com",
        "role": ids["role"],
        "limited_to": {"devices": [ids["device"]], "sites": [ids["site"]]},
    },
    "POST /api/v1/tenants/<tenant_id>/roles": lambda ids, n: {"name": f"role {n}", "permissions": ["device:read"]},
    "PATCH /api/v1/tenants/<tenant_id>/roles/<role_id>": lambda ids, n: {"name": f"role {n}"},
    "PATCH /api/v1/tenants/<tenant_id>/users/<user_id>": lambda ids, n: {
        "role": ids["role"],
        "limited_to": {"devices": [ids["device"]], "sites": [ids["site"]]},
    },
    "POST /api/v1/tenants/<tenant_id>/users/<user_id>/reset-link": lambda ids, n: {},
}

# Forms of the pages, alike.
FORMS: dict[str, Example] = {
    "POST /account": lambda ids, n: {"name": f"Name {n}"},
    "POST /account/mfa/codes": lambda ids, n: {"code": _SIX, "password": "wrong"},
    "POST /account/mfa/confirm": lambda ids, n: {"code": _SIX},
    "POST /account/mfa/disable": lambda ids, n: {"code": _SIX, "password": "wrong"},
    "POST /account/mfa/setup": lambda ids, n: {},
    "POST /account/sessions/<session_id>/end": lambda ids, n: {},
    "POST /account/sessions/end-others": lambda ids, n: {},
    "POST /account/keys": lambda ids, n: {"key_name": f"key {n}", "reach": "all"},
    "POST /account/keys/<key_id>/revoke": lambda ids, n: {},
    "POST /devices": lambda ids, n: {"name": f"device {n}"},
    "POST /devices/<uid>/commands": lambda ids, n: {"name": f"order {n}", "params": "{}", "ttl": "60"},
    "POST /devices/<uid>/commands/<command_id>/cancel": lambda ids, n: {},
    "POST /devices/<uid>/commands/<command_id>/approve": lambda ids, n: {},
    "POST /devices/<uid>/approval": lambda ids, n: {"needed": "true"},
    "POST /devices/<uid>/credentials": lambda ids, n: {"keep": "true"},
    "POST /devices/<uid>/credentials/<credential_id>/revoke": lambda ids, n: {},
    "POST /devices/<uid>/certificates": lambda ids, n: {"name": f"certificate {n}"},
    "POST /devices/<uid>/certificates/<certificate_id>/revoke": lambda ids, n: {},
    "POST /devices/<uid>/oscore": lambda ids, n: {"key_name": f"key {n}"},
    "POST /devices/<uid>/oscore/<context_id>/revoke": lambda ids, n: {},
    "POST /devices/<uid>/delete": lambda ids, n: {"confirm": ids["device"]},
    "POST /devices/<uid>/enabled": lambda ids, n: {"enabled": "true"},
    "POST /devices/<uid>/homes": lambda ids, n: {"home": f"home-{n}"},
    "POST /devices/<uid>/homes/<home_id>/delete": lambda ids, n: {},
    "POST /devices/entities/<entity_id>/control": lambda ids, n: {"state": "ON", "brightness": str(n % 101)},
    "POST /devices/inbox/approve": lambda ids, n: {"ids": [ids["discovery"]]},
    "POST /devices/inbox/<discovery_id>/approve": lambda ids, n: {"name": f"child {n}", "site": ids["site"]},
    "POST /devices/inbox/<discovery_id>/ignore": lambda ids, n: {},
    "POST /devices/inbox/<discovery_id>/merge": lambda ids, n: {"device": ids["device"]},
    "POST /devices/inbox/<discovery_id>/restore": lambda ids, n: {},
    "POST /devices/<uid>/settings": lambda ids, n: {"name": f"device {n}"},
    "POST /logout": lambda ids, n: {},
    "POST /password": lambda ids, n: {
        "current_password": "wrong",
        "new_password": "nine iron kettles",
        "repeat_password": "nine iron kettles",
    },
    "POST /platform/plans": lambda ids, n: {"name": f"plan {n}"},
    "POST /platform/plans/<plan_id>": lambda ids, n: {"name": f"plan {n}"},
    "POST /platform/plans/<plan_id>/delete": lambda ids, n: {},
    "POST /platform/tenants": lambda ids, n: {"name": f"tenant {n}", "timezone": "UTC", "plan": ids["plan"]},
    "POST /platform/tenants/<tenant_id>/delete": lambda ids, n: {"confirm": "x"},
    "POST /platform/tenants/<tenant_id>/invitations": lambda ids, n: {"email": f"guest{n}@example.com"},
    "POST /platform/tenants/<tenant_id>/quota": lambda ids, n: {"give": "plan", "plan": ids["plan"]},
    "POST /platform/tenants/<tenant_id>/status": lambda ids, n: {"status": "active"},
    "POST /rejected/<rejected_id>/delete": lambda ids, n: {},
    "POST /rejected/<rejected_id>/replay": lambda ids, n: {"payload": f'{{"t": {n}}}', "content_type": ""},
    "POST /rejected/replay": lambda ids, n: {"device": ids["device"]},
    "POST /settings": lambda ids, n: {"name": f"name {n}", "timezone": "UTC"},
    "POST /settings/delete": lambda ids, n: {"confirm": "x"},
    "POST /settings/logo": lambda ids, n: {"remove": "true"},
    "POST /settings/restore": lambda ids, n: {},
    "POST /switch": lambda ids, n: {"tenant": ids["tenant"]},
    "POST /team/invitations": lambda ids, n: {
        "email": f"guest{n}@example.com",
        "role": ids["role"],
        "sees": "some",
        "devices": ids["device"],
        "sites": ids["site"],
    },
    "POST /team/invitations/<invitation_id>/resend": lambda ids, n: {},
    "POST /team/invitations/<invitation_id>/revoke": lambda ids, n: {},
    "POST /team/keys": lambda ids, n: {"key_name": f"key {n}", "reach": "all", "account": ids["account"]},
    "POST /team/keys/<key_id>/revoke": lambda ids, n: {},
    "POST /team/members/<user_id>/limits": lambda ids, n: {
        "sees": "some",
        "devices": ids["device"],
        "sites": ids["site"],
    },
    "POST /team/members/<user_id>/remove": lambda ids, n: {"confirm": "x"},
    "POST /team/members/<user_id>/reset-link": lambda ids, n: {},
    "POST /team/members/<user_id>/role": lambda ids, n: {"role": ids["role"]},
    "POST /team/roles": lambda ids, n: {"name": f"role {n}", "permissions": "device:read"},
    "POST /team/roles/<role_id>": lambda ids, n: {"name": f"role {n}", "permissions": "device:read"},
    "POST /team/roles/<role_id>/delete": lambda ids, n: {},
    "POST /team/service-accounts": lambda ids, n: {"name": f"account {n}", "role": ids["role"]},
    "POST /team/service-accounts/<account_id>": lambda ids, n: {
        "name": f"account {n}",
        "role": ids["role"],
        "enabled": "true",
    },
    "POST /team/service-accounts/<account_id>/delete": lambda ids, n: {"confirm": "x"},
    "POST /team/sites": lambda ids, n: {"name": f"site {n}"},
    "POST /team/sites/<site_id>": lambda ids, n: {"name": f"site {n}"},
    "POST /team/sites/<site_id>/delete": lambda ids, n: {},
}


@dataclass(frozen=True)
class Route:
    """A rule with one method."""

    method: str
    rule: str
    operation: web.Operation | None

    @property
    def name(self) -> str:
        """As in the tables above."""
        return f"{self.method} {self.rule}"

    @property
    def is_page(self) -> bool:
        """Whether it is a page for people, not a route of the API."""
        return self.operation is None

    @property
    def takes_body(self) -> bool:
        """Whether it needs an example of a body."""
        if self.operation is None:
            return self.method != "GET"
        return "body" in self.operation.options or self.operation.options.get("raw", False)

    @property
    def references(self) -> list[str]:
        """The objects that its path and its body name, as keys of `Side.ids`."""
        seen = _Seen()
        for parameter in parameters(self.rule):
            seen[OBJECTS.get(parameter, parameter)]
        if self.takes_body:
            self._example(seen, 1)
        return list(dict.fromkeys(seen.names))

    @property
    def _example(self) -> Example:
        # One test alone complains of a missing example.
        return (FORMS if self.is_page else BODIES).get(self.name, lambda ids, n: {})

    def path(self, ids: Ids) -> str:
        """The address with the objects in place of the parameters."""
        return re.sub(r"<(?:\w+:)?(\w+)>", lambda match: ids.get(OBJECTS.get(match[1], ""), NOWHERE), self.rule)

    def body(self, ids: Ids, number: int) -> dict[str, Any]:
        """What to hand to the test client beside method and path."""
        if not self.takes_body:
            return {}
        return {"data" if self.is_page else "json": self._example(ids, number)}


class _Seen(dict[str, str]):
    """Notes which keys were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __missing__(self, name: str) -> str:
        self.names.append(name)
        return NOWHERE


def parameters(rule: str) -> list[str]:
    """The names of a rule's parameters."""
    return re.findall(r"<(?:\w+:)?(\w+)>", rule)


def routes(app: Flask) -> Iterator[Route]:
    """Everything that is served to somebody who proved who they are, in an order in which what is used is deleted last."""
    operations: dict[str, web.Operation] = {each.endpoint: each for each in app.extensions["iiot.operations"]}
    found = [
        Route(method, rule.rule, operations.get(rule.endpoint))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    ]
    order = ("GET", "POST", "PUT", "PATCH", "DELETE")
    found.sort(
        key=lambda route: (
            "logout" in route.rule,
            removes(route),
            order.index(route.method),
            -len(route.rule),
            route.rule,
        )
    )
    return (route for route in found if route.name not in PUBLIC)


def removes(route: Route) -> int:
    """0 unless the route removes something. The deeper an object, the earlier it is removed; the tenant last."""
    # What is approved or merged leaves the inbox.
    if route.method != "DELETE" and not route.rule.endswith(("/delete", "/remove", "/revoke", "/approve", "/merge")):
        return 0
    whole = route.rule.endswith("<tenant_id>") or route.rule in (
        "/settings/delete",
        "/platform/tenants/<tenant_id>/delete",
    )
    return 20 if whole else 10 - route.rule.count("/")


def missing_examples(app: Flask) -> list[str]:
    """Routes that the tables above do not know."""
    missing = []
    for route in routes(app):
        unknown = [name for name in parameters(route.rule) if name not in OBJECTS]
        if unknown or (route.takes_body and route.name not in (FORMS if route.is_page else BODIES)):
            missing.append(f"{route.name} {unknown or ''}".strip())
    return missing
