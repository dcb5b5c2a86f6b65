"""Reading the audit trail over HTTP, and its page."""

import csv
import io
import json
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from iiot import tenancy
from iiot.models import PLATFORM
from iiot.services import audit
from tests import factories
from tests.api.conftest import Browse, Make, Person, check_problem

EVIL = '=HYPERLINK("http://192.0.2.1","Pump")'


def write(who: Person, action: str, thing: tuple[str, str] = ("", ""), **after: Any) -> None:
    with tenancy.work(tenancy.of(who.opened.principal)) as db:
        audit.record(db, action, thing, before={"name": "old"}, after=after or None, actor=who.opened.principal)


@pytest.fixture
def told(admin: Person) -> Person:
    """The admin of a tenant whose trail holds the sign-in of the admin and three acts."""
    write(admin, "device.create", ("device", "d1"), name=EVIL)
    write(admin, "device.delete", ("device", "d1"))
    write(admin, "role.create", ("role", "r1"), permissions=["device:read"], nothing=None, number=-5)
    return admin


def listed(person: Person, **query: Any) -> list[tuple[int, str]]:
    answer = person.get("/audit", query_string=query)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return [(entry["seq"], entry["action"]) for entry in answer.get_json()["items"]]


def test_entries_come_newest_first_and_say_who_where_and_what(told: Person) -> None:
    answer = told.get("/audit").get_json()
    assert [entry["action"] for entry in answer["items"]] == [
        "role.create",
        "device.delete",
        "device.create",
        "session.sign-in",
    ]
    newest = answer["items"][0]
    assert newest["actor"] == {"kind": "user", "id": told.user.uid, "name": told.user.email}
    assert newest["object"] == {"kind": "role", "id": "r1", "name": None}
    assert newest["before"] == {"name": "old"}
    assert newest["after"] == {"permissions": ["device:read"], "nothing": None, "number": -5}
    assert len(newest["hash"]) == 64
    assert answer["total"] == 4


def test_filters(told: Person) -> None:
    assert listed(told, action="device") == [(3, "device.delete"), (2, "device.create")]
    assert listed(told, action="device.create") == [(2, "device.create")]
    assert listed(told, action="devic") == []
    assert listed(told, object="r1") == [(4, "role.create")]
    assert listed(told, object="device", action="device.delete") == [(3, "device.delete")]
    assert len(listed(told, actor=told.user.uid)) == 4
    assert len(listed(told, actor=told.user.email)) == 4
    assert listed(told, actor="somebody") == []
    assert listed(told, q="LE.CRE") == [(4, "role.create")]
    assert listed(told, q="%") == []
    moment = told.get("/audit").get_json()["items"][1]["at"]
    assert listed(told, **{"from": moment}) == [(4, "role.create"), (3, "device.delete")]
    assert listed(told, to=moment) == [(2, "device.create"), (1, "session.sign-in")]
    assert told.get("/audit?from=yesterday").status_code == 422
    assert told.get("/audit?from=2026-01-01T00:00:00").status_code == 422, "a time without a zone is nobody's"


def test_pages_of_the_list(told: Person) -> None:
    first = told.get("/audit?limit=3").get_json()
    rest = told.get("/audit", query_string={"limit": 3, "cursor": first["next_cursor"]}).get_json()
    assert [entry["seq"] for entry in first["items"] + rest["items"]] == [4, 3, 2, 1]
    assert rest["next_cursor"] is None
    check_problem(told.get("/audit?cursor=abc"), 422, "invalid")


def test_only_admins_read_it(told: Person, person: Make) -> None:
    for role in ("engineer", "operator", "viewer"):
        check_problem(person(role, told.tenant).get("/audit"), 403, "forbidden")
        check_problem(person(role, told.tenant).get("/audit/export"), 403, "forbidden")
    check_problem(told.get("/platform/audit"), 403, "not-platform-admin")
    check_problem(told.get("/platform/audit/export"), 403, "not-platform-admin")


