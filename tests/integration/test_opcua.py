"""What people and programs see and do over OPC UA: asyncua's client against the real adapter, beside the real stream."""

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest
from asyncua import ua

from iiot import clock, tenancy
from iiot.config import Settings
from iiot.services import devices, limited, members, presence, sessions, tenants, users
from tests import factories
from tests.integration.opcua_clients import PASSWORD, Heard, Server, Side, is_over, node, run, serving, soon
from tests.services import eventually


@pytest.fixture(scope="module")
def crowd(module_settings: Settings) -> Side:
    """A tenant with 2,000 devices of ten signals, there before the server starts."""
    side = Side(factories.make_tenant(devices=5_000))
    factories.make_crowd(side.tenant, 2_000, 10)
    return side


@pytest.fixture(scope="module")
def server(module_settings: Settings, crowd: Side) -> Iterator[Server]:
    """One adapter for all tests here."""
    with serving(module_settings) as running:
        yield running


def test_two_thousand_devices_are_there_when_somebody_looks(server: Server, crowd: Side) -> None:
    """The start does not depend on them. Processor time, as other tests run beside this one; the wall clock is the bench's."""
    assert server.process.process is not None
    times = psutil.Process(server.process.process.pid).cpu_times()
    assert times.user + times.system <= 20.0

    async def look() -> None:
        async with server.connected(crowd.user("viewer")) as client:
            folder = await client.nodes.objects.get_child(["2:Devices"])
            found = await folder.get_children_descriptions()
            assert len(found) == 2_000
            thing = await folder.get_child(["2:device 1234", "2:signal_7"])
            value = await thing.read_data_value(raise_on_bad_status=False)
            assert value.StatusCode.name == "BadWaitingForInitialData"
            nodes = [node(client, f"{each.NodeId.Identifier}/signal_3") for each in found]
            assert len(await client.read_attributes(nodes, ua.AttributeIds.BrowseName)) == 2_000

    run(look())


@pytest.fixture(scope="module")
def side(server: Server) -> Side:
    return Side(factories.make_tenant())


def test_devices_and_signals_are_browsed_by_name_and_read(server: Server, side: Side) -> None:
    name = "Pümpe 1/2 #3"
    device = side.device(name, temperature=21.5, running=True, state="idle")
    other = side.device(name, temperature=1.0)
    side.change(device, "temperature", unit="°C", min=-40.0, max=125.0)

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            folder = await client.nodes.objects.get_child(["2:Devices"])
            names = [(await each.read_browse_name()).Name for each in await folder.get_children()]
            assert names.count(name) == 2
            found = await client.nodes.objects.get_child(["2:Devices", f"2:{name}", "2:temperature"], True)
            assert {each.nodeid.Identifier for each in found} == {f"{each.uid}/temperature" for each in (device, other)}
            signal = node(client, f"{device.uid}/temperature")

            async def there() -> ua.DataValue | None:
                value = await signal.read_data_value(raise_on_bad_status=False)
                return value if value.StatusCode.is_good() else None

            value = await soon(there)
            assert (value.Value.Value, value.Value.VariantType) == (21.5, ua.VariantType.Double)
            assert abs((value.SourceTimestamp - datetime.now(UTC)).total_seconds()) < 60
            both = ua.ReadParameters(TimestampsToReturn=ua.TimestampsToReturn.Both)
            both.NodesToRead = [ua.ReadValueId(signal.nodeid, ua.AttributeIds.Value)]
            assert (await client.uaclient.read(both))[0].ServerTimestamp is not None
            assert await node(client, f"{device.uid}/running").read_value() is True
            assert await node(client, f"{device.uid}/state").read_value() == "idle"
            limits = await (await signal.get_child("0:EURange")).read_value()
            assert (limits.Low, limits.High) == (-40.0, 125.0)
            unit = await (await signal.get_child("0:EngineeringUnits")).read_value()
            assert (unit.UnitId, unit.DisplayName.Text) == (4408652, "°C")
            children = {(await each.read_browse_name()).Name for each in await node(client, device.uid).get_children()}
            assert children == {"Status", "SetStatus", "temperature", "running", "state"}

    run(look())


