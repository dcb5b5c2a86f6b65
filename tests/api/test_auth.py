"""Registration, sign-in, sign-out, the password, and who one is."""

import statistics
import time

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from iiot import config, tenancy
from iiot.services import users
from iiot.services.sessions import end_all
from tests import factories
from tests.api.conftest import PASSWORD, Make, Person, check_problem
from tests.services import active


def login(client: FlaskClient, email: str, password: str = PASSWORD, **more: str) -> TestResponse:
    return client.post("/api/v1/auth/login", json={"email": email, "password": password, **more})


@pytest.fixture
def member(person: Make, password_hash: str) -> Person:
    """Somebody whose password is PASSWORD."""
    return person(password_hash=password_hash)


def test_registration_makes_a_tenant_with_quota_whose_admin_is_signed_in(client: FlaskClient) -> None:
    body = {"email": "Ann@Example.org", "password": "a long enough secret", "name": "Ann", "tenant": "Ann's Pumps"}
    answer = client.post("/api/v1/auth/register", json=body)
    assert answer.status_code == 201
    tokens = answer.get_json()
    assert tokens["expires_in"] == 600
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    me = client.get("/api/v1/auth/me", headers=headers).get_json()
    assert me["user"]["email"] == "ann@example.org"
    assert me["tenant"]["name"] == "Ann's Pumps"
    assert me["role"] == "admin"
    assert "device:write" in me["permissions"]
    quota = client.get(f"/api/v1/tenants/{me['tenant']['id']}/quota", headers=headers).get_json()
    assert quota["devices"]["limit"] == 1000
    assert quota["devices"]["used"] == 0
    assert client.post("/api/v1/devices", json={"name": "first"}, headers=headers).status_code == 201
    check_problem(client.post("/api/v1/auth/register", json=body), 409, "email-taken")


def test_registration_takes_the_name_tenant_name_too(client: FlaskClient) -> None:
    body = {"email": "bob@example.org", "password": "a long enough secret", "tenant_name": "Bob & Sons"}
    tokens = client.post("/api/v1/auth/register", json=body).get_json()
    me = client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {tokens['access_token']}"}).get_json()
    assert me["tenant"]["name"] == "Bob & Sons"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"password": "short"}, "password"),
        ({"password": "password1234"}, "password"),
        ({"password": "zoe.miller-1234"}, "password"),
        ({"password": "x" * 1025}, "password"),
        ({"email": "not an address"}, "email"),
        ({"role": "admin"}, "role"),
        ({"is_platform_admin": True}, "is_platform_admin"),
    ],
)
def test_registration_refuses(client: FlaskClient, change: dict[str, object], where: str) -> None:
    body = {"email": "zoe.miller@example.org", "password": "a long enough secret", "tenant": "T", **change}
    problem = check_problem(client.post("/api/v1/auth/register", json=body), 422, "invalid")
    assert [error["loc"][1] for error in problem["errors"]] == [where]


def test_registration_can_be_switched_off(client: FlaskClient) -> None:
    closed = config.load().model_copy(update={"registration_enabled": False})
    # model_copy notes the field as set, so that child environments carry it too.
    with active(closed):
        body = {"email": "late@example.org", "password": "a long enough secret"}
        check_problem(client.post("/api/v1/auth/register", json=body), 403, "registration-disabled")


def test_login_answers_with_tokens_and_no_cookie(client: FlaskClient, member: Person) -> None:
    answer = login(client, member.user.email.upper())
    assert answer.status_code == 200
    assert answer.get_json().keys() == {
        "access_token",
        "refresh_token",
        "expires_in",
        "token_type",
        "must_change_password",
    }
    assert answer.get_json()["must_change_password"] is False
    assert "Set-Cookie" not in answer.headers


def test_wrong_password_and_unknown_account_answer_alike(client: FlaskClient, member: Person) -> None:
    headers = {"X-Request-ID": "same"}
    wrong = client.post("/api/v1/auth/login", json={"email": member.user.email, "password": "wrong"}, headers=headers)
    unknown = client.post(
        "/api/v1/auth/login", json={"email": "nobody@example.org", "password": "wrong"}, headers=headers
    )
    check_problem(wrong, 401, "unauthorized")
    assert wrong.data == unknown.data


