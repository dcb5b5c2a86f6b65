"""An adapter for devices that leave files in a folder: `<uid> <token> <number>.json` in `spool` below IIOT_DATA_DIR.

The answer is a file of the same name with another ending: `.stored`, or `.refused` with the reason in it. A file that is
not answered stays, and is read again after a crash. This one is an example: a test puts it beside the others.
"""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

from protocols.base import AdapterError, Inbox, Message, Outcome, Refusal

NAME = "spool"
DESCRIPTION = "Files that devices leave in the folder spool below IIOT_DATA_DIR"

LOOK_SECONDS = 0.02
ANSWER_SECONDS = 30.0
_numbers = itertools.count(time.time_ns())


def make(settings: Any) -> SpoolAdapter:
    """From IIOT_DATA_DIR."""
    return SpoolAdapter(Path(settings.data_dir) / "spool")


class SpoolAdapter:
    """See `protocols.base.Adapter`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self) -> None:
        """Make the folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AdapterError(f"{self.folder} cannot be made ({error}); change IIOT_DATA_DIR") from error

    def run(self, inbox: Inbox, stop: threading.Event) -> None:
        """Look for new files until `stop`."""
        self.check()
        inbox.connected()
        taken: set[Path] = set()
        while not stop.wait(LOOK_SECONDS):
            here = set(self.folder.glob("*.json"))
            taken &= here
            for path in sorted(here - taken):
                taken.add(path)
                self._take(inbox, path)
        inbox.finish()

    def _take(self, inbox: Inbox, path: Path) -> None:
        uid, token, _ = path.stem.split(" ")
        found = inbox.authenticate(uid, token, "spool")
        if isinstance(found, Refusal):
            _answer(path, ".refused", found.text())
        else:
            inbox.deliver(Message(uid, "telemetry", path.read_bytes(), "spool", self._settle, path))

    def _settle(self, message: Message, outcome: Outcome) -> None:
        if outcome.accepted:
            _answer(message.receipt, ".stored", "")
        else:
            _answer(message.receipt, ".refused", outcome.refusals[0].text())

    def send(self, uid: str, token: str, payload: bytes) -> None:
        """Leave a file and wait for the answer."""
        self.check()
        path = self.folder / f"{uid} {token} {next(_numbers)}.json"
        path.with_suffix(".new").write_bytes(payload)
        path.with_suffix(".new").rename(path)
        deadline, pause = time.monotonic() + ANSWER_SECONDS, threading.Event()
        while time.monotonic() < deadline:
            if path.with_suffix(".stored").exists():
                return
            if path.with_suffix(".refused").exists():
                raise AdapterError(path.with_suffix(".refused").read_text())
            pause.wait(LOOK_SECONDS)
        path.unlink(missing_ok=True)
        raise AdapterError("nobody reads the folder")


def _answer(path: Path, ending: str, text: str) -> None:
    path.with_suffix(ending).write_text(text)
    path.unlink(missing_ok=True)
