"""The subscriptions of a session: its own alone, within the limits of session and tenant.

Those of others read like none at all. Only another session of the same person or key, with the same certificate, may take
subscriptions over (OPC UA Part 4 section 5.14.7).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from asyncua import ua
from asyncua.common.utils import ServiceError
from asyncua.server.internal_session import InternalSession
from asyncua.server.internal_subscription import InternalSubscription
from asyncua.ua.uaprotocol_auto import DataChangeFilter

from protocols import opcua_values as values
from protocols.opcua_items import FASTEST_MS, LONGEST_QUEUE, SLOWEST_MS, Items, Window, filter_mistake
from protocols.served import Away, Visitor

Codes = ua.StatusCodes
MOST_NODES: Final = 10_000
MOST_SUBSCRIPTIONS: Final = 20
MOST_OF_TENANT: Final = 200
LONGEST_LIFE_MS: Final = 3_600_000


class OwnSubscriptions(InternalSession):  # type: ignore[misc]
    """The part of `TenantSession` that subscriptions need."""

    visitor: Visitor | None
    certificate: bytes | None

    @property
    def window(self) -> Window:
        """What its items see."""
        raise NotImplementedError

    async def prepare(self, nodes: Iterable[ua.NodeId]) -> None:
        """Load what these nodes need."""
        raise NotImplementedError

    def _own(self, subscription: int) -> InternalSubscription:
        """One of this session's; raises ServiceError for those of others and for none, alike."""
        found = self.subscription_service.subscriptions.get(subscription)
        if found is None or found.session_id != self.session_id:
            raise ServiceError(Codes.BadSubscriptionIdInvalid)
        return found

    def own_subscriptions(self) -> list[InternalSubscription]:
        """Those of this session."""
        everything = self.subscription_service.subscriptions.values()
        return [each for each in everything if each.session_id == self.session_id]

    def items(self) -> int:
        """How many monitored items this session has."""
        return sum(each.monitored_item_srv.count for each in self.own_subscriptions())

    async def create_subscription(
        self,
        params: ua.CreateSubscriptionParameters,
        callback: Callable[..., Any],
        request_callback: Callable[..., Any] | None = None,
    ) -> ua.CreateSubscriptionResult:
        """A subscription within the limits of session and tenant, whose items see what the session sees."""
        of_tenant = sum(len(each.own_subscriptions()) for each in self._neighbours())
        if len(self.own_subscriptions()) >= MOST_SUBSCRIPTIONS or of_tenant >= MOST_OF_TENANT:
            raise ServiceError(Codes.BadTooManySubscriptions)
        _revise(params)
        result = await super().create_subscription(params, callback, request_callback)
        made = self.subscription_service.subscriptions[result.SubscriptionId]
        made.monitored_item_srv = Items(made, self.window)
        return result

    def _neighbours(self) -> list[OwnSubscriptions]:
        """The sessions of the same tenant, this one among them."""
        tenant = self.visitor.tenant if self.visitor else ""
        return [each for each in self.iserver.sessions() if each.visitor is not None and each.visitor.tenant == tenant]

    def modify_subscription(self, params: ua.ModifySubscriptionParameters) -> ua.ModifySubscriptionResult:
        """Revised like new ones, from now on."""
        found, service = self._own(params.SubscriptionId), self.subscription_service
        _revise(params)
        found.data.RevisedPublishingInterval = params.RequestedPublishingInterval
        found.data.RevisedLifetimeCount = service._clamp_lifetime_count(params.RequestedLifetimeCount)
        found.data.RevisedMaxKeepAliveCount = service._clamp_keep_alive_count(params.RequestedMaxKeepAliveCount)
        # Its loop knows the interval of its beginning alone.
        found._task.cancel()
        found._task = asyncio.create_task(found._subscription_loop())
        return super().modify_subscription(params)

    async def delete_subscriptions(self, ids: list[int]) -> list[ua.StatusCode]:
        """Own ones; others are as if they did not exist."""
        return await self._each(ids, super().delete_subscriptions)

    async def set_publishing_mode(self, params: ua.SetPublishingModeParameters) -> list[ua.StatusCode]:
        """Of own subscriptions."""

        async def change(ids: list[int]) -> list[ua.StatusCode]:
            for each in ids:
                await self._own(each).set_publishing_mode(params.PublishingEnabled)
            return [values.GOOD] * len(ids)

        return await self._each(params.SubscriptionIds, change)

    async def _each(self, ids: Sequence[int], act: Callable[..., Any]) -> list[ua.StatusCode]:
        """Do it to own subscriptions, one by one, in their order."""
        results = []
        for each in ids:
            try:
                self._own(each)
                results += await act([each])
            except ServiceError as error:
                results.append(ua.StatusCode(error.code))
        return results

    async def transfer_subscriptions(
        self, params: ua.TransferSubscriptionsParameters, callback: Callable[..., Any]
    ) -> list[ua.TransferResult]:
        """Those of other sessions of the same person or key, with the same certificate (Part 4 section 5.14.7)."""
        return [await self._transfer(int(each), params.SendInitialValues, callback) for each in params.SubscriptionIds]

    async def _transfer(self, subscription: int, resend: bool, callback: Callable[..., Any]) -> ua.TransferResult:
        result = ua.TransferResult()
        found = self.subscription_service.subscriptions.get(subscription)
        owner = self.iserver.session_of(found.session_id) if found is not None else None
        if found is None or owner is None or not self._is_same(owner):
            result.StatusCode = ua.StatusCode(Codes.BadSubscriptionIdInvalid)
            return result
        if owner is not self and len(self.own_subscriptions()) >= MOST_SUBSCRIPTIONS:
            result.StatusCode = ua.StatusCode(Codes.BadTooManySubscriptions)
            return result
        found.session_id = self.session_id
        found.pub_result_callback = callback
        # The library leaves this at the connection that is gone.
        found.pub_request_callback = callback.__self__.get_publish_request  # type: ignore[attr-defined]
        found.monitored_item_srv.aspace = self.window
        if resend:
            await found.monitored_item_srv.resend()
        result.AvailableSequenceNumbers = sorted(found._not_acknowledged_results)
        return result

    def _is_same(self, other: OwnSubscriptions) -> bool:
        if self.visitor is None or other.visitor is None:
            return False
        mine, theirs = self.visitor, other.visitor
        is_same = (mine.identity, mine.tenant, mine.view) == (theirs.identity, theirs.tenant, theirs.view)
        return is_same and self.certificate == other.certificate

    def publish(self, acks: Iterable[ua.SubscriptionAcknowledgement] | None = None) -> tuple[int, list[ua.StatusCode]]:
        """(number of own subscriptions, results of the acknowledgements); raises ServiceError when there is none."""
        own = {each.data.SubscriptionId: each for each in self.own_subscriptions()}
        if not own:
            raise ServiceError(Codes.BadNoSubscription)
        results = []
        for ack in acks or ():
            found = own.get(ack.SubscriptionId)
            if found is None:
                results.append(ua.StatusCode(Codes.BadSubscriptionIdInvalid))
            else:
                found.publish([ack.SequenceNumber])
                results.append(values.GOOD)
        return len(own), results

    def republish(self, params: ua.RepublishParameters) -> ua.NotificationMessage:
        """A message of an own subscription that was not acknowledged."""
        kept = self._own(params.SubscriptionId)._not_acknowledged_results.get(params.RetransmitSequenceNumber)
        if kept is None:
            raise ServiceError(Codes.BadMessageNotAvailable)
        return kept.NotificationMessage

    # --- monitored items ----------------------------------------------------------------------------------------------

    async def create_monitored_items(
        self, params: ua.CreateMonitoredItemsParameters
    ) -> list[ua.MonitoredItemCreateResult]:
        """Watch values of what the visitor sees."""
        wanted = params.ItemsToCreate
        check_count(wanted, MOST_NODES)
        service = self._own(params.SubscriptionId).monitored_item_srv
        await self.prepare(each.ItemToMonitor.NodeId for each in wanted)
        room = self.iserver.most_items - sum(each.items() for each in self._neighbours())
        window, results = self.window, []
        for each in wanted:
            code = Codes.BadTooManyMonitoredItems if room <= 0 else _unfit(window, each)
            if code is None:
                if not isinstance(each.RequestedParameters.Filter, DataChangeFilter):
                    each.RequestedParameters.Filter = None
                each.RequestedParameters.QueueSize = min(max(each.RequestedParameters.QueueSize, 1), LONGEST_QUEUE)
                made = await service._create_data_change_monitored_item(each)
                room -= made.StatusCode.is_good()
            else:
                made = ua.MonitoredItemCreateResult()
                made.StatusCode = ua.StatusCode(code)
            results.append(made)
        return results

    async def modify_monitored_items(
        self, params: ua.ModifyMonitoredItemsParameters
    ) -> list[ua.MonitoredItemModifyResult]:
        """Items of own subscriptions."""
        check_count(params.ItemsToModify, MOST_NODES)
        found: list[ua.MonitoredItemModifyResult] = self._own(
            params.SubscriptionId
        ).monitored_item_srv.modify_monitored_items(params)
        return found

    async def delete_monitored_items(self, params: ua.DeleteMonitoredItemsParameters) -> list[ua.StatusCode]:
        """Items of own subscriptions."""
        service = self._own(params.SubscriptionId).monitored_item_srv
        return list(service.delete_monitored_items(params.MonitoredItemIds))

    async def set_monitoring_mode(self, params: ua.SetMonitoringModeParameters) -> list[ua.StatusCode]:
        """Of items of own subscriptions."""
        service = self._own(params.SubscriptionId).monitored_item_srv
        return list(await service.set_monitoring_mode(params.MonitoringMode, params.MonitoredItemIds))


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """The database that is away is told to clients as something that may pass."""
    try:
        yield
    except Away:
        raise ServiceError(Codes.BadResourceUnavailable) from None


