"""Orders to devices: people and programs give them, devices fetch and answer them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from flask import request
from pydantic import Field
from sqlalchemy.orm import Session
from werkzeug.exceptions import RequestEntityTooLarge

from iiot import tenancy, web
from iiot.errors import Conflict, NotFound, Problem, WrongDevice
from iiot.payloads import PayloadError
from iiot.services import command_approval, command_bell, command_delivery, commands, credentials, presence
from iiot.services.command_delivery import Order
from iiot.services.ingest import KEPT_PAYLOAD, Incoming, ingest
from iiot.services.listing import Wanted
from iiot.services.presence import StatusEvent

api = web.Api("commands")

LONGEST_WAIT = 30
Approval = Literal["waiting", "approved"]
State = Literal["queued", "sent", "delivered", "done", "failed", "expired", "cancelled"]


class CommandIn(web.Body):
    """A new order."""

    name: Annotated[str, Field(min_length=1, max_length=commands.MAX_NAME)]
    params: Annotated[dict[str, Any], Field(description="At most 8 KiB of JSON.")] = {}
    ttl: Annotated[
        int,
        Field(ge=commands.MIN_TTL, le=commands.MAX_TTL, description="Seconds until it expires, if it is not finished."),
    ] = commands.TTL_SECONDS
    idempotency_key: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=commands.MAX_KEY,
            description="The same key again answers with the first command and orders nothing. The header Idempotency-Key does the same.",
        ),
    ] = None


class StepOut(web.Out):
    """A state of a command, and since when."""

    state: State
    at: datetime


class CommandOut(web.Out):
    """An order to a device. `history`: its states so far, oldest first. `result`: what the device answered."""

    id: Annotated[str, Field(validation_alias="uid")]
    device_id: Annotated[str, Field(validation_alias="device_uid")]
    name: str
    params: dict[str, Any]
    state: State
    created_by: Annotated[str, Field(description="Who asked for it.")]
    approval: Annotated[Approval | None, Field(description="null: nobody has to approve it.")]
    approved_by: str | None
    approved_at: datetime | None
    created_at: datetime
    expires_at: datetime
    history: list[StepOut]
    result: Any


class CommandQuery(web.ListQuery):
    """Which commands of a device."""

    state: State | None = None
    approval: Approval | None = None


class CommandPage(web.Page[CommandOut]):
    """Commands, the newest first."""


class OrderOut(web.Out):
    """What a device has to do, as in every protocol."""

    id: Annotated[str, Field(validation_alias="uid")]
    name: str
    params: dict[str, Any]
    expires_at: datetime


class ChildOrderOut(OrderOut):
    """What a child of this gateway has to do."""

    device: Annotated[str, Field(validation_alias="child", description="What the gateway calls the child.")]


class OrdersOut(web.Out):
    """The next command, or nothing."""

    items: list[ChildOrderOut | OrderOut]


class OrderQuery(web.Query):
    """How long the answer may wait for a command."""

    wait: Annotated[float, Field(ge=0, le=LONGEST_WAIT, description="Seconds.")] = 0


@api.route(
    "POST",
    "/devices/<device_id>/commands",
    body=CommandIn,
    out=CommandOut,
    status=201,
    permission="device:command",
    limit="control",
    problems=(404, 409),
)
def create_command(ctx: web.Context, device_id: str, body: CommandIn) -> CommandOut:
    """Order a device to do something.

    Commands of one device go out strictly one after another. 100 per person and hour.
    """
    new = commands.NewCommand(body.name, body.params, body.ttl, ctx.idempotency_key(body.idempotency_key))
    with tenancy.work(ctx.scope) as db:
        command = commands.create(db, device_id, new)
        made = CommandOut.model_validate(command)
    ctx.headers["Location"] = f"{web.PREFIX}/devices/{device_id}/commands/{made.id}"
    return made


@api.route(
    "GET",
    "/devices/<device_id>/commands",
    query=CommandQuery,
    out=CommandPage,
    permission="device:read",
    problems=(404,),
)
def list_commands(ctx: web.Context, device_id: str, query: CommandQuery) -> CommandPage:
    """List a device's commands, the newest first."""
    kind = f"commands:{device_id}:{query.state}:{query.approval}"
    wanted = Wanted("-created_at", query.limit, web.decode_cursor(kind, query.cursor))
    with tenancy.work(ctx.scope) as db:
        found = commands.search(db, device_id, commands.Filters(query.state, query.approval), wanted)
    return CommandPage(**web.page(kind, found, [CommandOut.model_validate(each) for each in found.items]))


