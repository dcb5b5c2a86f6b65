"""`python -m iiot device …`."""

import click

from iiot.commands.output import json_option, show, show_one


@click.group()
def device() -> None:
    """List, create and disable devices."""


_tenant = click.option("--tenant", "tenant_name", required=True, help="Id, slug or name of the tenant.")


@device.command(name="list")
@_tenant
@json_option
def list_devices(tenant_name: str, as_json: bool) -> None:
    """List a tenant's devices."""
    from sqlalchemy import select

    from iiot import tenancy
    from iiot.commands.lookup import operator_for
    from iiot.models import Device

    with tenancy.work(tenancy.of(operator_for(tenant_name))) as db:
        rows = [
            {
                "id": one.uid,
                "name": one.name,
                "type": one.type,
                "status": one.status,
                "enabled": one.enabled,
                "last_seen_at": one.last_seen_at,
            }
            for one in db.scalars(select(Device).order_by(Device.id))
        ]
    show(rows, as_json, "This tenant has no device yet.")


@device.command()
@click.argument("name")
@_tenant
@click.option("--type", "kind", default="default", show_default=True, help="Free text, as `pump`.")
@json_option
def create(name: str, tenant_name: str, kind: str, as_json: bool) -> None:
    """Create a device called NAME; its token is printed once."""
    from iiot import tenancy
    from iiot.commands.lookup import operator_for
    from iiot.services import devices

    with tenancy.work(tenancy.of(operator_for(tenant_name))) as db:
        made, token = devices.create(db, devices.NewDevice(name=name, type=kind))
        row = {"id": made.uid, "name": made.name, "token": token}
    show_one(row, as_json)


@device.command()
@click.argument("uid")
@_tenant
def disable(uid: str, tenant_name: str) -> None:
    """Refuse the device UID from now on; its data stays."""
    from iiot import tenancy
    from iiot.commands.lookup import operator_for
    from iiot.services import devices

    with tenancy.work(tenancy.of(operator_for(tenant_name))) as db:
        devices.set_enabled(db, uid, False)
    click.echo(f"{uid} is disabled.")
