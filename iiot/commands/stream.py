"""`python -m iiot stream`."""

import threading

import click


@click.command()
def stream() -> None:
    """Follow the batch log: latest values, live events, housekeeping. `up` runs it by itself."""
    from iiot import ending, logs
    from iiot.stream import process

    logs.setup("stream")
    stop = threading.Event()
    ending.set_on_signals(stop)
    process.run(stop)
