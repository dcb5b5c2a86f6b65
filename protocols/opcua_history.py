"""HistoryRead: raw readings from the database, in pages (OPC UA Part 11 section 6.4.3).

An answer has at most the bytes that its client takes in one message. All nodes of a request share them; what does not fit is
behind a continuation point, if need be the whole of a node.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, replace
from typing import Any, Final

from asyncua import ua

from protocols import opcua_values as values
from protocols.base import Refusal
from protocols.opcua_space import Space, text_of, uid_of
from protocols.served import Signal, Span

LARGEST_PAGE: Final = 5_000
# Of all nodes of a request together; clients that look every second whether the server is there wait for it.
ANSWER_BYTES: Final = 400_000
# Texts are asked for fewer at a time: most of many long ones would be read for nothing.
LARGEST_PAGE_OF_TEXTS: Final = 1_000
# A value with its status and both times, as it is encoded: of a number, and of a text beside its own bytes.
NUMBER_BYTES: Final = 30
TEXT_BYTES: Final = 26
# A result without values, with its continuation point.
RESULT_BYTES: Final = 64
MOST_POINTS: Final = 100
# A day ahead of now at most is stored; this is later than any reading.
FOREVER_MS: Final = 253_402_300_799_000
Codes = ua.StatusCodes


@dataclass(frozen=True, slots=True)
class _Rest:
    """What is left to read of a signal. `left`: readings at most, None for all."""

    text: str
    start: int
    stop: int
    descending: bool
    left: int | None


class Unreadable(Exception):
    """The history of a node cannot be read; `code` says why."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


