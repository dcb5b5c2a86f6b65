"""What holds for every answer: request ids, headers, problem documents, limits, cookies and forged requests."""

import time

import jwt
import pytest
from flask import Flask
from flask.testing import FlaskClient

import app_advanced
from iiot import config, tenancy, web
from iiot.services import sessions
from tests.api.conftest import Make, Person, check_problem
from tests.services import active

HEADERS = {
    "Content-Security-Policy",
    "X-Content-Type-Options",
    "Referrer-Policy",
    "Cross-Origin-Opener-Policy",
    "Cross-Origin-Resource-Policy",
    "Permissions-Policy",
    "X-Request-ID",
    "Cache-Control",
}


@pytest.fixture
def page(app: Flask, person: Make) -> tuple[FlaskClient, Person, str]:
    """A browser that is signed in, the person, and the CSRF token of its pages."""
    one = person()
    browser = app.test_client()
    with app.test_request_context():
        response = app.response_class()
        web.set_session_cookie(app, response, one.opened)
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Path=/" in cookie
    name, _, rest = cookie.partition("=")
    browser.set_cookie(name, rest.partition(";")[0])
    from iiot import auth

    return browser, one, auth.csrf_token(one.opened.principal.session_uid or "")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/api/v1/devices", 401),
        ("GET", "/api/v1/nothing", 404),
        ("PUT", "/api/v1/devices", 405),
        ("OPTIONS", "/api/v1/devices", 405),
        ("POST", "/api/v1/auth/login", 415),
        ("GET", "/api/v1/docs", 200),
        ("GET", "/nothing", 404),
        ("GET", "/login", 200),
        ("GET", "/", 303),
    ],
)
def test_every_answer_of_every_status_carries_the_headers(
    client: FlaskClient, method: str, path: str, status: int
) -> None:
    answer = client.open(path, method=method, headers={"X-Request-ID": "abc-1"})
    assert answer.status_code == status
    assert set(answer.headers.keys()) >= HEADERS
    assert answer.headers["X-Request-ID"] == "abc-1"
    assert answer.headers["Cache-Control"] == "no-store"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "Strict-Transport-Security" not in answer.headers
    assert len(answer.headers.getlist("Content-Security-Policy")) == 1


def test_https_answers_say_so(client: FlaskClient) -> None:
    assert "max-age" in client.get("/health", base_url="https://localhost").headers["Strict-Transport-Security"]


@pytest.mark.parametrize("offered", ["", "a b", "x" * 65, "a\tb", "ä"])
def test_unsafe_request_ids_are_replaced(client: FlaskClient, offered: str) -> None:
    answer = client.get("/health", headers={"X-Request-ID": offered})
    assert len(answer.headers["X-Request-ID"]) == 24
    assert answer.headers["X-Request-ID"] != client.get("/health").headers["X-Request-ID"]


def test_unknown_addresses_are_problems_for_programs_and_pages_for_people(client: FlaskClient) -> None:
    check_problem(client.get("/api/v1/nothing"), 404, "not-found")
    check_problem(client.get("/api/v2/devices"), 404, "not-found")
    page = client.get("/nothing")
    assert page.status_code == 404
    assert page.content_type.startswith("text/html")
    wrong = client.put("/api/v1/devices")
    assert "GET" in check_problem(wrong, 405, "method-not-allowed")["detail"]
    assert set(wrong.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST"}


def test_bodies_over_a_megabyte_are_refused(admin: Person) -> None:
    big = b'{"name": "' + b"x" * (1024 * 1024) + b'"}'
    check_problem(admin.post("/devices", data=big, content_type="application/json"), 413, "too-large")


def test_json_nested_without_end_is_refused(admin: Person) -> None:
    deep = b'{"name": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    check_problem(admin.post("/devices", data=deep, content_type="application/json"), 400, "bad-request")


def test_a_fault_of_ours_is_a_problem_without_details(module_settings: config.Settings) -> None:
    app = app_advanced.create_app(module_settings)

    def broken() -> str:
        raise ZeroDivisionError("division")

    app.view_functions["system.get_health"] = broken
    answer = app.test_client().get("/health")
    problem = check_problem(answer, 500, "internal")
    assert "division" not in str(problem)


def test_foreign_host_names_are_refused(module_settings: config.Settings) -> None:
    app = app_advanced.create_app(module_settings.model_copy(update={"allowed_hosts": ["portal.example.com"]}))
    client = app.test_client()
    assert client.get("/health", base_url="http://portal.example.com:8080").status_code == 200
    assert client.get("/health", base_url="http://PORTAL.example.com").status_code == 200
    refused = client.get("/health", base_url="http://evil.example.com")
    check_problem(refused, 400, "bad-request")
    assert set(refused.headers.keys()) >= HEADERS


def test_a_database_that_is_down_is_503(postgres: object, module_settings: config.Settings, admin: Person) -> None:
    gone = module_settings.model_copy(update={"database_url": "postgresql+psycopg2://nobody:x@127.0.0.1:9/none"})
    with active(gone):
        answer = admin.client.post("/api/v1/auth/refresh", json={"refresh_token": admin.opened.refresh_token})
        check_problem(answer, 503, "unavailable")
        assert answer.headers["Retry-After"]


# --- tokens ----------------------------------------------------------------------------------------------------------------------------------


def forge(app: Flask, token: str, **changes: object) -> str:
    """The same claims, changed, signed with the real key unless told otherwise."""
    key = changes.pop("key", app.config["JWT_SECRET_KEY"])
    algorithm = str(changes.pop("algorithm", "HS256"))
    typ = changes.pop("typ", "at+jwt")
    claims = jwt.decode(token, options={"verify_signature": False, "verify_aud": False}) | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, None if algorithm == "none" else key, algorithm=algorithm, headers={"typ": typ})  # type: ignore[arg-type]


