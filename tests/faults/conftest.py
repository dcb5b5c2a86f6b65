"""What is killed here is killed under a load that it has to bear."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def at_their_own_speed(unmeasured: None) -> None:
    """All of them."""
