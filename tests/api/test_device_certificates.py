"""Certificates of devices over REST and on their page: the key is shown once, requests are signed, revocation is final."""

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from flask import Flask

from iiot.services import authority, certificates
from tests import factories
from tests.api.conftest import Make, Person, check_problem, make_thing
from tests.api.sides import Caller, caller


def issue(person: Person, uid: str, **body: Any) -> dict[str, Any]:
    answer = person.post(f"/devices/{uid}/certificates", json=body)
    assert answer.status_code == 201, answer.get_data(as_text=True)
    found: dict[str, Any] = answer.get_json()
    return found


def listed(person: Person, uid: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = person.get(f"/devices/{uid}/certificates").get_json()["items"]
    return found


def test_a_key_is_shown_once_and_fits_its_certificate(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    made = issue(admin, thing.uid, name="gateway", days=30)
    signed = x509.load_pem_x509_certificate(made["certificate"].encode())
    key = serialization.load_pem_private_key(made["private_key"].encode(), None)
    assert signed.public_key() == key.public_key()
    assert made["mqtt_username"] == f"CN={thing.uid},serialNumber={made['id']}"
    assert signed.subject.rfc4514_string({x509.NameOID.SERIAL_NUMBER: "serialNumber"}) == made["mqtt_username"]
    assert f"{signed.serial_number:x}" == made["serial"]
    assert (signed.not_valid_after_utc - factories.now()).days in (29, 30)
    signed.verify_directly_issued_by(x509.load_pem_x509_certificate(made["ca"].encode()))
    purposes = signed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    [entry] = listed(admin, thing.uid)
    assert "private_key" not in entry
    assert (entry["id"], entry["name"], entry["is_expired"]) == (made["id"], "gateway", False)
    secret = made["private_key"].splitlines()[1]
    for table in ("device_certificate", "audit"):
        assert secret not in str(factories.rows(f"SELECT * FROM iiot.{table}"))


def test_a_revoked_certificate_is_gone_and_noted(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    first, second = issue(admin, thing.uid), issue(admin, thing.uid)
    assert admin.delete(f"/devices/{thing.uid}/certificates/{first['id']}").status_code == 204
    assert [each["id"] for each in listed(admin, thing.uid)] == [second["id"]]
    check_problem(admin.delete(f"/devices/{thing.uid}/certificates/{first['id']}"), 404, "not-found")
    query = "SELECT action FROM iiot.audit WHERE tenant_id = %s AND action LIKE 'certificate.%%' ORDER BY seq"
    actions = [action for (action,) in factories.rows(query, admin.tenant.tenant_id)]
    assert actions == ["certificate.issue", "certificate.issue", "certificate.revoke"]


def test_a_device_has_five_valid_ones_at_most(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    uids = [issue(admin, thing.uid)["id"] for _ in range(5)]
    check_problem(admin.post(f"/devices/{thing.uid}/certificates"), 409, "too-many-certificates")
    factories.rows("UPDATE iiot.device_certificate SET expires_at = now() WHERE uid = %s", uids[2])
    assert [each["is_expired"] for each in listed(admin, thing.uid)] == [False, False, True, False, False]
    issue(admin, thing.uid)


def test_the_list_of_revoked_ones_cannot_be_filled(admin: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "MOST_REVOKED", 2)
    thing = make_thing(admin.tenant)
    for _ in range(2):
        made = issue(admin, thing.uid)
        assert admin.delete(f"/devices/{thing.uid}/certificates/{made['id']}").status_code == 204
    check_problem(admin.post(f"/devices/{thing.uid}/certificates"), 409, "too-many-certificates")
    factories.rows("UPDATE iiot.device_certificate SET expires_at = now() WHERE uid = %s", made["id"])
    issue(admin, thing.uid)


@pytest.mark.parametrize(
    "body",
    [{"days": 398}, {"days": 0}, {"csr": "hello"}, {"csr": "x" * 20_000}, {"name": "x" * 300}, {"subject": "CN=x"}],
)
def test_what_cannot_be_signed_is_refused(admin: Person, body: dict[str, Any]) -> None:
    thing = make_thing(admin.tenant)
    check_problem(admin.post(f"/devices/{thing.uid}/certificates", json=body), 422, "invalid")
    assert listed(admin, thing.uid) == []


def test_the_key_of_the_authority_is_encrypted(admin: Person) -> None:
    issue(admin, make_thing(admin.tenant).uid)
    pki = authority.ours()
    key = pki.folder / "device-ca.key"
    assert key.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert key.stat().st_mode & 0o777 == 0o600
    other = authority.Pki(pki.folder, b"another secret")
    with pytest.raises(Exception, match="secret key has changed"):
        other.authority("device")


def test_a_viewer_lists_and_does_not_issue(admin: Person, person: Make) -> None:
    thing = make_thing(admin.tenant)
    made = issue(admin, thing.uid)
    viewer = person("viewer", admin.tenant)
    assert [each["id"] for each in listed(viewer, thing.uid)] == [made["id"]]
    check_problem(viewer.post(f"/devices/{thing.uid}/certificates"), 403, "forbidden")
    check_problem(viewer.delete(f"/devices/{thing.uid}/certificates/{made['id']}"), 403, "forbidden")


@pytest.fixture
def engineer(app: Flask, admin: Person) -> Caller:
    return caller(app, "engineer", factories.make_user(admin.tenant, "engineer"))


def test_the_page_makes_shows_and_revokes(admin: Person, engineer: Caller) -> None:
    thing = make_thing(admin.tenant)
    address = f"/devices/{thing.uid}/certificates"
    assert "No certificate" in engineer.call("GET", address).get_data(as_text=True)
    made = engineer.call("POST", address, data={"name": "<b>gate</b>", "days": "7", "csr": ""})
    text = made.get_data(as_text=True)
    assert made.status_code == 201
    assert "BEGIN PRIVATE KEY" in text
    assert "mosquitto_pub" in text
    assert "<b>gate" not in text
    shown = engineer.call("GET", address).get_data(as_text=True)
    assert "PRIVATE KEY" not in shown
    [entry] = listed(admin, thing.uid)
    assert entry["serial"] in shown
    wrong = engineer.call("POST", address, data={"name": "", "days": "many", "csr": ""})
    assert wrong.status_code == 422
    assert "number of days" in wrong.get_data(as_text=True)
    assert engineer.call("POST", f"{address}/{entry['id']}/revoke", data={}).status_code == 303
    assert listed(admin, thing.uid) == []
