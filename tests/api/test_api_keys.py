"""API keys: shown once, never more than their maker, dead with their owner, and one answer for every key that does not work."""

from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from iiot import cache, clock, tenancy
from iiot.clock import rfc3339
from iiot.services import api_keys
from tests import factories
from tests.api.conftest import Make, Person, check_problem, make_thing


def make_key(person: Person, **body: Any) -> dict[str, Any]:
    answer = person.post("/api-keys", json={"name": "nightly", **body})
    assert answer.status_code == 201, answer.get_data(as_text=True)
    found: dict[str, Any] = answer.get_json()
    return found


def call(client: FlaskClient, key: str, method: str, path: str, **options: Any) -> TestResponse:
    return client.open(f"/api/v1{path}", method=method, headers={"Authorization": f"Bearer {key}"}, **options)


def test_a_key_is_shown_once_and_only_its_hash_is_stored(admin: Person) -> None:
    made = make_key(admin)
    key = made["key"]
    assert key.startswith(made["prefix"])
    assert len(key) == 4 + 8 + 43
    assert made["scopes"] is None
    assert made["owner"] == admin.user.email
    listed = admin.get("/api-keys").get_json()
    assert [each["id"] for each in listed["items"]] == [made["id"]]
    assert key not in str(listed)
    stored = str(factories.rows("SELECT * FROM iiot.api_key k WHERE uid = %s", made["id"]))
    assert key not in stored
    assert key[12:] not in stored
    trail = str(factories.rows("SELECT * FROM iiot.audit WHERE tenant_id = %s", admin.tenant.tenant_id))
    assert "api-key.create" in trail
    assert key[12:] not in trail


def test_a_key_acts_as_its_member_and_says_when_it_was_used(admin: Person) -> None:
    made = make_key(admin)
    assert call(admin.client, made["key"], "GET", "/devices").status_code == 200
    [shown] = admin.get("/api-keys?mine=true").get_json()["items"]
    assert shown["last_used_address"] == admin.client.environ_base["REMOTE_ADDR"]
    assert shown["last_used_at"] is not None
    created = call(admin.client, made["key"], "POST", "/devices", json={"name": "by key"})
    assert created.status_code == 201
    kind, label = factories.rows(
        "SELECT actor_kind, actor_label FROM iiot.audit WHERE tenant_id = %s AND action = 'device.create'",
        admin.tenant.tenant_id,
    )[0]
    assert (kind, label) == ("user", f"{admin.user.email} ({made['prefix']})")


def test_the_last_use_is_written_at_most_once_a_minute(admin: Person) -> None:
    made = make_key(admin)
    for _ in range(3):
        call(admin.client, made["key"], "GET", "/devices")
        cache.forget_everywhere()
    written = factories.rows("SELECT last_used_at, xmin::text FROM iiot.api_key WHERE uid = %s", made["id"])
    call(admin.client, made["key"], "GET", "/devices")
    assert factories.rows("SELECT last_used_at, xmin::text FROM iiot.api_key WHERE uid = %s", made["id"]) == written
    old = clock.now() - timedelta(minutes=2)
    factories.rows("UPDATE iiot.api_key SET last_used_at = %s WHERE uid = %s", old, made["id"])
    cache.forget_everywhere()
    call(admin.client, made["key"], "GET", "/devices")
    [(seen,)] = factories.rows("SELECT last_used_at FROM iiot.api_key WHERE uid = %s", made["id"])
    assert seen > old


def test_scopes_narrow_what_a_key_may_do(admin: Person) -> None:
    key = make_key(admin, scopes=["device:read"])["key"]
    assert call(admin.client, key, "GET", "/devices").status_code == 200
    refused = call(admin.client, key, "POST", "/devices", json={"name": "x"})
    assert "device:write" in check_problem(refused, 403, "forbidden")["detail"]
    check_problem(call(admin.client, key, "GET", "/api-keys"), 403, "forbidden")
    check_problem(call(admin.client, key, "POST", "/api-keys", json={"name": "x"}), 403, "forbidden")