def test_new_values_are_pushed_within_a_second(server: Server, side: Side) -> None:
    device = side.device(temperature=1.0, mode="slow")

    async def look() -> list[float]:
        loop, ages = asyncio.get_running_loop(), []
        async with server.connected(side.user("viewer")) as client:
            heard = Heard()
            subscription = await client.create_subscription(100, heard)
            await subscription.subscribe_data_change(
                [node(client, f"{device.uid}/{key}") for key in ("temperature", "mode")]
            )
            await heard.until((f"{device.uid}/temperature", 1.0), (f"{device.uid}/mode", "slow"))
            for number in range(2, 7):
                began = loop.time()
                await asyncio.to_thread(factories.store, device.uid, temperature=float(number), mode=f"gear {number}")
                await heard.until(
                    (f"{device.uid}/temperature", float(number)), (f"{device.uid}/mode", f"gear {number}")
                )
                ages.append(loop.time() - began)
            # A late reading never moves a value back.
            late = (clock.now_ms() - 60_000, {"temperature": -1.0})
            await asyncio.to_thread(factories.store, device.uid, late)
            await asyncio.to_thread(factories.store, device.uid, temperature=7.0)
            await heard.until((f"{device.uid}/temperature", 7.0))
            assert (f"{device.uid}/temperature", -1.0) not in heard.values
        return ages

    assert max(run(look())) <= 1.0


def test_a_value_outside_its_range_is_uncertain(server: Server, side: Side) -> None:
    device = side.device()
    now = clock.now_ms()
    factories.store(device.uid, (now - 2_000, {"a": 20.0}), (now - 1_000, {"a": 130.0}))
    side.change(device, "a", min=0.0, max=100.0)

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            signal = node(client, f"{device.uid}/a")

            async def there() -> ua.DataValue | None:
                value = await signal.read_data_value(raise_on_bad_status=False)
                return value if value.Value.Value == 130.0 else None

            exceeded = ua.StatusCodes.UncertainEngineeringUnitsExceeded
            assert (await soon(there)).StatusCode.value == exceeded
            history = await signal.read_raw_history(datetime.fromtimestamp(now / 1000 - 10, UTC), datetime.now(UTC))
            assert [(each.Value.Value, each.StatusCode.value) for each in history] == [(20.0, 0), (130.0, exceeded)]
            side.change(device, "a", min=0.0, max=200.0)

            async def good() -> bool:
                return (await signal.read_data_value(raise_on_bad_status=False)).StatusCode.is_good()

            assert await soon(good)

    run(look())


def test_what_a_device_says_of_a_readings_quality_is_its_status(server: Server, side: Side) -> None:
    device = side.device(a=1.0)
    now = clock.now_ms()

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            signal = node(client, f"{device.uid}/a")
            heard = Heard()
            subscription = await client.create_subscription(100, heard)
            await subscription.subscribe_data_change(signal)
            await heard.until((f"{device.uid}/a", 1.0))
            for number, word in ((2.0, "uncertain"), (3.0, "bad"), (4.0, "good")):
                message = {"ts": now + int(number), "values": {"a": number}, "quality": word}
                await asyncio.to_thread(factories.send, device.uid, message)
                await heard.until((f"{device.uid}/a", number))
            told = {each.Value.Value: each.StatusCode.value for each in heard.raw}
            codes = ua.StatusCodes
            assert told == {1.0: codes.Good, 2.0: codes.Uncertain, 3.0: codes.Bad, 4.0: codes.Good}
            history = await signal.read_raw_history(
                datetime.fromtimestamp((now + 1) / 1000, UTC), datetime.fromtimestamp(now / 1000 + 60, UTC)
            )
            judged = {each.Value.Value: each.StatusCode.value for each in history if each.Value.Value > 1.0}
            assert judged == {2.0: codes.Uncertain, 3.0: codes.Bad, 4.0: codes.Good}

    run(look())
    # A view that begins later reads the newest ones from the database.
    other = Side(factories.make_tenant())
    known = other.device()
    factories.send(known.uid, {"values": {"a": 5.0}, "quality": "bad"})

    async def look_later() -> None:
        async with server.connected(other.user("viewer")) as client:

            async def there() -> ua.DataValue | None:
                value = await node(client, f"{known.uid}/a").read_data_value(raise_on_bad_status=False)
                return value if value.Value is not None and value.Value.Value == 5.0 else None

            assert (await soon(there)).StatusCode.value == ua.StatusCodes.Bad

    run(look_later())