def test_an_unknown_account_takes_as_long_as_a_wrong_password(
    client: FlaskClient, person: Make, password_hash: str
) -> None:
    def seconds(email: str) -> float:
        started = time.perf_counter()
        assert login(client, email, "wrong").status_code == 401
        return time.perf_counter() - started

    known, unknown = [], []
    for number in range(7):
        known.append(seconds(person(password_hash=password_hash).user.email))
        unknown.append(seconds(f"nobody{number}@example.org"))
    assert 0.5 < statistics.median(known) / statistics.median(unknown) < 2


def test_the_sixth_sign_in_of_an_account_within_a_minute_waits(
    client: FlaskClient, person: Make, password_hash: str
) -> None:
    email, other = person(password_hash=password_hash).user.email, person(password_hash=password_hash).user.email
    for _ in range(5):
        assert login(client, email, "wrong").status_code == 401
    refused = login(client, email)
    check_problem(refused, 429, "rate-limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert login(client, f" {email.upper()}").status_code == 429
    assert login(client, other).status_code == 200
    assert (
        client.post(
            "/api/v1/auth/login", json={"email": email, "password": PASSWORD}, environ_base={"REMOTE_ADDR": "192.0.2.1"}
        ).status_code
        == 200
    )


def test_an_address_may_not_try_many_accounts(client: FlaskClient) -> None:
    from iiot.web import limits

    with client.application.test_request_context(environ_base={"REMOTE_ADDR": client.environ_base["REMOTE_ADDR"]}):
        for number in range(30):
            limits.spend_sign_in(f"person{number}@example.org")
    check_problem(login(client, "somebody@example.org"), 429, "rate-limited")


def test_login_needs_a_body_that_fits(client: FlaskClient) -> None:
    assert client.post("/api/v1/auth/login", data="x", content_type="text/plain").status_code == 415
    check_problem(client.post("/api/v1/auth/login", data="{", content_type="application/json"), 400, "bad-request")
    problem = check_problem(client.post("/api/v1/auth/login", json={"email": "a"}), 422, "invalid")
    assert problem["errors"] == [{"loc": ["body", "password"], "msg": "Field required"}]
    check_problem(client.post("/api/v1/auth/login", json={"email": "a\0", "password": "b"}), 422, "invalid")


def test_passwords_count_to_the_last_character(client: FlaskClient, person: Make) -> None:
    long = "ä" * 500
    with tenancy.work(tenancy.system("sign-in")) as db:
        email = users.create(db, "long@example.org", long + "xyz").email
    assert login(client, email, long + "xyy").status_code == 401
    # The same text in another normal form of Unicode is the same password.
    assert login(client, email, "a\N{COMBINING DIAERESIS}" * 500 + "xyz").status_code == 200
    assert login(client, email, long + "xyz").status_code == 200


def test_logout_kills_access_and_refresh_tokens_at_once(client: FlaskClient, member: Person) -> None:
    tokens = login(client, member.user.email).get_json()
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert client.get("/api/v1/auth/me", headers=headers).status_code == 200
    assert client.post("/api/v1/auth/logout", headers=headers).status_code == 204
    check_problem(client.get("/api/v1/auth/me", headers=headers), 401, "unauthorized")
    check_problem(
        client.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]}), 401, "unauthorized"
    )
    assert member.get("/auth/me").status_code == 200


def test_disabling_a_user_or_raising_the_epoch_ends_the_session(person: Make) -> None:
    one = person()
    assert one.get("/auth/me").status_code == 200
    with tenancy.work(tenancy.system("sign-in")) as db:
        end_all(db, one.user.user_id, "test")
    check_problem(one.get("/auth/me"), 401, "unauthorized")


def test_only_the_right_password_tells_that_an_account_is_disabled(
    client: FlaskClient, person: Make, password_hash: str
) -> None:
    email = person(password_hash=password_hash, status="disabled").user.email
    check_problem(login(client, email), 403, "account-disabled")
    check_problem(login(client, email, "wrong"), 401, "unauthorized")


