"""What the CoAP server asks the database for: in threads, as an event loop must not wait. Not an adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

# Strangers have threads of their own, so that they hold up nobody who was here before.
STRANGER_THREADS: Final = 2
DEVICE_THREADS: Final = 3


class Questions:
    """Questions under way; the same one is asked once at a time."""

    def __init__(self) -> None:
        self._strangers = ThreadPoolExecutor(STRANGER_THREADS, "coap-sign-in")
        self._devices = ThreadPoolExecutor(DEVICE_THREADS, "coap-device")
        self._asked: dict[Any, asyncio.Future[Any]] = {}

    def ask(self, key: Any, question: Callable[..., Any], *arguments: Any, is_stranger: bool = False) -> Any:
        """The answer, to be awaited. `key` says which questions are the same."""
        asked = self._asked.get(key)
        if asked is None:
            pool = self._strangers if is_stranger else self._devices
            asked = self._asked[key] = asyncio.get_running_loop().run_in_executor(pool, question, *arguments)
            asked.add_done_callback(lambda _: self._asked.pop(key, None))
        return asyncio.shield(asked)

    def close(self) -> None:
        """Answer no more."""
        for pool in (self._strangers, self._devices):
            pool.shutdown(wait=False, cancel_futures=True)
