"""`python -m iiot import …`: what is taken over from the portal's predecessor."""

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iiot.commands.output import json_option, show_one

if TYPE_CHECKING:
    from iiot.services.legacy import Report, Row

REJECTS = "rejected-users.csv"


@click.group(name="import")
def import_() -> None:
    """Take over what another system holds."""


@import_.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--database-url", help="Read the table of another PostgreSQL database instead of a file.")
@click.option("--table", default="users", show_default=True, help="Its table, with or without a schema.")
@click.option("--tenant", "tenant_name", help="Id, slug or name of the tenant they become members of.")
@click.option(
    "--role", type=click.Choice(["admin", "engineer", "operator", "viewer"]), default="viewer", show_default=True
)
@click.option("--rejects", type=click.Path(dir_okay=False, path_type=Path), default=REJECTS, show_default=True)
@json_option
def users(  # noqa: PLR0913, PLR0917 - the options of a command
    file: Path | None,
    database_url: str | None,
    table: str,
    tenant_name: str | None,
    role: str,
    rejects: Path,
    as_json: bool,
) -> None:
    """Import users with unsalted SHA-256 hashes from FILE (CSV), or from the old table.

    Columns: email (or username), name, password_hash (64 hexadecimal digits). Each hash is wrapped in bcrypt at once; people sign in with the passwords they
    have. It can be stopped and run again: who is there is skipped. Rows that cannot be taken are kept in a file of their own.
    """
    from iiot.commands.lookup import operator_for
    from iiot.services import legacy

    if (file is None) == (database_url is None):
        raise click.UsageError("Give a CSV file, or --database-url.")
    target = legacy.Target(operator_for(tenant_name).tenant_id if tenant_name else None, role)
    rows = _of_file(file) if file else _of_table(str(database_url), table)
    bar: Any
    with click.progressbar(length=len(rows), label="Importing", file=sys.stderr) as bar:
        report = legacy.import_users(rows, target, bar.update)
    if report.rejected:
        _keep(report, rejects)
    show_one(
        {
            "imported": report.imported,
            "already_there": report.present,
            "rejected": len(report.rejected),
            "rejects": str(rejects) if report.rejected else None,
        },
        as_json,
    )


def _of_file(path: Path) -> "list[Row]":
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(_rows(csv.DictReader(file, restkey="more")))


def _of_table(url: str, table: str) -> "list[Row]":
    import psycopg2
    from psycopg2 import sql
    from psycopg2.extras import RealDictCursor

    try:
        # The old table is read, never changed.
        connection = psycopg2.connect(url, options="-c default_transaction_read_only=on")
    except psycopg2.Error as error:
        raise click.ClickException(f"The old database does not answer: {error}") from None
    try:
        with connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(*table.split("."))))
            return list(_rows(cursor.fetchall()))
    except psycopg2.Error as error:
        raise click.ClickException(f"The table {table} cannot be read: {error}") from None
    finally:
        connection.close()


def _rows(found: "Sequence[dict[str, Any]] | csv.DictReader[str]") -> "Iterator[Row]":
    from iiot.services.legacy import Row

    for number, columns in enumerate(found, start=1):
        texts = {name.strip().lower(): "" if text is None else str(text) for name, text in columns.items()}
        yield Row(number, texts)


def _keep(report: "Report", path: Path) -> None:
    """The rows that were not taken, as they came, with number and reason: mend them and import this file."""
    names = list(dict.fromkeys(name for row, _ in report.rejected for name in row.columns))
    # It holds bare hashes, so nobody else may read it.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["row", "reason", *(name for name in names if name not in ("row", "reason"))])
        writer.writeheader()
        for row, reason in report.rejected:
            writer.writerow(row.columns | {"row": row.number, "reason": reason})
