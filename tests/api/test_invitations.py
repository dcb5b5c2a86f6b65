"""Invitations: sent, sent again, revoked and followed; one link works once, for one address, and no tenant gets more people than its quota."""

import threading
from typing import Any

import pytest
from flask import Flask

from iiot import auth, tenancy
from iiot.errors import Problem
from iiot.services import invitations, sessions
from tests import factories
from tests.api.conftest import PASSWORD, Make, Person, check_problem
from tests.api.test_mfa import SetUp, forget_limits, set_up  # noqa: F401 - a fixture
from tests.api.test_roles import give, make_role
from tests.api.test_sites import make_site
from tests.mails import link_in, portal_with_mail

NOWHERE = sessions.Client()


def invite(admin: Person, email: str, role: str = "viewer", **more: Any) -> dict[str, Any]:
    """The answer to an invitation."""
    body = {"email": email, "role": role, **more}
    answer = admin.post(f"/tenants/{admin.tenant.uid}/invitations", json=body)
    assert answer.status_code == 201, answer.get_data(as_text=True)
    made: dict[str, Any] = answer.get_json()
    return made


def token_of(made: dict[str, Any]) -> str:
    """The token in the link of an answer."""
    token: str = made["link"].partition("?token=")[2]
    return token


def accept(one: Person, token: str, **body: Any) -> Any:
    """Follow an invitation as a stranger."""
    return one.client.post("/api/v1/auth/invitations/accept", json={"token": token, **body})


def test_a_newcomer_gets_an_account_and_is_in(admin: Person) -> None:
    made = invite(admin, "New.Person@Example.com", "operator")
    assert made["email"] == "new.person@example.com"
    assert (made["role"], made["role_name"], made["has_expired"]) == ("operator", "operator", False)
    listed = admin.get(f"/tenants/{admin.tenant.uid}/invitations").get_json()
    assert listed["total"] == 1
    assert "link" not in listed["items"][0]
    assert token_of(made) not in str(listed)
    refused = check_problem(accept(admin, token_of(made), password="short"), 422, "invalid")
    assert refused["errors"][0]["loc"] == ["body", "password"]
    answer = accept(admin, token_of(made), password="a violet under a mossy stone", name="New Person")
    assert answer.status_code == 200, answer.get_data(as_text=True)
    headers = {"Authorization": f"Bearer {answer.get_json()['access_token']}"}
    me = admin.client.get("/api/v1/auth/me", headers=headers).get_json()
    assert (me["tenant"]["id"], me["role"], me["user"]["name"]) == (admin.tenant.uid, "operator", "New Person")
    assert admin.get(f"/tenants/{admin.tenant.uid}/invitations").get_json()["total"] == 0
    check_problem(accept(admin, token_of(made), password="a violet under a mossy stone"), 404, "invitation-invalid")


def test_who_has_an_account_proves_it_and_gets_the_membership(person: Make, admin: Person, password_hash: str) -> None:
    other = person("admin", password_hash=password_hash)
    token = token_of(invite(admin, other.user.email.upper()))
    check_problem(accept(admin, token, password="not the password at all"), 401, "unauthorized")
    answer = accept(admin, token, password=PASSWORD)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    headers = {"Authorization": f"Bearer {answer.get_json()['access_token']}"}
    me = admin.client.get("/api/v1/auth/me", headers=headers).get_json()
    assert (me["tenant"]["id"], me["role"], me["user"]["id"]) == (admin.tenant.uid, "viewer", other.user.uid)
    assert len(me["memberships"]) == 2


def test_wrong_used_revoked_and_expired_links_answer_alike(admin: Person) -> None:
    path = f"/tenants/{admin.tenant.uid}/invitations"
    revoked, expired, resent = (invite(admin, f"{word}@example.com") for word in ("revoked", "expired", "resent"))
    assert admin.delete(f"{path}/{revoked['id']}").status_code == 204
    check_problem(admin.delete(f"{path}/{revoked['id']}"), 404, "not-found")
    factories.rows("UPDATE iiot.invitation SET expires_at = now() WHERE uid = %s", expired["id"])
    again = admin.post(f"{path}/{resent['id']}/resend").get_json()
    assert token_of(again) != token_of(resent)
    tokens = [token_of(revoked), token_of(expired), token_of(resent), "x" * 43]
    answers = [accept(admin, token, password="seven wooden ladders") for token in tokens]
    for answer in answers:
        problem = check_problem(answer, 404, "invitation-invalid")
        assert problem["detail"] == answers[0].get_json()["detail"]
    assert accept(admin, token_of(again), password="a violet under a mossy stone").status_code == 200


