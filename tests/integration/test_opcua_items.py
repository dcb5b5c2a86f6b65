"""What a monitored item reports, and when: filters and modes, as a client on the wire asks for them."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from asyncua import Client, ua
from asyncua.common.subscription import Subscription

from iiot import clock
from iiot.config import Settings
from tests import factories
from tests.integration.opcua_clients import Heard, Server, Side, node, run, serving

Codes = ua.StatusCodes
Trigger = ua.DataChangeTrigger


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[Server]:
    with serving(module_settings) as running:
        yield running


@pytest.fixture
def side() -> Side:
    return Side(factories.make_tenant())


class Watched:
    """A node that is watched in a subscription of its own."""

    def __init__(self, heard: Heard, subscription: Subscription, items: list[Any]) -> None:
        self.heard = heard
        self.subscription = subscription
        self.item = items[0]

    @property
    def values(self) -> list[Any]:
        """What was reported, in order."""
        return [value for _, value in self.heard.values]

    async def mode(self, mode: ua.MonitoringMode) -> None:
        """Change the item's mode."""
        params = ua.SetMonitoringModeParameters(self.subscription.subscription_id, mode, [self.item])
        [code] = await self.subscription.server.set_monitoring_mode(params)
        code.check()


async def watch(
    client: Client, text: str, mode: ua.MonitoringMode = ua.MonitoringMode.Reporting, **asked: Any
) -> Watched:
    """Watch a node; `asked` are MonitoringParameters."""
    heard = Heard()
    subscription = await client.create_subscription(100, heard)
    wanted = ua.MonitoredItemCreateRequest()
    wanted.ItemToMonitor = ua.ReadValueId(node(client, text).nodeid, ua.AttributeIds.Value)
    wanted.MonitoringMode = mode
    wanted.RequestedParameters = ua.MonitoringParameters(ClientHandle=1, **{"QueueSize": 50, **asked})
    return Watched(heard, subscription, await subscription.create_monitored_items([wanted]))


def deadband(value: float, kind: ua.DeadbandType = ua.DeadbandType.Absolute) -> ua.DataChangeFilter:
    """A filter of numbers."""
    return ua.DataChangeFilter(Trigger.StatusValue, kind, value)


async def sent(device: factories.DeviceRow, *values: Any) -> None:
    """The device sends these values of `a`, one after the other, and `end` at last."""
    for value in (*values, "end"):
        key = "end" if value == "end" else "a"
        message = value if isinstance(value, dict) else {"ts": clock.now_ms(), "values": {key: value}}
        await asyncio.to_thread(factories.send, device.uid, message)


def test_values_within_the_deadband_are_not_reported(server: Server, side: Side) -> None:
    """Measured from the value reported last, not from the one before."""
    device = side.device(a=5.0, end="")

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            signal, end = f"{device.uid}/a", await watch(client, f"{device.uid}/end")
            filtered = await watch(client, signal, Filter=deadband(5.0))
            await filtered.heard.until((signal, 5.0))
            await sent(device, 6.0, 9.0, 10.0, 11.0, 14.0, 18.0, 12.0)
            await end.heard.until((f"{device.uid}/end", "end"))
            await filtered.heard.until((signal, 12.0))
            assert filtered.values == [5.0, 11.0, 18.0, 12.0]

    run(look())


def test_triggers_say_what_is_news(server: Server, side: Side) -> None:
    device = side.device(a=1.0, end="")
    wanted = {
        Trigger.Status: [Codes.Good, Codes.Uncertain],
        Trigger.StatusValue: [Codes.Good, Codes.Good, Codes.Uncertain],
        Trigger.StatusValueTimestamp: [Codes.Good, Codes.Good, Codes.Good, Codes.Uncertain],
    }

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            signal = f"{device.uid}/a"
            items = {each: await watch(client, signal, Filter=ua.DataChangeFilter(Trigger=each)) for each in wanted}
            for item in items.values():
                await item.heard.until((signal, 1.0))
            now = clock.now_ms()
            await sent(
                device,
                {"ts": now + 1, "values": {"a": 2.0}},
                {"ts": now + 2, "values": {"a": 2.0}},
                {"ts": now + 3, "values": {"a": 3.0}, "quality": "uncertain"},
            )
            for each, item in items.items():
                await item.heard.until((signal, 3.0))
                assert [value.StatusCode.value for value in item.heard.raw] == wanted[each]

    run(look())


def test_filters_that_do_not_fit_are_refused(server: Server, side: Side) -> None:
    device = side.device(a=1.0, text="on")
    percent = ua.DeadbandType.Percent

    async def refused(client: Client, key: str, wanted: Any) -> str:
        watched = await watch(client, f"{device.uid}/{key}", Filter=wanted)
        assert isinstance(watched.item, ua.StatusCode)
        return str(watched.item.name)

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            assert await refused(client, "a", deadband(5.0, percent)) == "BadMonitoredItemFilterUnsupported"
            assert await refused(client, "a", ua.EventFilter()) == "BadMonitoredItemFilterUnsupported"
            assert await refused(client, "text", deadband(1.0)) == "BadDeadbandFilterInvalid"
            for number in (-1.0, float("nan")):
                assert await refused(client, "a", deadband(number)) == "BadDeadbandFilterInvalid"

    run(look())


@pytest.mark.parametrize("mode", [ua.MonitoringMode.Sampling, ua.MonitoringMode.Disabled])
def test_the_current_value_comes_when_reporting_begins(server: Server, side: Side, mode: ua.MonitoringMode) -> None:
    device = side.device(a=1.0, end="")
    signal = f"{device.uid}/a"

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            end = await watch(client, f"{device.uid}/end")
            silent, paused = await watch(client, signal, mode), await watch(client, signal)
            await paused.heard.until((signal, 1.0))
            await paused.mode(mode)
            await sent(device, 2.0, 3.0)
            await end.heard.until((f"{device.uid}/end", "end"))
            assert silent.values == []
            for item in (silent, paused):
                await item.mode(ua.MonitoringMode.Reporting)
                await item.heard.until((signal, 3.0))
            assert (silent.values, paused.values) == ([3.0], [1.0, 3.0])

    run(look())