@api.route("GET", "/devices/<device_id>/commands/<command_id>", out=CommandOut, permission="device:read")
def get_command(ctx: web.Context, device_id: str, command_id: str) -> CommandOut:
    """Read a command."""
    with tenancy.work(ctx.scope) as db:
        return CommandOut.model_validate(commands.get(db, device_id, command_id))


@api.route(
    "POST",
    "/devices/<device_id>/commands/<command_id>/cancel",
    out=CommandOut,
    permission="device:command",
    problems=(404, 409),
)
def cancel_command(ctx: web.Context, device_id: str, command_id: str) -> CommandOut:
    """Cancel a command.

    Possible until the device has confirmed it. One that was sent may already be on its way; its answer is then refused.
    """
    with tenancy.work(ctx.scope) as db:
        return CommandOut.model_validate(commands.cancel(db, device_id, command_id))


@api.route(
    "POST",
    "/devices/<device_id>/commands/<command_id>/approve",
    out=CommandOut,
    permission="device:command",
    problems=(404, 409),
)
def approve_command(ctx: web.Context, device_id: str, command_id: str) -> CommandOut:
    """Approve a command.

    For devices with `needs_approval`: a command goes out after a second person has approved it. Whoever asked for it cannot (403 own-command).
    """
    with tenancy.work(ctx.scope) as db:
        return CommandOut.model_validate(command_approval.approve(db, device_id, command_id))


@api.route("GET", "/commands", auth="device", query=OrderQuery, out=OrdersOut)
def next_command(ctx: web.Context, query: OrderQuery) -> OrdersOut:
    """Fetch the command that this device has to do now.

    For devices. With `wait` the answer comes as soon as there is a command, or empty after so many seconds. A command that was handed out and not
    answered comes again; the next one follows when it is answered, expired or cancelled.
    From then on this device's commands wait for its question. A gateway gets those of its children, too. A question that waits while its token is
    revoked or replaced, or the device disabled, is refused at once.
    """
    device_id, uid = ctx.principal.device_id or 0, ctx.principal.device_uid or ""
    offered = request.authorization
    token = (offered.password if offered else None) or ""

    def look() -> Order | None:
        return command_delivery.poll(ctx.scope, device_id, check=lambda db: _check_proof(db, uid, token))

    order = command_bell.wait_for(uid, look, query.wait)
    if order is None:
        return OrdersOut(items=[])
    return OrdersOut(items=[(ChildOrderOut if order.child else OrderOut).model_validate(order)])


def _check_proof(db: Session, uid: str, token: str) -> None:
    """Raises what the device would be told if it asked now."""
    if credentials.authenticate(db, uid, token) is None:
        raise WrongDevice


@api.route("POST", "/commands/<command_id>/result", auth="device", raw=True, problems=(404, 409))
def answer_command(ctx: web.Context, command_id: str) -> None:
    """Say what became of a command.

    For devices: {"status": "done" or "failed", "result": …}, JSON; the result may be left out and has at most 8 KiB. The same answer again changes
    nothing; another one, one that comes too late and one that cannot be read are refused and kept with the refused messages.
    """
    web.check_json()
    uid, payload = ctx.principal.device_uid or "", _payload(ctx)
    with tenancy.work(ctx.scope) as db:
        refused = command_delivery.take(db, command_delivery.parse_answer(uid, command_id, payload))
    if refused is not None:
        topic = f"POST {web.PREFIX}/commands/{command_id}/result"
        ingest([Incoming(uid, None, refused, command_delivery.HTTP, topic, payload, ctx.media_type)])
        raise _problem(refused)
    presence.status([StatusEvent(uid, True, "answer", command_delivery.HTTP, is_said=False)])


def _payload(ctx: web.Context) -> bytes:
    """The body; of one that is far too large the beginning, which is too large as well."""
    try:
        return ctx.body(KEPT_PAYLOAD)
    except RequestEntityTooLarge:
        return ctx.beginning(KEPT_PAYLOAD)


def _problem(refused: PayloadError) -> Problem:
    if refused.code == "unknown-command":
        return NotFound("command")
    detail = f"{refused.reason[:1].upper()}{refused.reason[1:]}."
    if refused.code == "command-finished":
        return Conflict(detail, "command-finished")
    status, title = (413, "too-large") if refused.code == "too-large" else (422, "invalid")
    extra = {"code": refused.code, "limit": refused.limit, "allowed": refused.allowed}
    return Problem(status, title, detail, errors=[{"loc": ["body"], "msg": refused.reason}], extra=extra)
