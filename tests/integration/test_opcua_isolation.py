"""Every service of OPC UA × own, sibling and other tenant: what is not yours reads like what does not exist, and nobody takes a session over."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asyncua import Client, ua
from asyncua.common.utils import ServiceError
from asyncua.server.internal_session import InternalSession
from asyncua.ua.ua_binary import struct_from_binary

from iiot import clock
from iiot.config import Settings
from iiot.ids import new_uid
from protocols.opcua_history import LARGEST_PAGE
from protocols.opcua_session import SERVICES, TenantSession
from tests import factories
from tests.integration.opcua_clients import PASSWORD, Heard, Server, Side, node, run, serving

Codes = ua.StatusCodes


def test_every_method_of_the_librarys_session_is_classified() -> None:
    """A new version that brings another one fails here: somebody has to say what becomes of it."""
    public = {name for name, _ in inspect.getmembers(InternalSession, callable) if not name.startswith("_")}
    assert public == set(SERVICES)


def test_what_is_filtered_or_denied_is_ours() -> None:
    for name, what in SERVICES.items():
        mine, theirs = getattr(TenantSession, name), getattr(InternalSession, name)
        assert (mine is not theirs) == (what != "allowed"), name


def test_what_is_denied_is_refused_before_anything_else() -> None:
    for name, what in SERVICES.items():
        if what == "denied":
            with pytest.raises(ServiceError) as caught:
                getattr(TenantSession, name)(None)
            assert caught.value.code == Codes.BadServiceUnsupported


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[Server]:
    with serving(module_settings) as running:
        yield running


@dataclass
class Objects:
    """What a session has, or would like to have: ids of a device, its signal, a subscription, a monitored item."""

    device: str
    signal: str
    subscription: int
    item: int


@dataclass
class Sides:
    """Two tenants; in the own one there is somebody who sees `mine` and not its sibling `hidden`."""

    own: Side
    other: Side
    mine: factories.DeviceRow
    hidden: factories.DeviceRow
    theirs: factories.DeviceRow
    limited: str

    def seat(self, where: str) -> tuple[str, str, factories.DeviceRow]:
        """Who looks, who has what is not theirs to see, and that device: a "sibling" or of the "other tenant"."""
        if where == "sibling":
            return self.limited, self.own.user("admin"), self.hidden
        return self.own.user("admin"), self.other.user("admin"), self.theirs


@pytest.fixture(scope="module")
def sides(server: Server) -> Sides:
    own, other = Side(factories.make_tenant()), Side(factories.make_tenant("CANARY-tenant"))
    mine = own.device("mine", temperature=1.5, setpoint=1.0)
    hidden = own.device("HIDDEN-device", temperature=434343.0137, setpoint=434343.0137)
    theirs = other.device("CANARY-device", temperature=424242.0137, setpoint=424242.0137)
    for side, device in ((own, mine), (own, hidden), (other, theirs)):
        side.change(device, "setpoint", writable=True)
        side.change(device, "temperature", unit="°C", min=-1.0, max=1e6)
        # More than a page of history.
        past = clock.now_ms() - 3_000_000
        factories.store(
            device.uid, *((past + number, {"temperature": float(number)}) for number in range(LARGEST_PAGE + 1))
        )
    return Sides(own, other, mine, hidden, theirs, own.limited("engineer", mine))


async def _objects(client: Client, device: factories.DeviceRow) -> Objects:
    subscription = await client.create_subscription(100, Heard())
    item = await subscription.subscribe_data_change(node(client, f"{device.uid}/temperature"))
    return Objects(device.uid, f"{device.uid}/temperature", subscription.subscription_id, item)


def _id(text: str) -> ua.NodeId:
    return ua.NodeId(text, 2)


def _nodes(it: Objects) -> list[ua.NodeId]:
    """Every kind of node that a device has."""
    parts = "", "#Status", "#SetStatus", "#SetStatus#InputArguments", "#SetStatus#OutputArguments"
    texts = [f"{it.device}{part}" for part in parts]
    return [_id(text) for text in [*texts, it.signal, f"{it.signal}#EURange", f"{it.signal}#EngineeringUnits"]]


async def _read(client: Client, it: Objects) -> list[Any]:
    """Every attribute of every node."""
    wanted = [ua.ReadValueId(each, attribute) for each in _nodes(it) for attribute in ua.AttributeIds]
    return [
        (each.StatusCode.value, each.Value, each.SourceTimestamp)
        for each in await client.uaclient.read(ua.ReadParameters(NodesToRead=wanted))
    ]


def _wanted(node_id: ua.NodeId) -> ua.BrowseDescription:
    return ua.BrowseDescription(NodeId=node_id, BrowseDirection=ua.BrowseDirection.Both, IncludeSubtypes=True)


async def _browse(client: Client, it: Objects) -> list[Any]:
    params = ua.BrowseParameters(NodesToBrowse=[_wanted(each) for each in _nodes(it)])
    return [(each.StatusCode.value, bool(each.References)) for each in await client.uaclient.browse(params)]


async def _page(client: Client, it: Objects) -> bytes:
    """The continuation point behind a first page of one reference, empty when there is none."""
    params = ua.BrowseParameters(RequestedMaxReferencesPerNode=1, NodesToBrowse=[_wanted(_id(it.device))])
    return bytes((await client.uaclient.browse(params))[0].ContinuationPoint or b"")


async def _browse_next(client: Client, it: Objects) -> list[Any]:
    return await _next(client, await _page(client, it))


async def _next(client: Client, point: bytes) -> list[Any]:
    found = await client.uaclient.browse_next(ua.BrowseNextParameters(False, [point]))
    return [(each.StatusCode.value, len(each.References)) for each in found]


async def _translate(client: Client, it: Objects) -> list[Any]:
    path = ua.BrowsePath(StartingNode=_id(it.device))
    path.RelativePath.Elements = [
        ua.RelativePathElement(IncludeSubtypes=True, TargetName=ua.QualifiedName("temperature", 2))
    ]
    return [each.StatusCode.value for each in await client.uaclient.translate_browsepaths_to_nodeids([path])]


async def _write(client: Client, it: Objects) -> list[Any]:
    params = ua.WriteParameters(NodesToWrite=[])
    for text in (f"{it.device}/setpoint", it.signal, f"{it.device}#Status"):
        value = ua.DataValue(ua.Variant(5.0))
        params.NodesToWrite.append(ua.WriteValue(_id(text), ua.AttributeIds.Value, "", value))
    return [each.value for each in await client.uaclient.write(params)]


async def _call(client: Client, it: Objects) -> list[Any]:
    asked = ua.CallMethodRequest(_id(it.device), _id(f"{it.device}#SetStatus"), [ua.Variant("offline")])
    return [each.StatusCode.value for each in await client.uaclient.call([asked])]


async def _history(client: Client, it: Objects) -> list[Any]:
    found = await _past(client, it.signal)
    return [
        (each.StatusCode.value, isinstance(each.HistoryData, ua.HistoryData), bool(each.ContinuationPoint))
        for each in found
    ]


async def _past(client: Client, text: str, point: bytes | None = None) -> list[Any]:
    """The last hour of a signal, or what is behind a continuation point."""
    now = datetime.now(UTC)
    details = ua.ReadRawModifiedDetails(False, now - timedelta(hours=1), now + timedelta(hours=1), 0, False)
    wanted = [ua.HistoryReadValueId(_id(text), ContinuationPoint=point)]
    params = ua.HistoryReadParameters(details, ua.TimestampsToReturn.Both, False, wanted)
    return list(await client.uaclient.history_read(params))


async def _watch(client: Client, it: Objects) -> list[Any]:
    """Every attribute of every node in a subscription of the caller's own."""
    own = await client.create_subscription(1000, Heard())
    wanted = [
        ua.MonitoredItemCreateRequest(ua.ReadValueId(each, attribute), ua.MonitoringMode.Reporting)
        for each in _nodes(it)
        for attribute in ua.AttributeIds
    ]
    params = ua.CreateMonitoredItemsParameters(own.subscription_id, ua.TimestampsToReturn.Both, wanted)
    return [each.StatusCode.value for each in await client.uaclient.create_monitored_items(params)]