def test_the_forge_makes_good_tokens(app: Flask, admin: Person) -> None:
    assert (
        admin.client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {forge(app, admin.token)}"}).status_code
        == 200
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "x" * 64},
        {"algorithm": "HS512"},
        {"algorithm": "none"},
        {"typ": "JWT"},
        {"aud": "another"},
        {"aud": None},
        {"iss": "another"},
        {"iss": None},
        {"exp": 1},
        {"exp": None},
        {"nbf": 99999999999},
        {"sub": None},
        {"sub": "a" * 26},
        {"jti": None},
        {"sid": "a" * 26},
        {"sid": None},
        {"sid": 5},
        {"epoch": 7},
        {"epoch": "0"},
        {"use": "page"},
        {"use": None},
        {"type": "refresh"},
    ],
    ids=str,
)
def test_tokens_that_are_not_quite_ours_are_refused(app: Flask, admin: Person, changes: dict[str, object]) -> None:
    token = forge(app, admin.token, **changes)
    answer = admin.client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"})
    check_problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer x", "Bearer a.b.c", "Token x", "Bearer é"])
def test_headers_that_hold_no_token_are_refused(client: FlaskClient, header: str) -> None:
    check_problem(client.get("/api/v1/auth/me", headers={"Authorization": header}), 401, "unauthorized")


def test_a_token_ends_when_it_says(app: Flask, admin: Person) -> None:
    nearly = forge(app, admin.token, exp=int(time.time()) - 29)
    over = forge(app, admin.token, exp=int(time.time()) - 31)
    assert admin.client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {nearly}"}).status_code == 200
    assert (
        "expired"
        in check_problem(
            admin.client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {over}"}), 401, "unauthorized"
        )["detail"]
    )


# --- cookies ---------------------------------------------------------------------------------------------------------------------------------


def test_a_page_reads_with_its_cookie_and_writes_with_its_csrf_token(page: tuple[FlaskClient, Person, str]) -> None:
    browser, _, csrf = page
    assert browser.get("/api/v1/auth/me").status_code == 200
    made = browser.post(
        "/api/v1/devices",
        json={"name": "d"},
        headers={"X-CSRF-Token": csrf, "Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"},
    )
    assert made.status_code == 201


@pytest.mark.parametrize(
    "change",
    [
        {"X-CSRF-Token": ""},
        {"X-CSRF-Token": "0" * 64},
        {"X-CSRF-Token": "é"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:81"},
    ],
    ids=str,
)
def test_a_forged_request_is_refused(page: tuple[FlaskClient, Person, str], change: dict[str, str]) -> None:
    browser, _, csrf = page
    answer = browser.post("/api/v1/devices", json={"name": "d"}, headers={"X-CSRF-Token": csrf} | change)
    check_problem(answer, 403, "csrf")


def test_the_csrf_token_of_another_session_does_not_fit(page: tuple[FlaskClient, Person, str], person: Make) -> None:
    from iiot import auth

    browser, _, _ = page
    foreign = auth.csrf_token(person().opened.principal.session_uid or "")
    check_problem(browser.post("/api/v1/devices", json={"name": "d"}, headers={"X-CSRF-Token": foreign}), 403, "csrf")


def test_cookie_and_bearer_together_are_refused(page: tuple[FlaskClient, Person, str]) -> None:
    browser, one, _ = page
    check_problem(browser.get("/api/v1/auth/me", headers=one.headers), 400, "ambiguous-credentials")


def test_a_bearer_token_is_no_cookie_and_a_cookie_no_bearer_token(
    app: Flask, page: tuple[FlaskClient, Person, str], person: Make
) -> None:
    browser, one, _ = page
    cookie = browser.get_cookie("iiot")
    assert cookie is not None
    plain = app.test_client(use_cookies=False)
    check_problem(
        plain.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {cookie.value}"}), 401, "unauthorized"
    )
    browser.set_cookie("iiot", one.token)
    check_problem(browser.get("/api/v1/auth/me"), 401, "unauthorized")


def test_signing_out_ends_the_page_and_its_cookie(page: tuple[FlaskClient, Person, str]) -> None:
    browser, one, _ = page
    with tenancy.work(tenancy.system("sign-in")) as db:
        sessions.sign_out(db, one.opened.principal.session_uid or "")
    check_problem(browser.get("/api/v1/auth/me"), 401, "unauthorized")
    answer = browser.get("/")
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/login")
    assert browser.get_cookie("iiot") is None


def test_production_cookies_are_host_bound_and_secure(module_settings: config.Settings, admin: Person) -> None:
    app = app_advanced.create_app(module_settings.model_copy(update={"secure_cookies": True}))
    with app.test_request_context():
        response = app.response_class()
        web.set_session_cookie(app, response, admin.opened)
    assert response.headers["Set-Cookie"].startswith("__Host-iiot=")
    assert "Secure" in response.headers["Set-Cookie"]


# --- limits ----------------------------------------------------------------------------------------------------------------------------------


def test_limits_hold_while_redis_is_down(module_settings: config.Settings) -> None:
    app = app_advanced.create_app(module_settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"}))
    client = app.test_client(use_cookies=False)
    statuses = [
        client.post("/api/v1/auth/login", json={"email": "x@example.org", "password": "wrong"}).status_code
        for _ in range(6)
    ]
    assert statuses == [401] * 5 + [429]
