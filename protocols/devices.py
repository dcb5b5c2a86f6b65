"""What an adapter may ask about devices: whether a token proves one, and what it is. See `protocols.base.Inbox`.

The same proof as over HTTP: `services.credentials` decides, a success is remembered for a moment and never beyond a
revocation, and failures are counted per source and per device. They are counted in this process, as it alone serves its
protocol. Keys of OSCORE are found in `services.oscore`, by their id.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import structlog
from prometheus_client import Counter

from iiot import auth, clock, tenancy
from iiot.errors import Forbidden, NotFound
from iiot.services import command_delivery, credentials, devices, oscore, refused_logins
from protocols.base import Order, Proved, Refusal, SharedKey
from protocols.buckets import Buckets
from protocols.renewal import Renewed

REMEMBER_SECONDS: Final = 1.0
# As over HTTP: failures a minute of one device from one source, and of one source alone.
FAILURES_OF_DEVICE: Final = 20
FAILURES_OF_SOURCE: Final = 120
AWAY_SECONDS: Final = 5
LONGEST_UID: Final = 64
LONGEST_TOKEN: Final = 256
# Tokens that have worked in this process, as hashes: failures of others do not slow them down.
WORKED: Final = 100_000

logins_total = Counter(
    "iiot_protocol_logins_total",
    "Devices that proved themselves to an adapter: ok, wrong, refused, limited, unavailable.",
    ["protocol", "result"],
)

log = structlog.get_logger("protocols")


def _shown(row: Any) -> dict[str, Any]:
    """What a device may see of itself."""
    device = {name: getattr(row, name) for name in ("name", "type", "status", "is_gateway", "enabled")}
    seen = row.last_seen_at
    return device | {"id": row.uid, "last_seen_at": None if seen is None else seen.isoformat()}


_WRONG: Final = Refusal("unauthorized", "the device uid or token is wrong")
_NO_KEY: Final = Refusal("unauthorized", "there is no such key")


def _limited(wait: float, of_source: float) -> Refusal:
    """The refusal of somebody who has failed too often: so many seconds for the device at this source, and for the source."""
    name, most = ("device-sign-in", FAILURES_OF_DEVICE)
    if of_source > wait:
        name, most = ("device-sign-in-address", FAILURES_OF_SOURCE)
    seconds = math.ceil(max(wait, of_source))
    # Short: a stranger's answer over CoAP is no longer than the request.
    return Refusal("rate-limited", "wrong tokens", name, seconds, allowed=f"{most}/min")


@dataclass(frozen=True, slots=True, eq=False)
class _Proof:
    """A device with the time (seconds since the epoch) when its token ends by itself, and the token's keyed hash."""

    device: Proved
    until: float
    token_hash: str


def _open_tokens(proofs: Collection[_Proof]) -> list[_Proof]:
    with tenancy.work(tenancy.system("device-sign-in")) as db:
        found = credentials.still_open(db, [each.token_hash for each in proofs])
    return [each for each in proofs if each.token_hash in found]


def _open_keys(keys: Collection[SharedKey]) -> list[SharedKey]:
    with tenancy.work(tenancy.system("device-sign-in")) as db:
        found = oscore.still_open(db, [each.kid for each in keys])
    return [each for each in keys if each.kid in found and each.refused is None]


