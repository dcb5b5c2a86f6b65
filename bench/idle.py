"""What the whole stack of `python -m iiot up` needs while nothing happens: seconds from an empty data dir to ready, and memory by process."""

import argparse
import tempfile
import time
from pathlib import Path

import psutil

from bench import report
from tests.services import Stack

MOST_MB = 700.0
MOST_SECONDS = 15.0


def memory_mb(process: psutil.Process) -> float:
    """Proportional set size: what processes share is counted once over all of them. Resident size where the kernel does not tell."""
    try:
        return float(process.memory_full_info().pss) / 2**20
    except psutil.AccessDenied:
        return float(process.memory_info().rss) / 2**20


def tree_mb(pid: int) -> float:
    """A process with its children."""
    process = psutil.Process(pid)
    return sum(memory_mb(each) for each in (process, *process.children(recursive=True)))


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to leave it alone before measuring")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iiot-idle-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        stack = Stack(folder / "data")
        report.progress("starting the stack")
        began = time.monotonic()
        stack.start()
        ready = time.monotonic() - began
        try:
            report.progress(f"leaving it alone for {options.seconds:g} s")
            time.sleep(options.seconds)
            parts = {process: tree_mb(pid) for process, pid in stack.children().items()}
            parts["up"] = memory_mb(psutil.Process(stack.pid))
        finally:
            stack.stop()
    for process, size in sorted(parts.items()):
        report.row(process, memory_mb=size)
    total = sum(parts.values())
    report.final("idle", round(total), "MB of the whole stack", MOST_MB, ready_seconds=round(ready, 1))
    return 0 if total <= MOST_MB and ready <= MOST_SECONDS else 1


if __name__ == "__main__":
    raise SystemExit(main())
