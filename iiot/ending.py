"""How a process is asked to end: SIGTERM and Ctrl-C set an event."""

import signal
import threading
from queue import SimpleQueue


def set_on_signals(stop: threading.Event, *, insist: bool = False) -> None:
    """Have SIGTERM and SIGINT set `stop`; with `insist` a second one ends the program at once. To be called from the main thread.

    A handler runs in the main thread between any two of its steps. `Event.set` takes a lock: called by a handler while the main thread
    holds it, it would wait for itself for ever. `SimpleQueue.put` is made for handlers (docs.python.org/3/library/queue.html); a thread
    does the rest.
    """
    asked: SimpleQueue[int] = SimpleQueue()

    def handle(number: int, _frame: object) -> None:
        if insist and stop.is_set():
            raise KeyboardInterrupt
        asked.put(number)

    def wait() -> None:
        asked.get()
        stop.set()

    threading.Thread(target=wait, name="end", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
