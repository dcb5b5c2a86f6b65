"""`python -m iiot user …`: letting somebody in again, and who still has a hash of the portal's predecessor."""

import click

from iiot.commands.output import json_option, show, show_one


@click.command(name="reset-link")
@click.argument("email")
@json_option
def reset_link(email: str, as_json: bool) -> None:
    """Make a one-time link with which the person with the address EMAIL chooses a new password; it works for an hour."""
    from iiot import clock, tenancy
    from iiot.services import passwords

    with tenancy.work(tenancy.system("operator")) as db:
        made = passwords.operator_link(db, email)
    show_one({"link": made.link, "expires_at": clock.rfc3339(made.expires_at)}, as_json)


@click.command()
@json_option
def legacy(as_json: bool) -> None:
    """List who has not signed in since the import: their passwords are wrapped SHA-256 hashes until they do."""
    from iiot import tenancy
    from iiot.services import legacy as imports

    with tenancy.work(tenancy.system("operator")) as db:
        rows = [
            {"email": each.email, "name": each.name, "imported_at": each.created_at} for each in imports.remaining(db)
        ]
    show(rows, as_json, "Nobody is left: every imported password was replaced by a stronger hash.")
