"""What a process may remember for a moment, and how all processes of a machine are told to forget it at once."""

import mmap
import os
import struct
import threading
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Generic, TypeVar

from iiot import config

_WIDTH = 8
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Stamp:
    """Eight bytes of a file that every process maps: a change means that something was revoked. Reading costs no system call."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(handle).st_size < _WIDTH:
                os.ftruncate(handle, _WIDTH)
            self._map = mmap.mmap(handle, _WIDTH)
        finally:
            os.close(handle)

    def read(self) -> bytes:
        return self._map[:_WIDTH]

    def change(self) -> None:
        self._map[:_WIDTH] = struct.pack("<Q", time.time_ns())


_stamps: dict[Path, _Stamp] = {}
_stamps_lock = threading.Lock()


def _stamp() -> _Stamp:
    path = config.load().data_dir / "revocations"
    with _stamps_lock:
        if path not in _stamps:
            _stamps[path] = _Stamp(path)
        return _stamps[path]


def forget_everywhere() -> None:
    """Make every process on this machine drop what it remembers in a `Memory`; other machines do so when it has expired."""
    _stamp().change()


def revocations() -> bytes:
    """A value that changes when something is revoked on this machine. Take it before reading what will be remembered."""
    return _stamp().read()


class Memory(Generic[Key, Value]):
    """A bounded dictionary whose entries live for `seconds` at most and never survive `forget_everywhere()`."""

    def __init__(self, seconds: float, size: int = 10_000) -> None:
        self._seconds = seconds
        self._size = size
        self._entries: dict[Key, tuple[float, Value]] = {}
        self._stamp: _Stamp | None = None
        self._seen = b""

    def get(self, key: Key) -> Value | None:
        """The value put under `key` not longer than `seconds` ago, unless something was revoked since."""
        stamp = self._stamp
        if stamp is None:
            stamp = self._stamp = _stamp()
        now = stamp.read()
        if now != self._seen:
            self._entries.clear()
            self._seen = now
            return None
        entry = self._entries.get(key)
        if entry is None or entry[0] < time.monotonic():
            return None
        return entry[1]

    def put(self, key: Key, value: Value, seen: bytes | None = None) -> None:
        """Remember `value`; with `seen` (from `mark()`, taken before it was read) only if nothing was revoked meanwhile."""
        if seen is not None and seen != self._seen:
            return
        if len(self._entries) >= self._size:
            self._entries.clear()
        self._entries[key] = (time.monotonic() + self._seconds, value)

    def mark(self) -> bytes:
        """The state of revocations now: take it before reading what will be put."""
        return revocations()
