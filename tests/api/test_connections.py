"""The history of a device's connection: every reason for coming and going, and who was turned away in its name."""

from datetime import timedelta
from typing import Any

import pytest

from iiot import clock, tenancy
from iiot.services import credentials, devices, presence, tenants
from iiot.stream import housekeeping
from iiot.stream.latest import LatestEffect
from iiot.stream.log import Tailer
from protocols.devices import Devices
from tests import factories
from tests.api.conftest import Make, Person, Thing, basic, check_problem, make_thing
from tests.services import eventually


@pytest.fixture
def thing(admin: Person) -> Thing:
    """A device of the admin's tenant."""
    return make_thing(admin.tenant)


def history(person: Person, thing: Thing, **query: Any) -> list[dict[str, Any]]:
    answer = person.get(f"/devices/{thing.uid}/connections", query_string=query)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    items: list[dict[str, Any]] = answer.get_json()["items"]
    assert all(each["text"] for each in items)
    return items


def told(person: Person, thing: Thing) -> list[tuple[str, bool, str, str | None]]:
    """(kind, online, reason, protocol), the oldest first."""
    return [
        (each["kind"], each["online"], each["reason"], each["protocol"]) for each in reversed(history(person, thing))
    ]


def come_online(thing: Thing) -> None:
    """As a device that sends readings."""
    factories.store(thing.uid, t=1.0)
    tailer = Tailer("latest", LatestEffect())
    while tailer.step().outcome == "stepped":
        pass


def work(person: Person) -> Any:
    return tenancy.work(tenancy.of(person.tenant))


def shut_out() -> None:
    with tenancy.work(tenancy.system("stream")) as db:
        housekeeping.mark_shut_out(db)


ONLINE = ("state", True, "telemetry", "test")


def test_a_device_that_sends_comes_online_over_its_protocol_and_goes_by_silence(admin: Person, thing: Thing) -> None:
    come_online(thing)
    assert told(admin, thing) == [ONLINE]
    factories.rows("UPDATE iiot.device SET last_seen_at = now() - interval '1 day' WHERE uid = %s", thing.uid)
    with tenancy.work(tenancy.system("stream")) as db:
        housekeeping.mark_silent(db)
    assert told(admin, thing) == [ONLINE, ("state", False, "silence", None)]
    assert history(admin, thing)[0]["detail"] == "for 300 s"


def test_what_a_device_or_its_last_will_says_names_the_protocol(admin: Person, thing: Thing) -> None:
    factories.status([factories.StatusEvent(thing.uid, True, "status", "mqtt")])
    factories.status([factories.StatusEvent(thing.uid, False, "status", "mqtt")])
    assert told(admin, thing) == [("state", True, "status", "mqtt"), ("state", False, "status", "mqtt")]
    assert "last will" in history(admin, thing)[0]["text"]


def test_a_replaced_token_ends_the_connection(admin: Person, thing: Thing) -> None:
    come_online(thing)
    assert admin.post(f"/devices/{thing.uid}/credentials").status_code == 201
    assert told(admin, thing) == [ONLINE, ("state", False, "token-replaced", None)]


def test_a_revoked_token_ends_the_connection_when_it_was_the_last_one(admin: Person, thing: Thing) -> None:
    come_online(thing)
    with work(admin) as db:
        credentials.add(db, devices.locked(db, thing.uid), credentials.Wanted("second"))
    for _ in range(2):
        with work(admin) as db:
            device = devices.locked(db, thing.uid)
            credentials.revoke(db, device, credentials.list_all(db, device)[0].uid)
    assert told(admin, thing) == [
        ONLINE,
        ("note", True, "token-revoked", None),
        ("state", False, "token-revoked", None),
    ]


def test_an_expired_token_ends_the_connection(admin: Person, thing: Thing) -> None:
    with work(admin) as db:
        wanted = credentials.Wanted(expires_at=clock.now() + timedelta(hours=1))
        credentials.replace(db, devices.locked(db, thing.uid), wanted)
    come_online(thing)
    shut_out()
    assert told(admin, thing) == [ONLINE]
    factories.rows("UPDATE iiot.credential SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL")
    shut_out()
    shut_out()
    assert told(admin, thing) == [ONLINE, ("state", False, "token-expired", None)]


