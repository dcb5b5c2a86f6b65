"""The real application with a database and a Valkey of its own per module, and people who are signed in."""

import base64
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import app_advanced
from iiot import auth, tenancy, web
from iiot.config import Settings
from iiot.services import devices, sessions
from tests import factories

PASSWORD = "seven wooden ladders"
_addresses = itertools.count(1)


@pytest.fixture(scope="module")
def app(module_settings: Settings) -> Flask:
    """The application."""
    return app_advanced.create_app(module_settings)


@pytest.fixture
def address() -> str:
    """An address no other test comes from, so that limits do not add up."""
    number = next(_addresses)
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


@pytest.fixture
def client(app: Flask, address: str) -> FlaskClient:
    """A program that keeps no cookies."""
    client = app.test_client(use_cookies=False)
    client.environ_base["REMOTE_ADDR"] = address
    return client


@dataclass
class Person:
    """Somebody signed in as a program."""

    client: FlaskClient
    tenant: factories.TenantRow
    user: factories.UserRow
    opened: sessions.Opened
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def call(self, method: str, path: str, **options: Any) -> TestResponse:
        headers = self.headers | options.pop("headers", {})
        address = path if path.startswith("/api/") else f"/api/v1{path}"
        return self.client.open(address, method=method, headers=headers, **options)

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.call("GET", path, **options)

    def post(self, path: str, **options: Any) -> TestResponse:
        return self.call("POST", path, **options)

    def patch(self, path: str, **options: Any) -> TestResponse:
        return self.call("PATCH", path, **options)

    def delete(self, path: str, **options: Any) -> TestResponse:
        return self.call("DELETE", path, **options)


Make = Callable[..., Person]


@pytest.fixture
def person(app: Flask, client: FlaskClient) -> Make:
    """Makes somebody with a role in a tenant (a new one unless given), signed in without the password's 0.3 s."""

    def make(role: str = "admin", tenant: factories.TenantRow | None = None, **columns: Any) -> Person:
        tenant = tenant or factories.make_tenant()
        user = factories.make_user(tenant, role, **columns)
        with tenancy.work(tenancy.system("sign-in")) as db:
            opened = sessions.open_session(db, user.user_id)
        with app.app_context():
            return Person(client, tenant, user, opened, web.access_token(opened))

    return make


@pytest.fixture
def admin(person: Make) -> Person:
    """The admin of a new tenant."""
    return person()


Browse = Callable[[Person], FlaskClient]


@pytest.fixture
def browse(app: Flask) -> Browse:
    """A browser of somebody."""

    def make(person: Person) -> FlaskClient:
        browser = app.test_client()
        with app.test_request_context():
            response = app.response_class()
            web.set_session_cookie(app, response, person.opened)
        name, _, rest = response.headers["Set-Cookie"].partition("=")
        browser.set_cookie(name, rest.partition(";")[0])
        return browser

    return make


def post(browser: FlaskClient, one: Person, path: str, **form: Any) -> TestResponse:
    """Send a form of a page as its reader does."""
    token = auth.csrf_token(one.opened.principal.session_uid or "")
    return browser.post(path, data={"csrf_token": token, **form})


@pytest.fixture(scope="session")
def password_hashes() -> dict[str, str]:
    """Hashes made once; each costs a third of a second."""
    return {}


@pytest.fixture
def password_hash(app: Flask, password_hashes: dict[str, str]) -> str:
    """The hash of PASSWORD."""
    if PASSWORD not in password_hashes:
        password_hashes[PASSWORD] = auth.hash_password(PASSWORD)
    return password_hashes[PASSWORD]


@dataclass(frozen=True)
class Thing:
    """A device with its token."""

    uid: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return basic(self.uid, self.token)


def basic(uid: str, token: str) -> dict[str, str]:
    """The Authorization header of a device."""
    return {"Authorization": "Basic " + base64.b64encode(f"{uid}:{token}".encode()).decode()}


def make_thing(tenant: factories.TenantRow, name: str = "pump", **values: Any) -> Thing:
    """A device of a tenant, with a token."""
    with tenancy.work(tenancy.of(tenant)) as db:
        device, token = devices.create(db, devices.NewDevice(name, **values))
        return Thing(device.uid, token)


def check_problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    """Assert that an answer is this problem document, and return it."""
    assert response.status_code == status, response.get_data(as_text=True)
    assert response.content_type == "application/problem+json"
    body: dict[str, Any] = response.get_json()
    assert body["type"].endswith(f"/{code}"), body
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["X-Request-ID"]
    return body