def test_history_is_read_in_both_directions_and_in_pages(server: Server, side: Side) -> None:
    device = side.device()
    first = clock.now_ms() // 1000 * 1000 - 3_600_000
    factories.store(device.uid, *((first + number * 100, {"a": float(number)}) for number in range(6_000)))
    begin = datetime.fromtimestamp(first / 1000, UTC)
    end = begin + timedelta(hours=1)

    def details(start: datetime | None, stop: datetime | None, most: int = 0) -> ua.ReadRawModifiedDetails:
        made = ua.ReadRawModifiedDetails()
        made.StartTime, made.EndTime = start or ua.get_win_epoch(), stop or ua.get_win_epoch()
        made.NumValuesPerNode, made.IsReadModified = most, False
        return made

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            signal = node(client, f"{device.uid}/a")

            async def ask(asked: ua.ReadRawModifiedDetails, point: bytes | None = None) -> tuple[list[float], Any]:
                result = await signal.history_read(asked, point)
                result.StatusCode.check()
                return [each.Value.Value for each in result.HistoryData.DataValues], result.ContinuationPoint

            page, point = await ask(details(begin, end))
            rest, last = await ask(details(begin, end), point)
            assert page + rest == [float(number) for number in range(6_000)]
            assert not last
            assert (await ask(details(end, begin, 3)))[0] == [5_999.0, 5_998.0, 5_997.0]
            assert (await ask(details(None, end, 2)))[0] == [5_999.0, 5_998.0]
            assert (await ask(details(begin, None, 2)))[0] == [0.0, 1.0]
            assert (await ask(details(begin, begin + timedelta(milliseconds=200))))[0] == [0.0, 1.0]
            assert (await ask(details(end, end + timedelta(hours=1))))[0] == []
            assert len(await signal.read_raw_history(begin, end, numvalues=10)) == 10
            for asked, used in (
                (details(begin, None), None),
                (details(begin, end), point),
                (details(begin, end), b"x" * 16),
            ):
                result = await signal.history_read(asked, used)
                assert not result.StatusCode.is_good()

    run(look())


def _commands(device: factories.DeviceRow) -> list[Any]:
    statement = "SELECT name, params, created_by FROM iiot.command WHERE device_id = %s ORDER BY seq"
    return factories.rows(statement, device.device_id)


