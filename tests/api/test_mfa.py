"""The second factor: setting it up, signing in with it, and what it takes to get rid of it."""

import base64
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from iiot import tenancy
from iiot.services import mfa, sign_in, users
from iiot.services.sessions import Client
from tests import factories
from tests.api.conftest import PASSWORD, Make, Person, check_problem
from tests.mails import portal_with_mail
from tests.services import eventually


@dataclass
class Factor:
    """Somebody's authenticator. Each code works once, so it forgets which steps were used."""

    person: Person
    secret: str
    codes: list[str]

    def code(self, ahead: int = 0) -> str:
        return code_of(self.secret, ahead)

    def forget_steps(self) -> None:
        factories.rows("UPDATE iiot.second_factor SET last_step = 0 WHERE user_id = %s", self.person.user.user_id)

    def limits_forgotten(self) -> None:
        forget_limits(self.person.client.application)


def code_of(secret: str, ahead: int = 0) -> str:
    """The code that an authenticator shows now, or some steps from now."""
    return mfa.totp(base64.b32decode(secret), int(time.time()) // 30 + ahead)


def forget_limits(app: Flask) -> None:
    """As if a minute had passed for what limits count."""
    app.extensions["iiot.limits"]._limiter.storage.reset()


SetUp = Callable[..., Factor]


@pytest.fixture
def set_up(app: Flask, person: Make, password_hash: str) -> SetUp:
    """Makes somebody whose password is PASSWORD with a second factor."""

    def make(role: str = "admin", **options: Any) -> Factor:
        one = person(role, password_hash=password_hash, **options)
        secret = one.post("/auth/mfa/setup").get_json()["secret"]
        done = one.post("/auth/mfa/confirm", json={"code": code_of(secret, -1)})
        assert done.status_code == 200, done.get_data(as_text=True)
        forget_limits(app)
        return Factor(one, secret, done.get_json()["recovery_codes"])

    return make


def login(client: FlaskClient, email: str, password: str = PASSWORD, **more: str) -> TestResponse:
    return client.post("/api/v1/auth/login", json={"email": email, "password": password, **more})


def first_step(client: FlaskClient, email: str) -> str:
    return str(check_problem(login(client, email), 401, "mfa-required")["mfa_token"])


def second_step(client: FlaskClient, token: str, code: str) -> TestResponse:
    return client.post("/api/v1/auth/mfa/login", json={"mfa_token": token, "code": code})


@pytest.mark.parametrize(
    ("seconds", "code"),
    [
        (59, "94287082"),
        (1111111109, "07081804"),
        (1111111111, "14050471"),
        (1234567890, "89005924"),
        (2000000000, "69279037"),
        (20000000000, "65353130"),
    ],
)
def test_codes_are_those_of_rfc_6238(seconds: int, code: str) -> None:
    # Appendix B shows eight digits; six are the last ones of them.
    assert mfa.totp(b"12345678901234567890", seconds // 30) == code[-6:]


def test_a_factor_counts_once_it_is_confirmed(app: Flask, person: Make, password_hash: str) -> None:
    one = person(password_hash=password_hash)
    made = one.post("/auth/mfa/setup").get_json()
    assert made["uri"].startswith("otpauth://totp/IIoT%20Portal:")
    assert f"secret={made['secret']}" in made["uri"]
    assert len(base64.b32decode(made["secret"])) == 20
    assert login(one.client, one.user.email).status_code == 200, "nothing is asked for yet"
    problem = check_problem(one.post("/auth/mfa/confirm", json={"code": "000000"}), 422, "invalid")
    assert problem["errors"][0]["loc"] == ["body", "code"]
    done = one.post("/auth/mfa/confirm", json={"code": code_of(made["secret"])})
    assert done.status_code == 200
    codes = done.get_json()["recovery_codes"]
    assert len(set(codes)) == 10
    assert one.get("/auth/me").get_json()["user"]["has_mfa"] is True
    check_problem(one.post("/auth/mfa/setup"), 409, "mfa-already-set-up")
    check_problem(one.post("/auth/mfa/confirm", json={"code": "000000"}), 409, "mfa-not-started")
    first_step(one.client, one.user.email)
    stored = str(factories.rows("SELECT * FROM iiot.second_factor WHERE user_id = %s", one.user.user_id))
    stored += str(factories.rows("SELECT * FROM iiot.recovery_code WHERE user_id = %s", one.user.user_id))
    assert made["secret"] not in stored
    assert repr(base64.b32decode(made["secret"]))[2:-1] not in stored
    assert not [code for code in codes if code in stored or code.replace("-", "") in stored]


def test_nothing_to_confirm_before_the_set_up(admin: Person) -> None:
    check_problem(admin.post("/auth/mfa/confirm", json={"code": "000000"}), 409, "mfa-not-started")


def test_a_seed_is_bound_to_its_person(set_up: SetUp) -> None:
    one, other = set_up(), set_up()
    factories.rows(
        "UPDATE iiot.second_factor SET seed = (SELECT seed FROM iiot.second_factor WHERE user_id = %s) WHERE user_id = %s",
        one.person.user.user_id,
        other.person.user.user_id,
    )
    token = first_step(other.person.client, other.person.user.email)
    check_problem(second_step(other.person.client, token, one.code()), 500, "internal")


def test_signing_in_takes_two_steps_or_one_with_the_code(client: FlaskClient, set_up: SetUp) -> None:
    factor = set_up()
    email = factor.person.user.email
    token = first_step(client, email)
    done = second_step(client, token, factor.code())
    assert done.status_code == 200
    headers = {"Authorization": f"Bearer {done.get_json()['access_token']}"}
    assert client.get("/api/v1/auth/me", headers=headers).status_code == 200
    check_problem(client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"}), 401, "unauthorized")
    assert login(client, email, code=factor.code(1)).status_code == 200
    check_problem(login(client, email, code="123456"), 401, "mfa-wrong-code")
    check_problem(login(client, email, "wrong", code=factor.code()), 401, "unauthorized")


def test_no_step_works_twice_and_none_but_the_neighbours(client: FlaskClient, set_up: SetUp) -> None:
    factor = set_up()
    token = first_step(client, factor.person.user.email)
    code = factor.code()
    assert second_step(client, token, code).status_code == 200
    check_problem(second_step(client, token, code), 401, "mfa-wrong-code")
    check_problem(second_step(client, token, factor.code(-1)), 401, "mfa-wrong-code")
    factor.forget_steps()
    factor.limits_forgotten()
    for ahead in (-3, 3):
        check_problem(second_step(client, token, factor.code(ahead)), 401, "mfa-wrong-code")
    assert second_step(client, token, f" {factor.code()[:3]} {factor.code()[3:]} ").status_code == 200


def test_a_code_is_used_once_even_by_twenty_at_a_time(app: Flask, set_up: SetUp) -> None:
    factor = set_up()
    token = first_step(factor.person.client, factor.person.user.email)

    def use(code: str) -> int:
        with app.test_request_context():
            try:
                sign_in.finish(token, code, Client())
            except Exception as refused:
                return int(getattr(refused, "status", 0))
            return 200

    for code in (factor.code(), factor.codes[0]):
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(use, [code] * 20))
        assert sorted(answers) == [200] + [401] * 19


def test_a_recovery_code_replaces_the_authenticator_once(client: FlaskClient, set_up: SetUp) -> None:
    factor = set_up()
    token = first_step(client, factor.person.user.email)
    assert second_step(client, token, factor.codes[3].upper().replace("-", " ")).status_code == 200
    check_problem(second_step(client, token, factor.codes[3]), 401, "mfa-wrong-code")
    other = set_up()
    check_problem(second_step(client, token, other.codes[0]), 401, "mfa-wrong-code")
    with tenancy.work(tenancy.system("sign-in")) as db:
        assert mfa.codes_left(db, factor.person.user.user_id) == 9
    assert ("mfa.recovery-code-used",) in factories.rows(
        "SELECT action FROM iiot.audit WHERE object_uid = %s", factor.person.user.uid
    )


def test_five_codes_a_minute_wherever_they_come_from(app: Flask, set_up: SetUp) -> None:
    factor = set_up()
    token = first_step(factor.person.client, factor.person.user.email)

    def guess(number: int) -> TestResponse:
        client = app.test_client(use_cookies=False)
        client.environ_base["REMOTE_ADDR"] = f"192.0.2.{number}"
        return second_step(client, token, "000000")

    assert [guess(number).status_code for number in range(5)] == [401] * 5
    refused = guess(6)
    check_problem(refused, 429, "rate-limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    client = app.test_client(use_cookies=False)
    client.environ_base["REMOTE_ADDR"] = "192.0.2.77"
    check_problem(login(client, factor.person.user.email, code=factor.code()), 429, "rate-limited")


def test_the_token_of_the_first_step_is_good_for_nothing_else_and_not_for_long(
    client: FlaskClient, set_up: SetUp
) -> None:
    factor = set_up()
    token = first_step(client, factor.person.user.email)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - time.time() <= 300
    for forged in (
        "",
        "x",
        factor.person.token,
        jwt.encode(claims, "k" * 32, algorithm="HS256"),
        jwt.encode(claims, "", algorithm="none"),
        jwt.encode(claims | {"exp": 1}, sign_in._key(), algorithm="HS256"),
        jwt.encode(claims | {"aud": "iiot-api"}, sign_in._key(), algorithm="HS256"),
        jwt.encode({"aud": claims["aud"], "sub": claims["sub"]}, sign_in._key(), algorithm="HS256"),
    ):
        assert second_step(client, forged, factor.code()).status_code in (401, 422), forged
    factories.rows("UPDATE iiot.user_account SET epoch = epoch + 1 WHERE id = %s", factor.person.user.user_id)
    check_problem(second_step(client, token, factor.code()), 401, "unauthorized")


def test_the_chosen_tenant_survives_the_second_step(client: FlaskClient, set_up: SetUp) -> None:
    factor = set_up()
    second = factories.make_tenant()
    with tenancy.work(tenancy.system("sign-in")) as db:
        users.add_member(db, second.tenant_id, factor.person.user.user_id, "viewer")
    problem = check_problem(login(client, factor.person.user.email, tenant=second.uid), 401, "mfa-required")
    tokens = second_step(client, problem["mfa_token"], factor.code()).get_json()
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert client.get("/api/v1/auth/me", headers=headers).get_json()["tenant"]["id"] == second.uid


def test_switching_off_takes_password_and_code(client: FlaskClient, set_up: SetUp) -> None:
    factor = set_up()
    post = factor.person.post
    wrong = post("/auth/mfa/disable", json={"password": "wrong", "code": factor.code()})
    assert check_problem(wrong, 422, "invalid")["errors"][0]["loc"] == ["body", "password"]
    wrong = post("/auth/mfa/disable", json={"password": PASSWORD, "code": "000000"})
    assert check_problem(wrong, 422, "invalid")["errors"][0]["loc"] == ["body", "code"]
    assert post("/auth/mfa/disable", json={"password": PASSWORD, "code": factor.code()}).status_code == 204
    assert login(client, factor.person.user.email).status_code == 200
    check_problem(post("/auth/mfa/disable", json={"password": PASSWORD, "code": factor.code(1)}), 422, "invalid")
    assert factor.person.post("/auth/mfa/setup").status_code == 200


def test_new_recovery_codes_replace_the_old_ones(client: FlaskClient, set_up: SetUp) -> None:
    factor = set_up()
    wrong = {"password": PASSWORD, "code": "000000"}
    check_problem(factor.person.post("/auth/mfa/recovery-codes", json=wrong), 422, "invalid")
    made = factor.person.post("/auth/mfa/recovery-codes", json={"password": PASSWORD, "code": factor.codes[0]})
    assert made.status_code == 200
    fresh = made.get_json()["recovery_codes"]
    assert not set(fresh) & set(factor.codes)
    token = first_step(client, factor.person.user.email)
    check_problem(second_step(client, token, factor.codes[1]), 401, "mfa-wrong-code")
    assert second_step(client, token, fresh[1]).status_code == 200


def test_an_admin_removes_the_factor_of_a_member_of_this_tenant_alone(client: FlaskClient, set_up: SetUp) -> None:
    lost = set_up("viewer")
    admin = factories.make_user(lost.person.tenant)
    boss = Person(client, lost.person.tenant, admin, lost.person.opened, token_of(client, admin))
    path = f"/tenants/{boss.tenant.uid}/users/{lost.person.user.uid}/mfa"
    check_problem(lost.person.delete(path), 403, "forbidden")
    assert boss.delete(path).status_code == 204
    assert lost.person.get("/auth/me").status_code == 401, "sessions end"
    assert login(client, lost.person.user.email).status_code == 200
    check_problem(boss.delete(path), 409, "mfa-not-set-up")
    check_problem(boss.delete(path.replace(lost.person.user.uid, "a" * 26)), 404, "not-found")


def token_of(client: FlaskClient, user: factories.UserRow) -> str:
    from iiot import web
    from iiot.services import sessions

    with tenancy.work(tenancy.system("sign-in")) as db:
        opened = sessions.open_session(db, user.user_id)
    with client.application.app_context():
        return web.access_token(opened)


def test_admins_must_have_one_when_the_tenant_says_so(person: Make, set_up: SetUp) -> None:
    done = set_up()
    tenant = done.person.tenant
    factories.rows("UPDATE iiot.tenant SET require_mfa = true WHERE id = %s", tenant.tenant_id)
    late, viewer = person(tenant=tenant), person("viewer", tenant=tenant)
    problem = check_problem(late.get("/devices"), 403, "mfa-setup-required")
    assert "/auth/mfa/setup" in problem["detail"]
    assert done.person.get("/devices").status_code == 200
    assert viewer.get("/devices").status_code == 200
    assert late.get("/auth/me").status_code == 200
    assert late.get("/auth/sessions").status_code == 200
    secret = late.post("/auth/mfa/setup").get_json()["secret"]
    assert late.post("/auth/mfa/confirm", json={"code": code_of(secret)}).status_code == 200
    assert late.get("/devices").status_code == 200
    # Whoever becomes an admin later is asked at the next request.
    given = done.person.patch(f"/tenants/{tenant.uid}/users/{viewer.user.uid}", json={"role": "admin"})
    assert given.status_code == 200, given.get_data(as_text=True)
    eventually(lambda: viewer.get("/devices").status_code == 403)
    check_problem(viewer.get("/devices"), 403, "mfa-setup-required")


def test_changes_are_told_by_mail(app: Flask, set_up: SetUp) -> None:
    with portal_with_mail() as mails:
        factor = set_up()
        mails.wait(factor.person.user.email)
        factor.person.post("/auth/mfa/disable", json={"password": PASSWORD, "code": factor.code()})
        assert "switched off" in mails.wait(factor.person.user.email, 2)


def test_a_wrong_password_takes_the_same_time_with_and_without_a_factor(
    app: Flask, set_up: SetUp, person: Make, password_hash: str
) -> None:
    def seconds(email: str) -> float:
        started = time.perf_counter()
        check_problem(login(app.test_client(), email, "wrong"), 401, "unauthorized")
        return time.perf_counter() - started

    having, lacking = [], []
    factor, other = set_up().person.user.email, person(password_hash=password_hash).user.email
    for _ in range(3):
        having.append(seconds(factor))
        lacking.append(seconds(other))
        forget_limits(app)
    assert 0.5 < statistics.median(having) / statistics.median(lacking) < 2


# --- the pages -----------------------------------------------------------------------------------------------------------------------------------


def csrf(page: str) -> str:
    return page.partition('name="csrf_token" value="')[2].partition('"')[0]


def test_the_pages_of_signing_in(app: Flask, set_up: SetUp, address: str) -> None:
    factor = set_up()
    browser = app.test_client()
    browser.environ_base["REMOTE_ADDR"] = address
    form = {"email": factor.person.user.email, "password": PASSWORD, "next": "/devices"}
    asked = browser.post("/login", data=form)
    assert (asked.status_code, "Set-Cookie" in asked.headers) == (200, False)
    token = asked.get_data(as_text=True).partition('name="mfa_token" value="')[2].partition('"')[0]
    wrong = browser.post("/login/code", data={"mfa_token": token, "code": "000000", "next": "/devices"})
    assert wrong.status_code == 401
    assert token in wrong.get_data(as_text=True)
    late = browser.post("/login/code", data={"mfa_token": "x", "code": "000000", "next": "//evil.example"})
    assert late.status_code == 401
    assert "took too long" in late.get_data(as_text=True)
    done = browser.post("/login/code", data={"mfa_token": token, "code": factor.code(), "next": "/devices"})
    assert (done.status_code, done.headers["Location"]) == (303, "/devices")
    assert browser.get("/account").status_code == 200


def test_the_pages_of_setting_up(app: Flask, person: Make, password_hash: str, address: str) -> None:
    one = person(password_hash=password_hash)
    factories.rows("UPDATE iiot.tenant SET require_mfa = true WHERE id = %s", one.tenant.tenant_id)
    browser = app.test_client()
    browser.environ_base["REMOTE_ADDR"] = address
    browser.post("/login", data={"email": one.user.email, "password": PASSWORD})
    sent = browser.get("/devices")
    assert (sent.status_code, sent.headers["Location"]) == (303, "/account/mfa")
    page = browser.get("/account/mfa").get_data(as_text=True)
    assert "asks its admins" in page
    fields = {"csrf_token": csrf(page)}
    assert browser.post("/account/mfa/setup", data=fields).status_code == 303
    page = browser.get("/account/mfa").get_data(as_text=True)
    assert "<svg" in page
    secret = page.partition("<code>")[2].partition("</code>")[0].replace(" ", "")
    refused = browser.post("/account/mfa/confirm", data=fields | {"code": "000000"})
    assert refused.status_code == 422
    shown = browser.post("/account/mfa/confirm", data=fields | {"code": code_of(secret, -1)}).get_data(as_text=True)
    codes = shown.partition("<code>")[2].partition("</code>")[0].split()
    assert len(codes) == 10
    assert browser.get("/devices").status_code == 200
    assert "10 of 10 left" in browser.get("/account/mfa").get_data(as_text=True)
    wrong = fields | {"password": "wrong", "code": codes[0]}
    assert browser.post("/account/mfa/codes", data=wrong).status_code == 422
    good = fields | {"password": PASSWORD, "code": codes[0]}
    fresh = browser.post("/account/mfa/codes", data=good).get_data(as_text=True)
    codes = fresh.partition("<code>")[2].partition("</code>")[0].split()
    assert browser.post("/account/mfa/disable", data=wrong).status_code == 422
    forget_limits(app)
    good["code"] = codes[1]
    assert browser.post("/account/mfa/disable", data=good).headers["Location"] == "/account?done=mfa-off"
