"""Subscriptions: what a session watches, within limits.

The library's own monitored items compare with the last value seen instead of the last one reported, copy every value, and
look through all items to remove one; and they ask the whole address space. These ask what their session sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final

from asyncua import ua
from asyncua.server.monitored_item_service import MonitoredItemData, MonitoredItemService
from asyncua.ua.uaprotocol_auto import DataChangeFilter

from protocols import opcua_values as values
from protocols.opcua_space import Space, text_of

FASTEST_MS: Final = 100.0
SLOWEST_MS: Final = 60_000.0
LONGEST_QUEUE: Final = 100
# Handles of our own nodes; those of the standard's nodes are counted from one by the library.
_handles = itertools.count(1 << 40)

Callback = Callable[[int, ua.DataValue], Awaitable[None]]


class Window:
    """The address space as one session sees it, in the shape in which the library's monitored items ask for it."""

    def __init__(self, standard: Any, space: Space) -> None:
        self.standard = standard
        self.space = space

    def read_attribute_value(self, node: ua.NodeId, attribute: int) -> ua.DataValue:
        """What lies in the view; nothing is loaded."""
        if node.NamespaceIndex == 0:
            found: ua.DataValue = self.standard.read_attribute_value(node, attribute)
            return found
        text = text_of(node)
        known = None if text is None else self.space.find(text)
        return values.bad(ua.StatusCodes.BadNodeIdUnknown) if known is None else self.space.read(known, attribute)

    def add_datachange_callback(self, node: ua.NodeId, attribute: int, callback: Callback) -> tuple[ua.StatusCode, int]:
        """(status, handle). Only values of our nodes change; their other attributes are read once."""
        if node.NamespaceIndex == 0:
            made: tuple[ua.StatusCode, int] = self.standard.add_datachange_callback(node, attribute, callback)
            return made
        text = text_of(node)
        known = None if text is None else self.space.find(text)
        if known is None:
            return ua.StatusCode(ua.StatusCodes.BadNodeIdUnknown), 0
        if self.space.read(known, attribute).StatusCode.value == ua.StatusCodes.BadAttributeIdInvalid:
            return ua.StatusCode(ua.StatusCodes.BadAttributeIdInvalid), 0
        handle = next(_handles)
        watched = known.text if attribute == ua.AttributeIds.Value else f"{known.text}#{attribute}"
        self.space.view.watch(handle, watched, callback)
        return ua.StatusCode(), handle

    def delete_datachange_callback(self, handle: int) -> None:
        """End it."""
        if not self.space.view.unwatch(handle):
            self.standard.delete_datachange_callback(handle)