def test_writes_to_writable_signals_become_commands(server: Server, side: Side) -> None:
    device = side.device(setpoint=20.0, on=False, note="x", sensor=1.0)
    for key in ("setpoint", "on", "note"):
        side.change(device, key, writable=True)
    side.change(device, "setpoint", min=0.0, max=90.0)
    email = side.user("operator")

    async def refused(client: Any, key: str, value: Any, kind: Any = None) -> str:
        with pytest.raises(ua.UaStatusCodeError) as caught:
            await node(client, f"{device.uid}/{key}").write_value(ua.DataValue(ua.Variant(value, kind)))
        return type(caught.value).__name__

    async def act() -> None:
        async with server.connected(email) as client:
            await client.write_values(
                [node(client, f"{device.uid}/{key}") for key in ("setpoint", "on")],
                [ua.Variant(55.5, ua.VariantType.Double), ua.Variant(True)],
            )
            await node(client, f"{device.uid}/note").write_value("hello")
            assert await refused(client, "sensor", 2.0) == "BadNotWritable"
            assert await refused(client, "setpoint", "warm") == "BadTypeMismatch"
            assert await refused(client, "setpoint", 91.0) == "BadOutOfRange"
            assert await refused(client, "setpoint", float("nan")) == "BadOutOfRange"
            assert await refused(client, "on", 1, ua.VariantType.Int32) == "BadTypeMismatch"
            assert await refused(client, "nothing", 1.0) == "BadNodeIdUnknown"
            access = await node(client, f"{device.uid}/setpoint").get_user_access_level()
            assert ua.AccessLevel.CurrentWrite in access
        async with server.connected(side.user("viewer")) as client:
            assert await refused(client, "setpoint", 10.0) == "BadUserAccessDenied"
            access = await node(client, f"{device.uid}/setpoint").get_user_access_level()
            assert ua.AccessLevel.CurrentWrite not in access

    run(act())
    assert _commands(device) == [("write", {"on": True, "setpoint": 55.5}, email), ("write", {"note": "hello"}, email)]


def test_what_is_written_twice_in_one_request_is_ordered_twice(server: Server, side: Side) -> None:
    device = side.device(setpoint=20.0, on=False)
    for key in ("setpoint", "on"):
        side.change(device, key, writable=True)
    email = side.user("operator")

    async def act() -> None:
        async with server.connected(email) as client:
            setpoint, on = (node(client, f"{device.uid}/{key}") for key in ("setpoint", "on"))
            await client.write_values([setpoint, on, setpoint], [ua.Variant(1.0), ua.Variant(True), ua.Variant(2.0)])

    run(act())
    assert _commands(device) == [("write", {"setpoint": 1.0, "on": True}, email), ("write", {"setpoint": 2.0}, email)]


def test_set_status_is_stored_pushed_and_noted(server: Server, side: Side) -> None:
    device = side.device(temperature=1.0)
    email = side.user("engineer")

    async def act() -> None:
        async with server.connected(email) as client:
            heard = Heard()
            status = await node(client, device.uid).get_child("2:Status")
            await (await client.create_subscription(100, heard)).subscribe_data_change(status)
            thing = node(client, device.uid)
            assert await thing.call_method("2:SetStatus", "offline") is True
            assert await status.read_value() == "offline"
            await heard.until((status.nodeid.Identifier, "offline"))
            assert await thing.call_method("2:SetStatus", "on fire") is False
            assert await thing.call_method("2:SetStatus", "online") is True
            await heard.until((status.nodeid.Identifier, "online"))
            for arguments, code in (
                ((), "BadArgumentsMissing"),
                (("a", "b"), "BadTooManyArguments"),
                ((1,), "BadInvalidArgument"),
            ):
                with pytest.raises(ua.UaStatusCodeError) as caught:
                    await thing.call_method("2:SetStatus", *arguments)
                assert type(caught.value).__name__ == code
        async with server.connected(side.user("operator")) as client:
            with pytest.raises(ua.uaerrors.BadUserAccessDenied):
                await node(client, device.uid).call_method("2:SetStatus", "offline")

    run(act())
    assert factories.rows("SELECT status FROM iiot.device WHERE id = %s", device.device_id) == [("online",)]
    noted = factories.rows(
        "SELECT actor_label, after->>'status' FROM iiot.audit WHERE object_uid = %s AND action = 'device.status' ORDER BY seq",
        device.uid,
    )
    assert noted == [(email, "offline"), (email, "online")]


