"""Certificates, security policies and limits of the OPC UA server."""

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import pytest
from asyncua import Client, ua
from asyncua.crypto import security_policies
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from iiot.config import Settings
from protocols import opcua, opcua_certificates, opcua_history, opcua_server, opcua_values
from protocols.base import AdapterError
from protocols.served import Signal
from tests import factories, services
from tests.integration.opcua_clients import Heard, Server, Side, node, pair, run, secure, serving, soon
from tests.services import eventually


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[Server]:
    """One that trusts nobody yet, with small limits."""
    fields = {"opcua_trust_new": False, "opcua_connections": 8, "opcua_items": 5}
    with serving(module_settings, **fields) as running:
        yield running


@pytest.fixture(scope="module")
def side(server: Server) -> Side:
    return Side(factories.make_tenant())


def _command(server: Server, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "iiot", "opcua", *arguments],
        cwd=services.ROOT,
        env=services.environment(server.process.settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def _trust(server: Server, name: str = "client") -> None:
    folder = server.process.settings.opcua_folder / "trusted"
    opcua_certificates.Keyring(folder.parent).trust(pair(server.folder, name)[0].read_bytes())


async def _look(server: Server, email: str, name: str = "client") -> bool:
    async with server.connected(email, name=name) as client:
        return bool(await client.nodes.objects.get_child(["2:Devices"]))


def test_an_unknown_certificate_is_kept_and_trusted_by_command(server: Server, side: Side) -> None:
    email = side.user("viewer")
    with pytest.raises(ua.uaerrors.BadCertificateUntrusted):
        run(_look(server, email, "newcomer"))
    thumbprint = opcua_certificates.thumbprint(pair(server.folder, "newcomer")[0].read_bytes())
    assert f"python -m iiot opcua trust {thumbprint}" in server.process.said
    listed = _command(server, "list")
    assert thumbprint in listed
    assert "rejected" in listed
    assert "is trusted" in _command(server, "trust", thumbprint)
    assert run(_look(server, email, "newcomer"))
    assert "no longer" in _command(server, "distrust", thumbprint)
    with pytest.raises(ua.uaerrors.BadCertificateUntrusted):
        run(_look(server, email, "newcomer"))


def test_without_encryption_there_is_discovery_alone(server: Server, side: Side) -> None:
    async def look() -> None:
        plain = Client(server.url)
        endpoints = await plain.connect_and_get_server_endpoints()
        assert {(each.SecurityPolicyUri.rpartition("#")[2], each.SecurityMode.name) for each in endpoints} == {
            ("Basic256Sha256", "SignAndEncrypt"),
            ("Aes256_Sha256_RsaPss", "SignAndEncrypt"),
        }
        tokens = {token.TokenType.name for each in endpoints for token in each.UserIdentityTokens}
        assert tokens == {"UserName"}
        assert {each.EndpointUrl for each in endpoints} == {server.url}
        with pytest.raises(ua.UaError):
            await Client(server.url).connect()
        signed = server.client(side.user("viewer"))
        certificate, key = signed.certificate_pair  # type: ignore[attr-defined]
        mode = ua.MessageSecurityMode.Sign
        with pytest.raises((ua.UaError, ConnectionError, asyncio.TimeoutError)):
            await signed.set_security(security_policies.SecurityPolicyBasic256Sha256, certificate, key, mode=mode)

    run(look())


def test_nobody_is_anonymous_and_nobody_is_registered(server: Server, side: Side) -> None:
    _trust(server)

    async def look() -> None:
        anonymous = server.client("")
        anonymous._username = anonymous._password = None
        await secure(anonymous)
        with pytest.raises(ua.UaError):
            await anonymous.connect()
        plain = Client(server.url)
        await plain.connect_sessionless()
        try:
            with pytest.raises(ua.uaerrors.BadServiceUnsupported):
                await plain.uaclient.register_server(
                    ua.RegisteredServer(ServerUri="urn:evil", ServerNames=[ua.LocalizedText("x")])
                )
        finally:
            await plain.disconnect_sessionless()

    run(look())


def test_items_subscriptions_and_pages_are_limited(server: Server, side: Side) -> None:
    _trust(server)
    device = side.device(**{f"s{number}": 1.0 for number in range(8)})

    async def look() -> None:
        async with server.connected(side.user("viewer")) as client:
            subscription = await client.create_subscription(1, Heard())
            assert (await subscription.set_publishing_mode(True))[0].is_good()
            signals = [node(client, f"{device.uid}/s{number}") for number in range(8)]
            made = await subscription.subscribe_data_change(signals)
            refused = [each for each in made if isinstance(each, ua.StatusCode)]
            assert [each.name for each in refused] == ["BadTooManyMonitoredItems"] * 3
            for _ in range(19):
                await client.create_subscription(1000, Heard())
            with pytest.raises(ua.uaerrors.BadTooManySubscriptions):
                await client.create_subscription(1000, Heard())
            params = ua.BrowseParameters(RequestedMaxReferencesPerNode=3)
            params.NodesToBrowse = [
                ua.BrowseDescription(
                    NodeId=ua.NodeId(device.uid, 2), BrowseDirection=ua.BrowseDirection.Forward, ResultMask=63
                )
            ]
            page = (await client.uaclient.browse(params))[0]
            found = len(page.References)
            while page.ContinuationPoint:
                following = ua.BrowseNextParameters(False, [page.ContinuationPoint])
                page = (await client.uaclient.browse_next(following))[0]
                found += len(page.References)
            assert found == 8 + 2 + 1
            again = await client.uaclient.browse_next(ua.BrowseNextParameters(False, [b"x" * 16]))
            assert again[0].StatusCode.name == "BadContinuationPointInvalid"

    run(look())


@pytest.mark.parametrize(("characters", "chunk_bytes"), [(1_200_000, 65_535), (400_000, 8_196)])
def test_a_message_that_is_too_long_or_in_too_many_chunks_ends_its_connection_alone(
    server: Server, side: Side, characters: int, chunk_bytes: int
) -> None:
    """1 MiB in sixteen chunks are taken."""
    _trust(server)
    device = side.device(name_plate="short")
    side.change(device, "name_plate", writable=True)

    async def look() -> None:
        async with server.connected(side.user("engineer")) as neighbour:
            signal = node(neighbour, f"{device.uid}/name_plate")
            client = server.client(side.user("engineer"))
            await secure(client)
            await client.connect()
            refused = server.metric("iiot_opcua_refused_total", reason="malformed")
            try:
                client.uaclient.protocol._connection._limits.max_send_buffer = chunk_bytes
                text = ua.DataValue(ua.Variant("x" * characters, ua.VariantType.String))
                with pytest.raises((ua.UaError, ConnectionError, asyncio.TimeoutError)):
                    await node(client, f"{device.uid}/name_plate").write_value(text)
            finally:
                with contextlib.suppress(ua.UaError, ConnectionError, asyncio.TimeoutError):
                    await client.disconnect()

            # The client hears it a moment before it is counted.
            async def counted() -> bool:
                return server.metric("iiot_opcua_refused_total", reason="malformed") == refused + 1

            assert await soon(counted)
            assert await signal.read_value() == "short"

    run(look())


def test_a_connection_has_one_session_and_sessions_without_connection_leave_room(server: Server, side: Side) -> None:
    """Of eight places; whoever is cut off again and again is not locked out by what was left behind."""
    _trust(server)
    email = side.user("viewer")

    async def look() -> None:
        async with server.connected(email) as client:
            with pytest.raises(ua.uaerrors.BadTooManySessions):
                await client.create_session()
        for _ in range(10):
            client = server.client(email)
            await secure(client)
            await client.connect()
            client.uaclient.protocol.transport.abort()
            with contextlib.suppress(ua.UaError, ConnectionError, asyncio.TimeoutError):
                await client.disconnect()
        assert await _look(server, email)

    run(look())


def test_subscriptions_of_a_tenant_are_limited_and_its_neighbour_has_its_own(module_settings: Settings) -> None:
    with serving(module_settings, opcua_trust_new=True) as server:
        one, other = Side(factories.make_tenant()), Side(factories.make_tenant())

        async def look() -> None:
            async with contextlib.AsyncExitStack() as exits:
                for _ in range(10):
                    client = await exits.enter_async_context(server.connected(one.user("viewer")))
                    for _ in range(20):
                        await client.create_subscription(10_000, Heard())
                client = await exits.enter_async_context(server.connected(one.user("viewer")))
                with pytest.raises(ua.uaerrors.BadTooManySubscriptions):
                    await client.create_subscription(10_000, Heard())
                stranger = await exits.enter_async_context(server.connected(other.user("viewer")))
                await stranger.create_subscription(10_000, Heard())

        run(look())


def test_a_chunk_that_is_too_long_ends_the_connection(server: Server) -> None:
    with _opened(server) as stranger:
        assert _greets(server, stranger)
        # A message of two gigabytes is announced.
        stranger.sendall(b"MSGF" + struct.pack("<I", 2**31 - 1))
        assert not _swallows(stranger, 2_000 * 65_536)


def _swallows(connection: socket.socket, size: int) -> bool:
    """Whether somebody takes so many bytes."""
    try:
        for _ in range(size // 65_536):
            connection.sendall(b"\0" * 65_536)
    except ConnectionError:
        return False
    return True


def test_connections_are_limited_and_idle_ones_end(server: Server, side: Side) -> None:
    """Of eight places one has a session: it stays. Whoever comes when all are taken is sent away at once, not when it has idled."""
    _trust(server)
    email = side.user("viewer")

    def crowd() -> None:
        began = time.monotonic()
        # As many of one address as may wait there.
        idle = [_opened(server, f"127.0.0.{2 + number // 2}") for number in range(7)]
        beyond: list[socket.socket] = []
        try:
            assert all(_greets(server, each) for each in idle)
            beyond += [_opened(server, f"127.0.0.{20 + number}") for number in range(4)]
            assert all(_is_closed(each, 5.0) for each in beyond)
            # Those before them are still served, long before anybody has idled too long.
            assert all(_greets(server, each) for each in idle)
            assert time.monotonic() - began < opcua_server.PENDING_SECONDS / 2
            assert all(_is_closed(each, 30.0) for each in idle)
            assert time.monotonic() - began >= opcua_server.PENDING_SECONDS / 2
        finally:
            for each in idle + beyond:
                each.close()

    async def look() -> None:
        async with server.connected(email) as client:
            refused = server.metric("iiot_opcua_refused_total", reason="sessions")
            await asyncio.to_thread(crowd)
            assert await client.nodes.objects.get_child(["2:Devices"])
            assert server.metric("iiot_opcua_refused_total", reason="sessions") == refused + 4

    eventually(lambda: server.metric("iiot_opcua_connections") == 0)
    run(look())


def _opened(server: Server, source: str = "127.0.0.1") -> socket.socket:
    host, port = server.url.removeprefix("opc.tcp://").removesuffix("/iiot").split(":")
    return socket.create_connection((host, int(port)), 20, (source, 0))


def _greets(server: Server, connection: socket.socket) -> bool:
    """Whether a Hello is answered."""
    hello = struct.pack("<IIIII", 0, 65_535, 65_535, 0, 0) + struct.pack("<i", len(server.url)) + server.url.encode()
    connection.sendall(b"HELF" + struct.pack("<I", len(hello) + 8) + hello)
    return connection.recv(64)[:4] == b"ACKF"


def _is_closed(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_the_own_certificate_is_made_once_and_may_be_the_operators(tmp_path: Path) -> None:
    ring = opcua_certificates.Keyring(tmp_path / "pki")
    first = ring.own("opc.tcp://portal.example.com:4840/iiot")
    assert ring.own("opc.tcp://portal.example.com:4840/iiot") == first
    assert opcua_certificates.mistake(first[0]) is None
    own = tmp_path / "own.der", tmp_path / "own.pem"
    for path, content in zip(own, first, strict=True):
        path.write_bytes(content)
    assert opcua_certificates.Keyring(tmp_path / "other", *own).own("opc.tcp://x/iiot") == first
    with pytest.raises(AdapterError, match="cannot be read"):
        opcua_certificates.Keyring(tmp_path / "other", tmp_path / "none", own[1]).own("opc.tcp://x/iiot")
    assert opcua_certificates.mistake(b"nonsense") == "it is no certificate"
    for number in range(105):
        ring.reject(bytes([number]) * 8)
    assert len(list((tmp_path / "pki" / "rejected").iterdir())) == opcua_certificates.REJECTED_KEPT


def test_the_adapter_says_what_is_wrong(module_settings: Settings) -> None:
    with pytest.raises(AdapterError, match="belong together"):
        opcua.make(module_settings.model_copy(update={"opcua_key": Path("x")}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AdapterError, match="cannot be bound"):
            opcua.make(module_settings.model_copy(update={"opcua_bind": bind})).check()
    with pytest.raises(AdapterError, match="do not send"):
        opcua.make(module_settings).send("uid", "token", b"{}")


_SCALARS = st.one_of(
    st.floats(), st.booleans(), st.text(max_size=20), st.integers(-(2**31), 2**31 - 1), st.none(), st.binary(max_size=5)
)
_KINDS = {float: "Double", bool: "Boolean", str: "String", int: "Int32", bytes: "ByteString", type(None): "Null"}


@profile(deadline=None)
@given(content=_SCALARS, kind=st.sampled_from(["number", "boolean", "string", "json"]))
def test_any_written_value_is_taken_or_refused_with_a_code(content: object, kind: str) -> None:
    signal = Signal("a", kind, None, -100.0, 100.0, True, None, None)  # type: ignore[arg-type]
    value = ua.DataValue(ua.Variant(content, getattr(ua.VariantType, _KINDS[type(content)])))
    code = None
    try:
        taken = opcua_values.written(signal, value)
    except opcua_values.Unfit as error:
        code = ua.StatusCode(error.code).name
    if code is None:
        assert kind == "json" or type(taken) is {"number": float, "boolean": bool, "string": str}[kind]
    else:
        assert code in ("BadTypeMismatch", "BadOutOfRange")


_TIMES = st.one_of(st.none(), st.datetimes(timezones=st.just(UTC)))


@given(start=_TIMES, end=_TIMES, most=st.integers(0, 2**32 - 1))
def test_any_range_of_history_is_understood_or_refused(start: object, end: object, most: int) -> None:
    details = ua.ReadRawModifiedDetails(False, start, end, most, False)
    code = None
    try:
        rest = opcua_history.question("x", details)
    except opcua_history.Unreadable as error:
        code = error.code
    if code is None:
        assert rest.start < rest.stop or rest.descending
    else:
        assert code == ua.StatusCodes.BadHistoryOperationInvalid
