"""Which protocol adapters run and are connected: each says so through Redis every few seconds, and the Connect page asks."""

import time
from typing import Any, cast

from iiot.services import metering

BEAT_SECONDS = 5.0
# An adapter that has said nothing for so long is gone.
LIFE_SECONDS = 20.0
_KEY = "iiot:adapters"


def beat(name: str, is_connected: bool) -> None:
    """Say that an adapter runs. While Redis is down nobody hears it."""
    metering.ask(lambda client: client.hset(_KEY, name, f"{time.time():.0f} {int(is_connected)}"))


def check(name: str) -> None:
    """Raises ConnectionError unless the adapter is connected now."""
    found = running()
    if found is None:
        raise ConnectionError("Redis does not answer, so nobody knows")
    if name not in found:
        raise ConnectionError("the adapter is not connected")


def running() -> frozenset[str] | None:
    """The adapters that are connected now; None while Redis does not answer and nobody knows."""
    found = metering.ask(lambda client: cast(dict[bytes, bytes], cast(Any, client).hgetall(_KEY)))
    if found is None:
        return None
    oldest = time.time() - LIFE_SECONDS
    beats = {name.decode(): value.decode().split() for name, value in found.items()}
    return frozenset(name for name, (at, is_connected) in beats.items() if is_connected == "1" and float(at) >= oldest)
