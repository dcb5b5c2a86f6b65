"""What one tenant's visitors see, kept in memory while somebody looks: devices, signals, newest values.

Values come by themselves (`served.Wire`); the database is asked for what was never asked before, for what may have been
missed, and once a second whether devices or signals have changed. Nothing is loaded before somebody asks for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Any, Final, TypeVar

from asyncua import ua

from protocols.opcua_values import datavalue, text_value
from protocols.served import Away, Device, News, Plant, Signal, Visitor

Answer = TypeVar("Answer")
Told = Callable[[int, ua.DataValue], Awaitable[None]]

# How old a value may be that is read while news do not come by, and the list of devices.
FRESH_SECONDS: Final = 0.5
# Newest values are written up to a second after the news of them; what was loaded before that is loaded again.
SETTLE_SECONDS: Final = 2.0
# All that is watched is loaded so often in any case.
POLL_SECONDS: Final = 5.0
LIST_SECONDS: Final = 2.0
AT_ONCE: Final = 500


class View:
    """The devices of a tenant as visitors with the same rights see them. Lives in the event loop."""

    def __init__(self, plant: Plant, threads: Executor, live_since: Callable[[], float]) -> None:
        self.visitors: dict[str, Visitor] = {}
        self.devices: dict[str, Device] = {}
        self.signals: dict[str, dict[str, Signal]] = {}
        self.values: dict[tuple[str, str], ua.DataValue] = {}
        # Of devices that somebody has looked at, with the time of the change.
        self.statuses: dict[str, ua.DataValue] = {}
        self.plant = plant
        self._threads = threads
        self._live_since = live_since
        self._born = time.monotonic()
        self._listed_at = -math.inf
        self._loaded_at: dict[str, float] = {}
        self._stamp: Hashable = None
        self._watching: dict[str, dict[int, Told]] = {}
        self._node_of: dict[int, str] = {}
        self._lock = asyncio.Lock()
        # Whose status was heard since the list was asked for the last time.
        self._heard: set[str] = set()

    async def ask(self, question: Callable[..., Answer], *arguments: Any) -> Answer:
        """Ask the plant from a thread, in the name of one who sees this view; raises Away."""
        visitor = next(iter(self.visitors.values()), None)
        if visitor is None:
            raise Away("nobody looks any more")
        return await self.ask_for(visitor, question, *arguments)

    async def ask_for(self, visitor: Visitor, question: Callable[..., Answer], *arguments: Any) -> Answer:
        """The same in the name of one visitor: what may change something, and is noted under this name."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, question, visitor, *arguments)

    # --- loading ------------------------------------------------------------------------------------------------------

    async def have_list(self) -> None:
        """Have the list of devices, at most LIST_SECONDS old."""
        if time.monotonic() - self._listed_at > LIST_SECONDS:
            await self._list()

    async def _list(self) -> None:
        async with self._lock:
            began = time.monotonic()
            self._heard.clear()
            found = await self.ask(self.plant.devices)
            known = [uid for uid in self.statuses if uid in found]
            others = [uid for uid in known if self.statuses[uid].Value.Value != found[uid].status]
            times = await self._ask_times(others)
            changed = {uid: text_value(found[uid].status, times.get(uid)) for uid in others}
            for uid in self._heard & found.keys():
                # That is newer than what was asked.
                found[uid] = self.devices[uid]
                changed.pop(uid, None)
            before, self.devices, self._listed_at = self.devices, found, began
            gone = before.keys() - found.keys()
            for uid in gone:
                self._forget(uid)
            self.statuses |= changed
        await self._tell((f"{uid}#Status", value) for uid, value in changed.items())
        await self._tell_gone(gone)

    async def _ask_times(self, uids: Collection[str]) -> dict[str, int]:
        """Since when these devices have their status."""
        return await self.ask(self.plant.since, uids) if uids else {}

    def _forget(self, uid: str) -> None:
        self.statuses.pop(uid, None)
        for key in self.signals.pop(uid, {}):
            self.values.pop((uid, key), None)
        self._loaded_at.pop(uid, None)

    async def ensure(self, uids: Collection[str]) -> None:
        """Have the signals and values of these devices; unknown ones are left out."""
        await self.have_list()
        now, since = time.monotonic(), self._live_since()
        missing = [uid for uid in uids if uid in self.devices and self._is_stale(uid, now, since)]
        await self._load(missing)

    @property
    def is_new(self) -> bool:
        """Whether it began so lately that somebody else's news may still pass it by: it looks by itself twice as often."""
        return time.monotonic() - self._born < 2 * SETTLE_SECONDS

    def _is_stale(self, uid: str, now: float, since: float) -> bool:
        loaded = self._loaded_at.get(uid, -math.inf)
        return now - loaded > (POLL_SECONDS if loaded > since + SETTLE_SECONDS else FRESH_SECONDS)

    async def _load(self, uids: list[str]) -> None:
        for start in range(0, len(uids), AT_ONCE):
            part = uids[start : start + AT_ONCE]
            began = time.monotonic()
            found = await self.ask(self.plant.signals, part)
            new = [uid for uid in part if uid not in self.statuses]
            times = await self._ask_times(new)
            for uid in new:
                # What was heard meanwhile is newer.
                if uid in self.devices and uid not in self.statuses:
                    self.statuses[uid] = text_value(self.devices[uid].status, times.get(uid))
            changes: list[tuple[str, ua.DataValue]] = []
            gone: set[str] = set()
            for uid in part:
                # Unless it is gone, or was loaded again meanwhile.
                if uid in self.devices and self._loaded_at.get(uid, -math.inf) <= began:
                    self._loaded_at[uid] = began
                    gone |= self._keep(uid, found.get(uid, {}), changes)
            await self._tell(changes)
            await self._tell_gone(gone)

    def _keep(self, uid: str, signals: dict[str, Signal], changes: list[tuple[str, ua.DataValue]]) -> set[str]:
        """Keep a device's signals, with the values that are new; returns the nodes of those that it no longer has."""
        gone = self.signals.get(uid, {}).keys() - signals.keys()
        self.signals[uid] = signals
        for key in gone:
            self.values.pop((uid, key), None)
        for signal in signals.values():
            if signal.ts is not None:
                changes += self._store(uid, signal, [(signal.ts, signal.value, signal.quality)])
        return {f"{uid}/{key}" for key in gone}

    async def refresh(self) -> None:
        """Once a second: look whether devices or signals have changed, and load again what news may have missed."""
        stamp = await self.ask(self.plant.stamp)
        if stamp != self._stamp:
            self._stamp = stamp
            self._loaded_at = dict.fromkeys(self._loaded_at, -math.inf)
            await self._list()
        elif time.monotonic() - self._listed_at > POLL_SECONDS:
            await self._list()
        watched = {node[:26] for node in self._watching}
        now, since = time.monotonic(), self._live_since()
        await self._load([uid for uid in watched if uid in self.devices and self._is_stale(uid, now, since)])

    # --- news ---------------------------------------------------------------------------------------------------------

    async def hear(self, news: Iterable[News]) -> None:
        """Take over what has just happened to devices of this view."""
        changes: list[tuple[str, ua.DataValue]] = []
        for each in news:
            device = self.devices.get(each.device)
            if device is None:
                continue
            if each.status is not None and each.status != device.status:
                self.devices[each.device] = Device(device.uid, device.name, each.status)
                self.statuses[each.device] = text_value(each.status, time.time_ns() // 1_000_000)
                self._heard.add(each.device)
                changes.append((f"{each.device}#Status", self.statuses[each.device]))
            known = self.signals.get(each.device, {})
            for key, readings in each.readings.items():
                if key in known:
                    changes += self._store(each.device, known[key], _judged(readings, each.quality.get(key, {})))
                elif each.device in self._loaded_at:
                    # A signal that was not there before: its type is asked for at the next look.
                    self._loaded_at[each.device] = -math.inf
        await self._tell(changes)

    def _store(
        self, uid: str, signal: Signal, readings: Iterable[tuple[int, Any, str]]
    ) -> list[tuple[str, ua.DataValue]]:
        """Keep the newest; late readings never move it back. What has changed, in the order of time."""
        place = (uid, signal.key)
        changes: list[tuple[str, ua.DataValue]] = []
        newest = self.values.get(place)
        for ts, value, quality in sorted(readings, key=lambda reading: reading[0]):
            made = datavalue(signal, ts, value, quality)
            if newest is None or _replaces(made, newest):
                newest = made
                changes.append((f"{uid}/{signal.key}", made))
        if newest is not None:
            self.values[place] = newest
        return changes

    # --- watching -----------------------------------------------------------------------------------------------------

    def watch(self, handle: int, node: str, told: Told) -> None:
        """Call `told` with every new value of a node."""
        self._watching.setdefault(node, {})[handle] = told
        self._node_of[handle] = node

    def unwatch(self, handle: int) -> bool:
        """End that; False for a handle that is not of this view."""
        node = self._node_of.pop(handle, None)
        if node is None:
            return False
        watchers = self._watching[node]
        del watchers[handle]
        if not watchers:
            del self._watching[node]
        return True

    async def _tell(self, changes: Iterable[tuple[str, ua.DataValue]]) -> None:
        for node, value in changes:
            for handle, told in list(self._watching.get(node, {}).items()):
                await told(handle, value)

    async def _tell_gone(self, gone: Collection[str]) -> None:
        """Those who watch a node of these devices (uid) and signals (uid/key) are told that it is no longer there."""
        if gone:
            unknown = ua.DataValue(StatusCode=ua.StatusCode(ua.StatusCodes.BadNodeIdUnknown))
            watched = [node for node in self._watching if node[:26] in gone or node.partition("#")[0] in gone]
            await self._tell((node, unknown) for node in watched)


def _judged(readings: Iterable[tuple[int, Any]], quality: Mapping[str, str]) -> list[tuple[int, Any, str]]:
    return [(ts, value, quality.get(str(ts), "good")) for ts, value in readings]


def _replaces(made: ua.DataValue, newest: ua.DataValue) -> bool:
    """It is newer, or the same in another range, which has changed its quality."""
    if made.SourceTimestamp == newest.SourceTimestamp:
        return bool(made.StatusCode != newest.StatusCode)
    return bool(made.SourceTimestamp > newest.SourceTimestamp)
