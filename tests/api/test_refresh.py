"""Refresh tokens rotate, and one that was copied ends the session (RFC 9700 section 4.14.2)."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from iiot import auth
from tests import factories
from tests.api.conftest import Make, Person, check_problem


def refresh(client: FlaskClient, token: str, agent: str = "one", address: str | None = None) -> TestResponse:
    base = {"REMOTE_ADDR": address} if address else {}
    return client.post(
        "/api/v1/auth/refresh", json={"refresh_token": token}, headers={"User-Agent": agent}, environ_base=base
    )


def age(person: Person, column: str, span: timedelta) -> None:
    """Move a moment of the person's sessions into the past."""
    factories.rows(f"UPDATE iiot.session SET {column} = {column} - %s WHERE user_id = %s", span, person.user.user_id)


def test_each_use_gives_another_token_and_a_working_access_token(client: FlaskClient, admin: Person) -> None:
    token, seen = admin.opened.refresh_token, set()
    for _ in range(4):
        seen.add(token)
        answer = refresh(client, token).get_json()
        assert (
            client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {answer['access_token']}"}).status_code
            == 200
        )
        token = answer["refresh_token"]
        assert token not in seen


def test_only_hashes_are_stored(client: FlaskClient, admin: Person) -> None:
    token = refresh(client, admin.opened.refresh_token).get_json()["refresh_token"]
    stored = str(factories.rows("SELECT * FROM iiot.session WHERE user_id = %s", admin.user.user_id))
    assert token[26:] not in stored
    assert hashlib.sha256(token.encode()).hexdigest() in stored


def test_the_same_client_gets_the_same_successor_for_twenty_seconds(client: FlaskClient, admin: Person) -> None:
    first = admin.opened.refresh_token
    successor = refresh(client, first).get_json()["refresh_token"]
    assert refresh(client, first).get_json()["refresh_token"] == successor
    age(admin, "rotated_at", timedelta(seconds=21))
    check_problem(refresh(client, first), 401, "unauthorized")
    check_problem(refresh(client, successor), 401, "unauthorized")


def test_another_client_with_a_used_token_ends_the_session(client: FlaskClient, admin: Person) -> None:
    first = admin.opened.refresh_token
    successor = refresh(client, first).get_json()["refresh_token"]
    assert admin.get("/auth/me").status_code == 200
    check_problem(refresh(client, first, address="192.0.2.9"), 401, "unauthorized")
    check_problem(refresh(client, successor), 401, "unauthorized")
    check_problem(admin.get("/auth/me"), 401, "unauthorized")


def test_a_token_from_two_rotations_ago_ends_the_session(client: FlaskClient, admin: Person) -> None:
    first = admin.opened.refresh_token
    second = refresh(client, first).get_json()["refresh_token"]
    third = refresh(client, second).get_json()["refresh_token"]
    assert refresh(client, first).status_code == 401
    assert refresh(client, third).status_code == 401


def test_fifty_at_once_get_one_successor(admin: Person) -> None:
    def ask(_: int) -> TestResponse:
        client = admin.client.application.test_client(use_cookies=False)
        return refresh(client, admin.opened.refresh_token)

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(ask, range(50)))
    good = {answer.get_json()["refresh_token"] for answer in answers if answer.status_code == 200}
    assert len(good) == 1
    # Whoever found every connection busy is told to come again, never given another successor.
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert refresh(admin.client, good.pop(), address="127.0.0.1").status_code == 200


def test_sessions_end_by_age_and_by_idleness(client: FlaskClient, person: Make) -> None:
    old = person()
    age(old, "expires_at", timedelta(days=31))
    assert refresh(client, old.opened.refresh_token).status_code == 401
    idle = person()
    age(idle, "last_used_at", timedelta(days=7, minutes=1))
    assert refresh(client, idle.opened.refresh_token).status_code == 401
    assert idle.get("/auth/me").status_code == 401


def test_forged_and_foreign_tokens_are_refused(client: FlaskClient, person: Make) -> None:
    one, other = person(), person()
    for forged in ("", "x", "a" * 69, "a" * 200, one.token, one.opened.refresh_token[:26] + "é" * 43):
        assert refresh(client, forged).status_code == 401, forged
    mixed = other.opened.refresh_token[:26] + auth.next_refresh_secret("guess")
    assert refresh(client, mixed).status_code == 401
    assert refresh(client, person().opened.refresh_token).status_code == 200