def test_a_disabled_device_is_offline_at_once(admin: Person, thing: Thing) -> None:
    come_online(thing)
    assert admin.patch(f"/devices/{thing.uid}", json={"enabled": False}).status_code == 200
    assert told(admin, thing) == [ONLINE, ("state", False, "device-disabled", None)]
    assert admin.get(f"/devices/{thing.uid}").get_json()["status"] == "offline"


def test_the_devices_of_a_suspended_tenant_are_offline(admin: Person, thing: Thing) -> None:
    come_online(thing)
    with tenancy.work(tenancy.system("platform", admin.tenant.tenant_id)) as db:
        tenants.set_status(db, "suspended", "unpaid", None)
    shut_out()
    assert told(admin, thing) == [ONLINE, ("state", False, "tenant-suspended", None)]


def test_an_outage_of_the_broker_is_noted_for_those_who_were_on_it(admin: Person, thing: Thing) -> None:
    elsewhere = make_thing(admin.tenant, "elsewhere")
    come_online(thing)
    come_online(elsewhere)
    factories.rows("UPDATE iiot.device SET command_protocol = 'mqtt' WHERE uid = %s", thing.uid)
    presence.lost_broker("mqtt", 12.3)
    assert told(admin, thing) == [ONLINE, ("note", True, "broker-lost", "mqtt")]
    assert history(admin, thing)[0]["detail"] == "for 12 s"
    assert told(admin, elsewhere) == [ONLINE]


def test_refused_logins_are_noted_and_cannot_fill_the_table(admin: Person, thing: Thing) -> None:
    for _ in range(9):
        answer = admin.client.post("/api/v1/telemetry", json={"t": 1}, headers=basic(thing.uid, "wrong"))
        assert answer.status_code == 401
    admin.client.post("/api/v1/telemetry", json={"t": 1}, headers=basic("a" * 26, "wrong"))
    eventually(lambda: len(history(admin, thing)) == 5, 30)
    assert told(admin, thing) == [("refused", False, "unauthorized", "http")] * 5
    assert history(admin, thing)[0]["detail"] == f"from {admin.client.environ_base['REMOTE_ADDR']}"
    assert admin.get(f"/devices/{thing.uid}").get_json()["status"] == "new"


def test_adapters_note_whom_they_refuse_and_why(admin: Person, thing: Thing) -> None:
    adapter = Devices("coap")
    adapter.authenticate(thing.uid, "wrong", "192.0.2.9")
    admin.patch(f"/devices/{thing.uid}", json={"enabled": False})
    adapter.authenticate(thing.uid, thing.token, "192.0.2.9")
    eventually(lambda: len(history(admin, thing)) == 2, 30)
    assert sorted(told(admin, thing)) == [
        ("refused", False, "device-disabled", "coap"),
        ("refused", False, "unauthorized", "coap"),
    ]


def test_what_people_send_again_is_no_connection(admin: Person, thing: Thing) -> None:
    admin.client.post("/api/v1/telemetry", data=b"{", content_type="application/json", headers=thing.headers)
    [message] = admin.get("/rejected").get_json()["items"]
    again = admin.post(f"/rejected/{message['id']}/replay", json={"payload": '{"t": 1}'})
    assert again.status_code == 200
    tailer = Tailer("latest", LatestEffect())
    while tailer.step().outcome == "stepped":
        pass
    assert history(admin, thing) == []
    assert admin.get(f"/devices/{thing.uid}").get_json()["last_seen_at"] is None
    assert admin.get(f"/devices/{thing.uid}/latest").get_json()["t"]["value"] == 1


def test_the_history_is_paged_and_nobody_elses(admin: Person, thing: Thing, person: Make) -> None:
    for number in range(5):
        factories.status([factories.StatusEvent(thing.uid, number % 2 == 0, f"reason {number}")])
    path = f"/devices/{thing.uid}/connections"
    first = admin.get(path, query_string={"limit": 3}).get_json()
    rest = admin.get(path, query_string={"limit": 3, "cursor": first["next_cursor"]}).get_json()
    assert [each["reason"] for each in first["items"] + rest["items"]] == [f"reason {n}" for n in (4, 3, 2, 1, 0)]
    assert (first["total"], rest["next_cursor"]) == (5, None)
    check_problem(person().get(path), 404, "not-found")
