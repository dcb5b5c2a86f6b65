"""What every model of a tenant's table has to be."""

from iiot.models import Base

# Tables of no tenant, as in the catalogue test, and those whose tenant is optional.
WITHOUT_TENANT = {"tenant", "user_account", "stream_cursor", "session", "plan"} | {
    "password_reset", "pending_registration", "second_factor", "recovery_code",
}  # fmt: skip


def test_every_mapped_table_of_a_tenant_is_known_to_the_door() -> None:
    """A class with a tenant_id that does not inherit TenantOwned would not be filtered."""
    from iiot.tenancy import TenantOwned

    for mapper in Base.registry.mappers:
        table = mapper.local_table.name  # type: ignore[attr-defined]
        assert issubclass(mapper.class_, TenantOwned) == (table not in WITHOUT_TENANT), table
