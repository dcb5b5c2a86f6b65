"""Whether somebody is at the address that a request says it comes from. Not an adapter.

A UDP sender's address may be forged (RFC 7252 section 11.3). Who is asked with an empty confirmable message, four bytes with an id that only the true
address can have got, answers with a reset (section 4.3), as every CoAP endpoint does. An Echo option (RFC 9175) would do the same, but few clients
answer that.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from protocols import coap_wire as wire

if TYPE_CHECKING:
    from protocols.coap_wire import Manager

# Seconds after the first ping at which it is repeated. With the empty acknowledgement sixteen bytes go to an address that may be forged: fewer
# than the shortest request for the links has.
AGAIN: Final = (1.0, 3.0)
# When nobody is there any more.
LOST_SECONDS: Final = 10.0
MOST_PINGED: Final = 1_000


@dataclass(slots=True)
class _Ping:
    remote: Any
    mid: int
    since: float
    sent: int = 1


class Pings:
    """Those that were asked and have not answered yet. For the event loop alone."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._pings: dict[tuple[Any, int], _Ping] = {}

    def ask(self, remote: Any, there: Callable[[], None]) -> bool:
        """Ping `remote`; `there` is called when it answers. False when too many are being asked."""
        if len(self._pings) >= MOST_PINGED:
            return False
        ping = _Ping(remote, secrets.randbelow(wire.BIGGEST_NUMBER + 1), self._manager.loop.time())
        key = (remote, ping.mid)

        def answered(_is_acknowledged: bool) -> None:
            del self._pings[key]
            there()

        if not self._manager.watch(key, answered):
            return False
        self._pings[key] = ping
        self._send(ping)
        return True

    def keep(self) -> None:
        """Repeat what is not answered, and give up; called every moment."""
        now = self._manager.loop.time()
        for key, ping in list(self._pings.items()):
            age = now - ping.since
            if age >= LOST_SECONDS:
                del self._pings[key]
                self._manager.forget(key)
            elif ping.sent <= len(AGAIN) and age >= AGAIN[ping.sent - 1]:
                ping.sent += 1
                self._send(ping)

    @staticmethod
    def _send(ping: _Ping) -> None:
        ping.remote.send(wire.PING + ping.mid.to_bytes(2, "big"))
