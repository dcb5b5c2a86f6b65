"""The devices of all tenants for adapters that serve them; see `served.Plant`. Every question is asked in a visitor's scope."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Any, Final, cast
from zoneinfo import ZoneInfo

import structlog

from iiot import clock, tenancy
from iiot.errors import NotFound, Problem
from iiot.services import commands, devices, presence, readings, signals
from iiot.tenancy import ScopedSession
from protocols.base import Refusal
from protocols.buckets import Buckets
from protocols.news import RedisWire
from protocols.people import People
from protocols.served import Away, Device, News, Signal, Span, Visitor, Wire

# As over HTTP, counted in this process.
ORDERS_PER_HOUR: Final = 100
UTC: Final = ZoneInfo("UTC")
log = structlog.get_logger("protocols")


class Plant:
    """Implements `served.Plant`. May be used from any thread."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._people = People()
        self._orders = Buckets(ORDERS_PER_HOUR / 3600, ORDERS_PER_HOUR)
        self.admit = self._people.admit
        self.check = self._people.check
        self.leave = self._people.leave
        self.mark = self._people.mark

    @contextlib.contextmanager
    def _work(self, visitor: Visitor) -> Iterator[ScopedSession]:
        """A session in the visitor's scope; raises Away when the database cannot be asked."""
        try:
            with self._people.acting(visitor) as principal, tenancy.work(tenancy.of(principal)) as db:
                yield db
        except (Problem, Away):
            raise
        except Exception as error:
            log.warning("devices not read", protocol=self.protocol, error=f"{type(error).__name__}: {error}"[:300])
            raise Away("the database cannot be asked") from error

    def stamp(self, visitor: Visitor) -> Hashable:
        """See `served.Plant.stamp`."""
        with self._work(visitor) as db:
            return devices.stamp(db)

    def devices(self, visitor: Visitor) -> dict[str, Device]:
        """See `served.Plant.devices`."""
        with self._work(visitor) as db:
            return {row.uid: Device(row.uid, row.name, row.status) for row in devices.outline(db)}

    def signals(self, visitor: Visitor, uids: Collection[str]) -> dict[str, dict[str, Signal]]:
        """See `served.Plant.signals`."""
        found: dict[str, dict[str, Signal]] = {}
        with self._work(visitor) as db:
            for uid, view in signals.of_devices(db, uids):
                ts = None if view.last_ts is None else clock.to_ms(view.last_ts)
                found.setdefault(uid, {})[view.key] = Signal(
                    view.key, view.type, view.unit, view.min, view.max, view.writable, ts, view.last_value,  # type: ignore[arg-type]
                    view.last_quality or "good",
                )  # fmt: skip
        return found

    def since(self, visitor: Visitor, uids: Collection[str]) -> dict[str, int]:
        """See `served.Plant.since`."""
        with self._work(visitor) as db:
            return {uid: clock.to_ms(at) for uid, at in presence.since(db, uids).items()}

    def history(self, visitor: Visitor, uid: str, key: str, span: Span) -> list[tuple[int, Any, str]] | Refusal:
        """See `served.Plant.history`."""
        question = readings.Question(
            keys=[key], start=span.start, stop=span.stop, now=clock.now_ms(), zone=UTC, limit=span.limit,
            descending=span.descending, quality=True,
        )  # fmt: skip
        try:
            with self._work(visitor) as db:
                return cast(list[tuple[int, Any, str]], readings.answer(db, uid, question)[key])
        except Problem as problem:
            return _refusal(problem)

    def order(self, visitor: Visitor, uid: str, values: dict[str, Any]) -> Refusal | None:
        """See `served.Plant.order`. As many an hour as over HTTP."""
        wait = self._orders.take(visitor.identity)
        if wait:
            return Refusal(
                "rate-limited",
                f"at most {ORDERS_PER_HOUR} commands an hour",
                "control",
                math.ceil(wait),
                allowed=ORDERS_PER_HOUR,
            )
        return self._change(
            visitor, "device:command", lambda db: commands.create(db, uid, commands.NewCommand("write", values))
        )

    def set_status(self, visitor: Visitor, uid: str, online: bool) -> Refusal | None:
        """See `served.Plant.set_status`."""
        return self._change(
            visitor, "device:write", lambda db: presence.declare(db, devices.locked(db, uid), online, self.protocol)
        )

    def _change(self, visitor: Visitor, permission: str, change: Callable[[ScopedSession], object]) -> Refusal | None:
        try:
            self._people.principal(visitor).require(permission)
            with self._work(visitor) as db:
                change(db)
        except Problem as problem:
            return _refusal(problem)
        return None

    def listen(self, hear: Callable[[list[News]], None]) -> Wire:
        """See `served.Plant.listen`."""
        return RedisWire(hear)


def _refusal(problem: Problem) -> Refusal:
    return Refusal("not-found" if isinstance(problem, NotFound) else problem.code, problem.detail)
