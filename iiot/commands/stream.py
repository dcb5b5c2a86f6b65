"""`python -m iiot stream`."""

import signal
import threading

import click


@click.command()
def stream() -> None:
    """Follow the batch log: latest values, live events, housekeeping. `up` runs it by itself."""
    from iiot import logs
    from iiot.stream import process

    logs.setup("stream")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    process.run(stop)