def _revise(params: ua.CreateSubscriptionParameters | ua.ModifySubscriptionParameters) -> None:
    """Bring what is asked for within the limits."""
    interval = params.RequestedPublishingInterval
    # A NaN compares false with everything.
    params.RequestedPublishingInterval = min(max(interval, FASTEST_MS), SLOWEST_MS) if interval > 0 else FASTEST_MS
    most = int(LONGEST_LIFE_MS // params.RequestedPublishingInterval)
    params.RequestedMaxKeepAliveCount = min(max(params.RequestedMaxKeepAliveCount, 1), most // 3)
    least = 3 * params.RequestedMaxKeepAliveCount
    params.RequestedLifetimeCount = min(max(params.RequestedLifetimeCount, least), most)


def check_count(wanted: Sequence[Any] | None, most: int) -> None:
    if not wanted:
        raise ServiceError(Codes.BadNothingToDo)
    if len(wanted) > most:
        raise ServiceError(Codes.BadTooManyOperations)


def _unfit(window: Window, wanted: ua.MonitoredItemCreateRequest) -> int | None:
    """Why a value cannot be watched, None when it can. Unknown nodes are found out by who creates the item."""
    target = wanted.ItemToMonitor
    if target.AttributeId == ua.AttributeIds.EventNotifier:
        return int(Codes.BadNotSupported)
    if target.IndexRange:
        return int(Codes.BadIndexRangeNoData)
    known = window.read_attribute_value(target.NodeId, target.AttributeId)
    return filter_mistake(wanted.RequestedParameters.Filter, known)
