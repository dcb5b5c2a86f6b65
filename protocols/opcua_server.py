"""The OPC UA server: the library's, with our sessions, connections and limits (OPC UA Parts 3, 4, 6, 8 and 11)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from asyncua import Server, ua
from asyncua.common.utils import ServiceError
from asyncua.server.internal_server import InternalServer
from asyncua.server.user_managers import UserManager

from protocols import opcua_history
from protocols import opcua_meters as meters
from protocols.base import Inbox, Refusal
from protocols.opcua import Setup
from protocols.opcua_browse import MOST_POINTS
from protocols.opcua_certificates import Keyring, application_uri, mistake
from protocols.opcua_session import TenantSession
from protocols.opcua_space import FOLDER, INDEX, NAMESPACE, node_id
from protocols.opcua_view import View
from protocols.opcua_wire import CHUNK_BYTES, Gate, Limits
from protocols.served import Away, News, Plant, Visitor, Wire

Codes = ua.StatusCodes
MESSAGE_BYTES: Final = 1024 * 1024
CHUNKS: Final = 16
PENDING_SECONDS: Final = 10.0
TICK_SECONDS: Final = 0.1
REFRESH_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 5.0
THREADS: Final = 6
# Unacknowledged messages that are kept for Republish, per subscription.
UNACKNOWLEDGED: Final = 10
RSA_1_5: Final = "http://www.w3.org/2001/04/xmlenc#rsa-1_5"
POLICIES: Final = [
    ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt,
    ua.SecurityPolicyType.Aes256Sha256RsaPss_SignAndEncrypt,
]
LIMIT_NODES: Final = {
    ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerBrowse: 1_000,
    ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerTranslateBrowsePathsToNodeIds: 1_000,
    ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerHistoryReadData: 100,
    ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerMethodCall: 100,
}

LIMIT_POINTS: Final = {
    ua.ObjectIds.Server_ServerCapabilities_MaxBrowseContinuationPoints: MOST_POINTS,
    ua.ObjectIds.Server_ServerCapabilities_MaxHistoryContinuationPoints: opcua_history.MOST_POINTS,
}

log = structlog.get_logger("protocols.opcua")


class _Nobody(UserManager):  # type: ignore[misc]
    """The library's own way to let people in lets nobody in; see `TenantServer.admit`."""

    def get_user(self, *_: Any, **__: Any) -> None:
        return None


