"""Tokens of devices: several at once, each revoked by itself, none ever readable again."""

from datetime import timedelta
from typing import Any

import pytest

from iiot import cache, clock
from iiot.clock import rfc3339
from tests import factories
from tests.api.conftest import Make, Person, Thing, check_problem, make_thing


def add(person: Person, uid: str, **body: Any) -> dict[str, Any]:
    answer = person.post(f"/devices/{uid}/credentials", json={"keep_others": True, **body})
    assert answer.status_code == 201, answer.get_data(as_text=True)
    found: dict[str, Any] = answer.get_json()
    return found


def listed(person: Person, uid: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = person.get(f"/devices/{uid}/credentials").get_json()["items"]
    return found


def sends(person: Person, uid: str, token: str) -> int:
    return person.client.post("/api/v1/telemetry", json={"t": 1}, headers=Thing(uid, token).headers).status_code


def test_two_tokens_work_while_one_replaces_the_other(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    new = add(admin, thing.uid, name="new firmware")
    assert new["mqtt_username"] == f"{thing.uid}.2"
    assert new["id"] == thing.uid
    assert [sends(admin, thing.uid, token) for token in (thing.token, new["token"])] == [200, 200]
    first, second = listed(admin, thing.uid)
    assert (first["name"], first["mqtt_username"], first["slot"]) == ("", thing.uid, 1)
    assert (second["id"], second["name"], second["expires_at"]) == (new["credential_id"], "new firmware", None)
    assert first["last_used_at"]
    assert admin.delete(f"/devices/{thing.uid}/credentials/{first['id']}").status_code == 204
    assert [sends(admin, thing.uid, token) for token in (thing.token, new["token"])] == [401, 200]
    # The plain name is free again; the others keep theirs.
    third = add(admin, thing.uid, name="third")
    assert third["mqtt_username"] == thing.uid
    assert [each["mqtt_username"] for each in listed(admin, thing.uid)] == [thing.uid, f"{thing.uid}.2"]


def test_without_a_body_a_new_token_replaces_all(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    second = add(admin, thing.uid)
    renewed = admin.post(f"/devices/{thing.uid}/credentials")
    assert renewed.status_code == 201
    token = renewed.get_json()["token"]
    assert renewed.get_json()["mqtt_username"] == thing.uid
    assert [sends(admin, thing.uid, each) for each in (thing.token, second["token"], token)] == [401, 401, 200]
    assert len(listed(admin, thing.uid)) == 1
    named = admin.post(f"/devices/{thing.uid}/credentials", json={"name": "spare"})
    assert [each["name"] for each in listed(admin, thing.uid)] == ["spare"]
    assert named.get_json()["token"] != token


def test_no_secret_can_be_read_again(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    second = add(admin, thing.uid)
    texts = [admin.get(f"/devices/{thing.uid}{tail}").get_data(as_text=True) for tail in ("", "/credentials")]
    texts.append(str(factories.rows("SELECT * FROM iiot.credential")))
    texts.append(str(factories.rows("SELECT * FROM iiot.audit WHERE tenant_id = %s", admin.tenant.tenant_id)))
    assert not any(token in text for token in (thing.token, second["token"]) for text in texts)
    assert not {"token", "token_hash", "mqtt_hash"} & set(listed(admin, thing.uid)[0])


def test_a_device_has_five_tokens_at_most(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    names = [add(admin, thing.uid)["mqtt_username"] for _ in range(4)]
    assert names == [f"{thing.uid}.{slot}" for slot in (2, 3, 4, 5)]
    refused = admin.post(f"/devices/{thing.uid}/credentials", json={"keep_others": True})
    check_problem(refused, 409, "too-many-credentials")
    last = listed(admin, thing.uid)[2]
    factories.rows("UPDATE iiot.credential SET expires_at = now() - interval '1 s' WHERE uid = %s", last["id"])
    assert listed(admin, thing.uid)[2]["is_expired"]
    assert add(admin, thing.uid)["mqtt_username"] == f"{thing.uid}.3"
    assert len(listed(admin, thing.uid)) == 5


def test_a_token_ends_when_it_was_told_to(admin: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    thing = make_thing(admin.tenant)
    moment = clock.now() + timedelta(hours=1)
    short = add(admin, thing.uid, expires_at=rfc3339(moment))
    assert sends(admin, thing.uid, short["token"]) == 200
    monkeypatch.setattr("iiot.web.identity.time.time", moment.timestamp)
    monkeypatch.setattr(clock, "now", lambda: moment)
    assert sends(admin, thing.uid, short["token"]) == 401


def test_the_last_use_is_written_at_most_once_a_minute(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    assert listed(admin, thing.uid)[0]["last_used_at"] is None
    sends(admin, thing.uid, thing.token)
    first = listed(admin, thing.uid)[0]["last_used_at"]
    cache.forget_everywhere()
    sends(admin, thing.uid, thing.token)
    assert listed(admin, thing.uid)[0]["last_used_at"] == first is not None


@pytest.mark.parametrize(
    "body",
    [
        {"expires_at": "2020-01-01T00:00:00Z"},
        {"expires_at": "2099-01-01T00:00:00"},
        {"name": "x" * 101},
        {"name": "two\nlines"},
        {"slot": 3},
        {"keep_others": None},
        [],
    ],
)
def test_bad_wishes_change_nothing(admin: Person, body: Any) -> None:
    thing = make_thing(admin.tenant)
    check_problem(admin.post(f"/devices/{thing.uid}/credentials", json=body), 422, "invalid")
    assert sends(admin, thing.uid, thing.token) == 200


def test_what_was_done_is_in_the_trail(admin: Person) -> None:
    uid = admin.post("/devices", json={"name": "pump"}).get_json()["id"]
    second = add(admin, uid, name="spare")
    admin.delete(f"/devices/{uid}/credentials/{second['credential_id']}")
    admin.post(f"/devices/{uid}/credentials")
    admin.patch(f"/devices/{uid}", json={"name": "valve", "tags": ["hall-b"]})
    admin.patch(f"/devices/{uid}", json={"name": "valve"})
    admin.delete(f"/devices/{uid}")
    found = factories.rows(
        "SELECT action, before, after, actor_label FROM iiot.audit WHERE object_uid = %s ORDER BY seq", uid
    )
    assert [row[0] for row in found] == [
        "device.create",
        "credential.create",
        "credential.revoke",
        "credential.replace",
        "device.change",
        "device.delete",
    ]
    assert found[4][1:3] == ({"name": "pump", "tags": []}, {"name": "valve", "tags": ["hall-b"]})
    assert {row[3] for row in found} == {admin.user.email}


def test_only_who_may_write_devices_changes_their_tokens(person: Make) -> None:
    boss = person()
    thing = make_thing(boss.tenant)
    viewer = person("viewer", boss.tenant)
    [credential] = listed(viewer, thing.uid)
    check_problem(viewer.post(f"/devices/{thing.uid}/credentials"), 403, "forbidden")
    check_problem(viewer.delete(f"/devices/{thing.uid}/credentials/{credential['id']}"), 403, "forbidden")


def test_a_credential_belongs_to_its_device(person: Make) -> None:
    owner, stranger = person(), person()
    thing, other = make_thing(owner.tenant), make_thing(owner.tenant, "other")
    [credential] = listed(owner, thing.uid)
    for who, device, uid in (
        (owner, other.uid, credential["id"]),
        (owner, thing.uid, "a" * 26),
        (owner, thing.uid, "x"),
        (stranger, thing.uid, credential["id"]),
    ):
        check_problem(who.delete(f"/devices/{device}/credentials/{uid}"), 404, "not-found")
    check_problem(stranger.get(f"/devices/{thing.uid}/credentials"), 404, "not-found")
    assert sends(owner, thing.uid, thing.token) == 200


def test_failures_are_slowed_down_per_device_and_per_address(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    assert [sends(admin, thing.uid, "wrong") for _ in range(21)] == [401] * 20 + [429]
    # Another device behind the same address is not disturbed by one that knocks for ever.
    other = make_thing(admin.tenant, "other")
    assert sends(admin, other.uid, other.token) == 200
    guesses = [sends(admin, f"{number:026}", "wrong") for number in range(101)]
    assert guesses == [401] * 100 + [429]
    cache.forget_everywhere()
    assert sends(admin, other.uid, other.token) == 429
    admin.client.environ_base["REMOTE_ADDR"] = "10.200.0.1"
    assert sends(admin, thing.uid, thing.token) == 200
