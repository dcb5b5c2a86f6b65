"""Storing a batch of which PostgreSQL refuses a message: the others are stored, that one is kept as rejected. Not an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError

from iiot.payloads import PayloadError
from iiot.services.ingest import Incoming, Outcomes, StatusEvent
from iiot.services.ingest import Outcome as Result

# So many messages in a row that fail alone, and none stored, mean that not the messages are at fault.
SYSTEMIC: Final = 8
log = structlog.get_logger("protocols")


class Store(Protocol):
    """What the writer needs of `iiot.services.ingest`: each call is one commit and raises when it failed."""

    def ingest(self, messages: Sequence[Incoming], /, *, late: bool = False) -> Outcomes:
        """Store telemetry; one outcome per message, in order."""

    def status(self, changes: Sequence[StatusEvent], /) -> None:
        """Store what devices, or their last wills, said about their connection."""


class Halving:
    """Stores messages in one commit, and when the database refuses them for their content, in halves.

    DataError and ValueError (from the driver) name a message's content. IntegrityError and ProgrammingError also come
    from a missing partition, table or right; so a message that fails alone is called faulty only when another one of
    the same batch could be stored. Else the error goes up, and the batch is tried again later.
    """

    def __init__(self, store: Store, messages: list[Incoming], late: bool) -> None:
        self.store = store
        self.messages = messages
        self.late = late
        self.stored = 0
        self.duplicate = 0
        self.suspects: dict[int, Exception] = {}
        self.results: dict[int, Result] = {}

    def run(self) -> list[Result]:
        """One outcome per message, in order. Raises when nothing says that the messages are at fault."""
        self._try(0, len(self.messages))
        for place, error in self.suspects.items():
            if not isinstance(error, DataError | ValueError) and not self.results:
                raise error
            self._refuse(place, error)
        return [self.results[place] for place in range(len(self.messages))]

    def _try(self, start: int, end: int) -> None:
        try:
            outcomes = self.store.ingest(self.messages[start:end], late=self.late)
        except (DataError, IntegrityError, ProgrammingError, ValueError) as error:
            if end - start > 1:
                middle = (start + end) // 2
                self._try(start, middle)
                self._try(middle, end)
                return
            self.suspects[start] = error
            if len(self.suspects) >= SYSTEMIC and not self.results and not isinstance(error, DataError | ValueError):
                raise
            return
        self.results.update(zip(range(start, end), outcomes, strict=True))
        self.stored += outcomes.stored
        self.duplicate += outcomes.duplicate

    def _refuse(self, place: int, error: Exception) -> None:
        """Keep the message as rejected, so that it is out of the way and somebody can look at it."""
        message = self.messages[place]
        log.error("message not storable", uid=message.uid, topic=message.topic, error=f"{error}"[:500])
        refusal = PayloadError("not-storable", "the message could not be stored; the operator of the portal finds why")
        kept = replace(message, parsed=None, error=refusal)
        self.results[place] = self.store.ingest([kept])[0]