def test_nobody_gives_a_key_more_than_they_hold(person: Make) -> None:
    viewer = person("viewer")
    problem = check_problem(
        viewer.post("/api-keys", json={"name": "x", "scopes": ["device:write"]}), 403, "more-than-you-hold"
    )
    assert "device:write" in problem["detail"]
    assert make_key(viewer, scopes=["device:read"])["scopes"] == ["device:read"]
    key = make_key(viewer)["key"]
    check_problem(call(viewer.client, key, "POST", "/devices", json={"name": "x"}), 403, "forbidden")


def test_a_key_made_by_a_key_is_as_narrow_as_that_one(admin: Person) -> None:
    narrow = make_key(admin, scopes=["api-key:write", "device:read"])["key"]
    made = call(admin.client, narrow, "POST", "/api-keys", json={"name": "child"})
    assert made.get_json()["scopes"] == ["api-key:write", "device:read"]
    wider = call(admin.client, narrow, "POST", "/api-keys", json={"name": "child", "scopes": ["device:write"]})
    check_problem(wider, 403, "more-than-you-hold")


def test_a_demoted_member_has_weaker_keys_and_a_removed_one_has_none(person: Make) -> None:
    boss = person()
    engineer = person("engineer", boss.tenant)
    key = make_key(engineer)["key"]
    assert call(boss.client, key, "POST", "/devices", json={"name": "x"}).status_code == 201
    factories.rows("UPDATE iiot.membership SET role = 'viewer' WHERE user_id = %s", engineer.user.user_id)
    cache.forget_everywhere()
    check_problem(call(boss.client, key, "POST", "/devices", json={"name": "y"}), 403, "forbidden")
    factories.rows("DELETE FROM iiot.membership WHERE user_id = %s", engineer.user.user_id)
    cache.forget_everywhere()
    check_problem(call(boss.client, key, "GET", "/devices"), 401, "unauthorized")


def test_every_key_that_does_not_work_gets_the_same_answer(person: Make) -> None:
    boss = person()
    other = person("viewer", boss.tenant)
    expired, revoked, orphan = make_key(boss), make_key(boss), make_key(other)
    factories.rows("UPDATE iiot.api_key SET expires_at = now() - interval '1 s' WHERE uid = %s", expired["id"])
    factories.rows("UPDATE iiot.user_account SET status = 'disabled' WHERE id = %s", other.user.user_id)
    assert boss.delete(f"/api-keys/{revoked['id']}").status_code == 204
    keys = [expired["key"], revoked["key"], orphan["key"], api_keys.new_key(), "iip_", "iip_short", "iip_" + "é" * 51]
    answers = []
    for key in keys:
        answer = boss.client.get("/api/v1/devices", headers={"Authorization": f"Bearer {key}", "X-Request-ID": "same"})
        answers.append((answer.status_code, answer.data, dict(answer.headers)))
    assert answers[0][0] == 401
    assert all(answer == answers[0] for answer in answers)
    assert b"expired or was revoked" in answers[0][1]


def test_a_revoked_key_stops_at_once_though_it_was_just_used(admin: Person) -> None:
    made = make_key(admin)
    assert call(admin.client, made["key"], "GET", "/devices").status_code == 200
    assert admin.delete(f"/api-keys/{made['id']}").status_code == 204
    check_problem(call(admin.client, made["key"], "GET", "/devices"), 401, "unauthorized")
    assert admin.get("/api-keys").get_json()["total"] == 0
    check_problem(admin.delete(f"/api-keys/{made['id']}"), 404, "not-found")


def test_a_remembered_key_ends_when_it_expires(admin: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = clock.now() + timedelta(hours=1)
    made = make_key(admin, expires_at=rfc3339(moment))
    assert call(admin.client, made["key"], "GET", "/devices").status_code == 200
    monkeypatch.setattr("iiot.web.identity.time.time", lambda: moment.timestamp() + 1)
    monkeypatch.setattr(clock, "now", lambda: moment + timedelta(seconds=1))
    check_problem(call(admin.client, made["key"], "GET", "/devices"), 401, "unauthorized")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": " \n "},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["device:everything"]},
        {"name": "x", "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "x", "expires_at": "2099-01-01T00:00:00"},
        {"name": "x", "user_id": 1},
    ],
)
def test_bad_wishes_are_refused_with_their_place(admin: Person, body: dict[str, Any]) -> None:
    problem = check_problem(admin.post("/api-keys", json=body), 422, "invalid")
    assert problem["errors"][0]["loc"][0] == "body"
    assert problem["errors"][0]["msg"]


