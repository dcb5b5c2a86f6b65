"""One's own sessions, and going on in another of one's tenants."""

from datetime import timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient

from iiot import tenancy
from iiot.errors import Unauthorized
from iiot.services import sessions, users
from tests import factories
from tests.api.conftest import PASSWORD, Make, Person, check_problem
from tests.mails import portal_with_mail


@pytest.fixture
def member(person: Make, password_hash: str) -> Person:
    """Somebody whose password is PASSWORD."""
    return person(password_hash=password_hash)


def login(client: FlaskClient, email: str, agent: str = "a telephone") -> dict[str, str]:
    body = {"email": email, "password": PASSWORD}
    answer = client.post("/api/v1/auth/login", json=body, headers={"User-Agent": agent})
    assert answer.status_code == 200
    tokens: dict[str, str] = answer.get_json()
    return tokens


def bearer(tokens: dict[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


def works(client: FlaskClient, tokens: dict[str, str]) -> bool:
    return client.get("/api/v1/auth/me", headers=bearer(tokens)).status_code == 200


def add_to(tenant: factories.TenantRow, one: Person, role: str = "viewer") -> None:
    with tenancy.work(tenancy.system("sign-in")) as db:
        users.add_member(db, tenant.tenant_id, one.user.user_id, role)


def test_the_list_says_where_one_is_signed_in(client: FlaskClient, member: Person, address: str) -> None:
    login(client, member.user.email)
    old = login(client, member.user.email, "an old one")
    factories.rows("UPDATE iiot.session SET expires_at = now() WHERE user_agent = 'an old one'")
    answer = member.get("/auth/sessions").get_json()
    assert answer["total"] == len(answer["items"]) == 2
    by_agent = {each["user_agent"]: each for each in answer["items"]}
    assert by_agent["a telephone"]["address"] == address
    assert [each["id"] for each in answer["items"] if each["current"]] == [member.opened.principal.session_uid]
    assert by_agent.keys() == {"", "a telephone"}
    assert set(answer["items"][0]) == {
        "id", "created_at", "last_used_at", "expires_at", "address", "user_agent", "current",
    }  # fmt: skip
    assert not works(client, old)
    assert member.opened.refresh_token not in str(answer)


def test_one_session_is_ended_at_once(client: FlaskClient, member: Person, person: Make) -> None:
    tokens = login(client, member.user.email)
    assert works(client, tokens)
    listed = member.get("/auth/sessions").get_json()["items"]
    uid = next(each["id"] for each in listed if not each["current"])
    foreign = person().delete(f"/auth/sessions/{uid}", headers={"X-Request-ID": "same"})
    check_problem(foreign, 404, "not-found")
    assert foreign.data == member.delete(f"/auth/sessions/{'a' * 26}", headers={"X-Request-ID": "same"}).data
    assert works(client, tokens)
    assert member.delete(f"/auth/sessions/{uid}").status_code == 204
    assert not works(client, tokens)
    refreshed = client.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    check_problem(refreshed, 401, "unauthorized")
    check_problem(member.delete(f"/auth/sessions/{uid}"), 404, "not-found")
    assert member.get("/auth/me").status_code == 200


def test_all_others_are_ended_and_this_one_goes_on(client: FlaskClient, member: Person, person: Make) -> None:
    others, stranger = [login(client, member.user.email) for _ in range(2)], person()
    assert member.post("/auth/sessions/end-others").get_json() == {"ended": 2}
    assert not [each for each in others if works(client, each)]
    assert member.get("/auth/me").status_code == 200
    assert stranger.get("/auth/me").status_code == 200
    refreshed = client.post("/api/v1/auth/refresh", json={"refresh_token": member.opened.refresh_token})
    assert refreshed.status_code == 200
    assert member.post("/auth/sessions/end-others").get_json() == {"ended": 0}


def test_switching_makes_tokens_for_the_other_tenant_and_ends_those_before(client: FlaskClient, member: Person) -> None:
    tokens, second = login(client, member.user.email), factories.make_tenant()
    add_to(second, member)
    made = client.post("/api/v1/auth/switch", json={"tenant": second.uid}, headers=bearer(tokens))
    assert made.status_code == 200
    fresh = made.get_json()
    me = client.get("/api/v1/auth/me", headers=bearer(fresh)).get_json()
    assert (me["tenant"]["id"], me["role"]) == (second.uid, "viewer")
    assert not works(client, tokens)
    check_problem(client.post("/api/v1/devices", json={"name": "x"}, headers=bearer(fresh)), 403, "forbidden")
    again = client.post("/api/v1/auth/refresh", json={"refresh_token": fresh["refresh_token"]})
    assert again.status_code == 200
    assert client.get("/api/v1/auth/me", headers=bearer(again.get_json())).get_json()["tenant"]["id"] == second.uid
    acts = factories.rows("SELECT action, after::text FROM iiot.audit WHERE actor_uid = %s", member.user.uid)
    assert ("session.switch", f'{{"tenant": "{second.uid}"}}') in acts


def test_nobody_switches_to_a_tenant_of_others(member: Person) -> None:
    foreign = factories.make_tenant()
    headers = {"X-Request-ID": "same"}
    refused = member.post("/auth/switch", json={"tenant": foreign.uid}, headers=headers)
    check_problem(refused, 422, "invalid")
    assert refused.data == member.post("/auth/switch", json={"tenant": "a" * 26}, headers=headers).data
    assert member.get("/auth/me").status_code == 200


def test_switching_to_a_suspended_tenant_leaves_reading(client: FlaskClient, member: Person) -> None:
    second = factories.make_tenant(status="suspended")
    add_to(second, member, "admin")
    tokens = member.post("/auth/switch", json={"tenant": second.uid}).get_json()
    assert client.get("/api/v1/devices", headers=bearer(tokens)).status_code == 200
    refused = client.post("/api/v1/devices", json={"name": "x"}, headers=bearer(tokens))
    check_problem(refused, 403, "tenant-suspended")


def test_an_ended_session_cannot_switch(member: Person) -> None:
    factories.rows("UPDATE iiot.session SET revoked_at = now() WHERE user_id = %s", member.user.user_id)
    with pytest.raises(Unauthorized), tenancy.work(tenancy.system("sign-in")) as db:
        sessions.switch(db, member.opened.principal, member.tenant.uid, sessions.Client())


def test_the_person_is_told_by_mail_when_a_token_was_copied(client: FlaskClient, member: Person) -> None:
    tokens = login(client, member.user.email)

    def refresh() -> int:
        return client.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]}).status_code

    assert refresh() == 200
    factories.rows("UPDATE iiot.session SET rotated_at = rotated_at - %s", timedelta(minutes=1))
    with portal_with_mail() as mails:
        assert refresh() == 401
        assert "token was copied" in mails.wait(member.user.email)


