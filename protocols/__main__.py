"""`python -m protocols list | check <name> | run <name> | send <name>`: the adapters from the command line."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import signal
import sys
from types import ModuleType

import click
import structlog

import protocols
from iiot import config, logs
from protocols.base import AdapterError

GIVEN = ("base", "buckets", "devices", "news", "orders", "people", "plant", "runner", "served", "translate")


def adapters() -> dict[str, ModuleType]:
    """Every adapter: the modules of this package that offer `make`."""
    found: dict[str, ModuleType] = {}
    for info in pkgutil.iter_modules(protocols.__path__):
        # A name with an underscore is a part of an adapter, and the others are what adapters are given.
        if "_" not in info.name and info.name not in GIVEN:
            module = importlib.import_module(f"protocols.{info.name}")
            if hasattr(module, "make"):
                found[info.name] = module
    return found


@click.group()
def main() -> None:
    """Protocol adapters of the IIoT Portal."""


@main.command("list")
def list_adapters() -> None:
    """Say which adapters there are."""
    for name, module in adapters().items():
        click.echo(f"{name:8} {module.DESCRIPTION}")


_name = click.argument("name", type=click.Choice(sorted(adapters())))


@main.command()
@_name
def check(name: str) -> None:
    """Connect once and say whether the adapter could work."""
    adapters()[name].make(config.load()).check()
    click.echo(f"{name}: ok")


@main.command()
@_name
def run(name: str) -> None:
    """Run one adapter until SIGTERM or Ctrl-C; then finish the batch, acknowledge, and leave."""
    from protocols.runner import Runner  # Imported late: it brings the database along, which `list` does not need.

    settings = config.load()
    logs.setup(f"protocol-{name}", settings)
    adapter = adapters()[name].make(settings)
    runner = Runner(name)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: runner.stop.set())
    # Thousands of messages are alive at any moment and none is in a cycle: with the default the collector takes a third of the time.
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)
    # The writer asks for the interpreter after every answer of the database; it shall not wait five milliseconds for the reader each time.
    sys.setswitchinterval(0.0005)
    runner.run(adapter)
    structlog.get_logger("protocols").info("stopped", protocol=name)


@main.command()
@_name
@click.option("--uid", required=True, help="The device.")
@click.option("--token", required=True, envvar="IIOT_DEVICE_TOKEN", help="Its token.")
@click.argument("payload")
def send(name: str, uid: str, token: str, payload: str) -> None:
    """Send one telemetry PAYLOAD as a device, '-' reads it from standard input."""
    content = sys.stdin.buffer.read() if payload == "-" else payload.encode()
    adapters()[name].make(config.load()).send(uid, token, content)
    click.echo("sent")


if __name__ == "__main__":
    try:
        main()
    except (AdapterError, config.SettingsError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
