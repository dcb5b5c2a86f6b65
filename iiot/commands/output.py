"""How commands print lists: a table for people, JSON for programs."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

json_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)


def show(rows: Sequence[dict[str, Any]], as_json: bool, empty: str = "Nothing to show.") -> None:
    """Print rows of equal keys."""
    if as_json:
        click.echo(json.dumps(list(rows), indent=1, default=str))
        return
    if not rows:
        click.echo(empty)
        return
    names = list(rows[0])
    texts = [names, *[["" if row[name] is None else str(row[name]) for name in names] for row in rows]]
    widths = [max(len(line[column]) for line in texts) for column in range(len(names))]
    for line in texts:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def show_one(row: dict[str, Any], as_json: bool) -> None:
    """Print one thing, a line per field."""
    if as_json:
        click.echo(json.dumps(row, indent=1, default=str))
        return
    width = max(len(name) for name in row)
    for name, value in row.items():
        click.echo(f"{name.ljust(width)}  {'' if value is None else value}")
