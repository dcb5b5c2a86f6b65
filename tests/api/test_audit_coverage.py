"""Every change leaves an entry: each unsafe operation of the URL map is done once, and the trail is asked for it."""

import itertools

import pytest
from flask import Flask

from tests import factories
from tests.api.route_examples import OBJECTS, Route, parameters, removes, routes
from tests.api.sides import Caller, Side, caller, make_plan, make_side

# Operations that change nothing anybody would ask about later, and those whose success takes more than one call: where they are tested.
WITHOUT_ENTRY = {
    "POST /api/v1/telemetry": "readings are data, not acts",
    "POST /api/v1/commands/<command_id>/result": "the command's history keeps what its device said",
    "POST /api/v1/auth/mfa/setup": "nothing is in force before it is confirmed",
}
ELSEWHERE = {
    "POST /api/v1/discoveries/approve": "tests/api/test_discoveries.py",
    "POST /api/v1/discoveries/<discovery_id>/merge": "tests/api/test_discoveries.py",
    "POST /api/v1/auth/mfa/confirm": "tests/api/test_mfa.py",
    "POST /api/v1/auth/mfa/disable": "tests/api/test_mfa.py",
    "POST /api/v1/auth/mfa/recovery-codes": "tests/api/test_mfa.py",
    "POST /api/v1/devices/<device_id>/commands/<command_id>/approve": "tests/api/test_commands.py",
    "POST /api/v1/auth/password/change": "tests/api/test_passwords.py",
    "DELETE /api/v1/tenants/<tenant_id>/users/<user_id>/mfa": "tests/api/test_mfa.py",
}
# Removals that need an object of their own: the one of the examples is in use, or gone with what it belonged to.
FRESH = {
    "DELETE /api/v1/tenants/<tenant_id>/roles/<role_id>": (
        "role",
        "/tenants/{tenant}/roles",
        {"name": "new", "permissions": ["device:read"]},
    ),
    "POST /api/v1/devices/<device_id>/commands/<command_id>/cancel": (
        "command",
        "/devices/{device}/commands",
        {"name": "new"},
    ),
    "DELETE /api/v1/sites/<site_id>": ("site", "/sites", {"name": "new"}),
    "DELETE /api/v1/api-keys/<key_id>": ("key", "/api-keys", {"name": "new"}),
}
# What is changed must be told, not only that it was.
TELLS = ("POST", "PUT", "PATCH")
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def side(app: Flask) -> Side:
    return make_side(app, "a", make_plan())


@pytest.fixture(scope="module")
def platform(app: Flask) -> Caller:
    return caller(
        app, "platform admin", factories.make_user(None, is_platform_admin=True, email="platform@example.com")
    )


def test_every_change_leaves_an_entry_that_says_who_where_and_what(app: Flask, side: Side, platform: Caller) -> None:
    wrong: list[str] = []
    for route in routes(app):
        if route.operation is None or route.method == "GET" or route.name in WITHOUT_ENTRY or route.name in ELSEWHERE:
            continue
        by_platform = bool(route.operation.options.get("platform"))
        wrong += _check(route, side, platform if by_platform else side.admin, by_platform)
    assert not wrong, "\n".join(wrong)


def _check(route: Route, side: Side, who: Caller, by_platform: bool) -> list[str]:
    """Do it, and say what the trail lacks."""
    ends_session = "/auth/logout" in route.rule or "/auth/sessions" in route.rule
    if ends_session:
        who = side.member_again()
    ids = side.ids | {"session": who.home["session"]} if ends_session else side.ids
    if route.name in FRESH:
        name, path, body = FRESH[route.name]
        made = side.admin.call("POST", f"/api/v1{path.format(**side.ids)}", json=body)
        ids = ids | {name: made.get_json()["id"]}
    number, request_id = next(_numbers), f"audit-{next(_numbers)}"
    answer = who.client.open(
        route.path(ids),
        method=route.method,
        headers={"X-Request-ID": request_id} | who.token,
        **route.body(ids, number),
    )
    if answer.status_code >= 300:
        return [f"{route.name} did not succeed: {answer.status_code} {answer.get_data(as_text=True)[:300]}"]
    found = factories.rows(
        "SELECT tenant_id, actor_uid, actor_label, address, action, object_kind, object_uid, before, after FROM iiot.audit WHERE request_id = %s",
        request_id,
    )
    if not found:
        return [f"{route.name} left no entry"]
    wrong = []
    for tenant_id, actor_uid, label, address, action, kind, uid, *_ in found:
        if not (actor_uid and label and address == who.client.environ_base["REMOTE_ADDR"]):
            wrong.append(f"{route.name}: {action} does not say who and where: {actor_uid!r} {label!r} {address!r}")
        if "." not in action or action != action.lower():
            wrong.append(f"{route.name}: {action!r} is not noun.verb")
        if tenant_id not in ((side.tenant.tenant_id, 0) if by_platform else (side.tenant.tenant_id,)):
            wrong.append(f"{route.name}: {action} is in the chain of tenant {tenant_id}")
        named = [ids[OBJECTS[each]] for each in parameters(route.rule)]
        if named and uid not in named and not (kind and uid):
            wrong.append(f"{route.name}: {action} does not name its object: {kind!r} {uid!r}")
    acts_on_itself = "/auth/" in route.rule
    if route.method in TELLS and not acts_on_itself and not any(before or after for *_, before, after in found):
        wrong.append(f"{route.name}: nothing says what was changed")
    return wrong


@pytest.mark.parametrize("name", [*WITHOUT_ENTRY, *ELSEWHERE])
def test_exceptions_name_routes_that_exist(app: Flask, name: str) -> None:
    assert name in {route.name for route in routes(app)}


def test_removals_come_last(app: Flask) -> None:
    order = [bool(removes(route)) for route in routes(app) if "logout" not in route.rule]
    assert order == sorted(order)