def test_devices_come_change_and_go_while_somebody_looks(server: Server, side: Side) -> None:
    device = side.device("first name", temperature=1.0)

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            heard = Heard()
            await (await client.create_subscription(100, heard)).subscribe_data_change(
                node(client, f"{device.uid}/temperature")
            )
            folder = await client.nodes.objects.get_child(["2:Devices"])

            async def names() -> dict[str, str]:
                found = await folder.get_children_descriptions()
                return {each.NodeId.Identifier: each.BrowseName.Name for each in found}

            assert (await names())[device.uid] == "first name"
            scope = tenancy.of(side.tenant)

            def rename() -> None:
                with tenancy.work(scope) as db:
                    devices.change(db, device.uid, {"name": "second name"})

            def remove() -> None:
                with tenancy.work(scope) as db:
                    devices.remove(db, device.uid)

            await asyncio.to_thread(rename)
            made = await asyncio.to_thread(side.device, "another one")

            async def came() -> bool:
                found = await names()
                return found.get(device.uid) == "second name" and made.uid in found

            await soon(came)
            await asyncio.to_thread(factories.store, device.uid, brand_new=3.0)

            async def new_signal() -> bool:
                value = await node(client, f"{device.uid}/brand_new").read_data_value(raise_on_bad_status=False)
                return bool(value.StatusCode.is_good() and value.Value.Value == 3.0)

            await soon(new_signal)
            await asyncio.to_thread(remove)

            async def gone() -> bool:
                return device.uid not in await names() and heard.raw[-1].StatusCode.name == "BadNodeIdUnknown"

            await soon(gone)
            with pytest.raises(ua.uaerrors.BadNodeIdUnknown):
                await node(client, f"{device.uid}/temperature").read_value()

    run(look())


def test_a_signal_that_disappears_is_unknown_to_those_who_watch_it(server: Server, side: Side) -> None:
    device = side.device(goes=1.0, stays=1.0)
    goes, stays = f"{device.uid}/goes", f"{device.uid}/stays"

    def remove() -> None:
        number = factories.signal_id(device, "goes")
        for table, column in (("latest", "signal_id"), ("signal", "id")):
            factories.rows(f"DELETE FROM iiot.{table} WHERE tenant_id = %s AND {column} = %s", device.tenant_id, number)

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            heard = Heard()
            subscription = await client.create_subscription(100, heard)
            await subscription.subscribe_data_change([node(client, goes), node(client, stays)])
            await heard.until((goes, 1.0), (stays, 1.0))
            await asyncio.to_thread(remove)

            async def gone() -> bool:
                return heard.values[-1] == (goes, None) and heard.raw[-1].StatusCode.name == "BadNodeIdUnknown"

            await soon(gone)
            with pytest.raises(ua.uaerrors.BadNodeIdUnknown):
                await node(client, goes).read_value()
            assert await node(client, stays).read_value() == 1.0
            await asyncio.to_thread(factories.store, device.uid, stays=2.0)
            await heard.until((stays, 2.0))

    run(look())


def test_a_status_carries_the_time_of_its_change(server: Server) -> None:
    side = Side(factories.make_tenant())
    device, silent = side.device(a=1.0), side.device("silent")
    last = "SELECT at FROM iiot.connection_event WHERE device_id = %s ORDER BY id DESC LIMIT 1"
    eventually(lambda: factories.rows(last, device.device_id))

    def declare() -> None:
        with tenancy.work(tenancy.of(side.tenant)) as db:
            presence.declare(db, devices.locked(db, device.uid), False, "test")

    async def look() -> None:
        # A limited member may know it, too.
        async with server.connected(side.limited("operator", device, silent)) as client:
            status = node(client, f"{device.uid}#Status")
            first = await status.read_data_value()
            assert first.Value.Value == "online"
            assert abs(first.SourceTimestamp - factories.rows(last, device.device_id)[0][0]) < timedelta(milliseconds=1)
            heard = Heard()
            await (await client.create_subscription(100, heard)).subscribe_data_change(status)
            await asyncio.to_thread(declare)
            await heard.until((status.nodeid.Identifier, "offline"))
            told = heard.raw[-1].SourceTimestamp
            assert abs(told - factories.rows(last, device.device_id)[0][0]) < timedelta(seconds=1)
            for _ in range(2):
                assert (await status.read_data_value()).SourceTimestamp == told
            new = await node(client, f"{silent.uid}#Status").read_data_value()
            made = factories.rows("SELECT created_at FROM iiot.device WHERE uid = %s", silent.uid)[0][0]
            assert new.Value.Value == "new"
            assert abs(new.SourceTimestamp - made) < timedelta(milliseconds=1)

    run(look())