def test_a_sign_in_is_noted_with_its_address(client: FlaskClient, member: Person, address: str) -> None:
    login(client, member.user.email)
    client.post("/api/v1/auth/login", json={"email": "ghost@example.com", "password": "x"})
    statement = "SELECT address FROM iiot.audit WHERE action = %s AND (actor_uid = %s OR after->>'email' = %s)"
    assert (address,) in factories.rows(statement, "session.sign-in", member.user.uid, "")
    assert factories.rows(statement, "session.refused", "", "ghost@example.com") == [(address,)]


def test_ones_own_name(member: Person) -> None:
    assert member.patch("/auth/me", json={"name": " Mia Kern "}).get_json()["user"]["name"] == "Mia Kern"
    check_problem(member.patch("/auth/me", json={"name": "x" * 201}), 422, "invalid")
    check_problem(member.patch("/auth/me", json={"name": "a", "is_platform_admin": True}), 422, "invalid")


# --- the pages -----------------------------------------------------------------------------------------------------------------------------------


def csrf(page: str) -> str:
    return page.partition('name="csrf_token" value="')[2].partition('"')[0]


def test_the_account_page(app: Flask, client: FlaskClient, member: Person, address: str) -> None:
    tokens = login(client, member.user.email, "<b>odd</b> program")
    second = factories.make_tenant("Second <i>works</i>")
    add_to(second, member)
    browser = app.test_client()
    browser.environ_base["REMOTE_ADDR"] = address
    browser.post("/login", data={"email": member.user.email, "password": PASSWORD})
    page = browser.get("/account").get_data(as_text=True)
    assert "&lt;b&gt;odd&lt;/b&gt; program" in page
    fields = {"csrf_token": csrf(page)}
    assert browser.post("/account", data=fields | {"name": "Mia"}).headers["Location"] == "/account?done=name"
    assert "Your name was saved." in browser.get("/account?done=name").get_data(as_text=True)
    assert browser.post("/account", data=fields | {"name": "x" * 201}).status_code == 422
    assert browser.post("/account", data={"name": "Mia"}).status_code == 403
    uid = next(each["id"] for each in member.get("/auth/sessions").get_json()["items"] if "odd" in each["user_agent"])
    assert browser.post(f"/account/sessions/{uid}/end", data=fields).status_code == 303
    assert not works(client, tokens)
    assert browser.post(f"/account/sessions/{uid}/end", data=fields).status_code == 404
    assert browser.post("/account/sessions/end-others", data=fields).status_code == 303
    assert member.get("/auth/me").status_code == 401
    assert "Second &lt;i&gt;works&lt;/i&gt;" in browser.get("/account").get_data(as_text=True)
    assert browser.post("/switch", data=fields | {"tenant": second.uid}).headers["Location"] == "/"
    assert member.tenant.name in browser.get("/account").get_data(as_text=True), "the way back"
    assert browser.post("/switch", data=fields | {"tenant": "a" * 26}).status_code == 422