def test_keys_cannot_do_what_belongs_to_a_person(app: Flask, admin: Person) -> None:
    key = make_key(admin)["key"]
    tried = 0
    for operation in app.extensions["iiot.operations"]:
        if operation.auth == "user" and "permission" not in operation.options and not operation.options.get("keys"):
            path = operation.rule.removeprefix("/api/v1").replace("<", "").replace(">", "")
            check_problem(call(admin.client, key, operation.method, path, json={}), 403, "not-for-keys")
            tried += 1
    assert tried >= 3
    assert admin.get("/auth/me").status_code == 200


def test_members_see_and_end_their_own_keys_and_admins_all(person: Make) -> None:
    boss = person()
    viewer = person("viewer", boss.tenant)
    own, foreign = make_key(viewer, name="mine"), make_key(boss, name="boss's")
    assert [each["name"] for each in viewer.get("/api-keys").get_json()["items"]] == ["mine"]
    assert boss.get("/api-keys?sort=name").get_json()["total"] == 2
    assert [each["name"] for each in boss.get("/api-keys?mine=true").get_json()["items"]] == ["boss's"]
    check_problem(viewer.delete(f"/api-keys/{foreign['id']}"), 404, "not-found")
    assert boss.delete(f"/api-keys/{own['id']}").status_code == 204


def test_keys_of_another_tenant_are_not_there(person: Make) -> None:
    owner, stranger = person(), person()
    made = make_key(owner)
    assert stranger.get("/api-keys").get_json()["items"] == []
    answers = [stranger.delete(f"/api-keys/{uid}", headers={"X-Request-ID": "same"}) for uid in (made["id"], "a" * 26)]
    assert answers[0].status_code == 404
    assert answers[0].data == answers[1].data
    assert call(owner.client, made["key"], "GET", f"/tenants/{owner.tenant.uid}").status_code == 200
    refused = call(owner.client, made["key"], "GET", f"/tenants/{stranger.tenant.uid}")
    check_problem(refused, 404, "not-found")


def test_a_key_lists_its_own_tenant_alone_and_only_with_that_scope(admin: Person) -> None:
    other = factories.make_tenant()
    factories.rows(
        "INSERT INTO iiot.membership (tenant_id, user_id, role) VALUES (%s, %s, 'admin')",
        other.tenant_id,
        admin.user.user_id,
    )
    assert admin.get("/tenants").get_json()["total"] == 2
    found = call(admin.client, make_key(admin)["key"], "GET", "/tenants").get_json()["items"]
    assert [each["id"] for each in found] == [admin.tenant.uid]
    narrow = make_key(admin, scopes=["device:read"])["key"]
    check_problem(call(admin.client, narrow, "GET", "/tenants"), 403, "forbidden")


def test_a_suspended_tenants_keys_read_only(admin: Person) -> None:
    key = make_key(admin)["key"]
    factories.rows("UPDATE iiot.tenant SET status = 'suspended' WHERE id = %s", admin.tenant.tenant_id)
    cache.forget_everywhere()
    assert call(admin.client, key, "GET", "/devices").status_code == 200
    check_problem(call(admin.client, key, "POST", "/devices", json={"name": "x"}), 403, "tenant-suspended")
    check_problem(admin.post("/api-keys", json={"name": "x"}), 403, "tenant-suspended")
    [shown] = admin.get("/api-keys").get_json()["items"]
    check_problem(admin.delete(f"/api-keys/{shown['id']}"), 403, "tenant-suspended")


def test_a_limited_members_key_sees_the_same_devices(person: Make) -> None:
    boss = person()
    visible, hidden = make_thing(boss.tenant, "visible"), make_thing(boss.tenant, "hidden")
    limited = person("engineer", boss.tenant)
    [(device_id,)] = factories.rows("SELECT id FROM iiot.device WHERE uid = %s", visible.uid)
    keys = (boss.tenant.tenant_id, limited.user.user_id)
    factories.rows("UPDATE iiot.membership SET is_limited = true WHERE tenant_id = %s AND user_id = %s", *keys)
    factories.rows(
        "INSERT INTO iiot.membership_limit (tenant_id, user_id, device_id) VALUES (%s, %s, %s)", *keys, device_id
    )
    cache.forget_everywhere()
    key = make_key(limited)["key"]
    assert [each["name"] for each in call(boss.client, key, "GET", "/devices").get_json()["items"]] == ["visible"]
    check_problem(call(boss.client, key, "GET", f"/devices/{hidden.uid}"), 404, "not-found")


