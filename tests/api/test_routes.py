"""Every route of the URL map: authenticated and documented. A new route is found here by itself; who sees what: test_isolation_matrix.py."""

import re

from flask import Flask

from iiot import web
from tests import factories
from tests.api.conftest import Make, basic, make_thing
from tests.api.route_examples import PUBLIC


def rules(app: Flask) -> list[tuple[str, str, str]]:
    """(method, rule, endpoint) of everything that is served."""
    found = [
        (method, rule.rule, rule.endpoint)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    ]
    return sorted(found)


def filled(rule: str, value: str) -> str:
    return re.sub(r"<(?:\w+:)?\w+>", value, rule)


def operations(app: Flask) -> dict[str, web.Operation]:
    known: list[web.Operation] = app.extensions["iiot.operations"]
    return {f"{each.method} {each.rule}": each for each in known}


def test_the_public_list_names_routes_that_exist(app: Flask) -> None:
    assert {f"{method} {rule}" for method, rule, _ in rules(app)} >= PUBLIC


def test_strangers_are_let_into_the_public_routes_alone(app: Flask) -> None:
    client = app.test_client(use_cookies=False)
    open_routes = []
    for method, rule, _ in rules(app):
        name = f"{method} {rule}"
        if name in PUBLIC:
            continue
        answer = client.open(
            filled(rule, "a" * 26), method=method, json={} if method in ("POST", "PUT", "PATCH") else None
        )
        is_login = answer.status_code == 303 and answer.headers["Location"].startswith("/login")
        if answer.status_code != 401 and not is_login:
            open_routes.append((name, answer.status_code))
    assert not open_routes


def test_authentication_comes_before_validation(app: Flask) -> None:
    client = app.test_client(use_cookies=False)
    for name, operation in operations(app).items():
        if operation.auth != "none":
            answer = client.open(
                filled(operation.rule, "x"), method=operation.method, data="{", content_type="text/plain"
            )
            assert answer.status_code == 401, name


def test_every_route_of_the_api_goes_through_the_glue(app: Flask) -> None:
    known = operations(app)
    assert not [
        f"{method} {rule}"
        for method, rule, _ in rules(app)
        if rule.startswith("/api/") and f"{method} {rule}" not in known
    ]


def test_every_operation_is_documented(app: Flask) -> None:
    document = app.test_client().get("/api/v1/openapi.json").get_json()
    assert document["openapi"].startswith("3.1")
    for operation in operations(app).values():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", operation.rule)
        entry = document["paths"][path][operation.method.lower()]
        assert entry["summary"]
        assert entry["responses"]
        names = {each["name"] for each in entry.get("parameters", []) if each["in"] == "path"}
        assert names == set(re.findall(r"{(\w+)}", path))
        assert bool(entry["security"]) == (operation.auth != "none")


def test_the_document_refers_to_nothing_that_is_missing(app: Flask) -> None:
    document = app.test_client().get("/api/v1/openapi.json").get_json()
    text = str(document)
    for reference in set(re.findall(r"#/components/schemas/([\w-]+)", text)):
        assert reference in document["components"]["schemas"], reference
    ids = [entry["operationId"] for methods in document["paths"].values() for entry in methods.values()]
    assert len(ids) == len(set(ids))


def test_the_page_of_documents_lists_every_path_without_anything_inline(app: Flask) -> None:
    page = app.test_client().get("/api/v1/docs").get_data(as_text=True)
    document = app.test_client().get("/api/v1/openapi.json").get_json()
    assert all(f"<code>{path}</code>" in page for path in document["paths"])
    assert "<script" not in page
    assert "style=" not in page
    assert "http://" not in page
    assert app.test_client().get("/api/v1/docs.css").content_type.startswith("text/css")


def test_every_permission_that_a_route_needs_is_held_by_an_admin(app: Flask) -> None:
    from iiot import auth

    for operation in operations(app).values():
        assert operation.options.get("permission", "device:read") in auth.ALL_PERMISSIONS


def test_a_device_of_one_tenant_cannot_write_for_another(person: Make) -> None:
    owner, stranger = person(), person()
    device = make_thing(owner.tenant).uid
    factories.store(device, temperature=1.0)
    thief = make_thing(stranger.tenant)
    answer = owner.client.post(
        "/api/v1/telemetry", json={"device_id": device, "data": {"t": 1}}, headers=basic(thief.uid, thief.token)
    )
    # To a device these are readings of its own signals, or nothing; never another device.
    assert answer.status_code in (200, 422)
    assert (
        factories.rows(
            "SELECT count(*) FROM iiot.signal s JOIN iiot.device d ON d.id = s.device_id WHERE d.uid = %s", device
        )[0][0]
        == 1
    )
