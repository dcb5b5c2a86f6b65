"""`python -m iiot config …`: what the settings are, and whether they are usable."""

import re
from typing import Any

import click
from pydantic import SecretStr

from iiot.commands.output import json_option, show

_PASSWORD = re.compile(r"(?<=://)([^/@]*:)[^/@]+(?=@)")


@click.group(name="config")
def settings() -> None:
    """Check and show the settings."""


@settings.command()
def check() -> None:
    """Read the settings; every mistake is listed, exit status 1."""
    from iiot import config

    config.read()
    click.echo("The settings are usable.")


@settings.command(name="show")
@json_option
def show_settings(as_json: bool) -> None:
    """Print the settings in force, secrets hidden."""
    from iiot import config

    values = config.read()
    rows = [
        {
            "name": f"{config.PREFIX}{name.upper()}",
            "value": mask(getattr(values, name)),
            "set": name in values.model_fields_set,
        }
        for name in type(values).model_fields
    ]
    show(rows, as_json)


def mask(value: Any) -> Any:
    """A setting's value without secrets: passwords in addresses are hidden, secret values shown as set or not."""
    if isinstance(value, SecretStr):
        return "[hidden]" if value.get_secret_value() else None
    if isinstance(value, str):
        return _PASSWORD.sub(r"\1[hidden]", value)
    return value if value is None or isinstance(value, bool | int | list) else str(value)
