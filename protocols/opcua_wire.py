"""Connections: what the library's processor lets pass too easily is checked before it.

- Without encryption there is discovery (GetEndpoints, FindServers) and nothing else.
- A session is opened with the channel's own certificate, which is trusted; it is taken up again on another connection only
  with the same certificate, the same signature and the same person. The library would put a stranger into a session before
  it looks at the signature.
- The token of every request is the session's.
- RegisterServer is refused. BrowseNext is served, which the library does not know.
- A chunk that is announced larger than allowed ends the connection at once, and a client is read no faster than it is served.
- Of one address only so many connections wait to prove themselves; the others of the same address are refused.
- Chunks smaller than the standard's least end the connection too, and an answer longer than the client takes becomes
  BadResponseTooLarge; the library would send it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog
from asyncua import ua
from asyncua.common.connection import MessageChunk, TransportLimits
from asyncua.common.utils import ServiceError
from asyncua.server.binary_server_asyncio import BinaryServer, OPCUAProtocol
from asyncua.server.uaprocessor import UaProcessor
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary, uatcp_to_binary
from cryptography.exceptions import InvalidSignature

from protocols import opcua_meters as meters
from protocols.opcua_session import TenantSession

Codes = ua.StatusCodes
CHUNK_BYTES: Final = 65_535
# Part 6 section 7.1.2.3.
LEAST_CHUNK_BYTES: Final = 8_192
# Messages of one connection that wait; then its socket is not read.
WAITING: Final = 16
NAMES: Final = {
    ua.NodeId(getattr(ua.ObjectIds, name)): name.removesuffix("Request_Encoding_DefaultBinary")
    for name in dir(ua.ObjectIds)
    if name.endswith("Request_Encoding_DefaultBinary")
}
OPEN: Final = frozenset({"GetEndpoints", "FindServers", "CloseSecureChannel"})
BEFORE_SESSION: Final = OPEN | {"CreateSession", "ActivateSession"}

log = structlog.get_logger("protocols.opcua")


class Limits(TransportLimits):  # type: ignore[misc]
    """What a connection may carry, as agreed with its client."""

    def create_acknowledge_and_set_limits(self, msg: ua.Hello) -> ua.Acknowledge:
        """Agree; raises ServiceError for buffers that are too small: each chunk costs a signature."""
        if min(msg.ReceiveBufferSize, msg.SendBufferSize) < LEAST_CHUNK_BYTES:
            raise ServiceError(Codes.BadConnectionRejected)
        return super().create_acknowledge_and_set_limits(msg)


class Processor(UaProcessor):  # type: ignore[misc]
    """Serves the requests of one connection, one after the other."""

    session: TenantSession | None
    _session_watchdog_task: asyncio.Task[None] | None

    async def process(self, header: Any, body: Any) -> bool:
        """One chunk; False ends the connection. What cannot be read or verified ends it, without a word about why."""
        try:
            going_on = bool(await super().process(header, body))
            if not going_on and header.MessageType != ua.MessageType.SecureClose:
                meters.refused_total.labels("malformed").inc()
                log.info("connection ended: a message is too long", address=str(self.name))
            return going_on
        except Exception as error:
            meters.refused_total.labels("security").inc()
            log.info("connection ended", address=str(self.name), error=f"{type(error).__name__}: {error}"[:200])
            code = error.code if isinstance(error, ServiceError) else Codes.BadSecurityChecksFailed
            told = ua.ErrorMessage(ua.StatusCode(code), "")
            self._transport.write(uatcp_to_binary(ua.MessageType.Error, told))
            return False

    @property
    def room(self) -> int:
        """How many bytes an answer may have."""
        limits = self._limits
        chunk = MessageChunk.max_body_size(
            self._connection.security_policy.symmetric_cryptography, limits.max_send_buffer
        )
        return int(min(limits.max_message_size, limits.max_chunk_count * chunk))

    def send_response(
        self, requesthandle: int, seqhdr: Any, response: Any, msgtype: bytes = ua.MessageType.SecureMessage
    ) -> None:
        """Send an answer, or the word that it is longer than the client takes."""
        response.ResponseHeader.RequestHandle = requesthandle
        body = struct_to_binary(response)
        if msgtype == ua.MessageType.SecureMessage and len(body) > self.room:
            log.info("answer not sent: it is too long", address=str(self.name), bytes=len(body))
            fault = ua.ServiceFault()
            fault.ResponseHeader.RequestHandle = requesthandle
            fault.ResponseHeader.ServiceResult = ua.StatusCode(Codes.BadResponseTooLarge)
            body = struct_to_binary(fault)
        self._transport.write(
            self._connection.message_to_binary(body, message_type=msgtype, request_id=seqhdr.RequestId)
        )

    async def _process_message(self, typeid: ua.NodeId, requesthdr: Any, seqhdr: Any, body: Any) -> Any:
        name = NAMES.get(typeid, "")
        meters.requests_total.labels(name or "unknown").inc()
        try:
            return await self._serve(name, requesthdr, seqhdr, (typeid, body))
        except (ServiceError, ua.UaError):
            raise
        except Exception:
            log.exception("request not served", service=name, address=str(self.name))
            raise

    async def _serve(self, name: str, requesthdr: Any, seqhdr: Any, request: tuple[ua.NodeId, Any]) -> Any:
        """Check what the library does not, and hand the request to it. `request`: its type and its body."""
        typeid, body = request
        if name in ("RegisterServer", "RegisterServer2"):
            raise ServiceError(Codes.BadServiceUnsupported)
        policy = self._connection.security_policy
        if not self._connection.is_open() or (
            policy.Mode != ua.MessageSecurityMode.SignAndEncrypt and name not in OPEN
        ):
            raise ServiceError(Codes.BadSecurityModeInsufficient)
        if name == "CreateSession":
            self._check_certificate()
        elif name == "ActivateSession":
            return await self._activate(requesthdr, seqhdr, body)
        elif name not in BEFORE_SESSION:
            session = self.session
            if session is None or requesthdr.AuthenticationToken != session.auth_token:
                raise ServiceError(Codes.BadSessionIdInvalid)
            if name == "BrowseNext":
                return await self._browse_next(session, requesthdr, seqhdr, body)
        return await super()._process_message(typeid, requesthdr, seqhdr, body)

    def _check_certificate(self) -> None:
        """Before CreateSession; raises ServiceError. The session is bound to the channel's certificate."""
        if self.session is not None and self.session.state.name != "Closed":
            raise ServiceError(Codes.BadTooManySessions)
        self.iserver.about_to_create(self._connection.security_policy.peer_certificate, self.name)

    async def _browse_next(self, session: TenantSession, requesthdr: Any, seqhdr: Any, body: Any) -> bool:
        if not session.is_activated():
            raise ServiceError(Codes.BadSessionNotActivated)
        session.touch()
        params = struct_from_binary(ua.BrowseNextParameters, body)
        response = ua.BrowseNextResponse()
        response.Parameters.Results = await session.browse_next(params)
        self.send_response(requesthdr.RequestHandle, seqhdr, response)
        return True

    async def _activate(self, requesthdr: Any, seqhdr: Any, body: Any) -> bool:
        """ActivateSession (Part 4 section 5.7.3): signature, certificate and person are proved before anything is bound."""
        params = struct_from_binary(ua.ActivateSessionParameters, body)
        policy = self._connection.security_policy
        session = self.session
        if session is None:
            session = self.iserver.lookup_external_session(requesthdr.AuthenticationToken)
        fits = (
            isinstance(session, TenantSession)
            and session.auth_token == requesthdr.AuthenticationToken
            and session.state.name != "Closed"
            and session.certificate == policy.peer_certificate
            and (session is self.session or session.is_activated())
        )
        if not fits:
            raise ServiceError(Codes.BadSessionIdInvalid)
        try:
            policy.asymmetric_cryptography.verify(
                policy.host_certificate + session.nonce, params.ClientSignature.Signature
            )
        except InvalidSignature:
            raise ServiceError(Codes.BadApplicationSignatureInvalid) from None
        await self.iserver.admit(session, params.UserIdentityToken, self.name)
        self._bind(session)
        result = ua.ActivateSessionResult()
        result.ServerNonce = session.nonce
        result.Results = [ua.StatusCode() for _ in params.ClientSoftwareCertificates]
        response = ua.ActivateSessionResponse()
        response.Parameters = result
        self.send_response(requesthdr.RequestHandle, seqhdr, response)
        return True

    def _bind(self, session: TenantSession) -> None:
        """From here on the session is this connection's, with what it publishes; the connection before loses it."""
        session.take_over(self)
        self.session = session
        self._closing = False
        if self._session_watchdog_task is None or self._session_watchdog_task.done():
            self._session_watchdog_task = asyncio.create_task(self._session_watchdog_loop())
        for each in session.own_subscriptions():
            each.pub_result_callback = self.forward_publish_response
            each.pub_request_callback = self.get_publish_request

    def release(self) -> None:
        """The session has gone to another connection: this one ends, and leaves it alone."""
        self.session = None
        self._closing = True
        self._transport.close()

    def hang_up(self) -> None:
        """End the connection."""
        self._transport.close()

    async def process_message(self, seqhdr: Any, body: Any) -> Any:
        """The library forgets to go on after one of its refusals."""
        found = await super().process_message(seqhdr, body)
        return True if found is None else found


