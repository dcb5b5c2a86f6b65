"""`alembic check`: models and migrations are at one, on a real PostgreSQL."""

from iiot import schema
from iiot.models import Base
from tests.services import PostgresServer

# Tables of no tenant, as in the catalogue test, and those whose tenant is optional.
WITHOUT_TENANT = {"tenant", "user_account", "stream_cursor", "session"}


def test_models_and_migrations_are_at_one(postgres: PostgresServer) -> None:
    settings = postgres.database()
    schema.check(settings)
    postgres.drop(settings)


def test_every_mapped_table_of_a_tenant_is_known_to_the_door() -> None:
    """A class with a tenant_id that does not inherit TenantOwned would not be filtered."""
    from iiot.tenancy import TenantOwned

    for mapper in Base.registry.mappers:
        table = mapper.local_table.name  # type: ignore[attr-defined]
        assert issubclass(mapper.class_, TenantOwned) == (table not in WITHOUT_TENANT), table
