"""docs/reference/access.md is true: every route, called as nobody, a device, each role and a platform administrator, lets in whom the table names."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask

from iiot import auth, tenancy, web
from iiot.services import sessions
from tests import factories
from tests.api.conftest import basic, make_thing
from tests.architecture.source import ROOT

ROW = re.compile(r"^\| `([A-Z]+) (/[^`]*)` \|(.*)\|$", re.MULTILINE)
HEAD = re.compile(r"^\| route \| needs \|(.*)\|$", re.MULTILINE)
# These end the session, the account's standing or the tenant of who calls them: somebody new calls each.
ENDING = re.compile(
    r"/logout|/switch|sessions|DELETE /api/v1/tenants/<tenant_id>$|/users/<user_id>|/team/members|/settings|/platform/|password|mfa"
)
# They answer with the sign-in page or the sign-in's refusal, whoever calls; test_auth.py and the browser's tests have them.
SIGN_IN = ("POST /login", "POST /login/code", "POST /logout")
# What says "not for you" in the answer of a route; other refusals speak of the object, the body or a state.
DENIED = ("forbidden", "not-platform-admin", "not-for-keys", "ambiguous-credentials")


def table() -> dict[str, dict[str, bool]]:
    """Route → caller → whether the document says yes."""
    text = (ROOT / "docs" / "reference" / "access.md").read_text()
    found = HEAD.search(text)
    assert found is not None
    callers = [each.strip() for each in found[1].split("|")]
    rows = {}
    for method, rule, cells in ROW.findall(text):
        values = [each.strip() == "yes" for each in cells.split("|")[1:]]
        rows[f"{method} {rule}"] = dict(zip(callers, values, strict=True))
    return rows


TABLE = table()


@dataclass
class Caller:
    """Somebody who calls routes, by bearer token and as a browser."""

    app: Flask
    headers: dict[str, str]
    browser: dict[str, str]
    tenant: str

    def denied(self, method: str, rule: str) -> bool:
        """Whether the route shuts this caller out. Bodies are empty, as authorisation comes before they are looked at."""
        path = rule.replace("<tenant_id>", self.tenant)
        path = re.sub(r"<(?:\w+:)?\w+>", "a" * 26, path)
        headers = self.headers if rule.startswith("/api/") else self.browser
        body: Any = {} if method in ("GET", "DELETE") else {"data": "", "content_type": "text/plain"}
        client = self.app.test_client(use_cookies=False)
        answer = client.open(path, method=method, headers=headers, **body)
        if answer.status_code == 303:
            return answer.headers["Location"].startswith("/login")
        if answer.status_code == 401:
            return True
        text = answer.get_data(as_text=True)
        if answer.content_type == "application/problem+json":
            return str(answer.get_json()["type"]).rpartition("/")[2] in DENIED
        if answer.status_code == 403:
            # Somebody in no tenant is let in, and then has nothing there to see.
            return "belongs to no tenant" not in text
        return answer.status_code == 400 and "Pages take" in text


def make_caller(app: Flask, kind: str) -> Caller:
    """A caller in a tenant of its own; the platform administrator is no member of it."""
    tenant = factories.make_tenant()
    if kind == "nobody":
        return Caller(app, {}, {}, tenant.uid)
    if kind == "device":
        thing = make_thing(tenant)
        return Caller(app, basic(thing.uid, thing.token), basic(thing.uid, thing.token), tenant.uid)
    is_chief = kind == "platform admin"
    user = factories.make_user(None if is_chief else tenant, "admin" if is_chief else kind, is_platform_admin=is_chief)
    with tenancy.work(tenancy.system("sign-in")) as db:
        opened = sessions.open_session(db, user.user_id)
    with app.test_request_context():
        token = web.access_token(opened)
        response = app.response_class()
        web.set_session_cookie(app, response, opened)
    cookie = response.headers["Set-Cookie"].partition(";")[0]
    csrf = auth.csrf_token(opened.principal.session_uid or "")
    return Caller(app, {"Authorization": f"Bearer {token}"}, {"Cookie": cookie, "X-CSRF-Token": csrf}, tenant.uid)


def test_the_table_has_every_route(app: Flask) -> None:
    served = {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert TABLE.keys() == served, "run `make docs`"


@pytest.mark.parametrize("kind", ["nobody", "device", *reversed(auth.PERMISSIONS), "platform admin"])
def test_a_route_lets_in_whom_the_table_names(app: Flask, kind: str) -> None:
    caller = make_caller(app, kind)
    wrong = []
    for name, row in TABLE.items():
        method, _, rule = name.partition(" ")
        who = make_caller(app, kind) if ENDING.search(name) and method != "GET" else caller
        if name not in SIGN_IN and who.denied(method, rule) == row[kind]:
            wrong.append(name)
    assert not wrong, f"not as docs/reference/access.md says for {kind}"