class Devices:
    """The devices of all tenants, for one adapter. May be used from any thread."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._proved: Renewed[tuple[str, str], _Proof] = Renewed(REMEMBER_SECONDS, _open_tokens)
        self._keys: Renewed[bytes, SharedKey] = Renewed(REMEMBER_SECONDS, _open_keys)
        self._failures = Buckets(FAILURES_OF_DEVICE / 60, FAILURES_OF_DEVICE)
        self._failures_of_source = Buckets(FAILURES_OF_SOURCE / 60, FAILURES_OF_SOURCE)
        self._salt = secrets.token_bytes(16)
        self._worked: dict[bytes, None] = {}

    def recall(self, uid: str, token: str) -> Proved | None:
        """See `Inbox.recall`."""
        remembered = self._proved.get((uid, token))
        return remembered.device if remembered is not None and remembered.until > time.time() else None

    def knows(self, uid: str, token: str) -> bool:
        """See `Inbox.knows`."""
        return self._print(uid, token) in self._worked

    def authenticate(self, uid: str, token: str, source: str, address: str = "") -> Proved | Refusal:
        """See `Inbox.authenticate`."""
        remembered = self.recall(uid, token)
        if remembered is not None:
            return remembered
        place, mark = f"{uid[:LONGEST_UID]} {source}", self._proved.mark()
        print_ = self._print(uid, token)
        wait, of_source = self._failures.wait(place), self._failures_of_source.wait(source)
        if max(wait, of_source) > 0 and print_ not in self._worked:
            self._count("limited")
            return _limited(wait, of_source)
        try:
            proof = self._ask(uid, token)
        except Forbidden as error:
            self._count("refused")
            refused_logins.note(uid, self.protocol, error.code, address or source)
            return Refusal(error.code, error.detail)
        except Exception as error:
            return self._away(error)
        if proof is None:
            self._worked.pop(print_, None)
            self._failures.take(place)
            self._failures_of_source.take(source)
            self._count("wrong")
            refused_logins.note(uid, self.protocol, _WRONG.code, address or source)
            return _WRONG
        self._count("ok")
        if len(self._worked) >= WORKED:
            self._worked.clear()
        self._worked[print_] = None
        proved = Proved(uid, proof.principal)
        until = math.inf if proof.until is None else proof.until.timestamp()
        self._proved.put((uid, token), _Proof(proved, until, auth.device_token_hash(token)), mark)
        return proved

    def recall_key(self, kid: bytes) -> SharedKey | None:
        """See `Inbox.recall_key`."""
        return self._keys.get(kid)

    def shared_key(self, kid: bytes) -> SharedKey | Refusal:
        """See `Inbox.shared_key`."""
        mark = self._keys.mark()
        try:
            with tenancy.work(tenancy.system("device-sign-in")) as db:
                found = oscore.find(db, kid)
        except Exception as error:
            return self._away(error)
        if found is None:
            self._count("wrong")
            return _NO_KEY
        self._count("ok" if found.refused is None else "refused")
        device = Proved(found.principal.device_uid or "", found.principal)
        refused = None if found.refused is None else Refusal(*found.refused)
        key = SharedKey(found.kid, found.own_id, found.secret, found.salt, device, refused)
        self._keys.put(kid, key, mark)
        return key

    def reserve(self, key: SharedKey) -> range | Refusal:
        """See `Inbox.reserve`."""
        try:
            with tenancy.work(tenancy.system("device-sign-in")) as db:
                found = oscore.reserve(db, key.kid)
        except Exception as error:
            return self._away(error)
        return _NO_KEY if found is None else found

    def describe(self, device: Proved) -> dict[str, Any] | Refusal:
        """See `Inbox.describe`."""
        try:
            with tenancy.work(tenancy.of_device(device.principal)) as db:
                row = devices.read(db, device.uid)
                below = devices.children(db, device.principal.device_id or 0) if row.is_gateway else []
        except NotFound:
            return _WRONG
        except Exception as error:
            return self._away(error)
        return {"device": _shown(row), "children": [_shown(each) | {"child_name": each.child_name} for each in below]}

    def next_command(self, device: Proved) -> Order | Refusal | None:
        """See `Inbox.next_command`."""
        scope = tenancy.of_device(device.principal)
        try:
            order = command_delivery.poll(scope, device.principal.device_id, self.protocol)
        except Exception as error:
            return self._away(error)
        if order is None:
            return None
        ends = clock.to_ms(order.expires_at)
        return Order(order.device_uid, order.uid, order.name, order.params, ends, order.child, order.address)

    def _print(self, uid: str, token: str) -> bytes:
        return hashlib.blake2b(
            f"{uid}\0{token}".encode("utf-8", "surrogatepass"), digest_size=16, key=self._salt
        ).digest()

    def _ask(self, uid: str, token: str) -> auth.Proof | None:
        if not uid or "\0" in uid or len(uid) > LONGEST_UID or len(token) > LONGEST_TOKEN:
            return None
        with tenancy.work(tenancy.system("device-sign-in")) as db:
            return credentials.authenticate(db, uid, token)

    def _away(self, error: Exception) -> Refusal:
        """Whatever the database raises: nobody is let in, and nobody is told that the token is wrong."""
        self._count("unavailable")
        log.warning(
            "devices cannot be asked for", protocol=self.protocol, error=f"{type(error).__name__}: {error}"[:200]
        )
        return Refusal("unavailable", "the portal cannot look at its devices now", None, AWAY_SECONDS)

    def _count(self, result: str) -> None:
        logins_total.labels(self.protocol, result).inc()
