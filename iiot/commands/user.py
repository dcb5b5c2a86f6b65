"""`python -m iiot user …`."""

import click

from iiot.commands.accounts import legacy, reset_link
from iiot.commands.output import json_option, show, show_one


@click.group()
def user() -> None:
    """List and create users, disable and enable them, give a new one-time password."""


user.add_command(reset_link)
user.add_command(legacy)


@user.command(name="list")
@json_option
def list_users(as_json: bool) -> None:
    """List all users with their tenants and roles."""
    from sqlalchemy import func, select

    from iiot import tenancy
    from iiot.models import Membership, Role, Tenant, User

    with tenancy.work(tenancy.system("operator")) as db:
        members: dict[int, list[str]] = {}
        pairs = (
            select(Membership.user_id, func.coalesce(Role.name, Membership.role), Tenant.slug)
            .join(Tenant, Tenant.id == Membership.tenant_id)
            .outerjoin(Role, (Role.tenant_id == Membership.tenant_id) & (Role.id == Membership.role_id))
        )
        for user_id, role, slug in db.execute(pairs):
            members.setdefault(user_id, []).append(f"{slug}:{role}")
        rows = [
            {
                "email": one.email,
                "name": one.name,
                "status": one.status,
                "platform_admin": one.is_platform_admin,
                "tenants": " ".join(members.get(one.id, [])),
            }
            for one in db.scalars(select(User).order_by(User.id))
        ]
    show(rows, as_json, "There is no user yet.")


@user.command()
@click.argument("email")
@click.option("--tenant", "tenant_name", required=True, help="Id, slug or name of the tenant.")
@click.option(
    "--role", type=click.Choice(["admin", "engineer", "operator", "viewer"]), default="viewer", show_default=True
)
@click.option("--name", default="", help="The person's name.")
@json_option
def create(email: str, tenant_name: str, role: str, name: str, as_json: bool) -> None:
    """Create a user in a tenant; prints a one-time password that must be changed at the first sign-in."""
    from iiot import tenancy
    from iiot.commands.lookup import operator_for
    from iiot.services import audit, users

    operator = operator_for(tenant_name)
    password = users.one_time_password()
    with tenancy.work(tenancy.system("operator")) as db:
        made = users.create(db, email, password, name, must_change=True)
        users.add_member(db, operator.tenant_id, made.id, role)
        noted = {"email": made.email, "tenant": operator.tenant_uid, "role": role}
        audit.record(db, "user.create", ("user", made.uid), after=noted)
        row = {"email": made.email, "role": role, "password": password}
    show_one(row, as_json)


@user.command()
@click.argument("email")
@json_option
def disable(email: str, as_json: bool) -> None:
    """Shut EMAIL out of the portal at once: sessions end, API keys stop working. Memberships stay."""
    _set_status(email, "disabled", as_json)


@user.command()
@click.argument("email")
@json_option
def enable(email: str, as_json: bool) -> None:
    """Let EMAIL, who was disabled, sign in again."""
    _set_status(email, "active", as_json)


def _set_status(email: str, status: str, as_json: bool) -> None:
    from iiot import tenancy
    from iiot.services import users

    with tenancy.work(tenancy.system("operator")) as db:
        changed = users.set_status(db, email, status)
    show_one({"email": changed.email, "status": changed.status}, as_json)


@user.command(name="reset-password")
@click.argument("email")
@json_option
def reset_password(email: str, as_json: bool) -> None:
    """Give EMAIL a new one-time password and end all its sessions."""
    from iiot import tenancy
    from iiot.services import users

    password = users.one_time_password()
    with tenancy.work(tenancy.system("operator")) as db:
        users.set_password(db, email, password)
    show_one({"email": email, "password": password}, as_json)
