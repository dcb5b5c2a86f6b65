"""A member who is limited to a device, a site or a tag sees these devices alone: in lists, values, counts and pages, and can lose none by a change."""

import re
from dataclasses import dataclass

import pytest

from iiot import tenancy
from iiot.errors import Problem
from iiot.live import guard
from iiot.live.clients import Client
from iiot.live.subscriptions import _check_devices
from iiot.services import limited
from tests import factories
from tests.api.conftest import Browse, Make, Person, Thing, check_problem, make_thing
from tests.api.test_discoveries import found
from tests.api.test_members import members_path
from tests.api.test_roles import give, make_role
from tests.api.test_sites import make_site


@dataclass
class Halls:
    """A tenant with a device in sight of `limited` and one out of it, both with readings and a refused message."""

    admin: Person
    limited: Person
    mine: Thing
    hidden: Thing
    site: str
    other_site: str


def limit(admin: Person, member: Person, **limits: list[str]) -> None:
    answer = admin.patch(members_path(admin, member), json={"limited_to": limits or None})
    assert answer.status_code == 200, answer.get_data(as_text=True)


@pytest.fixture(params=["device", "site", "tag"])
def halls(request: pytest.FixtureRequest, person: Make, admin: Person) -> Halls:
    """Limited in each of the three ways."""
    site, other_site = make_site(admin, "Hall A"), make_site(admin, "Hall B")
    mine = make_thing(admin.tenant, "mine", tags=("hot", "a"), site=site)
    hidden = make_thing(admin.tenant, "hidden-canary", tags=("cold",), site=other_site)
    for thing in (mine, hidden):
        admin.client.post("/api/v1/telemetry", json={"t": 1, "u": 2}, headers=thing.headers)
        admin.client.post("/api/v1/telemetry", data="{", content_type="application/json", headers=thing.headers)
    limited = person("engineer", admin.tenant)
    ways = {"device": {"devices": [mine.uid]}, "site": {"sites": [site]}, "tag": {"tags": ["hot"]}}
    limit(admin, limited, **ways[request.param])
    return Halls(admin, limited, mine, hidden, site, other_site)


def test_lists_and_values_show_the_members_own_devices_alone(halls: Halls) -> None:
    one = halls.limited
    page = one.get("/devices").get_json()
    assert ([each["id"] for each in page["items"]], page["total"]) == ([halls.mine.uid], 1)
    for path in ("", "/signals", "/latest", "/telemetry", "/rejected"):
        assert one.get(f"/devices/{halls.mine.uid}{path}").status_code == 200, path
        answer = one.get(f"/devices/{halls.hidden.uid}{path}", headers={"X-Request-ID": "same"})
        check_problem(answer, 404, "not-found")
        nobody = one.get(f"/devices/{'a' * 26}{path}", headers={"X-Request-ID": "same"})
        assert answer.data == nobody.data
    assert one.get(f"/devices/{halls.mine.uid}/telemetry").get_json().keys() == {"t", "u"}
    assert [each["id"] for each in one.get("/sites").get_json()["items"]] == [halls.site]
    check_problem(one.post("/telemetry", json={"device_id": halls.hidden.uid, "data": {"t": 2}}), 404, "not-found")


def test_counts_and_pages_tell_nothing_of_the_others(halls: Halls, browse: Browse) -> None:
    stats = halls.limited.get(f"/tenants/{halls.admin.tenant.uid}/stats").get_json()
    assert (stats["devices"], stats["signals"], stats["rejected_today"]) == (1, 2, 1)
    assert stats["readings_today"] is None
    assert halls.admin.get(f"/tenants/{halls.admin.tenant.uid}/stats").get_json()["devices"] == 2
    browser = browse(halls.limited)
    for address in ("/", "/devices"):
        page = browser.get(address)
        assert page.status_code == 200
        text = page.get_data(as_text=True)
        assert "hidden-canary" not in text
        assert halls.hidden.uid not in text
        assert halls.mine.uid in text


