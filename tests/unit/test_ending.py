"""A process is asked to end at any moment, also while its main thread holds the event's own lock."""

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from iiot import ending

NUMBERS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handlers_kept() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Locked(threading.Event):
    """An event whose lock can be held from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def set(self) -> None:
        with self.lock:
            super().set()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_sets_the_event(number: int) -> None:
    stop = threading.Event()
    with handlers_kept():
        ending.set_on_signals(stop)
        signal.raise_signal(number)
        assert stop.wait(10)
        signal.raise_signal(number)


def test_a_signal_may_come_while_the_event_is_locked() -> None:
    # In a process of its own: what waits for itself never comes back.
    program = f"""
        import signal, threading
        from iiot import ending
        from {__name__} import Locked
        stop = Locked()
        ending.set_on_signals(stop)
        with stop.lock:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        assert stop.wait(10)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


def test_who_insists_ends_the_program() -> None:
    stop = threading.Event()
    with handlers_kept():
        ending.set_on_signals(stop, insist=True)
        signal.raise_signal(signal.SIGINT)
        assert stop.wait(10)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