async def _create_in(client: Client, it: Objects) -> list[Any]:
    """A standard node in the subscription."""
    wanted = ua.MonitoredItemCreateRequest(
        ua.ReadValueId(ua.NodeId(ua.ObjectIds.Server_ServerStatus_CurrentTime), ua.AttributeIds.Value)
    )
    params = ua.CreateMonitoredItemsParameters(it.subscription, ua.TimestampsToReturn.Both, [wanted])
    return [each.StatusCode.value for each in await client.uaclient.create_monitored_items(params)]


async def _modify_item(client: Client, it: Objects) -> list[Any]:
    asked = ua.MonitoredItemModifyRequest(it.item, ua.MonitoringParameters(QueueSize=5))
    params = ua.ModifyMonitoredItemsParameters(it.subscription, ua.TimestampsToReturn.Both, [asked])
    return [each.StatusCode.value for each in await client.uaclient.modify_monitored_items(params)]


async def _mode(client: Client, it: Objects) -> list[Any]:
    params = ua.SetMonitoringModeParameters(it.subscription, ua.MonitoringMode.Reporting, [it.item])
    return [each.value for each in await client.uaclient.set_monitoring_mode(params)]


async def _publishing(client: Client, it: Objects) -> list[Any]:
    params = ua.SetPublishingModeParameters(True, [it.subscription])
    return [each.value for each in await client.uaclient.set_publishing_mode(params)]


