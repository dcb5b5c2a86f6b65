"""`python -m iiot tenant …`."""

import click

from iiot.commands.output import json_option, show, show_one


@click.group()
def tenant() -> None:
    """List and create tenants."""


@tenant.command(name="list")
@json_option
def list_tenants(as_json: bool) -> None:
    """List all tenants."""
    from sqlalchemy import select

    from iiot import tenancy
    from iiot.models import Tenant

    with tenancy.work(tenancy.system("operator")) as db:
        found = db.scalars(select(Tenant).order_by(Tenant.id)).all()
        rows = [{"id": one.uid, "slug": one.slug, "name": one.name, "created_at": one.created_at} for one in found]
    show(rows, as_json, "There is no tenant yet.")


@tenant.command()
@click.argument("name")
@click.option("--timezone", default="UTC", show_default=True, help="IANA name of its time zone.")
@json_option
def create(name: str, timezone: str, as_json: bool) -> None:
    """Create a tenant called NAME."""
    from iiot import tenancy
    from iiot.services import tenants

    with tenancy.work(tenancy.system("operator")) as db:
        made = tenants.create(db, name, timezone)
        row = {"id": made.uid, "slug": made.slug, "name": made.name}
    show_one(row, as_json)