def test_a_platform_admins_key_has_no_power_over_the_platform(person: Make) -> None:
    boss = person(is_platform_admin=True)
    other = factories.make_tenant()
    assert boss.get(f"/tenants/{other.uid}").status_code == 200
    key = make_key(boss)["key"]
    check_problem(call(boss.client, key, "GET", f"/tenants/{other.uid}"), 404, "not-found")


def test_guessing_is_slowed_down_per_address(admin: Person, client: FlaskClient) -> None:
    one = api_keys.new_key()
    for _ in range(20):
        check_problem(call(client, one, "GET", "/devices"), 401, "unauthorized")
    answer = call(client, one, "GET", "/devices")
    check_problem(answer, 429, "rate-limited")
    assert int(answer.headers["Retry-After"]) >= 1
    check_problem(call(client, api_keys.new_key(), "GET", "/devices"), 401, "unauthorized")
    for _ in range(99):
        call(client, api_keys.new_key(), "GET", "/devices")
    check_problem(call(client, api_keys.new_key(), "GET", "/devices"), 429, "rate-limited")


def test_a_key_and_a_cookie_together_are_refused(app: Flask, admin: Person) -> None:
    browser = app.test_client()
    browser.set_cookie(app.config["IIOT_COOKIE"], "anything")
    answer = browser.get("/api/v1/devices", headers={"Authorization": f"Bearer {make_key(admin)['key']}"})
    check_problem(answer, 400, "ambiguous-credentials")


def test_lists_are_read_page_by_page(admin: Person) -> None:
    for number in range(3):
        make_key(admin, name=f"key {number}")
    first = admin.get("/api-keys?limit=2&sort=name").get_json()
    rest = admin.get(f"/api-keys?limit=2&sort=name&cursor={first['next_cursor']}").get_json()
    assert [each["name"] for each in first["items"] + rest["items"]] == ["key 0", "key 1", "key 2"]
    assert rest["next_cursor"] is None


_header = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\x00"), max_size=300)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=_header | _header.map(lambda text: f"Bearer {text}") | _header.map(lambda text: f"Bearer iip_{text}"))
@example(header="Bearer")
@example(header="bearer  iip_")
@example(header="Bearer iip_" + "a" * 51 + " ")
def test_no_authorization_header_opens_anything_or_breaks_anything(app: Flask, header: str) -> None:
    cache.forget_everywhere()
    client = app.test_client(use_cookies=False)
    # Each from an address of its own, or the throttle would answer for the parser.
    client.environ_base["REMOTE_ADDR"] = f"fd00::{abs(hash(header)) % 65_536:x}:{abs(hash(header)) >> 16 & 65_535:x}"
    answer = client.get("/api/v1/devices", headers={"Authorization": header})
    assert answer.status_code in (401, 429), header
    assert answer.content_type == "application/problem+json"


@given(text=st.text(max_size=80))
def test_only_a_well_formed_key_is_looked_up(text: str) -> None:
    key = api_keys.new_key()
    assert api_keys._SHAPE.fullmatch(key)
    assert api_keys.visible_part(key) == key[:12]
    assert api_keys._SHAPE.fullmatch(key + text) is None or not text
    assert api_keys._SHAPE.fullmatch(text + key) is None or not text


def test_a_key_never_reaches_the_log() -> None:
    from iiot import logs

    key = api_keys.new_key()
    assert key not in str(logs.scrub({"url": f"https://x/?k={key}", "note": f"tried {key}"}))


def test_the_scope_of_a_stored_key_is_that_of_its_tenant(admin: Person) -> None:
    made = make_key(admin)
    proof = api_keys.authenticate(made["key"], "10.0.0.1")
    assert proof is not None
    assert tenancy.of(proof.principal).tenant_id == admin.tenant.tenant_id
    assert proof.principal.session_uid is None
