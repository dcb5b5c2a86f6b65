"""What a principal holds and may do: roles, custom roles, limits, the tenant's state. Each line of the table kills a mutant."""

from dataclasses import replace
from itertools import pairwise, product

import pytest

from iiot import auth
from iiot.errors import Forbidden

ADMIN = auth.Principal("user", 1, "t", user_id=2, user_uid="u", role="admin")
LADDER = ("viewer", "operator", "engineer", "admin")


@pytest.mark.parametrize(("lower", "higher"), list(pairwise(LADDER)))
def test_each_role_holds_what_the_one_below_holds(lower: str, higher: str) -> None:
    assert auth.PERMISSIONS[lower] < auth.PERMISSIONS[higher]


@pytest.mark.parametrize(("role", "permission"), list(product(LADDER, sorted(auth.ALL_PERMISSIONS))))
def test_a_role_may_do_what_it_holds_and_nothing_else(role: str, permission: str) -> None:
    principal = replace(ADMIN, role=role)
    assert principal.held == principal.permissions == auth.PERMISSIONS[role]
    if permission in auth.PERMISSIONS[role]:
        principal.require(permission)
        return
    with pytest.raises(Forbidden) as refused:
        principal.require(permission)
    needed = next(name for name in LADDER if permission in auth.PERMISSIONS[name])
    assert refused.value.code == "forbidden"
    assert (
        str(refused.value)
        == f"This needs the permission {permission}: ask an admin of your tenant for the role {needed}."
    )


@pytest.mark.parametrize("role", [None, "", "custom", "Admin", "owner"])
def test_an_unknown_role_holds_nothing(role: str | None) -> None:
    assert replace(ADMIN, role=role).permissions == frozenset()


def test_granted_counts_instead_of_the_role() -> None:
    narrowed = replace(ADMIN, granted=frozenset({"device:read"}))
    assert narrowed.permissions == {"device:read"}
    assert replace(ADMIN, granted=frozenset()).permissions == frozenset(), "an empty grant is not no grant"
    assert replace(ADMIN, role=None, granted=frozenset({"device:write"})).permissions == {"device:write"}


def test_a_key_is_told_which_scope_it_lacks() -> None:
    key = replace(ADMIN, granted=frozenset({"device:read"}), api_key_uid="k")
    with pytest.raises(Forbidden, match="This API key does not hold the permission device:write"):
        key.require("device:write")


@pytest.mark.parametrize("status", ["suspended", "deleting"])
def test_in_a_tenant_that_is_not_active_one_reads_only(status: str) -> None:
    there = replace(ADMIN, tenant_status=status)
    assert there.held == auth.ALL_PERMISSIONS
    assert there.permissions == {each for each in auth.ALL_PERMISSIONS if each.endswith(":read")}
    there.require("device:read")
    with pytest.raises(Forbidden) as refused:
        there.require("device:write")
    assert refused.value.code == f"tenant-{status}"
    assert str(refused.value) == auth.READ_ONLY[status]
    with pytest.raises(Forbidden) as refused:
        replace(there, role="viewer").require("device:write")
    assert refused.value.code == "forbidden", "who could not do it anyway is told why"


def test_a_limited_member_holds_nothing_that_concerns_the_whole_tenant() -> None:
    limited = replace(ADMIN, limited_user_id=2)
    assert limited.is_limited
    assert not ADMIN.is_limited
    assert replace(ADMIN, limited_user_id=0).is_limited, "no number means unlimited"
    assert limited.held == auth.ALL_PERMISSIONS - auth.TENANT_WIDE
    assert replace(limited, granted=auth.ALL_PERMISSIONS).held == auth.ALL_PERMISSIONS - auth.TENANT_WIDE
    assert {"audit:read", "member:write", "tenant:write", "api-key:write"} <= auth.TENANT_WIDE


def test_the_id_of_whoever_it_is() -> None:
    assert ADMIN.uid == "u"
    assert auth.Principal("service", 1, "t", service_uid="s").uid == "s"
    assert auth.Principal("device", 1, "t", device_uid="d").uid == "d"
    assert auth.Principal("user", None, None).uid == ""


def test_a_principal_is_nobody_special_unless_told() -> None:
    plain = auth.Principal("user", None, None)
    assert plain.permissions == frozenset()
    special = (plain.is_platform_admin, plain.must_change_password, plain.must_set_up_mfa, plain.is_limited)
    assert special == (False,) * 4
    assert plain.tenant_status == "active"


def test_platform_administrators_read_nothing_that_tenants_own() -> None:
    assert {"tenant:read", "tenant:write", "member:read", "member:write"} == auth.PLATFORM_PERMISSIONS
