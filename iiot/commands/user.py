"""`python -m iiot user …`."""

import click

from iiot.commands.output import json_option, show, show_one


@click.group()
def user() -> None:
    """List and create users, give a new one-time password."""


@user.command(name="list")
@json_option
def list_users(as_json: bool) -> None:
    """List all users with their tenants and roles."""
    from sqlalchemy import select

    from iiot import tenancy
    from iiot.models import Membership, Tenant, User

    with tenancy.work(tenancy.system("operator")) as db:
        members: dict[int, list[str]] = {}
        pairs = select(Membership.user_id, Membership.role, Tenant.slug).join(Tenant, Tenant.id == Membership.tenant_id)
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
    from iiot.services import users

    operator = operator_for(tenant_name)
    password = users.one_time_password()
    with tenancy.work(tenancy.system("operator")) as db:
        made = users.create(db, email, password, name, must_change=True)
        users.add_member(db, operator.tenant_id, made.id, role)
        row = {"email": made.email, "role": role, "password": password}
    show_one(row, as_json)


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
