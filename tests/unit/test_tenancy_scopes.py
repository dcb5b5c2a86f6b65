"""Who may act for whom: the minting of scopes, without a database."""

import dataclasses

import pytest

from iiot import db, tenancy


@dataclasses.dataclass
class Somebody:
    tenant_id: int | None


def test_a_principal_acts_for_its_own_tenant_as_the_limited_role() -> None:
    assert tenancy.of(Somebody(7)) == tenancy.Scope("app", 7, "principal")
    assert tenancy.of_device(Somebody(7)) == tenancy.Scope("app", 7, "device")


def test_who_has_no_tenant_gets_no_scope() -> None:
    with pytest.raises(tenancy.NoTenant):
        tenancy.of(Somebody(None))
    with pytest.raises(tenancy.NoTenant):
        tenancy.of_device(Somebody(None))


@pytest.mark.parametrize("reason", ["", "because", "principal", "device", "INGEST"])
def test_an_unlisted_reason_is_refused(reason: str) -> None:
    with pytest.raises(tenancy.TenancyError, match="not a reason"):
        tenancy.system(reason)


def test_every_reason_names_a_role_with_a_pool_and_says_why() -> None:
    for reason, (role, why) in tenancy.REASONS.items():
        assert role in db.POOLS, reason
        assert why.endswith("."), reason
        assert tenancy.system(reason) == tenancy.Scope(role, None, reason)


def test_only_one_reason_acts_as_the_owner() -> None:
    assert [reason for reason, (role, _) in tenancy.REASONS.items() if role == "owner"] == ["migrate"]


def test_a_scope_cannot_be_changed() -> None:
    scope = tenancy.of(Somebody(7))
    with pytest.raises(dataclasses.FrozenInstanceError):
        scope.tenant_id = 8  # type: ignore[misc]


def test_programming_errors_are_not_refusals_that_a_client_may_read() -> None:
    from iiot.errors import Problem

    for error in (tenancy.TenancyError, tenancy.NoTenant, tenancy.CrossTenant):
        assert not issubclass(error, Problem)
