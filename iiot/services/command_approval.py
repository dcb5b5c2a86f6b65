"""The four-eyes principle: a command of a device that needs it goes out after a second person has approved it.

Whoever asked for it can cancel it and cannot approve it; API keys approve nothing. The order of a device's commands is that of their approval:
one that waits holds nothing up.
"""

from iiot import auth, clock
from iiot.errors import Conflict, Forbidden
from iiot.models import Command
from iiot.services import audit, command_life, commands, devices
from iiot.tenancy import ScopedSession


def may_approve(command: Command, principal: auth.Principal) -> bool:
    """Whether it waits for an approval, and this is a person, no API key, who did not ask for it."""
    is_person = principal.kind == "user" and principal.api_key_uid is None
    return _waits(command) and is_person and principal.uid != command.created_by_uid


def approve(db: ScopedSession, device_uid: str, uid: str) -> Command:
    """Let a command go out, as the person who is acting.

    Raises NotFound, Forbidden for whoever asked for it and for API keys, Conflict when it does not wait for an approval (any more).
    """
    # The lock puts the commands of one device in order.
    device = devices.locked(db, device_uid)
    command, person = commands.get(db, device_uid, uid, lock=True), auth.current()
    if not _waits(command) or commands.is_due(command, clock.now()):
        state = "approved" if command.approval == "approved" else command.state
        raise Conflict(f"The command does not wait for an approval: it is {state}.", "command-state")
    if person.api_key_uid is not None:
        raise Forbidden("A person has to approve a command: API keys cannot.", "not-for-keys")
    if not may_approve(command, person):
        raise Forbidden("You asked for this command yourself: somebody else has to approve it.", "own-command")
    command.seq = commands.next_seq(db, device.id)
    command.approval, command.approved_at = "approved", clock.now()
    command.approved_by, command.approved_by_uid = person.label or person.uid, person.uid
    db.flush()
    audit.record(
        db, "command.approve", ("command", uid), before={"approval": "waiting"}, after={"approval": "approved"}
    )
    commands.tell(db, command)
    return command


def _waits(command: Command) -> bool:
    return command.approval == "waiting" and not command_life.is_finished(command)