def test_pages_offer_a_limited_member_nothing_that_concerns_the_whole_tenant(
    admin: Person, person: Make, browse: Browse
) -> None:
    gateway = factories.make_device(admin.tenant, "gateway", is_gateway=True)
    found(gateway, "pump")
    member = person("engineer", admin.tenant)
    limit(admin, member, devices=[gateway.uid])
    offers = {"/": "Add device", "/devices": "Add device", "/devices/inbox": ">Ignore<"}
    offers[f"/devices/{gateway.uid}/settings"] = "Claim home"
    for address, offer in offers.items():
        assert offer in browse(admin).get(address).get_data(as_text=True), address
        page = browse(member).get(address)
        assert page.status_code == 200
        assert offer not in page.get_data(as_text=True), address
    assert "pump" in browse(member).get("/devices/inbox").get_data(as_text=True)


def test_the_connect_page_offers_a_viewer_nothing_that_is_refused(admin: Person, person: Make, browse: Browse) -> None:
    connect = f"/devices/{make_thing(admin.tenant).uid}/connect"
    links = re.compile(r'href="(/devices/[^"]+)"')
    viewer = browse(person("viewer", admin.tenant))
    shown = set(links.findall(viewer.get(connect).get_data(as_text=True)))
    assert shown < set(links.findall(browse(admin).get(connect).get_data(as_text=True)))
    assert {viewer.get(link).status_code for link in shown} == {200}


def test_the_rate_counts_the_readings_of_visible_devices(halls: Halls) -> None:
    from iiot.services.overview import overview

    with tenancy.work(tenancy.of(halls.limited.opened.principal)) as db:
        # The principal of the session was made before the limits.
        everything = sum(overview(db).rate)
    now = guard._principal_now(Client("sid", halls.limited.opened.principal, halls.limited.opened.epoch))
    with tenancy.work(tenancy.of(now)) as db:
        assert sum(overview(db).rate) == everything // 2 == 2


def test_live_events_are_of_visible_devices_alone(halls: Halls) -> None:
    opened = halls.limited.opened
    principal = guard._principal_now(Client("sid", opened.principal, opened.epoch))
    client = Client("sid", principal, opened.epoch)
    _check_devices(client, {halls.mine.uid})
    with pytest.raises(Problem) as refused:
        _check_devices(client, {halls.mine.uid, halls.hidden.uid})
    assert refused.value.code == "unknown-device"
    client.devices = {halls.mine.uid}
    assert guard.still_allowed(client)
    client.devices = {halls.mine.uid, halls.hidden.uid}
    assert not guard.still_allowed(client)


def test_a_limited_member_changes_devices_but_loses_none(halls: Halls, request: pytest.FixtureRequest) -> None:
    one, path = halls.limited, f"/devices/{halls.mine.uid}"
    assert one.patch(path, json={"name": "renamed"}).get_json()["name"] == "renamed"
    by_device = "device" in request.node.callspec.id
    away = one.patch(path, json={"tags": ["cold"], "site": None})
    if by_device:
        assert away.status_code == 200
    else:
        assert "lose sight" in check_problem(away, 403, "limited-member")["detail"]
        assert one.get(path).get_json()["tags"] == ["hot", "a"]
    check_problem(one.patch(f"/devices/{halls.hidden.uid}", json={"name": "x"}), 404, "not-found")
    check_problem(one.delete(f"/devices/{halls.hidden.uid}"), 404, "not-found")


def test_a_limited_member_makes_no_devices_and_no_sites(halls: Halls) -> None:
    for answer in (
        halls.limited.post("/devices", json={"name": "new", "tags": ["hot"], "site": halls.site}),
        halls.limited.post("/sites", json={"name": "new"}),
        halls.limited.patch(f"/sites/{halls.site}", json={"name": "new"}),
        halls.limited.delete(f"/sites/{halls.site}"),
    ):
        check_problem(answer, 403, "limited-member")


def test_the_members_list_names_no_devices_out_of_sight(person: Make, halls: Halls) -> None:
    other = person("viewer", halls.admin.tenant)
    limit(halls.admin, other, devices=[halls.hidden.uid], sites=[halls.other_site], tags=["cold"])
    listed = {each["id"]: each for each in halls.limited.get(members_path(halls.admin)).get_json()["items"]}
    assert listed[other.user.uid]["limited_to"] == {"devices": [], "sites": [], "tags": ["cold"]}


def test_limits_go_as_they_came(halls: Halls) -> None:
    limit(halls.admin, halls.limited)
    assert halls.limited.get("/devices").get_json()["total"] == 2
    assert halls.limited.post("/devices", json={"name": "new"}).status_code == 201