def test_a_limited_member_sees_its_devices_alone(server: Server, side: Side) -> None:
    seen, hidden = side.device("seen", temperature=1.0), side.device("hidden", temperature=2.0)
    email = side.limited("operator", seen)

    async def look() -> None:
        async with server.connected(email) as client:
            folder = await client.nodes.objects.get_child(["2:Devices"])
            assert [each.nodeid.Identifier for each in await folder.get_children()] == [seen.uid]
            with pytest.raises(ua.uaerrors.BadNodeIdUnknown):
                await node(client, f"{hidden.uid}/temperature").read_browse_name()

    run(look())


def test_an_api_key_is_a_password_until_it_is_revoked(server: Server, side: Side) -> None:
    text, uid = side.key("admin", "device:read", "telemetry:read")

    async def look() -> float:
        async with server.connected("scada", text) as client:
            assert await client.nodes.objects.get_child(["2:Devices"])
            revoked = await asyncio.to_thread(side.revoke, "admin", uid)
            await soon(lambda: is_over(client))
            return time.monotonic() - revoked

    assert run(look()) <= 1.0
    with pytest.raises(ua.uaerrors.BadUserAccessDenied):
        run(_only_connect(server, "scada", text))


async def _only_connect(server: Server, user: str, password: str = PASSWORD) -> None:
    async with server.connected(user, password):
        pass


def _disable(_: Side, person: factories.UserRow) -> None:
    with tenancy.work(tenancy.system("operator")) as db:
        users.set_status(db, person.email, "disabled")


def _suspend(side: Side, _: factories.UserRow) -> None:
    with tenancy.work(tenancy.system("platform", side.tenant.tenant_id)) as db:
        tenants.set_status(db, "suspended", "The bill is open.", None)


def _delete(side: Side, _: factories.UserRow) -> None:
    with tenancy.work(tenancy.system("platform", side.tenant.tenant_id)) as db:
        tenants.start_deletion(db)


def _send_away(side: Side, person: factories.UserRow) -> None:
    with tenancy.work(tenancy.of(side.principal("admin"))) as db:
        members.remove(db, side.principal("admin"), person.uid)


def _limit(side: Side, person: factories.UserRow) -> None:
    """To what no device has: that is another view than the session's."""
    with tenancy.work(tenancy.of(side.principal("admin"))) as db:
        wanted = members.Changes(set_limits=True, limited_to=limited.LimitedTo(tags=["nowhere"]))
        members.change(db, side.principal("admin"), person.uid, wanted)


def _sign_out(_: Side, person: factories.UserRow) -> None:
    with tenancy.work(tenancy.system("sign-in")) as db:
        sessions.end_all(db, person.user_id, "signed out everywhere")


@pytest.mark.parametrize(
    "act", [_disable, _suspend, _delete, _send_away, _limit, _sign_out], ids=lambda act: act.__name__
)
def test_a_session_ends_within_a_second_with_the_right_to_it(
    server: Server, act: Callable[[Side, factories.UserRow], None]
) -> None:
    side = Side(factories.make_tenant())
    email, device = side.user("engineer"), side.device(a=1.0)

    def revoke() -> float:
        act(side, side.people["engineer"])
        return time.monotonic()

    async def look() -> float:
        async with server.connected(email) as client:
            heard = Heard()
            signal = node(client, f"{device.uid}/a")
            await (await client.create_subscription(100, heard)).subscribe_data_change(signal)
            revoked = await asyncio.to_thread(revoke)

            async def ended() -> bool:
                try:
                    await signal.read_value()
                except (TimeoutError, ua.UaError, ConnectionError):
                    return True
                return False

            await soon(ended)
            return time.monotonic() - revoked

    assert run(look()) <= 1.0
    if act in (_limit, _sign_out):
        # The person may come back.
        run(_only_connect(server, email))
    else:
        with pytest.raises(ua.uaerrors.BadUserAccessDenied):
            run(_only_connect(server, email))