def test_a_one_time_password_opens_nothing_but_its_own_change(person: Make, password_hash: str) -> None:
    one = person(must_change_password=True, password_hash=password_hash)
    answer = login(one.client, one.user.email)
    assert answer.get_json()["must_change_password"] is True
    problem = check_problem(one.get("/devices"), 403, "password-change-required")
    assert "/api/v1/auth/password/change" in problem["detail"]
    assert one.get("/auth/me").get_json()["user"]["must_change_password"] is True
    body = {"current_password": PASSWORD, "new_password": "an even longer secret"}
    changed = one.post("/auth/password/change", json=body)
    assert changed.status_code == 200
    assert changed.get_json()["must_change_password"] is False
    assert (
        one.client.get(
            "/api/v1/devices", headers={"Authorization": f"Bearer {changed.get_json()['access_token']}"}
        ).status_code
        == 200
    )


def test_changing_the_password_keeps_this_session_and_ends_the_others(client: FlaskClient, member: Person) -> None:
    other = login(client, member.user.email).get_json()
    new = "an even longer secret"
    changed = member.post("/auth/password/change", json={"current_password": PASSWORD, "new_password": new}).get_json()
    fresh = {"Authorization": f"Bearer {changed['access_token']}"}
    assert client.get("/api/v1/auth/me", headers=fresh).status_code == 200
    assert member.get("/auth/me").status_code == 401
    assert (
        client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {other['access_token']}"}).status_code == 401
    )
    assert client.post("/api/v1/auth/refresh", json={"refresh_token": other["refresh_token"]}).status_code == 401
    assert client.post("/api/v1/auth/refresh", json={"refresh_token": changed["refresh_token"]}).status_code == 200
    assert login(client, member.user.email).status_code == 401
    assert login(client, member.user.email, new).status_code == 200


@pytest.mark.parametrize(
    ("current", "new", "where"),
    [
        ("wrong", "a long enough secret", "current_password"),
        (PASSWORD, "short", "new_password"),
        (PASSWORD, PASSWORD, "new_password"),
    ],
)
def test_a_password_is_not_changed(member: Person, current: str, new: str, where: str) -> None:
    answer = member.post("/auth/password/change", json={"current_password": current, "new_password": new})
    assert check_problem(answer, 422, "invalid")["errors"][0]["loc"] == ["body", where]
    assert member.get("/auth/me").status_code == 200


def test_a_member_of_two_tenants_chooses_one_and_returns_to_it(client: FlaskClient, member: Person) -> None:
    second = factories.make_tenant()
    with tenancy.work(tenancy.system("sign-in")) as db:
        users.add_member(db, second.tenant_id, member.user.user_id, "viewer")

    def tenant_of(answer: TestResponse) -> str:
        headers = {"Authorization": f"Bearer {answer.get_json()['access_token']}"}
        return str(client.get("/api/v1/auth/me", headers=headers).get_json()["tenant"]["id"])

    assert tenant_of(login(client, member.user.email)) == member.tenant.uid
    assert tenant_of(login(client, member.user.email, tenant=second.uid)) == second.uid
    assert tenant_of(login(client, member.user.email)) == second.uid
    foreign = factories.make_tenant()
    check_problem(login(client, member.user.email, tenant=foreign.uid), 422, "invalid")


def test_a_suspended_tenant_is_told_so(client: FlaskClient, person: Make) -> None:
    one = person(tenant=factories.make_tenant(status="suspended"))
    assert one.get("/devices").status_code == 200, "people may still read"
    check_problem(one.post("/devices", json={"name": "x"}), 403, "tenant-suspended")


def test_the_first_admin_can_work_at_once_and_is_made_once(client: FlaskClient) -> None:
    with tenancy.work(tenancy.system("operator")) as db:
        email, password = users.ensure_first_admin(db)
    with tenancy.work(tenancy.system("operator")) as db:
        assert users.ensure_first_admin(db) == (email, None)
    assert password is not None
    assert password not in str(factories.rows("SELECT password_hash FROM iiot.user_account WHERE email = %s", email))
    tokens = login(client, email, password).get_json()
    assert tokens["must_change_password"] is True
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    body = {"current_password": password, "new_password": "the first real secret"}
    tokens = client.post("/api/v1/auth/password/change", json=body, headers=headers).get_json()
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert client.post("/api/v1/devices", json={"name": "first"}, headers=headers).status_code == 201
