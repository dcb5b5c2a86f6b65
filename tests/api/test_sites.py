"""Sites: places that devices stand at."""

from tests import factories
from tests.api.conftest import Make, Person, check_problem, make_thing


def make_site(person: Person, name: str = "Hall A") -> str:
    """The id of a new site."""
    answer = person.post("/sites", json={"name": name})
    assert answer.status_code == 201, answer.get_data(as_text=True)
    site: str = answer.get_json()["id"]
    return site


def test_sites_are_made_renamed_listed_and_deleted(admin: Person) -> None:
    second, first = make_site(admin, "hall b"), make_site(admin, "Hall A")
    page = admin.get("/sites").get_json()
    assert [(each["id"], each["name"], each["devices"]) for each in page["items"]] == [
        (first, "Hall A", 0),
        (second, "hall b", 0),
    ]
    assert admin.patch(f"/sites/{second}", json={"name": "  Hall B "}).get_json()["name"] == "Hall B"
    check_problem(admin.patch(f"/sites/{second}", json={"name": "hall a"}), 409, "name-taken")
    check_problem(admin.post("/sites", json={"name": "HALL A"}), 409, "name-taken")
    check_problem(admin.post("/sites", json={"name": " "}), 422, "invalid")
    assert admin.delete(f"/sites/{second}").status_code == 204
    check_problem(admin.delete(f"/sites/{second}"), 404, "not-found")
    told = factories.rows(
        "SELECT action FROM iiot.audit WHERE tenant_id = %s AND object_uid = %s ORDER BY seq",
        admin.tenant.tenant_id,
        second,
    )
    assert told == [("site.create",), ("site.change",), ("site.delete",)]


def test_a_device_stands_at_a_site(person: Make, admin: Person) -> None:
    site, other = make_site(admin), make_site(admin, "Hall B")
    made = admin.post("/devices", json={"name": "pump", "site": site}).get_json()
    assert made["site"] == site
    loose = make_thing(admin.tenant, "loose").uid
    assert admin.get(f"/devices/{loose}").get_json()["site"] is None
    assert [each["id"] for each in admin.get(f"/devices?site={site}").get_json()["items"]] == [made["id"]]
    assert admin.get(f"/devices/{made['id']}").get_json()["site"] == site
    refused = check_problem(admin.delete(f"/sites/{site}"), 409, "site-in-use")
    assert refused["detail"].startswith("1 device stands")
    moved = admin.patch(f"/devices/{made['id']}", json={"site": other}).get_json()
    assert moved["site"] == other
    assert admin.get("/sites?sort=-name").get_json()["items"][0]["devices"] == 1
    assert admin.delete(f"/sites/{site}").status_code == 204
    assert admin.patch(f"/devices/{made['id']}", json={"site": None}).get_json()["site"] is None
    foreign = make_site(person())
    refused = check_problem(admin.patch(f"/devices/{made['id']}", json={"site": foreign}), 422, "invalid")
    assert refused["errors"][0]["loc"] == ["body", "site"]
    assert admin.get(f"/devices?site={foreign}").get_json()["items"] == []


def test_who_may_not_write_sites_is_told_so(person: Make, admin: Person) -> None:
    operator = person("operator", admin.tenant)
    site = make_site(admin)
    assert operator.get("/sites").get_json()["total"] == 1
    check_problem(operator.post("/sites", json={"name": "x"}), 403, "forbidden")
    check_problem(operator.patch(f"/sites/{site}", json={"name": "x"}), 403, "forbidden")
    check_problem(operator.delete(f"/sites/{site}"), 403, "forbidden")
