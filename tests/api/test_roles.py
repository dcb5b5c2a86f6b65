"""Roles of a tenant: what they may hold, who may make them, and that a change counts at once."""

import pytest

from iiot import auth, tenancy
from iiot.services import members, roles
from tests import factories
from tests.api.conftest import Make, Person, check_problem, make_thing


def make_role(admin: Person, *permissions: str, name: str = "Night shift") -> str:
    """The id of a new role."""
    answer = admin.post(f"/tenants/{admin.tenant.uid}/roles", json={"name": name, "permissions": list(permissions)})
    assert answer.status_code == 201, answer.get_data(as_text=True)
    role: str = answer.get_json()["id"]
    return role


def give(admin: Person, other: Person, role: str) -> None:
    """Give a member a role."""
    answer = admin.patch(f"/tenants/{admin.tenant.uid}/users/{other.user.uid}", json={"role": role})
    assert answer.status_code == 200, answer.get_data(as_text=True)


def test_builtin_roles_are_listed_with_their_permissions(admin: Person) -> None:
    page = admin.get(f"/tenants/{admin.tenant.uid}/roles").get_json()
    builtin = {each["id"]: each for each in page["items"] if each["is_builtin"]}
    assert builtin.keys() == auth.PERMISSIONS.keys()
    for name, role in builtin.items():
        assert set(role["permissions"]) == auth.PERMISSIONS[name]
    assert builtin["admin"]["used_by"] == 1
    for name in builtin:
        check_problem(admin.delete(f"/tenants/{admin.tenant.uid}/roles/{name}"), 409, "builtin-role")
        changed = admin.patch(f"/tenants/{admin.tenant.uid}/roles/{name}", json={"name": "mine"})
        check_problem(changed, 409, "builtin-role")


def test_a_role_that_reads_cannot_command_or_write(person: Make, admin: Person) -> None:
    reader = person("viewer", admin.tenant)
    give(admin, reader, make_role(admin, "device:read", "telemetry:read"))
    thing = make_thing(admin.tenant)
    assert reader.get(f"/devices/{thing.uid}").status_code == 200
    assert reader.get(f"/devices/{thing.uid}/latest").status_code == 200
    assert set(reader.get("/auth/me").get_json()["permissions"]) == {"device:read", "telemetry:read"}
    check_problem(reader.patch(f"/devices/{thing.uid}", json={"name": "x"}), 403, "forbidden")
    check_problem(reader.post("/devices", json={"name": "x"}), 403, "forbidden")
    check_problem(reader.post("/telemetry", json={"device_id": thing.uid, "data": {"t": 1}}), 403, "forbidden")
    check_problem(reader.get(f"/tenants/{admin.tenant.uid}/users"), 403, "forbidden")


def test_a_role_that_writes_telemetry_cannot_read_it(person: Make, admin: Person) -> None:
    writer = person("viewer", admin.tenant)
    give(admin, writer, make_role(admin, "telemetry:write"))
    thing = make_thing(admin.tenant)
    stored = writer.post("/telemetry", json={"device_id": thing.uid, "data": {"t": 1}})
    assert stored.get_json()["stored"] == 1
    check_problem(writer.get(f"/devices/{thing.uid}/latest"), 403, "forbidden")
    check_problem(writer.get(f"/devices/{thing.uid}/telemetry"), 403, "forbidden")
    check_problem(writer.get("/devices"), 403, "forbidden")


def test_a_change_of_a_role_counts_at_once(person: Make, admin: Person) -> None:
    other = person("viewer", admin.tenant)
    role = make_role(admin, "device:read")
    give(admin, other, role)
    assert other.get("/devices").status_code == 200
    path = f"/tenants/{admin.tenant.uid}/roles/{role}"
    changed = admin.patch(path, json={"permissions": ["telemetry:write"], "name": "Writers"}).get_json()
    assert changed["permissions"] == ["telemetry:write"]
    assert changed["used_by"] == 1
    check_problem(other.get("/devices"), 403, "forbidden")


def test_a_role_in_use_cannot_be_deleted(person: Make, admin: Person) -> None:
    other = person("viewer", admin.tenant)
    role = make_role(admin, "device:read")
    give(admin, other, role)
    path = f"/tenants/{admin.tenant.uid}/roles/{role}"
    refused = check_problem(admin.delete(path), 409, "role-in-use")
    assert refused["detail"].startswith("1 has this role")
    admin.post(f"/tenants/{admin.tenant.uid}/invitations", json={"email": "new@example.com", "role": role})
    assert check_problem(admin.delete(path), 409, "role-in-use")["detail"].startswith("2 have")
    give(admin, other, "viewer")
    invited = admin.get(f"/tenants/{admin.tenant.uid}/invitations").get_json()["items"][0]
    assert admin.delete(f"/tenants/{admin.tenant.uid}/invitations/{invited['id']}").status_code == 204
    assert admin.delete(path).status_code == 204
    check_problem(admin.delete(path), 404, "not-found")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"name": "Admin", "permissions": ["device:read"]}, "name"),
        ({"name": " ", "permissions": ["device:read"]}, "name"),
        ({"name": "a\nb", "permissions": ["device:read"]}, "name"),
        ({"name": "ok", "permissions": ["root"]}, "permissions"),
        ({"name": "ok", "permissions": []}, "permissions"),
    ],
)
def test_poor_roles_are_refused_with_the_place(admin: Person, body: dict[str, object], place: str) -> None:
    refused = check_problem(admin.post(f"/tenants/{admin.tenant.uid}/roles", json=body), 422, "invalid")
    assert refused["errors"][0]["loc"] == ["body", place]


