"""OSCORE keys over REST: shown once, listed without secrets, revoked; and what the page tells people to run."""

import json

import pytest

from iiot.models import OscoreContext
from iiot.portal import oscore as page
from iiot.services import oscore
from tests import factories
from tests.api.conftest import Make, Person, check_problem, make_thing


def test_a_key_is_shown_once_listed_without_its_secret_and_revoked(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    made = admin.post(f"/devices/{thing.uid}/oscore", json={"name": "new firmware"})
    assert made.status_code == 201
    key = made.get_json()
    assert (key["device_id"], key["name"], key["algorithm"]) == (thing.uid, "new firmware", "AES-CCM-16-64-128")
    assert (len(key["master_secret"]), len(key["sender_id"]), len(key["recipient_id"])) == (32, 14, 14)
    assert key["sender_id"] == key["kid"] != key["recipient_id"]
    assert key["aiocoap"]["secret_hex"] == key["master_secret"]
    assert f'master_secret,hex,"{key["master_secret"]}"' in key["libcoap"].splitlines()
    listed = admin.get(f"/devices/{thing.uid}/oscore")
    assert [each["id"] for each in listed.get_json()["items"]] == [key["id"]]
    assert key["master_secret"] not in listed.get_data(as_text=True)
    assert admin.delete(f"/devices/{thing.uid}/oscore/{key['id']}").status_code == 204
    assert admin.get(f"/devices/{thing.uid}/oscore").get_json()["items"] == []
    check_problem(admin.delete(f"/devices/{thing.uid}/oscore/{key['id']}"), 404, "not-found")
    actions = factories.rows("SELECT action FROM iiot.audit WHERE object_uid = %s ORDER BY seq", thing.uid)
    assert [action for (action,) in actions][-2:] == ["oscore.create", "oscore.revoke"]


def test_five_keys_are_the_most_and_the_body_may_be_left_out(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    for _ in range(oscore.MOST):
        assert admin.post(f"/devices/{thing.uid}/oscore").status_code == 201
    check_problem(admin.post(f"/devices/{thing.uid}/oscore"), 409, "too-many-credentials")


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_who_may_not_write_devices_makes_no_keys(person: Make, role: str) -> None:
    somebody = person(role)
    thing = make_thing(somebody.tenant)
    check_problem(somebody.post(f"/devices/{thing.uid}/oscore"), 403, "forbidden")
    assert somebody.get(f"/devices/{thing.uid}/oscore").status_code == 200


def test_another_tenants_device_has_no_keys_for_us(admin: Person) -> None:
    foreign = make_thing(factories.make_tenant())
    check_problem(admin.get(f"/devices/{foreign.uid}/oscore"), 404, "not-found")
    check_problem(admin.post(f"/devices/{foreign.uid}/oscore"), 404, "not-found")


def test_what_the_page_shows_is_whole() -> None:
    row = OscoreContext(kid=b"\x01" * 7, own_id=b"\x02" * 7, salt=b"\x03" * 8)
    aiocoap, libcoap = page.examples(oscore.Issued(row, b"\x04" * 16), "127.0.0.1:5683")
    settings = json.loads(aiocoap.text.split("secret.json <<'EOF'\n")[1].split("\nEOF")[0])
    assert settings["sender-id_hex"] == "01" * 7
    assert '"coap://127.0.0.1:5683/*"' in aiocoap.text
    assert f'recipient_id,hex,"{"02" * 7}"' in libcoap.text
