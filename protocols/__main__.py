"""`python -m protocols list | check <name> | run <name> | send <name>`: the adapters from the command line."""

from __future__ import annotations

import gc
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

import click
import structlog

import protocols
from iiot import config, ending, logs
from protocols.base import AdapterError

# What makes a module of this package an adapter, see `protocols.base`; the others have no such line.
_OFFER: Final = re.compile(r"^NAME\b[^\n=]*=", re.MULTILINE)


def names() -> list[str]:
    """The adapters of this package, by looking into its files: those of the others are not even imported."""
    files = [path for folder in protocols.__path__ for path in Path(folder).glob("*.py")]
    return sorted(path.stem for path in files if path.stem != "__main__" and _OFFER.search(path.read_text("utf-8")))


def adapter(name: str) -> ModuleType:
    """The module of one adapter. Raises AdapterError when it does not offer what `protocols.base` asks for."""
    module = importlib.import_module(f"protocols.{name}")
    missing = [each for each in ("DESCRIPTION", "make") if not hasattr(module, each)]
    if missing or name != module.NAME:
        raise AdapterError(
            f"protocols/{name}.py is no adapter: {' and '.join(missing) or 'a NAME equal to its own'} missing"
        )
    return module


@click.group()
def main() -> None:
    """Protocol adapters of the IIoT Portal."""


@main.command("list")
def list_adapters() -> None:
    """Say which adapters there are."""
    for name in names():
        try:
            said = adapter(name).DESCRIPTION
        except (AdapterError, ImportError) as error:
            said = f"cannot be used: {error}"
        click.echo(f"{name:8} {said}")


_name = click.argument("name", type=click.Choice(names()))


@main.command()
@_name
def check(name: str) -> None:
    """Connect once and say whether the adapter could work."""
    adapter(name).make(config.load()).check()
    click.echo(f"{name}: ok")


@main.command()
@_name
def run(name: str) -> None:
    """Run one adapter until SIGTERM or Ctrl-C; then finish the batch, acknowledge, and leave."""
    from protocols.runner import Runner  # Imported late: it brings the database along, which `list` does not need.

    settings = config.load()
    logs.setup(f"protocol-{name}", settings)
    made = adapter(name).make(settings)
    runner = Runner(name, late_after=settings.late_after)
    ending.set_on_signals(runner.stop)
    # Thousands of messages are alive at any moment and none is in a cycle: with the default the collector takes a third of the time.
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)
    # The writer asks for the interpreter after every answer of the database; it shall not wait five milliseconds for the reader each time.
    sys.setswitchinterval(0.0005)
    runner.run(made)
    structlog.get_logger("protocols").info("stopped", protocol=name)


@main.command()
@_name
@click.option("--uid", required=True, help="The device.")
@click.option("--token", required=True, envvar="IIOT_DEVICE_TOKEN", help="Its token.")
@click.argument("payload")
def send(name: str, uid: str, token: str, payload: str) -> None:
    """Send one telemetry PAYLOAD as a device, '-' reads it from standard input."""
    content = sys.stdin.buffer.read() if payload == "-" else payload.encode()
    adapter(name).make(config.load()).send(uid, token, content)
    click.echo("sent")


if __name__ == "__main__":
    try:
        main()
    except (AdapterError, config.SettingsError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
