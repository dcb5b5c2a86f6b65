"""One supervised process: started in a session of its own, ended with its parent, stopped within a deadline."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iiot.embedded import EmbeddedError
from iiot.embedded.account import Account

PR_SET_PDEATHSIG = 1
LOG_LIMIT = 10 * 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


def always() -> bool:
    """The readiness check of a program that has none."""
    return True


def never() -> bool:
    """Nobody cancels."""
    return False


def nothing() -> None:
    """The preparation of a program that needs none."""


@dataclass(frozen=True)
class Program:
    """How to run a server.

    `prepare` runs before every start and may write its files; `ready` answers whether it serves, without raising;
    `stop_signal` asks it to end; `orphan_signal` is sent by the kernel when the supervisor dies.
    """

    name: str
    argv: Sequence[str]
    log: Path
    account: Account = field(default_factory=Account)
    environment: Mapping[str, str] | None = None
    folder: Path = Path("/")
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 6.0
    start_seconds: float = 30.0
    prepare: Callable[[], None] = nothing
    ready: Callable[[], bool] = always


class Child:
    """A started program. All methods are called from the thread that started it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        program.prepare()
        _truncate(program.log)
        parent = os.getpid()

        def tie_to_parent() -> None:
            # The kernel forgets this on a change of user, so it is set after subprocess has dropped the privileges.
            _libc.prctl(PR_SET_PDEATHSIG, int(program.orphan_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        with open(program.log, "ab") as log:
            self._popen = subprocess.Popen(
                list(program.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=program.folder,
                env=None if program.environment is None else dict(program.environment),
                start_new_session=True,
                preexec_fn=tie_to_parent,  # noqa: PLW1509  (starting is done by the main thread)
                **program.account.popen_options(),
            )
        self._asked = False
        self.pid = self._popen.pid
        self.started = time.monotonic()
        self.start_ticks = start_ticks(self.pid)

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    def wait_ready(self, cancelled: Callable[[], bool] = never) -> None:
        """Block until it serves, or `cancelled`; raises EmbeddedError with the end of its log when it dies or is too slow."""
        deadline = time.monotonic() + self.program.start_seconds
        while not self.program.ready() and not cancelled():
            if self.exit_code() is not None:
                raise EmbeddedError(f"{self.program.name} ended with status {self.exit_code()}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"{self.program.name} did not get ready in {self.program.start_seconds:.0f} s:\n{self.log_tail()}"
                )
            time.sleep(0.02)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return log_tail(self.program.log, lines)

    def ask_to_stop(self) -> None:
        """Send the stop signal once; returns at once."""
        if self.exit_code() is None and not self._asked:
            self._asked = True
            self._popen.send_signal(self.program.stop_signal)

    def stop(self, seconds: float | None = None) -> None:
        """Ask it to end, kill what is left of its process group after the deadline, and reap it."""
        self.ask_to_stop()
        try:
            self._popen.wait(self.program.stop_seconds if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
        kill_group(self.pid)
        self._popen.wait()


def kill_group(group: int) -> None:
    """SIGKILL to every process left in the group that a child led; the group's id is the leader's pid."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot (field 22 of /proc/<pid>/stat); None when it is gone.

    The pid with this number names one process for ever: a reused pid has another start.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def log_tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log file, indented for the console."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


def _truncate(path: Path) -> None:
    """Keep one older log beside the current one, so that a server that talks for months does not fill the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_suffix(path.suffix + ".1"))