async def _modify(client: Client, it: Objects) -> list[Any]:
    params = ua.ModifySubscriptionParameters(it.subscription, 500, 1000, 10, 0, 0)
    await client.uaclient.modify_subscription(params)
    return [0]


async def _republish(client: Client, it: Objects) -> list[Any]:
    request = ua.RepublishRequest()
    request.Parameters = ua.RepublishParameters(it.subscription, 1)
    await client.uaclient.session._send_request(request)
    return [0]


async def _acknowledge(client: Client, it: Objects) -> list[Any]:
    """With a request to publish, which the clock of the server answers."""
    own = await client.create_subscription(100, Heard())
    await own.subscribe_data_change(client.get_node(ua.NodeId(ua.ObjectIds.Server_ServerStatus_CurrentTime)))
    request = ua.PublishRequest()
    request.Parameters.SubscriptionAcknowledgements = [ua.SubscriptionAcknowledgement(it.subscription, 1)]
    answer = struct_from_binary(ua.PublishResponse, await client.uaclient.session._send_request(request))
    await own.delete()
    return [each.value for each in answer.Parameters.Results]


async def _transfer(client: Client, it: Objects) -> list[Any]:
    params = ua.TransferSubscriptionsParameters([it.subscription], True)
    return [each.StatusCode.value for each in await client.uaclient.transfer_subscriptions(params)]


async def _delete_item(client: Client, it: Objects) -> list[Any]:
    params = ua.DeleteMonitoredItemsParameters(it.subscription, [it.item])
    return [each.value for each in await client.uaclient.delete_monitored_items(params)]


async def _delete(client: Client, it: Objects) -> list[Any]:
    return [each.value for each in await client.uaclient.delete_subscriptions([it.subscription])]


Act = Callable[[Client, Objects], Awaitable[list[Any]]]
# Method of the session → what a client sends. The order matters: the last ones remove what the others need.
ACTS: dict[str, Act] = {
    "read": _read,
    "browse": _browse,
    "browse_next": _browse_next,
    "translate_browsepaths_to_nodeids": _translate,
    "write": _write,
    "call": _call,
    "history_read": _history,
    "create_monitored_items": _watch,
    "create_monitored_items in": _create_in,
    "modify_monitored_items": _modify_item,
    "set_monitoring_mode": _mode,
    "set_publishing_mode": _publishing,
    "modify_subscription": _modify,
    "republish": _republish,
    "publish": _acknowledge,
    "transfer_subscriptions": _transfer,
    "delete_monitored_items": _delete_item,
    "delete_subscriptions": _delete,
}
# They act on nothing of a tenant; what they do is in the tests below.
WITHOUT_OBJECT = {
    "create_session", "close_session", "register_nodes", "unregister_nodes", "create_subscription",
}  # fmt: skip


def test_every_filtered_method_is_walked() -> None:
    filtered = {name for name, what in SERVICES.items() if what == "filtered"}
    assert {name.split()[0] for name in ACTS} | WITHOUT_OBJECT == filtered


async def _outcome(act: Act, client: Client, it: Objects) -> Any:
    try:
        return await act(client, it)
    except ua.UaStatusCodeError as error:
        return type(error).__name__


