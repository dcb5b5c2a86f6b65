"""What `up` says: one line per event, with the seconds since the start."""

import sys
import time

RESET, DIM, GREEN, YELLOW, RED, BOLD = "\033[0m", "\033[2m", "\033[32m", "\033[33m", "\033[31m", "\033[1m"


class Console:
    """Lines for a person; colour only on a terminal that wants it."""

    def __init__(self, color: bool = True) -> None:
        self._color = color and sys.stdout.isatty()
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def step(self, name: str, text: str) -> None:
        """Something is ready."""
        self._line(GREEN, name, text)

    def warn(self, name: str, text: str) -> None:
        """Something is not as asked for, and the portal goes on."""
        self._line(YELLOW, name, text)

    def fail(self, name: str, text: str) -> None:
        """Something is broken."""
        self._line(RED, name, text)

    def say(self, text: str = "") -> None:
        """A line of its own."""
        self._write(text)

    def strong(self, text: str) -> str:
        """Emphasised, for use within `say`."""
        return self._paint(BOLD, text)

    def _line(self, color: str, name: str, text: str) -> None:
        stamp = self._paint(DIM, f"{self.elapsed:6.1f} s")
        self._write(f"{stamp}  {self._paint(color, f'{name:<10}')}  {text}")

    def _paint(self, code: str, text: str) -> str:
        return f"{code}{text}{RESET}" if self._color else text

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        except OSError:
            # The terminal is gone (closed window, broken pipe): stopping in order matters more than saying so.
            return
