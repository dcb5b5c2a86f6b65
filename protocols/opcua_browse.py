"""Browsing and paths over the standard's nodes and the tenant's own, in pages (OPC UA Part 4 section 5.8)."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from asyncua import ua

from protocols.opcua_space import Space, text_of

LARGEST_PAGE: Final = 5_000
MOST_POINTS: Final = 20
Codes = ua.StatusCodes
Prepare = Callable[[Iterable[ua.NodeId]], Awaitable[None]]

_subtypes: dict[tuple[int, ua.NodeId], frozenset[ua.NodeId]] = {}


class Pages:
    """References that did not fit into an answer, of one session."""

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[list[ua.ReferenceDescription], int]] = {}

    def clear(self) -> None:
        """Forget them."""
        self._kept.clear()

    def first(self, results: list[ua.BrowseResult], most: int) -> list[ua.BrowseResult]:
        """The first pages of the results of one request, `most` references long; 0: as long as possible."""
        size = min(most, LARGEST_PAGE) if most else LARGEST_PAGE
        room = MOST_POINTS
        for result in results:
            is_long = len(result.References) > size
            if is_long and not room:
                result.References, result.StatusCode = [], ua.StatusCode(Codes.BadNoContinuationPoints)
                continue
            room -= is_long
            self._cut(result, result.References, size)
        return results

    def next(self, point: bytes | None, release: bool) -> ua.BrowseResult:
        """The page behind a continuation point, which is then of no use any more."""
        result = ua.BrowseResult()
        kept = self._kept.pop(point or b"", None)
        if kept is None:
            result.StatusCode = ua.StatusCode(Codes.BadContinuationPointInvalid)
        elif not release:
            self._cut(result, *kept)
        return result

    def _cut(self, result: ua.BrowseResult, references: list[ua.ReferenceDescription], size: int) -> None:
        result.References, rest = references[:size], references[size:]
        if not rest:
            return
        while len(self._kept) >= MOST_POINTS:
            # The oldest of an earlier request is given up, and says so when it is asked for.
            del self._kept[next(iter(self._kept))]
        point = secrets.token_bytes(16)
        self._kept[point] = (rest, size)
        result.ContinuationPoint = point


class Finder:
    """Follows references, for one request."""

    def __init__(self, standard: Any, space: Space) -> None:
        self.standard = standard
        self.space = space

    def references(self, node: ua.NodeId) -> list[ua.ReferenceDescription] | None:
        """Everything that leads away from a node; None for one that does not exist or is not the visitor's."""
        if node.NamespaceIndex == 0:
            known = self.standard.get(node)
            return None if known is None else list(known.references)
        text = text_of(node)
        own = None if text is None else self.space.find(text)
        return None if own is None else list(self.space.references(own))

    def browse(self, wanted: ua.BrowseDescription) -> ua.BrowseResult:
        """The references of a node that a client asks for."""
        result = ua.BrowseResult()
        if wanted.BrowseDirection not in (
            ua.BrowseDirection.Forward,
            ua.BrowseDirection.Inverse,
            ua.BrowseDirection.Both,
        ):
            result.StatusCode = ua.StatusCode(Codes.BadBrowseDirectionInvalid)
            return result
        found = self.references(wanted.NodeId)
        if found is None:
            result.StatusCode = ua.StatusCode(Codes.BadNodeIdUnknown)
            return result
        kinds = self._kinds(wanted.ReferenceTypeId, wanted.IncludeSubtypes)
        forward, both = wanted.BrowseDirection == ua.BrowseDirection.Forward, ua.BrowseDirection.Both
        result.References = [
            each
            for each in found
            if (wanted.BrowseDirection == both or each.IsForward == forward)
            and (kinds is None or each.ReferenceTypeId in kinds)
            and (not wanted.NodeClassMask or wanted.NodeClassMask & each.NodeClass)
        ]
        return result

    def _kinds(self, kind: ua.NodeId, with_subtypes: bool) -> frozenset[ua.NodeId] | None:
        """The reference types that are asked for; None: all of them."""
        if kind.is_null():
            return None
        if not with_subtypes:
            return frozenset((kind,))
        key = (id(self.standard), kind)
        if key not in _subtypes:
            if self.standard.get(kind) is None:
                # Not kept: anybody may ask for what does not exist.
                return frozenset()
            _subtypes[key] = frozenset(self._below(kind))
        return _subtypes[key]

    def _below(self, kind: ua.NodeId) -> Iterable[ua.NodeId]:
        yield kind
        for each in self.standard[kind].references:
            if each.IsForward and each.ReferenceTypeId == ua.NodeId(ua.ObjectIds.HasSubtype):
                yield from self._below(each.NodeId)

    async def follow(self, path: ua.BrowsePath, prepare: Prepare) -> ua.BrowsePathResult:
        """Where a path of names leads; several devices may have one name."""
        result = ua.BrowsePathResult()
        elements = path.RelativePath.Elements
        if not elements or len(elements) > 100:
            code = Codes.BadNothingToDo if not elements else Codes.BadTooManyOperations
            result.StatusCode = ua.StatusCode(code)
            return result
        if not elements[-1].TargetName or not elements[-1].TargetName.Name:
            result.StatusCode = ua.StatusCode(Codes.BadBrowseNameInvalid)
            return result
        here = [path.StartingNode]
        await prepare(here)
        if self.references(path.StartingNode) is None:
            result.StatusCode = ua.StatusCode(Codes.BadNodeIdUnknown)
            return result
        for element in elements:
            await prepare(here)
            here = [target for node in here for target in self._step(node, element)]
            if not here:
                result.StatusCode = ua.StatusCode(Codes.BadNoMatch)
                return result
        for node in here:
            target = ua.BrowsePathTarget()
            target.TargetId = node
            target.RemainingPathIndex = ua.Index(4294967295)
            result.Targets.append(target)
        return result

    def _step(self, node: ua.NodeId, element: ua.RelativePathElement) -> list[ua.NodeId]:
        kinds = self._kinds(element.ReferenceTypeId, element.IncludeSubtypes)
        return [
            each.NodeId
            for each in self.references(node) or ()
            if each.IsForward != element.IsInverse
            and each.BrowseName == element.TargetName
            and (kinds is None or each.ReferenceTypeId in kinds)
        ]
