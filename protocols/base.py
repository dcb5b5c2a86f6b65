"""What an adapter is: the contract between one protocol and the runner.

A module `protocols/<name>.py` is an adapter. It offers

- `NAME`: the word for `python -m protocols run <name>`, equal to the module's name;
- `DESCRIPTION`: one line for `python -m protocols list`;
- `make(settings) -> Adapter`: builds it from the portal's settings; raises `AdapterError` with a text that says which
  setting is missing or wrong. Nothing is connected yet.

Adapters import this module and their protocol's library, never the database, the web framework or each other. They do
not retry, do not batch and do not parse payloads: the runner does, once for all of them.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol, runtime_checkable

Kind = Literal["telemetry", "status", "result", "gateway", "home", "other"]

RECEIPT: Final = ("code", "reason", "limit", "allowed", "retry_after")


class AdapterError(Exception):
    """The adapter cannot work as it is set up; the text says what to do. The runner does not try again."""


class ConnectionLost(Exception):
    """The connection failed or ended. The runner calls `run` again after a pause (exponential, jittered, to 60 s)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a message, or one reading of it (`index`, `key`), was not stored. The fields of CONTRACT 5 `down/error`.

    `limit` is the name of the limit that was passed and `allowed` its value, None where no limit is at fault. `retry_after`
    is in seconds; None means that sending the same again is pointless. `child`: the device that a gateway spoke of.
    """

    code: str
    reason: str
    limit: str | None = None
    retry_after: int | None = None
    index: int | None = None
    key: str | None = None
    allowed: int | float | str | None = None
    child: str | None = None

    def receipt(self) -> dict[str, Any]:
        """What the device reads of it, in every protocol that carries JSON: the same names everywhere."""
        told: dict[str, Any] = {name: getattr(self, name) for name in RECEIPT}
        told |= {name: value for name in ("key", "index") if (value := getattr(self, name)) is not None}
        return told if self.child is None else told | {"device": self.child}

    def text(self) -> str:
        """The same in a line, for protocols that carry text: `code: reason (limit …, allowed …, retry after … s)`."""
        known = [("limit", self.limit), ("allowed", self.allowed), ("retry after", self.retry_after)]
        named = ", ".join(f"{name} {value}" for name, value in known if value is not None)
        named += " s" if self.retry_after is not None else ""
        return f"{self.code}: {self.reason}" + (f" ({named})" if named else "")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a message. It is final: the database has committed.

    `accepted` counts its readings that are stored now, or were before. `refusals` is empty when that is all of them.
    `ack_ts` is the newest stored time in milliseconds since the epoch when the device asked for an acknowledgement.
    """

    accepted: int = 0
    refusals: tuple[Refusal, ...] = ()
    ack_ts: int | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A command for a device, as `Commander.command` gets it. `expires_at` is in milliseconds since the epoch.

    `child`: the command is for this child of the gateway `uid`, which answers for it. `address`: where the smart-home scheme has the entity that is
    controlled, `home/<home>/<node>/<kind>/<entity>`, for protocols that speak that scheme; the others hand it over as any command.
    """

    uid: str
    id: str
    name: str
    params: dict[str, Any]
    expires_at: int
    child: str | None = None
    address: str | None = None

    def payload(self) -> bytes:
        """What the device reads (CONTRACT 5 `down/command`): `{"id", "name", "params", "expires_at"}`, to a gateway with `"device"`, the child."""
        moment = datetime.fromtimestamp(self.expires_at / 1000, UTC).isoformat(timespec="milliseconds")
        content: dict[str, Any] = {"id": self.id, "name": self.name, "params": self.params}
        if self.child is not None:
            content["device"] = self.child
        content["expires_at"] = moment.replace("+00:00", "Z")
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()

    def seconds_left(self) -> int:
        """Whole seconds until it expires, at least one: rounded down, as brokers count whole seconds themselves."""
        return max(1, math.floor(self.expires_at / 1000 - time.time()))


@dataclass(frozen=True, slots=True)
class Proved:
    """A device that has proved itself. `principal` is what the door knows of it, of no use to an adapter."""

    uid: str
    principal: Any


@dataclass(frozen=True, slots=True)
class SharedKey:
    """A key that a device and the portal share, for one security context of OSCORE (RFC 8613 section 3).

    `kid` is the device's Sender ID, `own_id` the portal's. `refused`: the device is known and shut out.
    """

    kid: bytes
    own_id: bytes
    secret: bytes
    salt: bytes
    device: Proved
    refused: Refusal | None = None


class Message:
    """One message of a device. A plain class with slots: thirty thousand are made per second.

    - `uid`: the device, as the protocol has authenticated it, never taken from the payload; of the kind "home" the adapter knows
      the node alone, `home/<home>/<node>`, and the runner puts the gateway's uid in its place, or "" when there is none;
    - `kind`: "telemetry", "status", "result" for the answer to the command `command_id`, "gateway" for the telemetry of a gateway's
      children, "home" for the topics of the smart-home scheme, or "other" for what the portal does not know;
    - `topic`: where it was sent, for people who look for the reason of a rejection;
    - `settle(message, outcome)`: called exactly once, after the commit, from a writer thread of the runner and never from
      two at once, in the order of delivery unless the adapter has `any_order`. Never called when the commit failed: the
      runner tries again, and after a crash the protocol redelivers. It must not block and must not raise; after the
      connection has ended it must do nothing;
    - `receipt`: the adapter's own note for settling;
    - `retained`: an old state that the broker repeats, not news;
    - `prepared`: the runner's own note, the message as the service takes it; `late`: its note that all of it is old;
    - `received_ms`: when it came, in milliseconds since the epoch; the time of readings that bring none.
    """

    __slots__ = (
        "command_id", "content_type", "kind", "late", "payload", "prepared", "receipt", "received_ms", "retained", "settle", "topic", "uid",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913, PLR0917 - a record; keyword arguments would cost a tenth of the whole message's time
        self,
        uid: str,
        kind: Kind,
        payload: bytes,
        topic: str,
        settle: Callable[[Message, Outcome], None],
        receipt: Any = None,
        content_type: str | None = None,
        retained: bool = False,
    ) -> None:
        self.uid = uid
        self.kind = kind
        self.payload = payload
        self.topic = topic
        self.settle = settle
        self.receipt = receipt
        self.content_type = content_type
        self.retained = retained
        self.command_id: str | None = None
        self.late = False
        self.prepared: Any = None
        self.received_ms = time.time_ns() // 1_000_000


class Inbox(Protocol):
    """The runner as an adapter sees it. All methods may be called from any thread."""

    def deliver(self, message: Message) -> None:
        """Take a message over. Waits while the bounded queue is full: that is the back-pressure to the socket."""

    def connected(self) -> None:
        """Say that the connection is up and subscribed; the next failure starts again with a short pause."""

    def finish(self) -> None:
        """Wait until everything delivered is settled or given up (bounded time). For the end of `run`."""

    def recall(self, uid: str, token: str) -> Proved | None:
        """What `authenticate` has found a moment ago; None when it has to be asked. Never blocks."""

    def knows(self, uid: str, token: str) -> bool:
        """Whether this token has worked here before; it may have been revoked since. Never blocks."""

    def authenticate(self, uid: str, token: str, source: str, address: str = "") -> Proved | Refusal:
        """The device `uid` that `token` proves, or why not. For protocols whose devices prove themselves to us.

        `source` is the address it came from, without the port; one that may be forged is told apart by the adapter, as
        failures are counted per source, and gives the bare one as `address` for the device's history. Codes: `unauthorized` (an
        unknown device reads like a wrong token), `device-disabled`, `tenant-suspended`, `tenant-deleting`; with `retry_after` in seconds
        `rate-limited` (too many failures of this source, or of this device from it) and `unavailable` (the database is
        away). A proof is remembered for a second after the database was last asked, and not beyond a revocation. A token that has
        worked here before is not slowed down by the failures of others. It blocks: an adapter with an event loop calls
        it from a thread.
        """

    def plant(self) -> Any:
        """What is stored, as a `protocols.served.Plant`: for adapters that serve it to people and programs."""

    def recall_key(self, kid: bytes) -> SharedKey | None:
        """What `shared_key` has found a moment ago; None when it has to be asked. Never blocks."""

    def shared_key(self, kid: bytes) -> SharedKey | Refusal:
        """The key that a device names by `kid`, as `authenticate`; `unauthorized` for one that is unknown or revoked.

        A device that is shut out has its key and the reason in `SharedKey.refused`. Blocks.
        """

    def reserve(self, key: SharedKey) -> range | Refusal:
        """Sequence numbers of our own for this key, committed as used before they are returned. Blocks."""

    def describe(self, device: Proved) -> dict[str, Any] | Refusal:
        """The device as it may see itself, or why not (`unavailable`, `unauthorized` when it is gone). Blocks.

        `{"device": {"id", "name", "type", "status", "is_gateway", "enabled", "last_seen_at"}, "children": […]}`;
        `last_seen_at` is an RFC 3339 time or None. The children of a gateway are alike and have `child_name`, what the gateway calls them.
        """

    def next_command(self, device: Proved) -> Order | Refusal | None:
        """The command that a device who asks has to do now; from then on its commands go over this protocol. Blocks.

        One that was handed out and is not answered is handed out again.
        """


class Adapter(Protocol):
    """One protocol. Made by the module's `make`. One that can take commands to devices is a `Commander`, too.

    Late data is stored beside live data and may be stored later. One that has `any_order = True` gets each outcome as soon as
    it is known, perhaps from two threads at once; any other gets them in the order of delivery, so outcomes wait for those
    of late messages before them.
    """

    def check(self) -> None:
        """Connect once and leave, without taking messages. Raises AdapterError with what to do when it cannot."""

    def run(self, inbox: Inbox, stop: threading.Event) -> None:
        """One life of the connection, in the calling thread: connect, deliver, let `settle` acknowledge.

        Returns only after `stop` is set: then stop reading at once, call `inbox.finish()`, send what `settle` has
        queued, and leave so that unsettled messages come again (a persistent session stays).
        Raises ConnectionLost when the connection cannot be made or ends, AdapterError when trying again is pointless.
        """

    def send(self, uid: str, token: str, payload: bytes) -> None:
        """Send one telemetry message as a device. Returns when the protocol has confirmed it; raises AdapterError."""


@runtime_checkable
class Listening(Protocol):
    """What a Commander also offers when its devices have to ask for commands before they can be pushed (CoAP: Observe).

    Sending anything else does not make the portal deliver commands over such a protocol; `Inbox.next_command` does.
    """

    def listening(self) -> list[str]:
        """The uids of devices that could take a command now. Called by a thread of the runner; does not block."""


class NobodyThere(Exception):
    """Raised by `Commander.command` when the protocol knows that the device does not listen: it is tried again later, others at once."""


@runtime_checkable
class Commander(Protocol):
    """What an adapter also offers when its protocol can take commands to devices.

    Two numbers, in seconds, widen whose commands it is given beyond the devices that were last seen on it: `strangers_after`
    those of devices that were never seen anywhere, `others_after` those of devices that were last seen elsewhere and have not
    fetched them there. Without them, or with None, it is given none of those.
    """

    def command(self, order: Order) -> bool:
        """Hand one command over. True once the protocol has confirmed that it keeps it for the device (MQTT: the PUBACK
        of the broker); False when it cannot now, and then the same command comes again. Raises NobodyThere.

        Called by a thread of the runner, one command at a time, also while there is no connection. Takes two seconds at
        most and does not raise: the row of the command is locked meanwhile.
        """
