"""What one client asks for keeps no other from being served: times, sizes, shares."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from asyncua import Client, ua

from iiot import clock
from iiot.config import Settings
from tests import factories
from tests.integration.opcua_clients import Heard, Server, Side, is_over, node, run, secure, serving, soon

Codes = ua.StatusCodes


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[Server]:
    with serving(module_settings) as running:
        yield running


@pytest.fixture
def side() -> Side:
    return Side(factories.make_tenant())


def test_a_session_whose_timeout_is_no_number_disturbs_nobody(server: Server, side: Side) -> None:
    """In a timer a NaN breaks the order of all others: values, checks of rights and everybody's sessions stood still."""
    device = side.device(a=0.0)
    text, uid = side.key("admin", "device:read", "telemetry:read")

    async def look() -> float:
        strangers: list[Client] = []
        async with server.connected(side.user("viewer")) as client, server.connected("scada", text) as program:
            heard = Heard()
            await (await client.create_subscription(100, heard)).subscribe_data_change(node(client, f"{device.uid}/a"))
            for number, wanted in enumerate((float("nan"), float("inf"), float("-inf"), -1.0, 0.0, float("nan"))):
                stranger = await server.channel("nobody")
                strangers.append(stranger)
                params = ua.CreateSessionParameters(
                    EndpointUrl=server.url, ClientNonce=bytes(32), RequestedSessionTimeout=wanted
                )
                answer = await stranger.uaclient.create_session(params)
                assert answer.RevisedSessionTimeout == 600_000
                await asyncio.to_thread(factories.store, device.uid, a=float(number))
                await heard.until((f"{device.uid}/a", float(number)))
            revoked = await asyncio.to_thread(side.revoke, "admin", uid)
            await soon(lambda: is_over(program))
            ended = time.monotonic()
        for stranger in strangers:
            stranger.disconnect_socket()
        return ended - revoked

    assert run(look()) <= 1.0


def test_publishing_intervals_that_are_no_numbers_are_revised(server: Server, side: Side) -> None:
    async def look() -> None:
        wanted = {float("nan"): 100.0, float("-inf"): 100.0, -1.0: 100.0, 0.0: 100.0, float("inf"): 60_000.0}
        async with server.connected(side.user("viewer")) as client:
            for interval, revised in wanted.items():
                params = ua.CreateSubscriptionParameters(interval, 1_000, 10, 0, True, 0)
                made = await client.uaclient.create_subscription(params, lambda _: None)
                assert made.RevisedPublishingInterval == revised

    run(look())


async def everything(client: Client, texts: list[str]) -> tuple[list[list[Any]], list[int]]:
    """All values of these signals in the last hour, and how many each answer had: the clients' limits hold for every one of them."""
    now = datetime.now(UTC)
    details = ua.ReadRawModifiedDetails(False, now - timedelta(hours=1), now + timedelta(minutes=1), 0, False)
    found: list[list[Any]] = [[] for _ in texts]
    points: dict[int, bytes | None] = dict.fromkeys(range(len(texts)))
    sizes = []
    while points:
        asked = [ua.HistoryReadValueId(ua.NodeId(texts[place], 2), ContinuationPoint=points[place]) for place in points]
        params = ua.HistoryReadParameters(details, ua.TimestampsToReturn.Both, False, asked)
        results = await client.uaclient.history_read(params)
        before = sum(map(len, found))
        for place, result in zip(list(points), results, strict=True):
            result.StatusCode.check()
            found[place] += [each.Value.Value for each in result.HistoryData.DataValues]
            points[place] = result.ContinuationPoint
            if not result.ContinuationPoint:
                del points[place]
        sizes.append(sum(map(len, found)) - before)
    return found, sizes


@pytest.fixture(scope="module")
def archive(server: Server) -> tuple[Side, list[str]]:
    """A device with 2,000 long texts, and one with 5,000 numbers."""
    side = Side(factories.make_tenant())
    writer, meter = side.device("writer"), side.device("meter")
    past = clock.now_ms() - 3_000_000
    texts = [(past + number, {"log": f"{number:05}" + "ä" * 995}) for number in range(2_000)]
    for start in range(0, 2_000, 100):
        factories.store(writer.uid, *texts[start : start + 100])
    factories.store(meter.uid, *((past + number, {"a": float(number)}) for number in range(5_000)))
    return side, [f"{writer.uid}/log", f"{meter.uid}/a"]


@pytest.mark.parametrize("most", [0, 100_000])
def test_long_histories_come_in_answers_that_the_client_takes(
    server: Server, archive: tuple[Side, list[str]], most: int
) -> None:
    side, (log, meter) = archive
    asked = [log, *[meter] * 8, log, log]

    async def look() -> None:
        made = server.client(side.user("viewer"))
        await secure(made)
        made.max_messagesize = most
        async with made as client:
            found, sizes = await everything(client, asked)
            for text, values in zip(asked, found, strict=True):
                if text == meter:
                    assert values == [float(number) for number in range(5_000)]
                else:
                    assert values == [f"{number:05}" + "ä" * 995 for number in range(2_000)]
            assert len(sizes) > 5

    run(look())


