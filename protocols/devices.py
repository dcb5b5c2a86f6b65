"""What an adapter may ask about devices: whether a token proves one, and what it is. See `protocols.base.Inbox`.

The same proof as over HTTP: `services.credentials` decides, a success is remembered for a moment and never beyond a
revocation, and failures are counted per source and per device. They are counted in this process, as it alone serves its
protocol.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final

import structlog
from prometheus_client import Counter

from iiot import auth, cache, tenancy
from iiot.errors import Forbidden
from iiot.services import credentials, devices, refused_logins
from protocols.base import Refusal
from protocols.buckets import Buckets

REMEMBER_SECONDS: Final = 1.5
# As over HTTP: failures a minute of one device from one source, and of one source alone.
FAILURES_OF_DEVICE: Final = 20
FAILURES_OF_SOURCE: Final = 120
AWAY_SECONDS: Final = 5
LONGEST_UID: Final = 64
LONGEST_TOKEN: Final = 256

logins_total = Counter(
    "iiot_protocol_logins_total",
    "Devices that proved themselves to an adapter: ok, wrong, refused, limited, unavailable.",
    ["protocol", "result"],
)

log = structlog.get_logger("protocols")

_WRONG: Final = Refusal("unauthorized", "the device uid or token is wrong")


def _limited(wait: float, of_source: float) -> Refusal:
    """The refusal of somebody who has failed too often: so many seconds for the device at this source, and for the source."""
    name, most = ("device-sign-in", FAILURES_OF_DEVICE)
    if of_source > wait:
        name, most = ("device-sign-in-address", FAILURES_OF_SOURCE)
    seconds = math.ceil(max(wait, of_source))
    reason = f"too many failed attempts, try again in {seconds} s"
    return Refusal("rate-limited", reason, name, seconds, allowed=f"{most} failures a minute")


class Devices:
    """The devices of all tenants, for one adapter. May be used from any thread."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._proved: cache.Memory[tuple[str, str], tuple[auth.Principal, float]] = cache.Memory(REMEMBER_SECONDS)
        self._failures = Buckets(FAILURES_OF_DEVICE / 60, FAILURES_OF_DEVICE)
        self._failures_of_source = Buckets(FAILURES_OF_SOURCE / 60, FAILURES_OF_SOURCE)

    def authenticate(self, uid: str, token: str, source: str) -> Refusal | None:
        """See `Inbox.authenticate`."""
        found = self._prove(uid, token, source)
        return found if isinstance(found, Refusal) else None

    def describe(self, uid: str, token: str, source: str) -> dict[str, Any] | Refusal:
        """See `Inbox.describe`."""
        found = self._prove(uid, token, source)
        if isinstance(found, Refusal):
            return found
        try:
            with tenancy.work(tenancy.of_device(found)) as db:
                row = devices.read(db, uid)
        except Exception as error:
            return self._away(error)
        device = {name: getattr(row, name) for name in ("name", "type", "status", "is_gateway", "enabled")}
        seen = row.last_seen_at
        device |= {"id": row.uid, "last_seen_at": None if seen is None else seen.isoformat()}
        return {"device": device, "children": []}

    def _prove(self, uid: str, token: str, source: str) -> auth.Principal | Refusal:
        remembered = self._proved.get((uid, token))
        if remembered is not None and remembered[1] > time.time():
            return remembered[0]
        place = f"{uid[:LONGEST_UID]} {source}"
        wait, of_source = self._failures.wait(place), self._failures_of_source.wait(source)
        if max(wait, of_source) > 0:
            self._count("limited")
            return _limited(wait, of_source)
        mark = self._proved.mark()
        try:
            proof = self._ask(uid, token)
        except Forbidden as error:
            self._count("refused")
            refused_logins.note(uid, self.protocol, error.code, source)
            return Refusal(error.code, error.detail)
        except Exception as error:
            return self._away(error)
        if proof is None:
            self._failures.take(place)
            self._failures_of_source.take(source)
            self._count("wrong")
            refused_logins.note(uid, self.protocol, _WRONG.code, source)
            return _WRONG
        self._count("ok")
        until = math.inf if proof.until is None else proof.until.timestamp()
        self._proved.put((uid, token), (proof.principal, until), mark)
        return proof.principal

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
