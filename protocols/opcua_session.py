"""One client's session: every service of the library's own session, allowed, filtered to the visitor's tenant, or denied.

The library's session is not made for several tenants: its tokens are counted, any user may take any session, and nodes and
subscriptions of others are served by number. `SERVICES` says of each of its methods what becomes of it here; a test compares
the table with the library, so a new version cannot bring an open method along unnoticed.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from typing import Any, Final, Literal

from asyncua import ua
from asyncua.common.utils import ServiceError
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.internal_session import SessionState

from protocols import opcua_browse, opcua_calls
from protocols import opcua_values as values
from protocols.opcua_history import History
from protocols.opcua_items import Window
from protocols.opcua_space import Space, text_of, uid_of
from protocols.opcua_subscriptions import MOST_NODES, OwnSubscriptions, asking, check_count
from protocols.opcua_view import View
from protocols.served import Visitor

Codes = ua.StatusCodes
SERVICES: Final[dict[str, Literal["allowed", "filtered", "denied"]]] = {
    # The server's own endpoints, and the session itself.
    "get_endpoints": "allowed",
    "create_session": "filtered",
    "activate_session": "denied",  # `admit` takes its place: proving asks the database.
    "close_session": "filtered",
    "is_activated": "allowed",
    "touch": "allowed",
    # What is looked at.
    "read": "filtered",
    "browse": "filtered",
    "browse_next": "filtered",
    "translate_browsepaths_to_nodeids": "filtered",
    "register_nodes": "filtered",
    "unregister_nodes": "filtered",
    "history_read": "filtered",
    # What changes something.
    "write": "filtered",
    "call": "filtered",
    "history_update": "denied",
    "add_nodes": "denied",
    "delete_nodes": "denied",
    "add_references": "denied",
    "delete_references": "denied",
    "add_method_callback": "denied",
    # Subscriptions.
    "create_subscription": "filtered",
    "modify_subscription": "filtered",
    "delete_subscriptions": "filtered",
    "set_publishing_mode": "filtered",
    "transfer_subscriptions": "filtered",
    "publish": "filtered",
    "republish": "filtered",
    "create_monitored_items": "filtered",
    "modify_monitored_items": "filtered",
    "delete_monitored_items": "filtered",
    "set_monitoring_mode": "filtered",
}
TOKEN_BYTES: Final = 32


def _random_id() -> ua.NodeId:
    return ua.NodeId(secrets.token_bytes(TOKEN_BYTES), 0, ua.NodeIdType.ByteString)


def _denied(*_: Any) -> Any:
    raise ServiceError(Codes.BadServiceUnsupported)


class TenantSession(OwnSubscriptions):
    """A session that sees one tenant. `iserver`: `opcua_server.TenantServer`."""

    def __init__(self, iserver: Any, name: str, certificate: bytes | None) -> None:
        super().__init__(
            iserver, iserver.aspace, iserver.subscription_service, name, User(UserRole.User), external=False
        )
        # The library counts these up, so that anybody could name those of another.
        self.session_id, self.auth_token = _random_id(), _random_id()
        self.certificate = certificate
        self.visitor: Visitor | None = None
        self.address = ""
        self.program = ""
        self._connection: Any = None
        self._space: Space | None = None
        self._pages = opcua_browse.Pages()
        self._history = History()
        self.external = True
        self.iserver.register_external_session(self)

    def __str__(self) -> str:
        """Nothing that opens anything."""
        return f"TenantSession({self.name})"

    # --- its life -----------------------------------------------------------------------------------------------------

    async def create_session(
        self, params: ua.CreateSessionParameters, sockname: tuple[str, int] | None = None
    ) -> ua.CreateSessionResult:
        """The library's, without its check of certificates: the channel's certificate was checked by `opcua_wire`."""
        name = params.ClientDescription.ApplicationName.Text if params.ClientDescription else None
        self.program = f"OPC UA {name or ''}".strip()[:200]
        if not 0 < params.RequestedSessionTimeout < math.inf:
            # A NaN goes through min and max, and in a sleep it breaks the order of asyncio's timers.
            params.RequestedSessionTimeout = self.iserver.max_session_timeout_ms
        result: ua.CreateSessionResult = await super().create_session(params, sockname)
        result.MaxRequestMessageSize = self.iserver.most_bytes
        return result

    def enter(self, visitor: Visitor, view: View) -> None:
        """The visitor has proved itself: the session works from now on."""
        self.visitor = visitor
        self._space = Space(view, visitor)
        self.nonce = secrets.token_bytes(32)
        self.state = SessionState.Activated
        self.touch()
        self._start_timeout_watchdog()

    def renew(self, visitor: Visitor) -> None:
        """What the visitor may do has changed."""
        self.visitor = visitor
        self.space.visitor = visitor

    async def close_session(self, delete_subs: bool = True) -> None:
        """End it with its subscriptions, whatever was asked: nobody else could use them."""
        was_open = self.state is not SessionState.Closed
        await super().close_session(True)
        if was_open:
            self._pages.clear()
            self._history.clear()
            await self.iserver.left(self)

    def take_over(self, connection: Any) -> None:
        """Another connection (`opcua_wire.Processor`) carries the session from now on."""
        before, self._connection = self._connection, connection
        if before is not None and before is not connection:
            before.release()

    def hang_up(self) -> None:
        """End the connection that carries it."""
        if self._connection is not None:
            self._connection.hang_up()

    activate_session = _denied

    @property
    def space(self) -> Space:
        """What it sees; raises ServiceError before it was activated."""
        if self._space is None:
            raise ServiceError(Codes.BadSessionNotActivated)
        return self._space

    @property
    def window(self) -> Window:
        """The same for monitored items."""
        return Window(self.aspace, self.space)

    async def prepare(self, nodes: Iterable[ua.NodeId]) -> None:
        """Load what these nodes need; raises ServiceError while the database is away."""
        uids = {uid_of(text) for node in nodes if (text := text_of(node)) is not None}
        if uids:
            with asking():
                await self.space.view.ensure(uids)

    # --- attributes ---------------------------------------------------------------------------------------------------

    async def read(self, params: ua.ReadParameters) -> list[ua.DataValue]:
        """Attributes of the standard's nodes and of the tenant's own."""
        check_count(params.NodesToRead, MOST_NODES)
        if params.TimestampsToReturn == ua.TimestampsToReturn.Invalid:
            raise ServiceError(Codes.BadTimestampsToReturnInvalid)
        if not params.MaxAge >= 0:
            raise ServiceError(Codes.BadMaxAgeInvalid)
        await self.prepare(each.NodeId for each in params.NodesToRead)
        window = self.window
        found = []
        for each in params.NodesToRead:
            if each.IndexRange:
                found.append(values.bad(Codes.BadIndexRangeNoData))
            else:
                value = window.read_attribute_value(each.NodeId, each.AttributeId)
                found.append(values.stamped(value, params.TimestampsToReturn))
        return found

    async def write(self, params: ua.WriteParameters) -> list[ua.StatusCode]:
        """Values of writable signals, which become one command per device."""
        check_count(params.NodesToWrite, MOST_NODES)
        await self.prepare(each.NodeId for each in params.NodesToWrite)
        with asking():
            return await opcua_calls.write(self.space, params.NodesToWrite)

    async def call(self, params: list[ua.CallMethodRequest]) -> list[ua.CallMethodResult]:
        """`SetStatus` of the tenant's devices."""
        check_count(params, 100)
        await self.prepare(each.ObjectId for each in params)
        with asking():
            return [await opcua_calls.call(self.space, each) for each in params]

    async def history_read(self, params: ua.HistoryReadParameters) -> list[ua.HistoryReadResult]:
        """Raw readings of the tenant's signals."""
        check_count(params.NodesToRead, 100)
        await self.prepare(each.NodeId for each in params.NodesToRead)
        with asking():
            return await self._history.read(self.space, params, self._connection.room)

    # --- looking around -----------------------------------------------------------------------------------------------

    async def browse(self, params: ua.BrowseParameters) -> list[ua.BrowseResult]:
        """References of the standard's nodes and of the tenant's own."""
        check_count(params.NodesToBrowse, 1_000)
        if params.View is not None and not params.View.ViewId.is_null():
            raise ServiceError(Codes.BadViewIdUnknown)
        nodes = [each.NodeId for each in params.NodesToBrowse]
        await self.prepare(nodes)
        finder = opcua_browse.Finder(self.aspace, self.space)
        found = [finder.browse(each) for each in params.NodesToBrowse]
        return self._pages.first(found, params.RequestedMaxReferencesPerNode)

    async def browse_next(self, parameters: ua.BrowseNextParameters) -> list[ua.BrowseResult]:
        """The next pages of this session's own browsing."""
        points = parameters.ContinuationPoints
        check_count(points, 1_000)
        return [self._pages.next(point, parameters.ReleaseContinuationPoints) for point in points]

    async def translate_browsepaths_to_nodeids(self, params: list[ua.BrowsePath]) -> list[ua.BrowsePathResult]:
        """Paths of names, to what the visitor sees."""
        check_count(params, 1_000)
        finder = opcua_browse.Finder(self.aspace, self.space)
        return [await finder.follow(path, self.prepare) for path in params]

    async def register_nodes(self, nodes: list[ua.NodeId]) -> list[ua.NodeId]:
        """The same nodes, known or not."""
        return nodes

    async def unregister_nodes(self, nodes: list[ua.NodeId]) -> None:
        """Nothing was kept of them."""

    # --- what nobody may do -------------------------------------------------------------------------------------------

    history_update = _denied
    add_nodes = _denied
    delete_nodes = _denied
    add_references = _denied
    delete_references = _denied
    add_method_callback = _denied