def test_an_answer_that_no_page_makes_shorter_is_refused_and_the_connection_goes_on(
    server: Server, archive: tuple[Side, list[str]]
) -> None:
    side, (log, _) = archive

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            wanted = ua.ReadValueId(ua.NodeId(log, 2), ua.AttributeIds.Value)
            with pytest.raises(ua.uaerrors.BadResponseTooLarge):
                await client.uaclient.read(ua.ReadParameters(NodesToRead=[wanted] * 1_000))
            assert len(await client.uaclient.read(ua.ReadParameters(NodesToRead=[wanted] * 100))) == 100

    run(look())


@pytest.mark.parametrize(("receive", "send"), [(0, 65_535), (25, 65_535), (8_191, 65_535), (65_535, 8_191)])
def test_buffers_below_the_standards_least_are_refused(server: Server, receive: int, send: int) -> None:
    """Each chunk costs a header and a signature: 25 bytes made 65 kB of a list of endpoints."""
    parts = urlsplit(server.url)
    numbers = (0, receive, send, 0, 0, len(server.url))
    body = b"".join(number.to_bytes(4, "little") for number in numbers) + server.url.encode()

    async def look() -> bytes:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(b"HELF" + (8 + len(body)).to_bytes(4, "little") + body)
        answer = await reader.read()
        writer.close()
        return answer

    answer = run(look())
    assert answer[:4] == b"ERRF"
    assert int.from_bytes(answer[8:12], "little") == Codes.BadConnectionRejected


def test_one_tenant_and_one_address_have_a_share_alone(module_settings: Settings, side: Side) -> None:
    """Half of all sessions for a tenant; a quarter of all connections for those of an address that have none."""
    other, text = Side(factories.make_tenant()), side.key("admin")[0]

    async def look(server: Server) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(server.connected("scada", text))
            with pytest.raises(ua.uaerrors.BadTooManySessions):
                async with server.connected("scada", text):
                    pass
            neighbour = await stack.enter_async_context(server.connected(other.user("viewer")))
            parts = urlsplit(server.url)

            async def has_no_strangers() -> bool:
                return server.metric("iiot_opcua_connections") == 5

            await soon(has_no_strangers)
            opened = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(3)]
            assert await asyncio.wait_for(opened[2][0].read(), 5) == b""
            assert not opened[1][0].at_eof()
            await neighbour.nodes.server_state.read_value()
            for _, writer in opened:
                writer.close()

    with serving(module_settings, opcua_connections=8) as server:
        run(look(server))


def test_pages_of_one_request_are_as_many_as_there_are_points(server: Server, side: Side) -> None:
    device = side.device(a=1.0)

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            most = await client.get_node(
                ua.NodeId(ua.ObjectIds.Server_ServerCapabilities_MaxBrowseContinuationPoints)
            ).read_value()
            wanted = ua.BrowseDescription(NodeId=ua.NodeId(device.uid, 2), IncludeSubtypes=True)
            params = ua.BrowseParameters(RequestedMaxReferencesPerNode=1, NodesToBrowse=[wanted] * (most + 5))
            for _ in range(2):
                found = await client.uaclient.browse(params)
                codes = [each.StatusCode.value for each in found]
                assert codes == [Codes.Good] * most + [Codes.BadNoContinuationPoints] * 5
                points = [each.ContinuationPoint for each in found if each.ContinuationPoint]
            again = await client.uaclient.browse_next(ua.BrowseNextParameters(False, points))
            assert [each.StatusCode.value for each in again] == [Codes.Good] * most

    run(look())


def test_reading_takes_no_age_below_zero_and_no_unknown_times(server: Server, side: Side) -> None:
    async def look() -> None:
        wanted = [ua.ReadValueId(ua.NodeId(ua.ObjectIds.Server_ServerStatus_State), ua.AttributeIds.Value)]
        async with server.connected(side.user("viewer")) as client:
            for age in (-1.0, float("nan")):
                with pytest.raises(ua.uaerrors.BadMaxAgeInvalid):
                    await client.uaclient.read(ua.ReadParameters(MaxAge=age, NodesToRead=wanted))
            with pytest.raises(ua.uaerrors.BadTimestampsToReturnInvalid):
                await client.uaclient.read(ua.ReadParameters(0, ua.TimestampsToReturn.Invalid, wanted))

    run(look())


def test_a_subscription_is_modified_and_transferred_within_the_limits(server: Server, side: Side) -> None:
    device = side.device(a=1.0)
    signal, email = f"{device.uid}/a", side.user("viewer")

    async def look() -> None:
        async with server.connected(email) as client, server.connected(email) as second:
            heard = Heard()
            slow = await client.create_subscription(60_000, heard)
            await slow.subscribe_data_change(node(client, signal))
            for interval, revised in ((float("nan"), 100.0), (200.0, 200.0)):
                params = ua.ModifySubscriptionParameters(slow.subscription_id, interval, 1_000, 10, 0, 0)
                answer = await client.uaclient.modify_subscription(params)
                assert answer.RevisedPublishingInterval == revised
            await heard.until((signal, 1.0))
            await asyncio.to_thread(factories.store, device.uid, a=2.0)
            await heard.until((signal, 2.0))
            for _ in range(20):
                await second.create_subscription(1_000, Heard())
            asked = ua.TransferSubscriptionsParameters([slow.subscription_id], True)
            [result] = await second.uaclient.transfer_subscriptions(asked)
            assert result.StatusCode.value == Codes.BadTooManySubscriptions

    run(look())
