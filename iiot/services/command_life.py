"""The life of a command: one table of transitions that everything uses, and the history it leaves."""

from datetime import datetime
from typing import Final

from iiot.clock import rfc3339
from iiot.errors import Conflict
from iiot.models import Command

# queued → sent → delivered → done or failed; what is not finished in time expires, and people may call back what no device has confirmed.
TRANSITIONS: Final[dict[str, frozenset[str]]] = {
    "queued": frozenset(("sent", "expired", "cancelled")),
    "sent": frozenset(("delivered", "expired", "cancelled")),
    "delivered": frozenset(("done", "failed", "expired")),
    "done": frozenset(),
    "failed": frozenset(),
    "expired": frozenset(),
    "cancelled": frozenset(),
}
STATES: Final = tuple(TRANSITIONS)
UNFINISHED: Final = tuple(state for state, following in TRANSITIONS.items() if following)
# The way that an answer proves the command to have gone.
WAY: Final = ("queued", "sent", "delivered")
_STAMPS: Final = {"sent": "sent_at", "delivered": "delivered_at"}


def may(command: Command, state: str) -> bool:
    """Whether the command may go to `state` from where it is."""
    return state in TRANSITIONS[command.state]


def is_finished(command: Command) -> bool:
    """Whether nothing can happen to it any more."""
    return not TRANSITIONS[command.state]


def begin(command: Command, at: datetime) -> None:
    """A new command's first state and history."""
    command.state, command.created_at = "queued", at
    command.history = [_entry("queued", at)]


def advance(command: Command, state: str, at: datetime) -> None:
    """Go to the next state and note it; raises Conflict for a transition that the table does not allow."""
    if not may(command, state):
        raise Conflict(f"The command is {command.state}: it cannot become {state}.", "command-state")
    command.state = state
    # A new list: the ORM does not see what happens inside one.
    command.history = [*command.history, _entry(state, at)]
    setattr(command, _STAMPS.get(state, "finished_at"), at)


def confirm(command: Command, at: datetime) -> None:
    """The device has shown that it has the command: go on to `delivered`, through what lies before."""
    for state in WAY[WAY.index(command.state) + 1 :]:
        advance(command, state, at)


def _entry(state: str, at: datetime) -> dict[str, str]:
    return {"state": state, "at": rfc3339(at) or ""}
