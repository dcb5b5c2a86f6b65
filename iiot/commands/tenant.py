"""`python -m iiot tenant …`."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from iiot.commands.output import json_option, show, show_one

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from iiot.models import Tenant

# The names of services.quotas.NAMES; a test compares them. Importing it here would load the database for `--help`.
LIMITS = (
    "devices",
    "users",
    "rules",
    "signals_per_device",
    "readings_per_day",
    "api_requests_per_day",
    "connections",
)


@click.group()
def tenant() -> None:
    """Tenants: list, create, suspend, restore, delete, and their quotas."""


def _row(one: "Tenant") -> dict[str, Any]:
    return {
        "id": one.uid,
        "slug": one.slug,
        "name": one.name,
        "status": one.status,
        "reason": one.status_reason,
        "delete_at": one.delete_at,
        "created_at": one.created_at,
    }


@contextlib.contextmanager
def _of(name: str) -> "Iterator[Session]":
    """A session of the operator for one tenant."""
    from iiot import tenancy
    from iiot.commands.lookup import operator_for

    with tenancy.work(tenancy.system("operator", operator_for(name).tenant_id)) as db:
        yield db


@tenant.command(name="list")
@json_option
def list_tenants(as_json: bool) -> None:
    """List all tenants."""
    from sqlalchemy import select

    from iiot import tenancy
    from iiot.models import Tenant

    with tenancy.work(tenancy.system("operator")) as db:
        rows = [_row(one) for one in db.scalars(select(Tenant).order_by(Tenant.id))]
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


@tenant.command()
@click.argument("name")
@click.option("--reason", required=True, help="Why; the tenant's people read it.")
@json_option
def suspend(name: str, reason: str, as_json: bool) -> None:
    """Suspend the tenant NAME (id, slug or name): people read only, devices are refused."""
    from iiot.services import tenants

    with _of(name) as db:
        row = _row(tenants.set_status(db, "suspended", reason, None))
    show_one(row, as_json)


@tenant.command()
@click.argument("name")
@json_option
def restore(name: str, as_json: bool) -> None:
    """Let the suspended tenant NAME in again, or keep one that is being deleted."""
    from iiot.services import tenants

    with _of(name) as db:
        row = _row(tenants.set_status(db, "active", "", None))
    show_one(row, as_json)


@tenant.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(name: str, yes: bool, as_json: bool) -> None:
    """Delete the tenant NAME in 30 days; `restore` keeps it until then."""
    from iiot.services import tenants

    if not yes:
        click.confirm(f"Delete the tenant {name} with its devices and readings in 30 days?", abort=True, err=True)
    with _of(name) as db:
        row = _row(tenants.start_deletion(db))
    show_one(row, as_json)


@tenant.group()
def quota() -> None:
    """What a tenant may use."""


def _quota_rows(name: str) -> list[dict[str, Any]]:
    from iiot import tenancy
    from iiot.commands.lookup import operator_for
    from iiot.services import usage

    with tenancy.work(tenancy.of(operator_for(name))) as db:
        return [
            {"quota": limit, "limit": use.limit, "used": use.used, "forecast": use.forecast}
            for limit, use in usage.report(db).items()
        ]


@quota.command(name="show")
@click.argument("name")
@json_option
def show_quota(name: str, as_json: bool) -> None:
    """Limits, use and forecast of the tenant NAME."""
    show(_quota_rows(name), as_json)


def _limit_options(command: Any) -> Any:
    for name in reversed(LIMITS):
        text = f"Limit of {name.replace('_', ' ')}."
        command = click.option(f"--{name.replace('_', '-')}", name, type=click.IntRange(0, 2**53), help=text)(command)
    return command


@quota.command(name="set")
@click.argument("name")
@click.option("--plan", "plan_name", help="Id or name of a plan, which sets all limits.")
@_limit_options
@json_option
def set_quota(name: str, plan_name: str | None, as_json: bool, **limits: int | None) -> None:
    """Change limits of the tenant NAME."""
    from iiot.services import plans, tenants

    given = {limit: value for limit, value in limits.items() if value is not None}
    if bool(given) == (plan_name is not None):
        raise click.UsageError("Give at least one limit, or a plan.")
    with _of(name) as db:
        plan = next((each.uid for each in plans.every(db) if plan_name in (each.uid, each.name)), plan_name)
        tenants.set_limits(db, given, plan)
    show(_quota_rows(name), as_json)