def test_an_expired_invitation_is_sent_again_or_replaced(admin: Person) -> None:
    path = f"/tenants/{admin.tenant.uid}/invitations"
    made = invite(admin, "late@example.com")
    check_problem(admin.post(path, json={"email": "LATE@example.com"}), 409, "already-invited")
    factories.rows("UPDATE iiot.invitation SET expires_at = now() WHERE uid = %s", made["id"])
    assert admin.get(path).get_json()["items"][0]["has_expired"] is True
    assert admin.post(f"{path}/{made['id']}/resend").get_json()["has_expired"] is False
    factories.rows("UPDATE iiot.invitation SET expires_at = now() WHERE uid = %s", made["id"])
    invite(admin, "late@example.com")
    assert admin.get(path).get_json()["total"] == 1


def test_members_are_not_invited_again(person: Make, admin: Person) -> None:
    other = person("viewer", admin.tenant)
    refused = admin.post(f"/tenants/{admin.tenant.uid}/invitations", json={"email": other.user.email.upper()})
    check_problem(refused, 409, "already-member")


def test_nobody_invites_or_sends_again_with_more_than_they_hold(person: Make, admin: Person) -> None:
    path = f"/tenants/{admin.tenant.uid}/invitations"
    deputy = person("viewer", admin.tenant)
    give(admin, deputy, make_role(admin, "member:read", "member:write", "device:read", name="Deputies"))
    check_problem(deputy.post(path, json={"email": "a@example.com", "role": "admin"}), 403, "more-than-you-hold")
    made = invite(admin, "a@example.com", "admin")
    check_problem(deputy.post(f"{path}/{made['id']}/resend"), 403, "more-than-you-hold")
    viewer = person("viewer", admin.tenant)
    check_problem(viewer.post(path, json={"email": "b@example.com"}), 403, "forbidden")


def test_open_invitations_count_towards_the_quota(person: Make) -> None:
    admin = person(tenant=factories.make_tenant(users=2))
    path = f"/tenants/{admin.tenant.uid}/invitations"
    made = invite(admin, "one@example.com")
    refused = check_problem(admin.post(path, json={"email": "two@example.com"}), 403, "quota-exceeded")
    assert (refused["quota"], refused["limit"], refused["used"]) == ("users", 2, 2)
    admin.delete(f"{path}/{made['id']}")
    invite(admin, "two@example.com")


def test_an_invitation_keeps_its_limits(person: Make, admin: Person) -> None:
    site, gone = make_site(admin), make_site(admin, "Hall B")
    other = person("viewer")
    limits = {"sites": [site, gone], "tags": ["hot"], "devices": []}
    made = invite(admin, other.user.email, limited_to=limits)
    assert made["limited_to"] == limits
    refused = admin.post(
        f"/tenants/{admin.tenant.uid}/invitations",
        json={"email": "x@example.com", "role": "admin", "limited_to": limits},
    )
    check_problem(refused, 422, "invalid")
    admin.delete(f"/sites/{gone}")
    invitations.accept_as(token_of(made), other.opened.principal, NOWHERE)
    member = admin.get(f"/tenants/{admin.tenant.uid}/users?q={other.user.email}").get_json()["items"][0]
    assert member["limited_to"] == limits | {"sites": [site]}


def test_a_link_works_for_its_address_alone(person: Make, admin: Person) -> None:
    token, thief = token_of(invite(admin, "somebody@example.com")), person("viewer")
    with pytest.raises(Problem) as refused:
        invitations.accept_as(token, thief.opened.principal, NOWHERE)
    assert refused.value.code == "invitation-for-another"


def test_a_suspended_tenant_takes_nobody_in(person: Make, admin: Person) -> None:
    other = person("viewer")
    token = token_of(invite(admin, other.user.email))
    factories.rows("UPDATE iiot.tenant SET status = 'suspended' WHERE uid = %s", admin.tenant.uid)
    with pytest.raises(Problem) as refused:
        invitations.accept_as(token, other.opened.principal, NOWHERE)
    assert refused.value.code == "tenant-suspended"


