"""Registration where the portal sends mail: the answer never tells whether an address has an account."""

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests import factories
from tests.api.conftest import Make, check_problem
from tests.mails import Mailbox, link_in, portal_with_mail, token_in

PASSWORD = "nine purple kettles"


@pytest.fixture
def mails(app: Flask) -> Iterator[Mailbox]:
    """The portal sends mail."""
    with portal_with_mail() as box:
        yield box


def register(client: FlaskClient, email: str, **more: str) -> TestResponse:
    body = {"email": email, "password": PASSWORD, "tenant": "Kettle Works", **more}
    return client.post("/api/v1/auth/register", json=body, headers={"X-Request-ID": "same"})


def confirm(client: FlaskClient, token: str) -> TestResponse:
    return client.post("/api/v1/auth/register/confirm", json={"token": token})


def count(statement: str, *values: object) -> int:
    return int(factories.rows(f"SELECT count(*) FROM iiot.{statement}", *values)[0][0])


def test_the_link_in_the_mail_makes_the_tenant_and_signs_in_once(client: FlaskClient, mails: Mailbox) -> None:
    asked = register(client, "Kim@example.com")
    assert asked.status_code == 202
    assert asked.get_json() == {"status": "check-mail"}
    text = mails.wait("kim@example.com")
    assert "Kettle Works" in text
    assert link_in(text).startswith("http://127.0.0.1:5002/signup/confirm?token=")
    assert count("user_account WHERE email = 'kim@example.com'") == 0
    token = token_in(text)
    assert token not in str(factories.rows("SELECT * FROM iiot.pending_registration"))
    done = confirm(client, token)
    assert done.status_code == 201
    me = client.get(
        "/api/v1/auth/me", headers={"Authorization": f"Bearer {done.get_json()['access_token']}"}
    ).get_json()
    assert (me["user"]["email"], me["tenant"]["name"], me["role"]) == ("kim@example.com", "Kettle Works", "admin")
    assert client.post("/api/v1/auth/login", json={"email": "kim@example.com", "password": PASSWORD}).status_code == 200
    check_problem(confirm(client, token), 422, "invalid")


def test_a_taken_address_gets_the_same_answer_and_another_mail(
    client: FlaskClient, mails: Mailbox, person: Make
) -> None:
    known = person().user.email
    taken, free = register(client, known), register(client, "free@example.com")
    assert taken.status_code == free.status_code == 202
    assert taken.data == free.data
    assert dict(taken.headers) == dict(free.headers)
    text = mails.wait(known)
    assert "has an account already" in text
    assert "token" not in text
    mails.wait("free@example.com")
    assert count("pending_registration WHERE email = %s", known) == 0


def test_both_take_the_same_time(app: Flask, mails: Mailbox, person: Make) -> None:
    def seconds(email: str, number: int) -> float:
        client = app.test_client(use_cookies=False)
        started = time.perf_counter()
        answer = client.post(
            "/api/v1/auth/register",
            json={"email": email, "password": PASSWORD},
            environ_base={"REMOTE_ADDR": f"192.0.2.{number}"},
        )
        assert answer.status_code == 202
        return time.perf_counter() - started

    taken, free = [], []
    for number in range(5):
        known = person().user.email
        taken.append(seconds(known, number))
        free.append(seconds(f"timing{number}@example.com", number))
        mails.wait(known)
        mails.wait(f"timing{number}@example.com")
    assert 0.5 < statistics.median(taken) / statistics.median(free) < 2


def test_a_link_dies_after_a_day_and_a_guess_opens_nothing(client: FlaskClient, mails: Mailbox) -> None:
    register(client, "late@example.com")
    token = token_in(mails.wait("late@example.com"))
    factories.rows("UPDATE iiot.pending_registration SET expires_at = now() WHERE email = 'late@example.com'")
    check_problem(confirm(client, token), 422, "invalid")
    check_problem(confirm(client, "x" * 43), 422, "invalid")
    check_problem(confirm(client, ""), 422, "invalid")
    assert count("user_account WHERE email = 'late@example.com'") == 0


def test_two_links_for_one_address_make_one_account(app: Flask, client: FlaskClient, mails: Mailbox) -> None:
    register(client, "twice@example.com")
    first = token_in(mails.wait("twice@example.com"))
    register(client, "twice@example.com")
    second = token_in(mails.wait("twice@example.com", 2))

    def use(token: str) -> int:
        return confirm(app.test_client(use_cookies=False), token).status_code

    with ThreadPoolExecutor(8) as threads:
        answers = sorted(threads.map(use, [first, second] * 4))
    assert answers.count(201) == 1
    assert set(answers) <= {201, 409, 422}
    assert count("user_account WHERE email = 'twice@example.com'") == 1
    assert count("tenant t JOIN iiot.membership m ON m.tenant_id = t.id JOIN iiot.user_account u ON u.id = m.user_id "
                 "WHERE u.email = 'twice@example.com'") == 1  # fmt: skip


def test_an_address_is_not_flooded_with_mails(app: Flask, mails: Mailbox) -> None:
    for number in range(5):
        answer = app.test_client().post(
            "/api/v1/auth/register",
            json={"email": "flood@example.com", "password": PASSWORD},
            environ_base={"REMOTE_ADDR": f"198.51.100.{number}"},
        )
        assert answer.status_code == 202
    register(app.test_client(), "after@example.com")
    mails.wait("after@example.com")
    assert len(mails.to("flood@example.com")) == 3


def test_what_is_wrong_is_said_before_anything_is_looked_up(client: FlaskClient, mails: Mailbox, person: Make) -> None:
    known = person().user.email
    for email in (known, "unknown@example.com"):
        problem = check_problem(register(client, email, password="password1234"), 422, "invalid")
        assert problem["errors"][0]["loc"] == ["body", "password"]
    assert not mails.taken


def test_the_pages(app: Flask, mails: Mailbox, address: str) -> None:
    browser = app.test_client()
    browser.environ_base["REMOTE_ADDR"] = address
    form = {"email": "page@example.com", "password": PASSWORD, "tenant": "Page Works"}
    sent = browser.post("/signup", data=form)
    assert sent.status_code == 200
    assert "Look into your mail" in sent.get_data(as_text=True)
    assert "Set-Cookie" not in sent.headers
    link = link_in(mails.wait("page@example.com")).partition(":5002")[2]
    shown = browser.get(link)
    assert shown.status_code == 200
    assert count("user_account WHERE email = 'page@example.com'") == 0, "a look at the link confirms nothing"
    token = link.partition("token=")[2]
    assert token in shown.get_data(as_text=True)
    assert browser.post("/signup/confirm", data={"token": "x" * 43}).status_code == 422
    done = browser.post("/signup/confirm", data={"token": token})
    assert (done.status_code, done.headers["Location"]) == (303, "/")
    assert browser.get("/account").status_code == 200
    assert "not complete" in browser.get("/signup/confirm").get_data(as_text=True)
    assert browser.post("/signup", data=form | {"tenant": "x" * 201}).status_code == 422
    assert browser.post("/signup", data=form | {"email": "page"}).status_code == 422


def test_a_link_for_an_address_that_was_taken_meanwhile_leads_to_the_sign_in(app: Flask, mails: Mailbox) -> None:
    browser = app.test_client()
    register(browser, "raced@example.com")
    token = token_in(mails.wait("raced@example.com"))
    factories.make_user(None, email="raced@example.com")
    answer = browser.post("/signup/confirm", data={"token": token})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/login?done=confirmed")
    assert "confirmed already" in browser.get("/login?done=confirmed").get_data(as_text=True)