def test_who_loses_the_last_device_in_sight_sees_nothing(person: Make, admin: Person) -> None:
    make_thing(admin.tenant, "other")
    only, limited = make_thing(admin.tenant, "only"), person("viewer", admin.tenant)
    limit(admin, limited, devices=[only.uid])
    assert admin.delete(f"/devices/{only.uid}").status_code == 204
    assert limited.get("/devices").get_json()["total"] == 0
    found = admin.get(members_path(admin) + f"?q={limited.user.email}").get_json()["items"][0]
    assert found["limited_to"] == {"devices": [], "sites": [], "tags": []}


def test_a_limited_member_holds_nothing_that_concerns_the_whole_tenant(person: Make, admin: Person) -> None:
    member = person("viewer", admin.tenant)
    give(admin, member, make_role(admin, "device:read", "member:read", "member:write", "audit:read", name="Deputies"))
    invitations = f"/tenants/{admin.tenant.uid}/invitations"
    assert (
        member.post(invitations, json={"email": "a@example.com", "role": make_role(admin, "device:read")}).status_code
        == 201
    )
    limit(admin, member, tags=["hot"])
    assert set(member.get("/auth/me").get_json()["permissions"]) == {"device:read", "member:read"}
    check_problem(member.post(invitations, json={"email": "b@example.com"}), 403, "forbidden")
    check_problem(member.patch(members_path(admin, member), json={"limited_to": None}), 403, "forbidden")
    check_problem(member.delete(members_path(admin, member)), 403, "forbidden")


def test_admins_see_everything(person: Make, admin: Person) -> None:
    second = person("admin", admin.tenant)
    refused = admin.patch(members_path(admin, second), json={"limited_to": {"tags": ["hot"]}})
    assert check_problem(refused, 422, "invalid")["errors"][0]["loc"] == ["body", "limited_to"]
    member = person("viewer", admin.tenant)
    limit(admin, member, tags=["hot"])
    check_problem(admin.patch(members_path(admin, member), json={"role": "admin"}), 422, "invalid")
    raised = admin.patch(members_path(admin, member), json={"role": "admin", "limited_to": None})
    assert raised.get_json()["role"] == "admin"


def test_a_platform_admin_who_is_limited_as_a_member_still_manages(person: Make, admin: Person) -> None:
    chief = person("viewer", admin.tenant, is_platform_admin=True)
    make_thing(admin.tenant)
    limit(admin, chief, tags=["hot"])
    assert chief.get(f"/tenants/{admin.tenant.uid}/stats").status_code == 200
    assert chief.get("/devices").get_json()["total"] == 0
    assert chief.patch(members_path(admin, chief), json={"limited_to": None}).status_code == 200
    assert factories.rows("SELECT is_limited FROM iiot.membership WHERE user_id = %s", chief.user.user_id) == [(False,)]


def test_forms_name_devices_as_people_do(admin: Person) -> None:
    pump, twin, comma = (make_thing(admin.tenant, name).uid for name in ("Pump", "Twin", "a, b"))
    make_thing(admin.tenant, "twin")
    with tenancy.work(tenancy.of(admin.tenant)) as db:
        assert limited.named(db, ["pump", twin.upper(), "Pump"]) == [pump, twin, pump]
        assert limited.names(db, [pump, twin, comma]) == ["Pump", twin, comma]
        for text, message in (("TWIN", "several devices"), ("nothing", "there is no device"), ("a\x00", "control")):
            with pytest.raises(Problem) as refused:
                limited.named(db, [text])
            assert refused.value.errors is not None
            assert message in refused.value.errors[0]["msg"]


def test_limits_are_bounded_and_plain_text(person: Make, admin: Person) -> None:
    member = person("viewer", admin.tenant)
    for limits in ({"tags": ["a\tb"]}, {"tags": [str(each) for each in range(150)], "sites": ["a"] * 60 + ["b"] * 60}):
        refused = admin.patch(members_path(admin, member), json={"limited_to": limits})
        check_problem(refused, 422, "invalid")
    many = {"tags": [f"tag-{each}" for each in range(limited.MOST + 1)]}
    check_problem(admin.patch(members_path(admin, member), json={"limited_to": many}), 422, "invalid")
