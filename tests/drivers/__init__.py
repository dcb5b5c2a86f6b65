"""What tests of every protocol need to know about one of them, and the contract of adapters cannot say.

A protocol that needs a broker, a port of its own or a client that stays connected has a file `tests/drivers/<name>.py`
with a class `Protocol(Driver)`; for every other adapter the `Driver` here is enough.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from iiot.config import Settings
from protocols.__main__ import adapter
from protocols.base import AdapterError
from tests import factories, services

# Sends one payload of the given content type as one device; returns when the protocol has answered, whatever it says.
Send = Callable[[bytes, str | None], None]


class Refused(Exception):
    """The server did not let somebody in, or is away."""


class Driver:
    """One protocol in tests. `settings` belong to what was started for it; it is made once per module of tests."""

    # Whether `send` of the adapter returns after the commit; else it returns when a broker has the message.
    commits = True
    # Whether devices send messages through it. An adapter that only serves what is stored is asked other questions.
    takes_messages = True
    # Whether the protocol tells the content type; else everything is JSON.
    content_types = True
    # The server between device and adapter, where there is one.
    broker: services.Server | None = None

    def __init__(self, name: str, settings: Settings, folder: Path) -> None:
        self.name = name
        self.settings = settings
        self.folder = folder

    def start(self, request: pytest.FixtureRequest) -> None:
        """Start what the adapter needs, and put it into `settings`. `request` gives servers that the whole run shares."""

    def stop(self) -> None:
        """Stop what `start` has started."""

    def tighten(self, messages: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make bounds of the adapter's own, which keep it from ever filling the runner's queue, this small."""

    def person(self, tenant: factories.TenantRow) -> tuple[str, str]:
        """Of a protocol that serves what is stored: user and password of somebody new who may look at a tenant."""
        raise NotImplementedError(f"{self.name}: person")

    def read(self, user: str, password: str, uid: str, key: str) -> object:
        """Of such a protocol: the newest value of a signal, None when there is none for this user. Raises Refused."""
        raise NotImplementedError(f"{self.name}: read")

    @property
    def module(self) -> ModuleType:
        """The adapter's module."""
        return adapter(self.name)

    def make(self) -> Any:
        """The adapter, as the command line makes it; what is missing is said in the words of this package."""
        try:
            return self.module.make(self.settings)
        except AdapterError as error:
            pytest.fail(
                f"the adapter {self.name} needs more than the settings of tests ({error}): {write_a_driver(self.name)}"
            )

    @contextmanager
    def device(self, uid: str, token: str) -> Iterator[Send]:
        """A device that stays connected. Without a driver of its own it says no content type and connects each time."""
        made = self.make()

        def send(payload: bytes, _content_type: str | None) -> None:
            with suppress(AdapterError):
                made.send(uid, token, payload)

        yield send


def write_a_driver(name: str) -> str:
    """What to do about a protocol that needs a driver and has none."""
    return (
        f"write tests/drivers/{name}.py with `class Protocol(Driver)`; its `start` starts what `python -m protocols run {name}` "
        "connects to and puts the addresses into `self.settings` (tests/drivers/mqtt.py is an example)"
    )


def kind(name: str) -> type[Driver]:
    """The driver's class of a protocol."""
    if importlib.util.find_spec(f"tests.drivers.{name}") is None:
        return Driver
    made: type[Driver] = importlib.import_module(f"tests.drivers.{name}").Protocol
    return made


def driver(name: str, settings: Settings, folder: Path) -> Driver:
    """The driver of a protocol, not started."""
    return kind(name)(name, settings, folder)
