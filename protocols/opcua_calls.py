"""What clients do to devices: written values become commands, `SetStatus` changes the stored status."""

from __future__ import annotations

from typing import Any, Final

from asyncua import ua

from protocols import opcua_values as values
from protocols.base import Refusal
from protocols.opcua_space import Node, Space, text_of, uid_of
from protocols.served import News

Codes = ua.StatusCodes
STATUSES: Final = {"online": True, "offline": False}
REFUSALS: Final = {
    "not-found": Codes.BadNodeIdUnknown,
    "device-disabled": Codes.BadInvalidState,
    "invalid": Codes.BadOutOfRange,
    "rate-limited": Codes.BadServerTooBusy,
}


def _code(refusal: Refusal | None) -> int:
    if refusal is None:
        return int(Codes.Good)
    return int(REFUSALS.get(refusal.code, Codes.BadUserAccessDenied))


async def write(space: Space, wanted: list[ua.WriteValue]) -> list[ua.StatusCode]:
    """Queue what is written, one command per device, another one for a signal that is written again; Good means queued."""
    codes: list[int] = []
    orders: list[tuple[str, dict[str, Any], list[int]]] = []
    for place, each in enumerate(wanted):
        found = _writable(space, each)
        if isinstance(found, int):
            codes.append(found)
            continue
        codes.append(int(Codes.Good))
        node, value = found
        uid = uid_of(node.text)
        assert node.signal is not None
        key = node.signal.key
        latest = next((order for order in reversed(orders) if order[0] == uid), None)
        if latest is None or key in latest[1]:
            orders.append((uid, {key: value}, [place]))
        else:
            latest[1][key] = value
            latest[2].append(place)
    for uid, content, places in orders:
        refusal = await space.view.ask_for(space.visitor, space.view.plant.order, uid, content)
        for place in places:
            codes[place] = _code(refusal)
    return [ua.StatusCode(code) for code in codes]


def _writable(space: Space, wanted: ua.WriteValue) -> tuple[Node, Any] | int:
    """The node and the value for the command, or the status code of the refusal."""
    text = text_of(wanted.NodeId)
    if wanted.NodeId.NamespaceIndex == 0:
        return int(Codes.BadNotWritable)
    node = None if text is None else space.find(text)
    if node is None:
        return int(Codes.BadNodeIdUnknown)
    if wanted.AttributeId != ua.AttributeIds.Value or node.signal is None or not node.signal.writable:
        return int(Codes.BadNotWritable)
    if not space.visitor.may_command:
        return int(Codes.BadUserAccessDenied)
    if wanted.IndexRange:
        return int(Codes.BadIndexRangeNoData)
    try:
        return node, values.written(node.signal, wanted.Value)
    except values.Unfit as error:
        return int(error.code)


async def call(space: Space, wanted: ua.CallMethodRequest) -> ua.CallMethodResult:
    """`SetStatus("online" or "offline")`: true when it is stored, false for any other word and for a disabled device."""
    result = ua.CallMethodResult()
    method, device = text_of(wanted.MethodId), text_of(wanted.ObjectId)
    node = None if device is None else space.find(device)
    if node is None:
        known = wanted.ObjectId.NamespaceIndex == 0
        result.StatusCode = ua.StatusCode(Codes.BadMethodInvalid if known else Codes.BadNodeIdUnknown)
        return result
    is_method = method in (f"{node.text}#SetStatus", f"{node.text}/SetStatus") and node.text == uid_of(node.text)
    target = space.find(method) if is_method and method else None
    if target is None or target.kind is not ua.NodeClass.Method:
        result.StatusCode = ua.StatusCode(Codes.BadMethodInvalid)
        return result
    arguments = wanted.InputArguments or []
    if len(arguments) != 1:
        result.StatusCode = ua.StatusCode(Codes.BadTooManyArguments if arguments else Codes.BadArgumentsMissing)
        return result
    if arguments[0].VariantType is not ua.VariantType.String or not isinstance(arguments[0].Value, str):
        result.StatusCode = ua.StatusCode(Codes.BadInvalidArgument)
        result.InputArgumentResults = [ua.StatusCode(Codes.BadTypeMismatch)]
        return result
    if not space.visitor.may_change:
        result.StatusCode = ua.StatusCode(Codes.BadUserAccessDenied)
        return result
    return await _set_status(space, node.text, arguments[0].Value, result)


async def _set_status(space: Space, uid: str, word: str, result: ua.CallMethodResult) -> ua.CallMethodResult:
    online = STATUSES.get(word.strip().lower())
    refusal: Refusal | None = None
    if online is not None:
        refusal = await space.view.ask_for(space.visitor, space.view.plant.set_status, uid, online)
        if refusal is not None and refusal.code != "device-disabled":
            result.StatusCode = ua.StatusCode(_code(refusal))
            return result
        if refusal is None:
            # Who has called sees it at once; the others when the news come by.
            status = "online" if online else "offline"
            await space.view.hear([News(space.visitor.tenant, uid, {}, status)])
    result.InputArgumentResults = [values.GOOD]
    result.OutputArguments = [ua.Variant(online is not None and refusal is None, ua.VariantType.Boolean)]
    return result
