"""What an adapter is given that serves stored things to people and programs, instead of taking messages of devices in.

`Inbox.plant()` returns a `Plant`. Whoever connects proves who they are (`admit`) and is a `Visitor` from then on; everything
else is asked in a visitor's name and answers with what this visitor may see. Methods block: an event loop calls them from
threads. They raise `Away` while the database cannot be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from protocols.base import Refusal

SignalType = Literal["number", "boolean", "string", "json"]


class Away(Exception):
    """The portal cannot look at what is stored now; the same question may be answered later."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """A person or a program that has proved itself, in one tenant.

    `id` is the door's own name of this proof. Visitors with an equal `view` see the same devices. `identity` is who it
    is: equal for two proofs of the same person or key.
    """

    id: str
    identity: str
    tenant: str
    view: Hashable
    may_command: bool
    may_change: bool


@dataclass(frozen=True, slots=True)
class Device:
    """A device as a visitor sees it."""

    uid: str
    name: str
    status: str


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal of a device with its newest reading; `ts` is in milliseconds since the epoch, None before the first.

    `quality`: good, uncertain or bad, as its device sent it.
    """

    key: str
    type: SignalType
    unit: str | None
    minimum: float | None
    maximum: float | None
    writable: bool
    ts: int | None
    value: Any
    quality: str = "good"


@dataclass(frozen=True, slots=True)
class Span:
    """Which readings: at most `limit` in [start, stop) (ms), from the oldest or, when `descending`, from the newest."""

    start: int
    stop: int
    limit: int
    descending: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """Something that has just happened: readings `{key: [(ts, value), …]}` of a device, or its new status.

    `quality`: `{key: {ts: word}}` of the readings that are not good; the times are text.
    """

    tenant: str
    device: str
    readings: dict[str, list[tuple[int, Any]]]
    status: str | None = None
    quality: dict[str, dict[str, str]] = field(default_factory=dict)


class Wire(Protocol):
    """Brings news of the tenants that somebody looks at."""

    def want(self, tenants: Collection[str]) -> None:
        """Bring news of these tenants, and of no others."""

    def live_since(self, tenant: str) -> float:
        """Since when (`time.monotonic`) every piece of news of a tenant comes by; infinity while it does not."""

    def close(self) -> None:
        """Bring nothing any more."""


class Plant(Protocol):
    """The devices of all tenants, asked in the name of a visitor."""

    def admit(self, user: str, password: str, source: str, program: str) -> Visitor | Refusal:
        """Who this is, or why not. `user` is an e-mail address, `address#tenant`, or anything when the password is an API key.

        `source` is the address it came from, `program` what it calls itself. Codes: `unauthorized`, `forbidden` and the
        like; with `retry_after` in seconds `rate-limited` and `unavailable`.
        """

    def check(self, visitor: Visitor) -> Visitor | None:
        """The visitor as it stands now: None when the key was revoked, the user disabled, the tenant suspended."""

    def leave(self, visitor: Visitor) -> None:
        """The visitor has gone; its proof is of no use any more."""

    def mark(self) -> bytes:
        """Changes when anything was revoked on this machine: then every visitor is to be checked."""

    def stamp(self, visitor: Visitor) -> Hashable:
        """Changes when a device or a signal that the visitor sees was made, changed or removed. Cheap."""

    def devices(self, visitor: Visitor) -> dict[str, Device]:
        """Every device that the visitor sees, by uid, in the order of their names."""

    def signals(self, visitor: Visitor, uids: Collection[str]) -> dict[str, dict[str, Signal]]:
        """uid → key → signal, for those of the devices that the visitor sees."""

    def since(self, visitor: Visitor, uids: Collection[str]) -> dict[str, int]:
        """uid → since when (ms) a device has its status, for those that the visitor sees and where it is still known."""

    def history(self, visitor: Visitor, uid: str, key: str, span: Span) -> list[tuple[int, Any, str]] | Refusal:
        """The stored readings of a signal, (ms, value, quality)."""

    def order(self, visitor: Visitor, uid: str, values: dict[str, Any]) -> Refusal | None:
        """Queue the command `write` with these values for a device; None when it is queued."""

    def set_status(self, visitor: Visitor, uid: str, online: bool) -> Refusal | None:
        """Say that a device is online or offline; None when it is stored."""

    def listen(self, hear: Callable[[list[News]], None]) -> Wire:
        """Call `hear`, from a thread of its own, with what happens."""