def test_names_are_unique_within_the_tenant_alone(person: Make, admin: Person) -> None:
    make_role(admin, "device:read", name="Shift")
    twice = admin.post(f"/tenants/{admin.tenant.uid}/roles", json={"name": "SHIFT", "permissions": ["device:read"]})
    check_problem(twice, 409, "name-taken")
    make_role(person(), "device:read", name="Shift")


def test_nobody_makes_or_changes_a_role_that_holds_more_than_they_do(person: Make, admin: Person) -> None:
    path = f"/tenants/{admin.tenant.uid}/roles"
    strong = make_role(admin, "audit:read", "device:read", name="Auditors")
    deputy = person("viewer", admin.tenant)
    give(admin, deputy, make_role(admin, "member:read", "member:write", "device:read", name="Deputies"))
    more = {"name": "Mine", "permissions": ["device:read", "device:write"]}
    check_problem(deputy.post(path, json=more), 403, "more-than-you-hold")
    check_problem(deputy.patch(f"{path}/{strong}", json={"name": "Mine"}), 403, "more-than-you-hold")
    check_problem(deputy.delete(f"{path}/{strong}"), 403, "more-than-you-hold")
    assert deputy.post(path, json={"name": "Mine", "permissions": ["device:read"]}).status_code == 201


def test_the_trail_tells_what_a_role_was_and_is(admin: Person) -> None:
    role = make_role(admin, "device:read")
    admin.patch(f"/tenants/{admin.tenant.uid}/roles/{role}", json={"permissions": ["device:read", "alarm:read"]})
    admin.delete(f"/tenants/{admin.tenant.uid}/roles/{role}")
    told = factories.rows(
        "SELECT action, before, after FROM iiot.audit WHERE tenant_id = %s AND object_uid = %s ORDER BY seq",
        admin.tenant.tenant_id,
        role,
    )
    assert [each[0] for each in told] == ["role.create", "role.change", "role.delete"]
    assert told[1][1:] == ({"permissions": ["device:read"]}, {"permissions": ["alarm:read", "device:read"]})


def test_permissions_that_left_the_product_are_not_granted(person: Make, admin: Person) -> None:
    other = person("viewer", admin.tenant)
    role = make_role(admin, "device:read")
    give(admin, other, role)
    factories.rows("UPDATE iiot.role SET permissions = '{device:read,world:end}' WHERE uid = %s", role)
    with tenancy.work(tenancy.of(admin.tenant)) as db:
        assert members.get(db, other.user.uid).role == role
    admin.patch(f"/tenants/{admin.tenant.uid}/roles/{role}", json={"name": "Again"})
    assert other.get("/auth/me").get_json()["permissions"] == ["device:read"]


def test_a_tenant_has_at_most_a_hundred_roles(admin: Person) -> None:
    factories.rows(
        "INSERT INTO iiot.role (tenant_id, uid, name, permissions) SELECT %s, 'many-' || n, 'role ' || n, '{device:read}' "
        "FROM generate_series(1, 100) n",
        admin.tenant.tenant_id,
    )
    path = f"/tenants/{admin.tenant.uid}/roles"
    refused = admin.post(path, json={"name": "one more", "permissions": ["device:read"]})
    check_problem(refused, 409, "too-many-roles")
    check_problem(admin.patch(f"{path}/unknown", json={"name": "x"}), 404, "not-found")
    check_problem(admin.patch(f"{path}/{'a' * 26}", json={"name": None}), 422, "invalid")


def test_what_the_columns_of_a_role_grant(admin: Person) -> None:
    role = make_role(admin, "device:read", "telemetry:read")
    with tenancy.work(tenancy.of(admin.tenant)) as db:
        found = roles.resolve(db, role)
        assert roles.permissions_of(db, *found) == {"device:read", "telemetry:read"}
        assert roles.permissions_of(db, "operator", None) == auth.PERMISSIONS["operator"]
        assert roles.permissions_of(db, "no such role", None) == frozenset()
        assert roles.permissions_of(db, "custom", -1) == frozenset()
