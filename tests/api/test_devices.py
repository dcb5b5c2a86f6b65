"""Devices: created, listed, changed, removed; tokens shown once; quotas; hostile names."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from iiot import ids
from tests import factories
from tests.api.conftest import Make, Person, basic, check_problem, make_thing

HOSTILE = [
    "'; DROP TABLE device; --",
    "<script>alert(1)</script>\"'&amp;",
    "{{7*7}}${7*7}%s%n",
    "\N{GRINNING FACE} \N{RIGHT-TO-LEFT OVERRIDE}cod.exe",
    "مضخة رقم ١",
    "../../etc/passwd",
    "\\u0000 is only text here",
    "=HYPERLINK(1)",
    "x" * 200,
]


def test_a_device_is_created_with_its_token_and_read_without(admin: Person) -> None:
    body = {
        "name": "Pump 1",
        "type": "pump",
        "external_id": "P-1",
        "is_gateway": True,
        "tags": ["hall-b", "hot", "hot"],
    }
    made = admin.post("/devices", json=body)
    assert made.status_code == 201
    device = made.get_json()
    assert ids.is_uid(device["id"])
    assert len(device["token"]) == 43
    assert made.headers["Location"] == f"/api/v1/devices/{device['id']}"
    token = device.pop("token")
    assert device == {
        "id": device["id"],
        "name": "Pump 1",
        "type": "pump",
        "status": "new",
        "is_gateway": True,
        "tags": ["hall-b", "hot"],
        "created_at": device["created_at"],
        "last_seen_at": None,
        "enabled": True,
        "external_id": "P-1",
        "site": None,
        "needs_approval": False,
        "gateway": None,
        "child_name": None,
    }
    assert device["created_at"].endswith("Z")
    read = admin.get(f"/devices/{device['id']}")
    assert read.get_json() == device
    assert read.headers["ETag"] == '"1"'
    stored = str(factories.rows("SELECT token_hash, mqtt_hash FROM iiot.credential ORDER BY id DESC LIMIT 1"))
    assert token not in stored


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_only_text(admin: Person, name: str) -> None:
    made = admin.post(
        "/devices", json={"name": name, "tags": [name[:64]], "external_id": name, "type": name[:64]}
    ).get_json()
    assert (made["name"], made["tags"], made["external_id"], made["type"]) == (name, [name[:64]], name, name[:64])
    assert admin.get(f"/devices/{made['id']}").get_json()["name"] == name
    found = admin.get("/devices", query_string={"q": name}).get_json()
    assert [each["id"] for each in found["items"]] == [made["id"]]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, ["name"]),
        ({"name": ""}, ["name"]),
        ({"name": "   "}, ["name"]),
        ({"name": "x" * 201}, ["name"]),
        ({"name": "a\nb"}, ["name"]),
        ({"name": "a\x7fb"}, ["name"]),
        ({"name": 5}, ["name"]),
        ({"name": "a", "tags": ["x" * 65]}, ["tags", 0]),
        ({"name": "a", "tags": [str(n) for n in range(33)]}, ["tags"]),
        ({"name": "a", "is_gateway": "perhaps"}, ["is_gateway"]),
        ({"name": "a", "tenant_id": 1}, ["tenant_id"]),
        ({"name": "a", "id": "a" * 26}, ["id"]),
        ({"name": "a", "status": "online"}, ["status"]),
        ({"name": "a", "token": "mine"}, ["token"]),
    ],
)
def test_a_device_that_does_not_fit_is_refused_with_its_place(
    admin: Person, body: dict[str, object], where: list[object]
) -> None:
    problem = check_problem(admin.post("/devices", json=body), 422, "invalid")
    assert problem["errors"][0]["loc"] == ["body", *where]
    assert problem["errors"][0]["msg"]
    assert admin.get("/devices").get_json()["total"] == 0


def test_nul_is_refused_wherever_it_hides(admin: Person) -> None:
    check_problem(admin.post("/devices", json={"name": "a\0b"}), 422, "invalid")
    check_problem(admin.get("/devices?q=%00"), 422, "invalid")
    check_problem(admin.get("/devices/%00"), 404, "not-found")


def test_external_ids_are_unique_within_a_tenant_only(person: Make) -> None:
    one, other = person(), person()
    assert one.post("/devices", json={"name": "a", "external_id": "E"}).status_code == 201
    check_problem(one.post("/devices", json={"name": "b", "external_id": "E"}), 409, "external-id-taken")
    second = one.post("/devices", json={"name": "b"}).get_json()["id"]
    check_problem(one.patch(f"/devices/{second}", json={"external_id": "E"}), 409, "external-id-taken")
    assert other.post("/devices", json={"name": "a", "external_id": "E"}).status_code == 201


def test_over_the_quota_nothing_is_created(person: Make) -> None:
    one = person(tenant=factories.make_tenant(devices=2))
    for name in "ab":
        assert one.post("/devices", json={"name": name}).status_code == 201
    problem = check_problem(one.post("/devices", json={"name": "c"}), 403, "quota-exceeded")
    assert (problem["quota"], problem["limit"], problem["used"]) == ("devices", 2, 2)
    assert one.get("/devices").get_json()["total"] == 2


def test_the_quota_holds_when_many_create_at_once(person: Make) -> None:
    one = person(tenant=factories.make_tenant(devices=3))
    app = one.client.application

    def create(number: int) -> int:
        return (
            app.test_client(use_cookies=False)
            .post("/api/v1/devices", json={"name": f"d{number}"}, headers=one.headers)
            .status_code
        )

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(create, range(16)))
    assert statuses.count(201) == 3
    assert one.get("/devices").get_json()["total"] == 3


@pytest.mark.parametrize(
    "sort", ["name", "-name", "created_at", "-created_at", "last_seen_at", "-last_seen_at", "type", "status"]
)
def test_pages_hold_every_device_once(admin: Person, sort: str) -> None:
    for number in range(7):
        factories.make_device(admin.tenant, name=f"Device {number % 3}", type=f"t{number % 2}")
    seen, cursor, pages = [], None, 0
    while True:
        query = {"limit": 3, "sort": sort} | ({"cursor": cursor} if cursor else {})
        page = admin.get("/devices", query_string=query).get_json()
        assert page["total"] == 7
        seen += page["items"]
        pages += 1
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert pages == 3
    assert len({each["id"] for each in seen}) == 7
    values = [each[sort.lstrip("-")] for each in seen if each[sort.lstrip("-")] is not None]
    assert values == sorted(values, reverse=sort.startswith("-"))


def test_a_cursor_fits_its_list_alone(admin: Person) -> None:
    for number in range(3):
        factories.make_device(admin.tenant, name=f"d{number}")
    cursor = admin.get("/devices?limit=1").get_json()["next_cursor"]
    for wrong in (f"sort=-name&cursor={cursor}", f"cursor={cursor[:-2]}", "cursor=AAAA", "cursor=%ff", "cursor=%C3%A4"):
        problem = check_problem(admin.get(f"/devices?{wrong}"), 422, "invalid")
        assert problem["errors"][0]["loc"] == ["query", "cursor"]


def test_search_and_filters(admin: Person) -> None:
    pump = admin.post(
        "/devices", json={"name": "Main Pump 100%", "type": "pump", "tags": ["hot"], "external_id": "ERP_7"}
    ).get_json()
    valve = admin.post("/devices", json={"name": "valve", "is_gateway": True}).get_json()
    admin.patch(f"/devices/{valve['id']}", json={"enabled": False})

    def found(**query: object) -> list[str]:
        return [each["id"] for each in admin.get("/devices", query_string=query).get_json()["items"]]

    assert (
        found(q="pump") == found(q="100%") == found(q="ERP_") == found(type="pump") == found(tag="hot") == [pump["id"]]
    )
    assert found(q=pump["id"].upper()) == [pump["id"]]
    assert found(q="%") == [pump["id"]]
    assert found(q="P_M") == []
    assert found(is_gateway="true") == found(enabled="false") == [valve["id"]]
    assert len(found(status="new")) == 2
    assert found(status="online") == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=501", "limit=x", "sort=token", "status=gone", "unknown=1", "limit=1&limit=2", "q=" + "x" * 201],
)
def test_list_parameters_are_checked(admin: Person, query: str) -> None:
    problem = check_problem(admin.get(f"/devices?{query}"), 422, "invalid")
    assert problem["errors"][0]["loc"] == ["query", query.partition("=")[0]]


def test_a_change_counts_versions_and_respects_if_match(admin: Person) -> None:
    uid = factories.make_device(admin.tenant).uid
    changed = admin.patch(f"/devices/{uid}", json={"name": "New", "tags": []}, headers={"If-Match": '"1"'})
    assert changed.status_code == 200
    assert changed.headers["ETag"] == '"2"'
    assert changed.get_json()["name"] == "New"
    check_problem(
        admin.patch(f"/devices/{uid}", json={"name": "Lost"}, headers={"If-Match": '"1"'}), 412, "precondition-failed"
    )
    assert admin.get(f"/devices/{uid}").get_json()["name"] == "New"
    assert admin.patch(f"/devices/{uid}", json={"external_id": None}).headers["ETag"] == '"3"'
    check_problem(admin.patch(f"/devices/{uid}", json={"name": None}), 422, "invalid")
    check_problem(admin.patch(f"/devices/{uid}", json={"status": "online"}), 422, "invalid")


def test_a_deleted_device_is_gone_with_its_token(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    assert admin.client.post("/api/v1/telemetry", json={"t": 1}, headers=thing.headers).status_code == 200
    assert admin.delete(f"/devices/{thing.uid}").status_code == 204
    check_problem(admin.get(f"/devices/{thing.uid}"), 404, "not-found")
    check_problem(admin.delete(f"/devices/{thing.uid}"), 404, "not-found")
    check_problem(admin.client.post("/api/v1/telemetry", json={"t": 1}, headers=thing.headers), 401, "unauthorized")


def test_a_new_token_replaces_the_old_one_at_once(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    send = admin.client.post
    assert send("/api/v1/telemetry", json={"t": 1}, headers=thing.headers).status_code == 200
    renewed = admin.post(f"/devices/{thing.uid}/credentials")
    assert renewed.status_code == 201
    token = renewed.get_json()["token"]
    assert token != thing.token
    check_problem(send("/api/v1/telemetry", json={"t": 1}, headers=thing.headers), 401, "unauthorized")
    assert send("/api/v1/telemetry", json={"t": 1}, headers=basic(thing.uid, token)).status_code == 200


def test_a_disabled_device_is_told_so_until_it_is_enabled(admin: Person) -> None:
    thing = make_thing(admin.tenant)
    send = admin.client.post
    assert send("/api/v1/telemetry", json={"t": 1}, headers=thing.headers).status_code == 200
    assert admin.patch(f"/devices/{thing.uid}", json={"enabled": False}).get_json()["enabled"] is False
    check_problem(send("/api/v1/telemetry", json={"t": 1}, headers=thing.headers), 403, "device-disabled")
    admin.patch(f"/devices/{thing.uid}", json={"enabled": True})
    assert send("/api/v1/telemetry", json={"t": 1}, headers=thing.headers).status_code == 200


@pytest.mark.parametrize(
    ("role", "may_write"), [("viewer", False), ("operator", False), ("engineer", True), ("admin", True)]
)
def test_roles(person: Make, role: str, may_write: bool) -> None:
    one = person(role)
    uid = factories.make_device(one.tenant).uid
    assert one.get("/devices").status_code == 200
    assert one.get(f"/devices/{uid}").status_code == 200
    answers = [
        one.post("/devices", json={"name": "x"}),
        one.patch(f"/devices/{uid}", json={"name": "x"}),
        one.post(f"/devices/{uid}/credentials"),
        one.post("/telemetry", json={"device_id": uid, "data": {"t": 1}}),
        one.delete(f"/devices/{uid}"),
    ]
    if may_write:
        assert [answer.status_code for answer in answers] == [201, 200, 201, 200, 204]
    else:
        for answer in answers:
            assert "permission" in check_problem(answer, 403, "forbidden")["detail"]
