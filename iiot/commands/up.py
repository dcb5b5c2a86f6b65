"""`python -m iiot up`."""

import os
import sys
from pathlib import Path

import click


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Databases, keys and run.json.  [default: IIOT_DATA_DIR, else ./var]",
)
@click.option("--color/--no-color", default=None, help="Colour the console.  [default: on a terminal]")
def up(data_dir: Path | None, color: bool | None) -> None:
    """Run the whole portal with everything it needs, until Ctrl-C.

    Services that are configured by IIOT_DATABASE_URL, IIOT_REDIS_URL or IIOT_MQTT_URL are used, all others are started here.
    """
    from iiot.embedded.up import Up

    folder = data_dir or Path(os.environ.get("IIOT_DATA_DIR") or "var")
    wanted = "NO_COLOR" not in os.environ if color is None else color
    sys.exit(Up(folder, wanted).run())