class History:
    """The history reading of one session, with what it has not yet read to the end."""

    def __init__(self) -> None:
        self._kept: dict[bytes, _Rest] = {}

    def clear(self) -> None:
        """Forget it."""
        self._kept.clear()

    async def read(self, space: Space, params: ua.HistoryReadParameters, room: int) -> list[ua.HistoryReadResult]:
        """One result per node; a node that cannot be read has its own status. `room`: the bytes that an answer may have."""
        if params.TimestampsToReturn not in (
            ua.TimestampsToReturn.Source,
            ua.TimestampsToReturn.Server,
            ua.TimestampsToReturn.Both,
        ):
            return [_failed(Codes.BadTimestampsToReturnInvalid)] * len(params.NodesToRead)
        waiting = len(params.NodesToRead)
        # One value more than fits is possible, hence not all of the room.
        room, results = max(1, min(ANSWER_BYTES, room // 8 * 7) - waiting * RESULT_BYTES), []
        for number, each in enumerate(params.NodesToRead):
            result = await self._one(space, params, each, max(room, 0) // (waiting - number))
            if isinstance(result.HistoryData, ua.HistoryData):
                room -= sum(_size(value) for value in result.HistoryData.DataValues)
            results.append(result)
        return results

    async def _one(
        self, space: Space, params: ua.HistoryReadParameters, wanted: ua.HistoryReadValueId, room: int
    ) -> ua.HistoryReadResult:
        text = text_of(wanted.NodeId)
        node = None if text is None else space.find(text)
        if node is None or node.signal is None:
            is_standard = wanted.NodeId.NamespaceIndex == 0 or node is not None
            return _failed(Codes.BadHistoryOperationUnsupported if is_standard else Codes.BadNodeIdUnknown)
        if wanted.IndexRange:
            return _failed(Codes.BadIndexRangeNoData)
        try:
            rest = self._begin(node.text, params.HistoryReadDetails, wanted.ContinuationPoint)
            if params.ReleaseContinuationPoints:
                return ua.HistoryReadResult(StatusCode=values.GOOD)
            return await self._page(space, rest, node.signal, (room, params.TimestampsToReturn))
        except Unreadable as error:
            return _failed(error.code)

    def _begin(self, text: str, details: Any, point: bytes | None) -> _Rest:
        """What is to be read: the rest of an earlier question, or a new one."""
        if point:
            kept = self._kept.pop(point, None)
            if kept is None or kept.text != text:
                raise Unreadable(Codes.BadContinuationPointInvalid)
            return kept
        if not isinstance(details, ua.ReadRawModifiedDetails) or details.IsReadModified:
            raise Unreadable(Codes.BadHistoryOperationUnsupported)
        return question(text, details)

    async def _page(
        self, space: Space, rest: _Rest, signal: Signal, form: tuple[int, ua.TimestampsToReturn]
    ) -> ua.HistoryReadResult:
        room, timestamps = form
        if room <= 0:
            nothing = ua.HistoryReadResult(StatusCode=values.GOOD, HistoryData=ua.HistoryData([]))
            nothing.ContinuationPoint = self._keep(rest)
            return nothing
        is_text = signal.type in ("string", "json")
        size = min(LARGEST_PAGE_OF_TEXTS if is_text else LARGEST_PAGE, room // NUMBER_BYTES + 1)
        wanted = size if rest.left is None else min(size, rest.left)
        uid, key = uid_of(rest.text), rest.text[27:]
        # One more than is shown tells whether there is more.
        span = Span(rest.start, rest.stop, wanted + 1, rest.descending)
        found = await space.view.ask_for(space.visitor, space.view.plant.history, uid, key, span)
        if isinstance(found, Refusal):
            raise Unreadable(Codes.BadNodeIdUnknown if found.code == "not-found" else Codes.BadUserAccessDenied)
        shown, used = await asyncio.to_thread(_datavalues, signal, found[:wanted], (room, timestamps))
        result = ua.HistoryReadResult(StatusCode=values.GOOD, HistoryData=ua.HistoryData(shown))
        left = None if rest.left is None else rest.left - used
        if len(found) > used and left != 0:
            last = found[used - 1][0]
            ahead = replace(rest, stop=last) if rest.descending else replace(rest, start=last + 1)
            result.ContinuationPoint = self._keep(replace(ahead, left=left))
        elif not shown:
            result.StatusCode = ua.StatusCode(Codes.GoodNoData)
        return result

    def _keep(self, rest: _Rest) -> bytes:
        while len(self._kept) >= MOST_POINTS:
            del self._kept[next(iter(self._kept))]
        point = secrets.token_bytes(16)
        self._kept[point] = rest
        return point


def question(text: str, details: ua.ReadRawModifiedDetails) -> _Rest:
    """The range of a question (Part 11 section 6.4.3.1): two of start, end and number are needed; raises Unreadable.

    With an end before the start, or without a start, the newest comes first. The end itself does not belong to the range.
    """
    start, end = values.milliseconds(details.StartTime, up=True), values.milliseconds(details.EndTime, up=True)
    left = int(details.NumValuesPerNode) or None
    if (start is None and end is None) or (left is None and (start is None or end is None)):
        raise Unreadable(Codes.BadHistoryOperationInvalid)
    if start is None:
        return _Rest(text, 0, int(end or 0) + 1, True, left)
    if end is None:
        return _Rest(text, start, FOREVER_MS, False, left)
    if start == end:
        return _Rest(text, start, start + 1, False, left)
    if start < end:
        return _Rest(text, start, end, False, left)
    latest = values.milliseconds(details.StartTime)
    return _Rest(text, (values.milliseconds(details.EndTime) or 0) + 1, (latest or 0) + 1, True, left)


def _failed(code: int) -> ua.HistoryReadResult:
    return ua.HistoryReadResult(StatusCode=ua.StatusCode(code))


def _datavalues(
    signal: Signal, readings: list[tuple[int, Any, str]], form: tuple[int, ua.TimestampsToReturn]
) -> tuple[list[ua.DataValue], int]:
    """The values that fit into the room, one at least; and how many readings that are."""
    room, timestamps = form
    made: list[ua.DataValue] = []
    for number, (ts, value, quality) in enumerate(readings):
        if value is None:
            continue
        each = values.stamped(values.datavalue(signal, ts, value, quality), timestamps)
        room -= _size(each)
        if room < 0 and made:
            return made, number
        made.append(each)
    return made, len(readings)


def _size(value: ua.DataValue) -> int:
    """At most so many bytes it has on the wire."""
    content = value.Value.Value
    return TEXT_BYTES + len(content.encode()) if isinstance(content, str) else NUMBER_BYTES