class Items(MonitoredItemService):  # type: ignore[misc]
    """The monitored items of one subscription."""

    async def datachange_callback(self, handle: int, value: ua.DataValue, error: ua.StatusCode | None = None) -> None:
        """Queue a value when it differs from the one reported last, as the item's filter says (Part 4 section 7.22.2)."""
        if error is not None:
            await self.trigger_statuschange(error)
            return
        item = self._monitored_items.get(self._monitored_datachange.get(handle, -1))
        if item is None or item.mode is not ua.MonitoringMode.Reporting:
            return
        last = item.mvalue.current_dvalue
        if last is not None and not _is_news(last, value, item.filter):
            return
        await self._report(item, value)

    async def _report(self, item: MonitoredItemData, value: ua.DataValue) -> None:
        item.mvalue.current_dvalue = value
        notification = ua.MonitoredItemNotification()
        notification.ClientHandle, notification.Value = item.client_handle, value
        await self.isub.enqueue_datachange_event(item.monitored_item_id, notification, item.queue_size)

    async def resend(self) -> None:
        """Queue the newest value of every item once more: for TransferSubscriptions with SendInitialValues."""
        for item in list(self._monitored_items.values()):
            if item.mode is ua.MonitoringMode.Reporting:
                target = item.read_value_id
                await self._report(item, self.aspace.read_attribute_value(target.NodeId, target.AttributeId))

    async def _set_monitoring_mode(self, mode: ua.MonitoringMode, mid: int) -> ua.StatusCode:
        """Report the current value when reporting begins: if it is another than the last one, after Disabled in any case."""
        item = self._monitored_items.get(mid)
        if item is None:
            return ua.StatusCode(ua.StatusCodes.BadMonitoredItemIdInvalid)
        item.mode = mode
        if mode is ua.MonitoringMode.Disabled:
            item.mvalue.current_dvalue = None
            self.isub._triggered_datachanges.pop(mid, None)
        target = item.read_value_id
        await self.trigger_datachange(item.callback_handle, target.NodeId, target.AttributeId)
        return ua.StatusCode()

    def _modify_monitored_item(self, params: ua.MonitoredItemModifyRequest) -> ua.MonitoredItemModifyResult:
        result = ua.MonitoredItemModifyResult()
        item = self._monitored_items.get(params.MonitoredItemId)
        if item is None:
            result.StatusCode = ua.StatusCode(ua.StatusCodes.BadMonitoredItemIdInvalid)
            return result
        asked = params.RequestedParameters
        known = self.aspace.read_attribute_value(item.read_value_id.NodeId, item.read_value_id.AttributeId)
        code = filter_mistake(asked.Filter, known)
        if code is not None:
            result.StatusCode = ua.StatusCode(code)
            return result
        item.filter = asked.Filter if isinstance(asked.Filter, DataChangeFilter) else None
        item.client_handle = asked.ClientHandle
        item.queue_size = self._revise_queue_size(asked.QueueSize)
        result.RevisedQueueSize = item.queue_size
        result.RevisedSamplingInterval = self.isub.data.RevisedPublishingInterval
        return result

    def _revise_queue_size(self, requested: int) -> int:
        return min(max(int(requested), 1), LONGEST_QUEUE)

    def _delete_monitored_items(self, mid: int) -> ua.StatusCode:
        item = self._monitored_items.pop(mid, None)
        if item is None:
            return ua.StatusCode(ua.StatusCodes.BadMonitoredItemIdInvalid)
        if item.callback_handle is not None:
            self._monitored_datachange.pop(item.callback_handle, None)
            self.aspace.delete_datachange_callback(item.callback_handle)
        return ua.StatusCode()

    def delete_all_monitored_items(self) -> None:
        """When the subscription ends."""
        self.delete_monitored_items(list(self._monitored_items))

    @property
    def count(self) -> int:
        """How many items there are."""
        return len(self._monitored_items)


def filter_mistake(wanted: Any, known: ua.DataValue) -> int | None:
    """The status code for a filter that cannot be used on a value such as `known`; None when it can."""
    if wanted is None or (isinstance(wanted, ua.ExtensionObject) and type(wanted) is ua.ExtensionObject):
        return None
    # The decoder makes this one; `ua.DataChangeFilter` is a subclass of it.
    if not isinstance(wanted, DataChangeFilter):
        return int(ua.StatusCodes.BadMonitoredItemFilterUnsupported)
    if wanted.DeadbandType == ua.DeadbandType.None_:
        return None
    if wanted.DeadbandType != ua.DeadbandType.Absolute:
        return int(ua.StatusCodes.BadMonitoredItemFilterUnsupported)
    fits = known.Value is None or _is_number(known)
    return None if fits and wanted.DeadbandValue >= 0 else int(ua.StatusCodes.BadDeadbandFilterInvalid)


def _is_number(value: ua.DataValue) -> bool:
    return value.Value is not None and value.Value.VariantType in values.NUMBERS


def _is_news(last: ua.DataValue, value: ua.DataValue, wanted: Any) -> bool:
    if last.StatusCode != value.StatusCode:
        return True
    trigger = ua.DataChangeTrigger.StatusValue if wanted is None else wanted.Trigger
    if trigger == ua.DataChangeTrigger.Status:
        return False
    if trigger == ua.DataChangeTrigger.StatusValueTimestamp and last.SourceTimestamp != value.SourceTimestamp:
        return True
    if last.Value == value.Value:
        return False
    if wanted is None or wanted.DeadbandType == ua.DeadbandType.None_ or not (_is_number(last) and _is_number(value)):
        return True
    return bool(abs(value.Value.Value - last.Value.Value) > wanted.DeadbandValue)