class TenantServer(InternalServer):  # type: ignore[misc]
    """Sessions that each see one tenant, and the views that they share."""

    def __init__(self, setup: Setup, plant: Plant, keyring: Keyring) -> None:
        super().__init__(user_manager=_Nobody())
        self.allow_remote_admin = False
        self.supported_tokens = (ua.UserNameIdentityToken,)
        self.match_discovery_endpoint_url = False
        self.match_discovery_source_ip = setup.public is None
        self.max_connections = setup.connections
        self.max_pending_activation_seconds = PENDING_SECONDS
        self.max_unacked_messages_per_subscription = UNACKNOWLEDGED
        self.max_pending_messages_per_connection = 5_000
        self.most_bytes, self.most_items = MESSAGE_BYTES, setup.items
        self.plant = plant
        self.keyring = keyring
        self.trusts_new = setup.trusts_new
        self.threads = ThreadPoolExecutor(THREADS, "opcua")
        self.views: dict[Hashable, View] = {}
        self.wire: Wire = plant.listen(self._hear)
        self._loop = asyncio.get_running_loop()
        self._peer: bytes | None = None

    # --- sessions -----------------------------------------------------------------------------------------------------

    def sessions(self) -> list[TenantSession]:
        """All that were created and have not ended."""
        return [each for each in self._external_sessions.values() if isinstance(each, TenantSession)]

    def session_of(self, session_id: ua.NodeId) -> TenantSession | None:
        """The session with this id."""
        return next((each for each in self.sessions() if each.session_id == session_id), None)

    def about_to_create(self, certificate: bytes | None, peer: Any) -> None:
        """Look at a client's certificate and at the number of sessions; raises ServiceError. Called just before `create_session`."""
        if len(self._external_sessions) >= self.max_connections:
            meters.refused_total.labels("sessions").inc()
            raise ServiceError(Codes.BadTooManySessions)
        problem = "there is none" if certificate is None else mistake(certificate)
        if certificate is None or problem is not None:
            meters.refused_total.labels("certificate").inc()
            log.info("certificate refused", address=_address(peer), reason=problem)
            raise ServiceError(Codes.BadCertificateInvalid)
        if not self.trusts_new and not self.keyring.is_trusted(certificate):
            path = self.keyring.reject(certificate)
            meters.refused_total.labels("certificate").inc()
            log.warning(
                "certificate not trusted",
                address=_address(peer),
                kept=str(path),
                trust=f"python -m iiot opcua trust {path.stem}",
            )
            raise ServiceError(Codes.BadCertificateUntrusted)
        self._peer = certificate

    def create_session(self, name: str, user: Any = None, external: bool = False) -> TenantSession:
        """One of our sessions, bound to the certificate that was just looked at."""
        certificate, self._peer = self._peer, None
        return TenantSession(self, str(name), certificate)

    def register_server(self, server: Any, conf: Any = None) -> None:
        """Nobody is registered here."""
        raise ServiceError(Codes.BadServiceUnsupported)

    async def admit(self, session: TenantSession, token: Any, peer: Any) -> None:
        """Let the person or program of a session in; raises ServiceError, and then nothing has changed."""
        user, password = self._credentials(session, token)
        address = _address(peer)
        found = await self._ask(self.plant.admit, user, password, address, session.program)
        if isinstance(found, Refusal):
            is_busy = found.code in ("rate-limited", "unavailable")
            meters.refused_total.labels("limited" if is_busy else "login").inc()
            log.info("login refused", address=address, code=found.code, reason=found.reason)
            raise ServiceError(Codes.BadServerTooBusy if is_busy else Codes.BadUserAccessDenied)
        before = session.visitor
        if session.state.name == "Closed" or (before is not None and not _is_same(before, found)):
            await self._ask(self.plant.leave, found)
            raise ServiceError(Codes.BadIdentityChangeNotSupported if before else Codes.BadSessionClosed)
        if before is None and self._sessions_of(found.tenant) >= max(1, self.max_connections // 2):
            meters.refused_total.labels("sessions").inc()
            log.warning("login refused: the tenant has half of all sessions", address=address)
            await self._ask(self.plant.leave, found)
            raise ServiceError(Codes.BadTooManySessions)
        self._trust(session.certificate, address)
        session.address = address
        # The view before the leaving: what the session watches is registered there.
        session.enter(found, self._enter_view(found))
        if before is not None:
            self._leave_view(before)
            await self._ask(self.plant.leave, before)
        log.info("session opened", address=address, program=session.program)

    def _sessions_of(self, tenant: str) -> int:
        return sum(each.visitor is not None and each.visitor.tenant == tenant for each in self.sessions())

    def _credentials(self, session: TenantSession, token: Any) -> tuple[str, str]:
        if not isinstance(token, ua.UserNameIdentityToken):
            meters.refused_total.labels("login").inc()
            raise ServiceError(Codes.BadIdentityTokenRejected)
        if token.EncryptionAlgorithm == RSA_1_5:
            raise ServiceError(Codes.BadIdentityTokenRejected)
        try:
            user, password = self.decrypt_user_token(session, token)
            return str(user or ""), str(password or "")
        except Exception:
            raise ServiceError(Codes.BadIdentityTokenInvalid) from None

    def _trust(self, certificate: bytes | None, address: str) -> None:
        """Note whom we have let in: the certificate is trusted from its first login on."""
        if self.trusts_new and certificate is not None and not self.keyring.is_trusted(certificate):
            path = self.keyring.trust(certificate)
            log.info("certificate trusted at its first login", address=address, kept=str(path))

    async def left(self, session: TenantSession) -> None:
        """A session has ended."""
        visitor = session.visitor
        if visitor is not None:
            self._leave_view(visitor)
            with contextlib.suppress(Exception):
                await self._ask(self.plant.leave, visitor)

    async def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self.threads, question, *arguments)

    # --- views --------------------------------------------------------------------------------------------------------

    def _enter_view(self, visitor: Visitor) -> View:
        view = self.views.get(visitor.view)
        if view is None:
            view = self.views[visitor.view] = View(
                self.plant, self.threads, lambda: self.wire.live_since(visitor.tenant)
            )
        view.visitors[visitor.id] = visitor
        self.wire.want({each.tenant for known in self.views.values() for each in known.visitors.values()})
        return view

    def _leave_view(self, visitor: Visitor) -> None:
        view = self.views.get(visitor.view)
        if view is None:
            return
        view.visitors.pop(visitor.id, None)
        if not view.visitors:
            del self.views[visitor.view]
            self.wire.want({each.tenant for known in self.views.values() for each in known.visitors.values()})

    def _hear(self, news: list[News]) -> None:
        """From the wire's thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, news)

    def _take(self, news: list[News]) -> None:
        for view in list(self.views.values()):
            tenant = next(iter(view.visitors.values())).tenant
            mine = [each for each in news if each.tenant == tenant]
            if mine:
                task = asyncio.create_task(view.hear(mine))
                task.add_done_callback(_note)

    async def refresh(self, new_alone: bool = False) -> None:
        """Look at every view once, or at those alone to which news may not come yet."""
        for view in [each for each in self.views.values() if each.is_new or not new_alone]:
            try:
                await view.refresh()
            except Away:
                log.info("devices not looked at: the database is away")
            except Exception:
                log.exception("devices not looked at")

    async def check_visitors(self) -> None:
        """End the sessions of those who may no longer be here; nobody waits for the check of another."""
        await asyncio.gather(*(self._check(each) for each in self.sessions()))

    async def _check(self, session: TenantSession) -> None:
        visitor = session.visitor
        if visitor is None or session.state.name == "Closed":
            return
        now = await self._ask(self.plant.check, visitor)
        if now is None or not _is_same(visitor, now):
            log.info("session ended: the visitor may not be here any more", address=session.address)
            await session.close_session(True)
            session.hang_up()
        elif now is not visitor:
            session.renew(now)


def _is_same(before: Visitor, now: Visitor) -> bool:
    return (before.identity, before.tenant, before.view) == (now.identity, now.tenant, now.view)


def _address(peer: Any) -> str:
    return str(peer[0]) if isinstance(peer, tuple) and peer else str(peer or "")


def _note(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("news not brought", error=repr(task.exception())[:300])


class PortalServer(Server):  # type: ignore[misc]
    """The library's server on our connections."""

    async def start(self) -> None:
        """Listen; raises OSError when the address is taken."""
        await self._setup_server_nodes()
        await self.iserver.start()
        host, port = self._get_bind_socket_info()
        self.bserver = Gate(self.iserver, host, port, self.limits)
        self.bserver.set_policies(self._policies)
        await self.bserver.start()


