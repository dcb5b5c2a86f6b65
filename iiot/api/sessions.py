"""One's own sessions: where one is signed in, and ending that."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from iiot import tenancy, web
from iiot.services import sessions

api = web.Api("sessions")


class SessionOut(web.Out):
    """A sign-in that still works. `address` and `user_agent`: of its last sign-in or refresh. `current`: the one that asks."""

    id: Annotated[str, Field(validation_alias="uid")]
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    address: str
    user_agent: str
    current: bool = False


class SessionsOut(web.Out):
    """All of them; there are few."""

    items: list[SessionOut]
    total: int


class EndedOut(web.Out):
    """How many sessions were ended."""

    ended: int


@api.route("GET", "/auth/sessions", out=SessionsOut, before_setup=True)
def list_sessions(ctx: web.Context) -> SessionsOut:
    """Where one is signed in, the newest use first."""
    principal = ctx.principal
    with tenancy.work(tenancy.system("sign-in")) as db:
        items = [SessionOut.model_validate(row) for row in sessions.mine(db, principal)]
    for item in items:
        item.current = item.id == principal.session_uid
    return SessionsOut(items=items, total=len(items))


@api.route("DELETE", "/auth/sessions/<session_id>", before_setup=True)
def end_session(ctx: web.Context, session_id: str) -> None:
    """End one of one's sessions: its tokens stop working at once."""
    principal = ctx.principal
    with tenancy.work(tenancy.system("sign-in")) as db:
        sessions.end_one(db, principal, session_id)


@api.route("POST", "/auth/sessions/end-others", out=EndedOut, before_setup=True)
def end_other_sessions(ctx: web.Context) -> EndedOut:
    """End all of one's sessions but this one."""
    principal = ctx.principal
    with tenancy.work(tenancy.system("sign-in")) as db:
        return EndedOut(ended=sessions.end_others(db, principal))