def test_fifty_people_who_accept_at_once_do_not_pass_the_quota(person: Make) -> None:
    admin = person(tenant=factories.make_tenant(users=100))
    people = [person("viewer") for _ in range(50)]
    with tenancy.work(tenancy.of(admin.tenant)) as db:
        links = [
            invitations.create(db, admin.opened.principal, each.user.email, "viewer").link or "" for each in people
        ]
    factories.rows("UPDATE iiot.quota SET users = 8 WHERE tenant_id = %s", admin.tenant.tenant_id)
    start = threading.Barrier(len(people))
    ends: list[str] = []

    def follow(one: Person, link: str) -> None:
        start.wait()
        try:
            invitations.accept_as(link.partition("=")[2], one.opened.principal, NOWHERE)
            ends.append("in")
        except Problem as problem:
            ends.append(problem.code)

    threads = [threading.Thread(target=follow, args=pair) for pair in zip(people, links, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["in"] * 7 + ["quota-exceeded"] * 43
    count = "SELECT count(*) FROM iiot.membership WHERE tenant_id = %s"
    assert factories.rows(count, admin.tenant.tenant_id) == [(8,)]


def test_one_link_lets_one_in_however_often_it_is_followed_at_once(person: Make, admin: Person) -> None:
    other = person("viewer")
    token = token_of(invite(admin, other.user.email))
    start = threading.Barrier(4)
    ends: list[str] = []

    def follow() -> None:
        start.wait()
        try:
            invitations.accept_as(token, other.opened.principal, NOWHERE)
            ends.append("in")
        except Problem as problem:
            ends.append(problem.code)

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["in"] + ["invitation-invalid"] * 3


def test_following_links_is_limited_per_address(admin: Person) -> None:
    answers = [accept(admin, "x" * 43, password="x").status_code for _ in range(21)]
    assert answers == [404] * 20 + [429]


def test_the_token_is_nowhere_in_the_database_or_the_trail(admin: Person) -> None:
    made = invite(admin, "quiet@example.com")
    token = token_of(made)
    stored = factories.rows("SELECT token_hash FROM iiot.invitation WHERE uid = %s", made["id"])
    assert stored == [(auth.refresh_token_hash(token),)]
    trail = factories.rows("SELECT action, after::text FROM iiot.audit WHERE tenant_id = %s", admin.tenant.tenant_id)
    assert "invitation.create" in {each[0] for each in trail}
    assert token not in str(trail)


def test_with_mail_the_link_is_in_the_mail_and_nowhere_else(admin: Person) -> None:
    with portal_with_mail() as box:
        made = invite(admin, "by.mail@example.com")
        assert made["link"] is None
        text = box.wait("by.mail@example.com")
        assert admin.user.email in text
        assert admin.tenant.name in text
        first = link_in(text).partition("?token=")[2]
        again = admin.post(f"/tenants/{admin.tenant.uid}/invitations/{made['id']}/resend").get_json()
        assert again["link"] is None
        second = link_in(box.wait("by.mail@example.com", 2)).partition("?token=")[2]
    check_problem(accept(admin, first, password="a violet under a mossy stone"), 404, "invitation-invalid")
    assert accept(admin, second, password="a violet under a mossy stone").status_code == 200


def test_a_second_factor_is_asked_for(app: Flask, admin: Person, set_up: SetUp) -> None:  # noqa: F811
    factor = set_up()
    token = token_of(invite(admin, factor.person.user.email))
    check_problem(accept(admin, token, password=PASSWORD), 401, "mfa-required")
    check_problem(accept(admin, token, password=PASSWORD, code="000000"), 401, "mfa-wrong-code")
    assert accept(admin, token, password=PASSWORD, code=factor.code()).status_code == 200
    other = token_of(invite(factor.person, "x@example.com"))
    assert accept(admin, other, password=PASSWORD + " for one").status_code == 200
    forget_limits(app)


def test_the_pages_of_accepting(app: Flask, person: Make, admin: Person, password_hash: str, address: str) -> None:
    browser = app.test_client()
    browser.environ_base["REMOTE_ADDR"] = address
    page = "/invitations/accept"
    assert browser.get(page + "?token=wrong").status_code == 404
    assert browser.post(page, data={"token": "wrong"}).status_code == 404
    other = person("viewer", password_hash=password_hash)
    token = token_of(invite(admin, other.user.email))
    text = browser.get(f"{page}?token={token}").get_data(as_text=True)
    assert "Your password" in text
    assert "Choose a password" not in text
    assert browser.post(page, data={"token": token, "password": "wrong"}).status_code == 401
    joined = browser.post(page, data={"token": token, "password": PASSWORD})
    assert (joined.status_code, joined.headers["Location"]) == (303, "/")
    third = person()
    token = token_of(invite(third, other.user.email))
    assert "Join" in browser.get(f"{page}?token={token}").get_data(as_text=True)
    assert browser.post(page, data={"token": token}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert browser.post(page, data={"token": token}).status_code == 303
    foreign = token_of(invite(admin, "somebody.else@example.com"))
    assert "The invitation is for somebody.else" in browser.get(f"{page}?token={foreign}").get_data(as_text=True)
    stranger = app.test_client()
    poor = stranger.post(page, data={"token": foreign, "name": "A\x00B", "password": "a violet under a mossy stone"})
    assert poor.status_code == 422
    assert stranger.post(page, data={"token": foreign, "password": "a violet under a mossy stone"}).status_code == 303
