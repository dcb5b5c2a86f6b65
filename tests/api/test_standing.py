"""Entering a tenant that a route names: members, platform administrators, keys, devices, and everybody else."""

from dataclasses import replace

import pytest
from sqlalchemy import update

from iiot import auth, tenancy
from iiot.config import Settings
from iiot.errors import NotFound
from iiot.models import Membership, Role, Tenant, User
from iiot.services import sessions, standing
from tests import factories

pytestmark = pytest.mark.usefixtures("module_settings")


@pytest.fixture
def home(module_settings: Settings) -> factories.TenantRow:
    return factories.make_tenant()


def principal(user: factories.UserRow, tenant: str | None = None) -> auth.Principal:
    with tenancy.work(tenancy.system("sign-in")) as db:
        return sessions.open_session(db, user.user_id, tenant=tenant).principal


def join(user: factories.UserRow, tenant: factories.TenantRow, role: str = "operator", **columns: object) -> None:
    with tenancy.work(tenancy.system("sign-in")) as db:
        db.add(Membership(tenant_id=tenant.tenant_id, user_id=user.user_id, role=role, **columns))


def set_columns(model: type[Tenant] | type[User], row_id: int, **values: object) -> None:
    with tenancy.work(tenancy.system("platform")) as db:
        db.execute(update(model).where(model.id == row_id).values(**values))


def test_a_principal_says_who_it_is_and_where(home: factories.TenantRow) -> None:
    user = factories.make_user(home, "engineer", email="engineer@standing.example.com", must_change_password=True)
    me = principal(user)
    assert (me.kind, me.tenant_id, me.tenant_uid, me.user_id, me.user_uid) == (
        "user",
        home.tenant_id,
        home.uid,
        user.user_id,
        user.uid,
    )
    assert (me.role, me.label, me.granted, me.limited_user_id) == (
        "engineer",
        "engineer@standing.example.com",
        None,
        None,
    )
    assert me.session_uid
    assert me.must_change_password
    assert not me.is_platform_admin
    assert me.tenant_status == "active"
    assert me.permissions == auth.PERMISSIONS["engineer"]


def test_a_member_enters_their_tenants_with_their_role_there(home: factories.TenantRow) -> None:
    other = factories.make_tenant()
    user = factories.make_user(home, "admin")
    join(user, other)
    me = principal(user, home.uid)
    assert standing.enter(me, home.uid) is me
    there = standing.enter(me, other.uid)
    assert (there.tenant_id, there.tenant_uid, there.role) == (other.tenant_id, other.uid, "operator")
    assert there.permissions == auth.PERMISSIONS["operator"]
    assert there.session_uid == me.session_uid


def test_what_is_not_theirs_is_not_there(home: factories.TenantRow) -> None:
    me = principal(factories.make_user(home))
    for uid in (factories.make_tenant().uid, "a" * 26, ""):
        with pytest.raises(NotFound, match="no such tenant"):
            standing.enter(me, uid)
    ghost = replace(me, user_id=None)
    with pytest.raises(NotFound, match="no such tenant"):
        standing.enter(ghost, factories.make_tenant().uid)


def test_a_custom_role_counts_with_its_permissions_alone(home: factories.TenantRow) -> None:
    user = factories.make_user(None)
    with tenancy.work(tenancy.of(home)) as db:
        role = Role(uid="r" * 26, name="admin", permissions=["device:read", "no-such:thing"])
        db.add_all([role, Role(uid="q" * 26, name="another", permissions=["device:write"])])
        db.flush()
        number = role.id
    join(user, home, "custom", role_id=number)
    me = principal(user)
    assert me.role == "admin", "its name, which grants nothing"
    assert me.granted == me.permissions == {"device:read"}


def test_keys_services_and_devices_stay_in_their_tenant(home: factories.TenantRow) -> None:
    user = factories.make_user(home, is_platform_admin=True)
    other = factories.make_tenant()
    join(user, other)
    key = replace(principal(user, home.uid), api_key_uid="k")
    device = auth.Principal("device", home.tenant_id, home.uid, device_uid="d")
    service = auth.Principal("service", home.tenant_id, home.uid, service_uid="s")
    for who in (key, device, service):
        assert standing.enter(who, home.uid) is who
        with pytest.raises(NotFound, match="no such tenant"):
            standing.enter(who, other.uid)


def test_a_platform_administrator_enters_to_manage_and_sees_nothing_owned(home: factories.TenantRow) -> None:
    me = principal(factories.make_user(None, is_platform_admin=True))
    assert me.tenant_id is None
    assert me.permissions == frozenset()
    inside = standing.enter(me, home.uid)
    assert (inside.tenant_id, inside.tenant_uid, inside.role) == (home.tenant_id, home.uid, None)
    assert inside.permissions == auth.PLATFORM_PERMISSIONS
    assert inside.session_uid == me.session_uid
    assert inside.is_platform_admin
    with pytest.raises(NotFound, match="no such tenant"):
        standing.enter(me, "a" * 26)
    set_columns(Tenant, home.tenant_id, status="suspended")
    assert standing.enter(me, home.uid).permissions == auth.PLATFORM_PERMISSIONS


def test_a_platform_administrator_who_is_a_member_holds_both(home: factories.TenantRow) -> None:
    user = factories.make_user(home, "viewer", is_platform_admin=True)
    me = principal(user)
    assert me.permissions == auth.PERMISSIONS["viewer"]
    inside = standing.enter(me, home.uid)
    assert inside.permissions == auth.PERMISSIONS["viewer"] | auth.PLATFORM_PERMISSIONS
    assert inside.limited_user_id is None
    set_columns(Tenant, home.tenant_id, status="suspended")
    assert "tenant:write" in standing.enter(principal(user), home.uid).permissions


def test_a_limited_platform_administrator_manages_and_sees_no_device(home: factories.TenantRow) -> None:
    user = factories.make_user(None, is_platform_admin=True)
    join(user, home, "admin", is_limited=True)
    me = principal(user)
    assert me.limited_user_id == user.user_id
    inside = standing.enter(me, home.uid)
    assert inside.permissions == auth.PLATFORM_PERMISSIONS
    assert inside.limited_user_id is None


def test_a_right_that_was_taken_away_counts_at_the_door(home: factories.TenantRow) -> None:
    """The principal says platform administrator; the database no longer does."""
    user = factories.make_user(home, "viewer", is_platform_admin=True)
    me = principal(user)
    set_columns(User, user.user_id, is_platform_admin=False)
    assert standing.enter(me, home.uid).permissions == auth.PERMISSIONS["viewer"]


@pytest.mark.parametrize(
    ("role", "platform", "has_mfa", "required", "must"),
    [
        ("admin", False, False, True, True),
        ("admin", False, True, True, False),
        ("admin", False, False, False, False),
        ("viewer", False, False, True, False),
        ("viewer", True, False, True, True),
    ],
)
def test_who_must_set_a_second_factor_up(
    home: factories.TenantRow, role: str, platform: bool, has_mfa: bool, required: bool, must: bool
) -> None:
    set_columns(Tenant, home.tenant_id, require_mfa=required)
    user = factories.make_user(home, role, is_platform_admin=platform, has_mfa=has_mfa)
    assert principal(user).must_set_up_mfa is must


def test_a_tenant_that_is_not_active_shows(home: factories.TenantRow) -> None:
    user = factories.make_user(home)
    set_columns(Tenant, home.tenant_id, status="suspended")
    assert principal(user).tenant_status == "suspended"
    me = principal(factories.make_user(None))
    assert (me.tenant_status, me.must_set_up_mfa, me.tenant_uid) == ("active", False, None)
