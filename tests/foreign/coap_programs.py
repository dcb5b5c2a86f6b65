"""What the tests with foreign CoAP programs share."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import services


@contextlib.contextmanager
def program(argv: Sequence[str], output: Path, cwd: Path | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """A running program that writes to `output`; ended at the end."""
    with output.open("wb") as file:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=cwd or services.ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
