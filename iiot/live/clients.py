"""One connected client, as its worker knows it."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from iiot import auth, events, tenancy

Event = tuple[str, Any]


@dataclass(eq=False)
class Client:
    """Who it is, what it listens to, and how far it surely has received everything."""

    sid: str
    principal: auth.Principal
    epoch: int
    # The whole tenant; the devices are remembered beside it, and come into force again when it ends.
    tenant: bool = False
    devices: set[str] = field(default_factory=set)
    # Everything up to here was sent, for what it listens to; None before the first subscription.
    cursor: str | None = None
    # Events that wait for a replay to end, so that nothing new is sent before something old. None: events are sent at once.
    held: list[Event] | None = None
    replaying: bool = False
    # The replay has to look at the log once more before it ends.
    again: bool = False
    # Events of the last minute, for the limit.
    recent: deque[float] = field(default_factory=deque)
    abusive: bool = False
    checked_at: float = field(default_factory=time.monotonic)

    @property
    def scope(self) -> tenancy.Scope:
        """The scope of everything that is read for this client."""
        return tenancy.of(self.principal)

    @property
    def rooms(self) -> set[str]:
        """The rooms it belongs in: the tenant's alone, or those of its devices."""
        tenant_uid = self.principal.tenant_uid or ""
        if self.tenant:
            return {events.tenant_room(tenant_uid)}
        return {events.device_room(tenant_uid, uid) for uid in self.devices}
