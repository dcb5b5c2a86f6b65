"""The operator's tool, `python -m iiot`: names the commands; each is loaded when it is called, so that all start quickly."""

import importlib
import sys

import click

from iiot import __version__

# Command → (module, its click command). The help of a group is read from the module only when it is shown.
COMMANDS = {
    "up": "iiot.commands.up:up",
    "stream": "iiot.commands.stream:stream",
    "db": "iiot.commands.db:db",
    "config": "iiot.commands.config:settings",
    "tenant": "iiot.commands.tenant:tenant",
    "user": "iiot.commands.user:user",
    "import": "iiot.commands.legacy:import_",
    "device": "iiot.commands.device:device",
    "opcua": "iiot.commands.opcua:opcua",
    "audit": "iiot.commands.audit:audit",
    "doctor": "iiot.commands.doctor:doctor",
    "simulate": "iiot.simulate:simulate",
    "openapi": "iiot.commands.openapi:openapi",
}


class Lazy(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table above."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        return command if isinstance(command, click.Command) else None


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="iiot")
def cli() -> None:
    """Run and look after the IIoT Portal.

    Exit status: 0 done, 1 failed, 2 wrong use.
    """


def main() -> None:
    """Run a command; what can go wrong for reasons outside the program is one line, not a traceback."""
    try:
        cli(prog_name="python -m iiot", standalone_mode=True)
    except Exception as error:
        text = explain(error)
        if text is None:
            raise
        click.echo(f"error: {text}", err=True)
        sys.exit(1)


def explain(error: Exception) -> str | None:
    """What to tell the operator, or None when the error is a defect of the program."""
    from iiot.config import SettingsError
    from iiot.embedded import EmbeddedError
    from iiot.errors import Problem

    if isinstance(error, Problem):
        mistakes = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors or ()]
        return " ".join([error.detail, "; ".join(mistakes)]).strip()
    if isinstance(error, SettingsError | EmbeddedError):
        return str(error)
    # Compared by name: SQLAlchemy, alembic and redis are loaded only by the commands that use them.
    origin = type(error).__module__.partition(".")[0]
    if origin == "sqlalchemy" and type(error).__name__ == "OperationalError":
        return f"The database does not answer: {getattr(error, 'orig', error)}Is the portal running? Start it with `make run`."
    if origin in ("alembic", "redis") or type(error).__name__ == "SchemaError":
        return str(error)
    return None
