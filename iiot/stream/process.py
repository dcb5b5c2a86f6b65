"""`python -m iiot stream`: the tailers of the portal itself and the housekeeping, each in a thread of its own."""

import threading
import time
from collections.abc import Callable

import structlog

from iiot.stream import housekeeping, rollup
from iiot.stream.latest import LatestEffect
from iiot.stream.live import LiveEffect
from iiot.stream.log import Tailer
from iiot.stream.loop import Doorbell, Pace, follow

log = structlog.get_logger(__name__)

DRAIN_SECONDS = 5.0


def run(stop: threading.Event) -> None:
    """Work until `stop` is set, then let the steps at work finish, for five seconds at most.

    A database or Redis that is down is waited for; the threads never end by themselves.
    """
    doorbell = Doorbell()
    latest = Tailer("latest", LatestEffect())
    live = Tailer("live", LiveEffect())
    hours = rollup.tailer()
    tasks: dict[str, Callable[[], None]] = {
        "listen": lambda: doorbell.listen(stop),
        # Newest values are asked for, not waited for: at load they are written once a second, which spares the database most of it.
        "latest": lambda: follow(latest, stop, doorbell, Pace(duty=0.02, least=0.2, longest=1.0)),
        "live": lambda: follow(live, stop, doorbell, Pace(duty=0.35, least=0.01, longest=0.2)),
        "rollup": lambda: follow(hours, stop, doorbell, Pace(duty=0.1, least=1.0, longest=2.0)),
        "housekeeping": lambda: housekeeping.run(stop),
    }
    threads = [threading.Thread(target=task, name=name, daemon=True) for name, task in tasks.items()]
    for thread in threads:
        thread.start()
    log.info("stream started", tailers=[latest.name, live.name, hours.name])
    stop.wait()
    doorbell.ring()
    deadline = time.monotonic() + DRAIN_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    log.info("stream stopped", unfinished=[thread.name for thread in threads if thread.is_alive()])