class Connection(OPCUAProtocol):  # type: ignore[misc]
    """A connection whose unread bytes are bounded."""

    processor: Any
    _buffer: bytes

    def connection_made(self, transport: Any) -> None:
        """Serve it with our processor."""
        waiting = self._strangers(transport)
        super().connection_made(transport)
        if self.processor is None:
            meters.refused_total.labels("sessions").inc()
            return
        if waiting >= max(1, self.iserver.max_connections // 4):
            meters.refused_total.labels("sessions").inc()
            transport.close()
        self.processor = Processor(self.iserver, transport, self.limits)
        self.processor.set_policies(self.policies)

    def _strangers(self, transport: Any) -> int:
        """How many connections of the same address have no open session."""
        address = (transport.get_extra_info("peername") or ("",))[0]
        others = [each for each in self.clients if each.processor is not None and each.peer_name]
        return sum(
            each.peer_name[0] == address
            and (each.processor.session is None or not each.processor.session.is_activated())
            for each in others
        )

    def data_received(self, data: bytes) -> None:
        """Take whole chunks; one that is too long ends the connection, many that wait keep the socket from being read."""
        super().data_received(data)
        if self.transport is None:
            return
        if len(self._buffer) > CHUNK_BYTES:
            meters.refused_total.labels("malformed").inc()
            log.info("connection ended: a chunk is too long", address=str(self.peer_name), bytes=len(self._buffer))
            self._buffer = b""
            self.transport.close()
        elif self.messages.qsize() > WAITING:
            self.transport.pause_reading()

    async def _process_one_msg(self, header: Any, buf: Any) -> bool:
        going_on: bool = await super()._process_one_msg(header, buf)
        if self.transport is not None and not self.transport.is_closing() and self.messages.qsize() <= WAITING:
            self.transport.resume_reading()
        return going_on


class Gate(BinaryServer):  # type: ignore[misc]
    """The listening socket."""

    def _make_protocol(self) -> OPCUAProtocol:
        return Connection(self.iserver, self._policies, self.clients, self.closing_tasks, self.limits)