def test_csv_cannot_be_run_by_a_spreadsheet(told: Person) -> None:
    answer = told.get("/audit/export")
    assert answer.content_type == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="audit.csv"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    rows = list(csv.DictReader(io.StringIO(answer.get_data(as_text=True), newline="")))
    assert [row["action"] for row in rows] == [
        "audit.export",
        "role.create",
        "device.delete",
        "device.create",
        "session.sign-in",
    ]
    assert json.loads(rows[3]["after"]) == {"name": EVIL}
    write(told, "-2+3", ("@SUM(1)", "\tx"))
    text = told.get("/audit/export?q=2%2B3").get_data(as_text=True)
    _, newest = csv.reader(io.StringIO(text, newline=""))
    assert newest[8:11] == ["'-2+3", "'@SUM(1)", "'\tx"]


def test_json_lines_and_the_filters_of_an_export(told: Person) -> None:
    answer = told.get("/audit/export?format=jsonl&action=device&q=delete")
    assert answer.content_type == "application/x-ndjson"
    (line,) = answer.get_data(as_text=True).splitlines()
    assert json.loads(line)["action"] == "device.delete"
    newest = told.get("/audit").get_json()["items"][0]
    assert newest["action"] == "audit.export"
    assert newest["after"] == {"format": "jsonl", "action": "device", "q": "delete"}


def test_an_export_of_several_batches(told: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    from iiot.services import trail

    monkeypatch.setattr(trail, "BATCH", 2)
    lines = told.get("/audit/export?format=jsonl").get_data(as_text=True).splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [5, 4, 3, 2, 1]


def test_the_platforms_own_trail(app: Flask, person: Make, client: FlaskClient, told: Person) -> None:
    client.post("/api/v1/auth/login", json={"email": "nobody-at-all@example.com", "password": "wrong"})
    platform = person(is_platform_admin=True)
    newest = platform.get("/platform/audit", query_string={"action": "session.refused"}).get_json()["items"][0]
    assert newest["after"] == {"email": "nobody-at-all@example.com"}
    assert newest["address"] == client.environ_base["REMOTE_ADDR"]
    assert newest["actor"]["name"] != ""
    lines = platform.get("/platform/audit/export?format=jsonl").get_data(as_text=True).splitlines()
    assert json.loads(lines[0])["action"] == "audit.export"
    assert factories.rows("SELECT count(*) > 1 FROM iiot.audit WHERE tenant_id = %s", PLATFORM) == [(True,)]
    assert told.user.email not in "".join(lines)


def test_the_page_shows_details_filters_and_exports(browse: Browse, told: Person) -> None:
    pages = browse(told)
    text = pages.get("/audit").get_data(as_text=True)
    assert "=HYPERLINK(&#34;http://192.0.2.1&#34;,&#34;Pump&#34;)" in text
    assert "role.create" in text
    assert "/api/v1/audit/export?format=csv" in text
    assert pages.get("/api/v1/audit/export?format=csv").status_code == 200
    narrowed = pages.get("/audit?action=device&object=d1&from=2020-01-01&to=nonsense&q=create").get_data(as_text=True)
    assert "device.create" in narrowed
    assert "role.create" not in narrowed
    assert "from=2020-01-01T00%3A00%3A00%2B00%3A00&amp;format=csv" in narrowed
    assert "No entry matches" in pages.get("/audit?q=nothing-like-this&to=9999-12-31").get_data(as_text=True)
    assert pages.get("/audit?cursor=x").status_code == 200


def test_older_entries_are_on_the_next_page(browse: Browse, told: Person) -> None:
    for number in range(50):
        write(told, "test.many", ("test", str(number)))
    text = browse(told).get("/audit").get_data(as_text=True)
    address = text.split('">Older<')[0].rpartition('href="')[2].replace("&amp;", "&")
    older = browse(told).get(address).get_data(as_text=True)
    assert "session.sign-in" in older
    assert ">Newest<" in older


def test_the_pages_are_for_those_who_may_read(browse: Browse, told: Person, person: Make) -> None:
    assert browse(person("viewer", told.tenant)).get("/audit").status_code == 403
    assert browse(told).get("/platform/audit").status_code == 403
    assert browse(person(is_platform_admin=True)).get("/platform/audit").status_code == 200
