"""A value that is made at its first use, once for all threads."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Call it for the value; an exception of `make` is raised, and the next call tries again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: list[T] = []
        self._lock = threading.Lock()

    def __call__(self) -> T:
        """The value."""
        made = self._made
        if not made:
            with self._lock:
                made = self._made
                if not made:
                    made = self._made = [self._make()]
        return made[0]

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """For tests: what `make` reads may change within, and is read anew afterwards. A thread that reads meanwhile brings nothing old back."""
        with self._lock:
            yield
            self._made = []