@pytest.mark.parametrize("where", ["sibling", "other tenant"])
def test_what_is_not_ones_own_answers_like_nothing_at_all(server: Server, sides: Sides, where: str) -> None:
    """Per service: own things work, and for those that are not the answer is the same as for invented ones."""
    visitor, owner, device = sides.seat(where)

    async def walk() -> None:
        async with server.connected(visitor) as client, server.connected(owner) as neighbour:
            foreign = await _objects(neighbour, device)
            invented = Objects(new_uid(), f"{new_uid()}/temperature", 999_999, 999_999)
            own = await _objects(client, sides.mine)
            for name, act in ACTS.items():
                expected = await _outcome(act, client, invented)
                assert await _outcome(act, client, foreign) == expected, name
                result = await _outcome(act, client, own)
                assert result != expected, name
            # Nothing of the neighbour's was touched.
            assert await _outcome(_delete_item, neighbour, foreign) == [Codes.Good]
            assert await _outcome(_delete, neighbour, foreign) == [Codes.Good]

    run(walk())
    assert factories.rows("SELECT status FROM iiot.device WHERE uid = %s", device.uid) != [("offline",)]
    assert factories.rows("SELECT count(*) FROM iiot.command WHERE device_id = %s", device.device_id) == [(0,)]


@pytest.mark.parametrize("where", ["sibling", "other tenant", "other session"])
def test_pages_of_another_session_are_of_no_use(server: Server, sides: Sides, where: str) -> None:
    """Continuation points are a session's own: also those of the same person in another session, who sees the same devices."""
    visitor, owner, device = sides.seat(where)
    text = f"{device.uid}/temperature"
    used = {text: Codes.BadNodeIdUnknown, f"{sides.mine.uid}/temperature": Codes.BadContinuationPointInvalid}
    if where == "other session":
        visitor = owner
        used = dict.fromkeys((text, f"{device.uid}/setpoint"), Codes.BadContinuationPointInvalid)

    async def walk() -> None:
        async with server.connected(visitor) as client, server.connected(owner) as neighbour:
            point = await _page(neighbour, Objects(device.uid, text, 0, 0))
            past = (await _past(neighbour, text))[0].ContinuationPoint
            assert point
            assert past
            assert await _next(client, point) == [(Codes.BadContinuationPointInvalid, 0)]
            for signal, code in used.items():
                result = (await _past(client, signal, past))[0]
                assert result.StatusCode.value == code
                assert not isinstance(result.HistoryData, ua.HistoryData)
            # They were not used up by that.
            assert (await _past(neighbour, text, past))[0].StatusCode.is_good()
            assert await _next(neighbour, point) == [(Codes.Good, 1)]

    run(walk())


@pytest.mark.parametrize("where", ["sibling", "other tenant"])
def test_registering_opens_nothing(server: Server, sides: Sides, where: str) -> None:
    visitor, _, device = sides.seat(where)

    async def walk() -> None:
        async with server.connected(visitor) as client:
            answers = []
            for it in (
                Objects(device.uid, f"{device.uid}/temperature", 0, 0),
                Objects(new_uid(), f"{new_uid()}/temperature", 0, 0),
                Objects(sides.mine.uid, f"{sides.mine.uid}/temperature", 0, 0),
            ):
                nodes = _nodes(it)
                registered = await client.uaclient.register_nodes(nodes)
                answers.append((registered == nodes, await _read(client, it)))
                await client.uaclient.unregister_nodes(registered)
            foreign, invented, own = answers
            assert foreign == invented
            assert {code for code, _, _ in foreign[1]} == {Codes.BadNodeIdUnknown}
            assert own != invented

    run(walk())


@pytest.mark.parametrize("where", ["sibling", "other tenant"])
def test_nothing_that_is_found_by_browsing_is_not_ones_own(server: Server, sides: Sides, where: str) -> None:
    """From the root through every reference, each node's text attributes: no word of what is not for the one who looks."""
    visitor, _, device = sides.seat(where)

    async def walk() -> set[str]:
        seen: set[ua.NodeId] = set()
        said = set()
        async with server.connected(visitor) as client:
            waiting = [client.nodes.objects.nodeid]
            while waiting:
                params = ua.BrowseParameters(NodesToBrowse=[])
                part, waiting = waiting[:200], waiting[200:]
                for each in part:
                    params.NodesToBrowse.append(
                        ua.BrowseDescription(
                            NodeId=each,
                            BrowseDirection=ua.BrowseDirection.Forward,
                            ReferenceTypeId=ua.NodeId(ua.ObjectIds.HierarchicalReferences),
                            IncludeSubtypes=True,
                            ResultMask=63,
                        )
                    )
                for result in await client.uaclient.browse(params):
                    for reference in result.References:
                        said.add(f"{reference.NodeId} {reference.BrowseName} {reference.DisplayName}")
                        if reference.NodeId not in seen:
                            seen.add(reference.NodeId)
                            waiting.append(reference.NodeId)
            reads = ua.ReadParameters(NodesToRead=[ua.ReadValueId(each, 13) for each in seen])
            said |= {str(each.Value) for each in await client.uaclient.read(reads)}
        return said

    said = " ".join(run(walk()))
    assert sides.mine.uid in said
    for word in (device.name.partition("-")[0], "CANARY", "424242.0137", device.uid, sides.other.tenant.uid):
        assert word not in said


