"""What is killed here is killed under a load that it has to bear."""

from collections.abc import Iterator

import pytest

from tests import services


@pytest.fixture(scope="module", autouse=True)
def unmeasured() -> Iterator[None]:
    """The processes under test at their own speed."""
    services.measures_children = False
    yield
    services.measures_children = True