async def build(setup: Setup, plant: Plant) -> PortalServer:
    """The server, not yet listening."""
    # The library tells strangers' mistakes with tracebacks; ours are told here.
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    keyring = Keyring(setup.pki, setup.certificate, setup.key)
    certificate, key = await asyncio.to_thread(keyring.own, setup.url)
    server = PortalServer(iserver=TenantServer(setup, plant, keyring))
    server.set_endpoint(setup.url)
    server.socket_address = (setup.host, setup.port)
    server.name = server.manufacturer_name = "IIoT Portal"
    server._application_uri = application_uri()
    server.product_uri = "urn:iiot-portal"
    server.application_type = ua.ApplicationType.Server
    server.limits = Limits(CHUNK_BYTES, CHUNK_BYTES, CHUNKS, MESSAGE_BYTES)
    await server.init()
    await server.load_certificate(certificate, "der")
    await server.load_private_key(key, format="pem")
    server.set_security_policy(POLICIES)
    if await server.register_namespace(NAMESPACE) != INDEX:
        raise AssertionError("the namespace of the devices has another index than the contract says")
    await server.nodes.objects.add_folder(node_id(FOLDER), ua.QualifiedName(FOLDER, INDEX))
    for limit, most in LIMIT_NODES.items():
        await server.get_node(ua.NodeId(limit)).write_value(ua.Variant(most, ua.VariantType.UInt32))
    for limit, most in LIMIT_POINTS.items():
        await server.get_node(ua.NodeId(limit)).write_value(ua.Variant(most, ua.VariantType.UInt16))
    return server


async def serve(setup: Setup, inbox: Inbox, stop: threading.Event) -> None:
    """Serve until `stop`; raises OSError when the address is taken."""
    server = await build(setup, inbox.plant())
    iserver: TenantServer = server.iserver
    try:
        await server.start()
        inbox.connected()
        log.info("listening", url=setup.url, host=urlsplit(setup.url).hostname)
        refreshing = asyncio.create_task(_refresh(iserver))
        try:
            await _watch(server, iserver, stop)
        finally:
            refreshing.cancel()
            for session in iserver.sessions():
                await session.close_session(True)
    finally:
        iserver.wire.close()
        if server.bserver is not None:
            await server.stop()
        iserver.threads.shutdown(wait=False, cancel_futures=True)


async def _refresh(iserver: TenantServer) -> None:
    while True:
        await asyncio.sleep(REFRESH_SECONDS / 2)
        await iserver.refresh(new_alone=True)
        await asyncio.sleep(REFRESH_SECONDS / 2)
        await iserver.refresh()


async def _watch(server: PortalServer, iserver: TenantServer, stop: threading.Event) -> None:
    """Ten times a second: is it time to go, was anything revoked."""
    mark, checked = iserver.plant.mark(), time.monotonic()
    while not stop.is_set():
        await asyncio.sleep(TICK_SECONDS)
        now = iserver.plant.mark()
        if now != mark or time.monotonic() - checked > CHECK_SECONDS:
            mark, checked = now, time.monotonic()
            await iserver.check_visitors()
        meters.sessions.set(sum(each.is_activated() for each in iserver.sessions()))
        meters.connections.set(len(server.bserver.clients))
        meters.items.set(sum(each.items() for each in iserver.sessions()))
