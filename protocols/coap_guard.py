"""How much strangers and devices may ask of the CoAP server, and who is where they say. Not an adapter.

A sender's address may be forged (RFC 7252 section 11.3). So requests of strangers are counted under their address as one
that may be forged; who sends an Echo option (RFC 9175) back that only that address can have got is counted apart. Devices
whose token has worked before, and those with a key, are counted by themselves. Nobody can use up what another has.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from typing import Any, Final

from protocols.base import Refusal
from protocols.buckets import Buckets

# Requests of one source, or of one device: a gateway's backlog in blocks of a kilobyte passes, a flood does not.
SOURCE_RATE: Final = 200
SOURCE_BURST: Final = 2_000
# An Echo value is good for one to two of these.
FRESH_SECONDS: Final = 60
ECHO_BYTES: Final = 8
# Requests of one key that may be replays, while its window is not open: each answer takes a sequence number of ours.
STALE_RATE: Final = 50
STALE_BURST: Final = 100


class Guard:
    """Counts in this process, which alone serves CoAP. `rate` and `burst`: messages of a device, as over HTTP."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        self._strangers = Buckets(SOURCE_RATE, SOURCE_BURST)
        self._requests = Buckets(SOURCE_RATE, SOURCE_BURST)
        self._messages = Buckets(rate, burst)
        self._stale = Buckets(STALE_RATE, STALE_BURST)
        self._key = secrets.token_bytes(16)

    def address(self, request: Any) -> str:
        """Where a request says that it comes from."""
        return str(request.remote.address[0])

    def source(self, request: Any) -> str:
        """The address of a request, as failures and floods are counted: a proved one by itself."""
        address = self.address(request)
        return address if self.is_echoed(request) else f"{address} unproved"

    def stranger(self, request: Any) -> Refusal | None:
        """Count a request of somebody who has proved nothing yet; why it is refused, or None."""
        wait = self._strangers.take(self.source(request))
        return (
            _refusal("requests_per_second", SOURCE_RATE, SOURCE_BURST, "requests of this address", wait)
            if wait
            else None
        )

    def request(self, uid: str) -> Refusal | None:
        """Count a request of a device."""
        wait = self._requests.take(uid)
        return (
            _refusal("requests_per_second", SOURCE_RATE, SOURCE_BURST, "requests of this device", wait)
            if wait
            else None
        )

    def message(self, uid: str) -> Refusal | None:
        """Count a whole message of a device."""
        wait = self._messages.take(uid)
        return _refusal("messages_per_second", self.rate, self.burst, "messages of this device", wait) if wait else None

    def stale(self, kid: bytes) -> Refusal | None:
        """Count a request that may be a replay: whoever repeats old ones shall not use up the key's numbers."""
        wait = self._stale.take(kid.hex())
        return _refusal("source_rate", STALE_RATE, STALE_BURST, "requests without an Echo", wait) if wait else None

    def echo(self, remote: Any) -> bytes:
        """What the sender at `remote` shall send back to prove that it is there (RFC 9175 section 2)."""
        return self._sign(remote, int(time.monotonic() // FRESH_SECONDS))

    def is_echoed(self, request: Any) -> bool:
        """Whether it proves its address by an Echo option of ours."""
        given = request.opt.echo
        if given is None:
            return False
        period = int(time.monotonic() // FRESH_SECONDS)
        return any(hmac.compare_digest(given, self._sign(request.remote, each)) for each in (period, period - 1))

    def _sign(self, remote: Any, period: int) -> bytes:
        text = f"{remote.address[:2]} {period}".encode()
        return hashlib.blake2b(text, digest_size=ECHO_BYTES, key=self._key).digest()


def _refusal(limit: str, rate: int, burst: int, what: str, wait: float) -> Refusal:
    seconds = max(1, math.ceil(wait))
    reason = f"{limit} allows {rate} {what} a second and {burst} at once, go on in {seconds} s"
    return Refusal("rate-limited", reason, limit, seconds, allowed=rate)
