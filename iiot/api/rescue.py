"""Letting members in again who lost their password or their second factor."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from iiot import tenancy, web
from iiot.errors import NotFound
from iiot.models import User
from iiot.services import mfa, passwords

api = web.Api("rescue")


class EmptyIn(web.Body):
    """Nothing is needed."""


class LinkOut(web.Out):
    """A one-time link to a new password: give it to the person on a way that others cannot read. Shown once."""

    link: str
    expires_at: datetime


def _user(db: Session, uid: str) -> User:
    found = db.scalar(select(User).where(User.uid == uid))
    if found is None:
        raise NotFound("user")
    return found


@api.route(
    "POST",
    "/tenants/<tenant_id>/users/<user_id>/reset-link",
    body=EmptyIn,
    out=LinkOut,
    status=201,
    permission="member:write",
    of_tenant=True,
)
def reset_link(ctx: web.Context, tenant_id: str, user_id: str, body: EmptyIn) -> passwords.Link:
    """Make a one-time link to a new password for a member who belongs to this tenant alone."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        return passwords.admin_link(db, ctx.principal, _user(db, user_id))


@api.route(
    "DELETE",
    "/tenants/<tenant_id>/users/<user_id>/mfa",
    permission="member:write",
    of_tenant=True,
    problems=(409,),
)
def reset_mfa(ctx: web.Context, tenant_id: str, user_id: str) -> None:
    """Remove the second factor of a member who lost it and belongs to this tenant alone; their sessions end."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        mfa.reset(db, ctx.principal, _user(db, user_id))