def test_a_person_works_in_the_tenant_that_is_named(server: Server, side: Side) -> None:
    other = Side(factories.make_tenant())
    email = side.user("admin")
    device = other.device("only here")
    factories.rows(
        "INSERT INTO iiot.membership (tenant_id, user_id, role) VALUES (%s, %s, 'viewer')",
        other.tenant.tenant_id,
        side.people["admin"].user_id,
    )
    slug = factories.rows("SELECT slug FROM iiot.tenant WHERE uid = %s", other.tenant.uid)[0][0]

    async def look() -> None:
        async with server.connected(f"{email}#{slug}") as client:
            folder = await client.nodes.objects.get_child(["2:Devices"])
            assert [each.nodeid.Identifier for each in await folder.get_children()] == [device.uid]

    run(look())
    with pytest.raises(ua.uaerrors.BadUserAccessDenied):
        run(_only_connect(server, f"{email}#{Side(factories.make_tenant()).tenant.uid}"))


def test_wrong_passwords_are_refused_and_counted(server: Server) -> None:
    side = Side(factories.make_tenant())
    email = side.user("viewer")

    async def tries() -> list[str]:
        names: list[str] = []
        while "BadServerTooBusy" not in names and len(names) < 20:
            with pytest.raises(ua.UaStatusCodeError) as caught:
                await _only_connect(server, email, "wrong")
            names.append(type(caught.value).__name__)
        return names

    # One is forgiven every twelve seconds.
    names = run(tries())
    assert names[:5] == ["BadUserAccessDenied"] * 5
    assert names[-1] == "BadServerTooBusy"


def test_the_portals_session_is_signed_out_with_the_clients(server: Server) -> None:
    side = Side(factories.make_tenant())
    run(_only_connect(server, side.user("viewer")))
    query = "SELECT count(*) FROM iiot.session s JOIN iiot.user_account u ON u.id = s.user_id WHERE u.email = %s AND s.revoked_at IS NULL"
    assert factories.rows(query, side.user("viewer")) == [(0,)]


def test_sessions_items_requests_and_refusals_are_counted(server: Server) -> None:
    side = Side(factories.make_tenant())
    email, device = side.user("viewer"), side.device(a=1.0, b=2.0)

    def now() -> tuple[float, ...]:
        names = "iiot_opcua_sessions", "iiot_opcua_connections", "iiot_opcua_monitored_items"
        return tuple(server.metric(name) for name in names)

    async def is_now(*wanted: float) -> None:
        async def came() -> bool:
            return now() == wanted

        await soon(came)

    async def look() -> None:
        await is_now(0, 0, 0)
        async with server.connected(email) as client:
            await is_now(1, 1, 0)
            subscription = await client.create_subscription(100, Heard())
            items = await subscription.subscribe_data_change([node(client, f"{device.uid}/{key}") for key in "ab"])
            await is_now(1, 1, 2)
            await subscription.unsubscribe(items[0])
            await is_now(1, 1, 1)
            async with server.connected(email):
                await is_now(2, 2, 1)
        await is_now(0, 0, 0)

    reads = server.metric("iiot_opcua_requests_total", service="CreateMonitoredItems")
    refused = server.metric("iiot_opcua_refused_total", reason="login")
    run(look())
    with pytest.raises(ua.uaerrors.BadUserAccessDenied):
        run(_only_connect(server, email, "wrong"))
    assert server.metric("iiot_opcua_requests_total", service="CreateMonitoredItems") == reads + 1
    assert server.metric("iiot_opcua_refused_total", reason="login") == refused + 1
