"""`alembic check`: the migrations make what the models say."""

import pytest

from iiot import schema
from tests import services


@pytest.mark.parametrize("server", ["postgres", "postgres15"])
def test_models_and_migrations_agree(server: str, request: pytest.FixtureRequest) -> None:
    running: services.PostgresServer = request.getfixturevalue(server)
    settings = running.database()
    schema.check(settings)
    running.drop(settings)