def _with_token(client: Client, token: ua.NodeId, nonce: bytes) -> Client:
    """What a session is taken up again with."""
    client.uaclient.session.restore_authentication_token(token)
    client._server_nonce = nonce
    return client


def test_a_session_is_taken_up_again_by_its_own_person_and_certificate_alone(server: Server, sides: Sides) -> None:
    """Even with the right token and the right nonce a stranger stays outside. The library would let them in."""
    email, stranger = sides.other.user("viewer"), sides.own.user("viewer")
    text = f"{sides.theirs.uid}/temperature"

    async def refuse(token: ua.NodeId, nonce: bytes, name: str) -> str:
        thief = _with_token(await server.channel(stranger, name), token, nonce)
        try:
            with pytest.raises(ua.UaStatusCodeError) as caught:
                await thief.activate_session(username=stranger, password=PASSWORD)
            with pytest.raises((ua.UaError, ConnectionError, asyncio.TimeoutError)):
                await node(thief, text).read_value()
            return type(caught.value).__name__
        finally:
            thief.disconnect_socket()

    async def attack() -> None:
        victim = await server.channel(email)
        await victim.create_session()
        nonce = (await victim.activate_session(username=email, password=PASSWORD)).ServerNonce
        token = victim.uaclient.session.authentication_token
        assert len(token.Identifier) == 32
        watched = await victim.create_subscription(100, Heard())
        await watched.subscribe_data_change(node(victim, text))
        assert await refuse(token, nonce, "stranger") == "BadSessionIdInvalid"
        assert await refuse(token, b"x" * 32, "client") == "BadApplicationSignatureInvalid"
        assert await refuse(token, nonce, "client") == "BadIdentityChangeNotSupported"
        for number in range(1001, 1004):
            assert await refuse(ua.NodeId(number), nonce, "client") == "BadSessionIdInvalid"
        assert await node(victim, text).read_value() == 424242.0137
        heir = _with_token(await server.channel(email), token, nonce)
        await heir.activate_session(username=email, password=PASSWORD)
        assert await node(heir, text).read_value() == 424242.0137
        with pytest.raises((ua.UaError, ConnectionError, asyncio.TimeoutError)):
            await node(victim, text).read_value()
        # What was watched goes on here.
        await asyncio.to_thread(factories.store, sides.theirs.uid, temperature=424242.0138)
        heard: list[float] = []
        while 424242.0138 not in heard:
            answer = await heir.uaclient.session._send_request(ua.PublishRequest())
            message = struct_from_binary(ua.PublishResponse, answer).Parameters.NotificationMessage
            heard += [each.Value.Value.Value for part in message.NotificationData for each in part.MonitoredItems]
        victim.disconnect_socket()
        await heir.uaclient.close_session(True)
        heir.disconnect_socket()

    run(attack())


def test_subscriptions_go_to_another_session_of_the_same_person_alone(server: Server, sides: Sides) -> None:
    async def move() -> None:
        email = sides.own.user("viewer")
        async with server.connected(email) as first, server.connected(email) as second:
            it = await _objects(first, sides.mine)
            async with server.connected(sides.own.user("admin")) as colleague:
                assert await _transfer(colleague, it) == [Codes.BadSubscriptionIdInvalid]
            async with server.connected(email, name="another program") as elsewhere:
                assert await _transfer(elsewhere, it) == [Codes.BadSubscriptionIdInvalid]
            assert await _transfer(second, it) == [Codes.Good]
            assert await _outcome(_delete_item, first, it) == "BadSubscriptionIdInvalid"
            assert await _delete(second, it) == [Codes.Good]

    run(move())


def test_nodes_are_not_added_or_removed(server: Server, sides: Sides) -> None:
    async def act() -> None:
        async with server.connected(sides.own.user("admin")) as client:
            for change in (
                client.nodes.objects.add_folder(2, "mine"),
                client.delete_nodes([node(client, sides.mine.uid)]),
                client.nodes.objects.add_reference(ua.NodeId(sides.mine.uid, 2), ua.ObjectIds.Organizes),
            ):
                with pytest.raises(ua.UaError):
                    await change
            assert await node(client, sides.mine.uid).read_browse_name()

    run(act())
