"""The data dir's own files: the lock, the list of running processes, secrets and run.json."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iiot.embedded import EmbeddedError
from iiot.embedded.account import Account
from iiot.embedded.process import kill_group, start_ticks

FIRST_ADMIN = "first_admin"


class DataDir:
    """`--data-dir`, held by one supervisor at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def open(self) -> None:
        """Create it when missing and take the lock; raises EmbeddedError that names the process which holds it.

        The kernel drops the lock with the process that held it, also after kill -9.
        """
        if not self.path.exists():
            self.path.mkdir(parents=True)
            # Servers that root starts run as another user, who must pass through; files that are secret are 0600.
            self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        descriptor = os.open(self.path / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            os.close(descriptor)
            raise EmbeddedError(
                f"Process {holder} runs a portal in {self.path} already. Stop that one, or choose another --data-dir."
            ) from None
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.truncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    @property
    def secrets(self) -> Path:
        """The folder of the generated passwords (0700)."""
        return Account().make_dir(self.path / "secrets")

    @property
    def logs(self) -> Path:
        """The folder of the children's output."""
        return Account().make_dir(self.path / "logs")

    @property
    def metrics(self) -> Path:
        """The folder where processes count; emptied, since counters of ended processes are not ours."""
        shutil.rmtree(self.path / "metrics", ignore_errors=True)
        return Account().make_dir(self.path / "metrics")

    @property
    def rebuild(self) -> Path:
        """The file that asks for a fresh broker configuration; the reconciler writes it."""
        return self.path / "mosquitto" / "rebuild"

    def secret_key(self) -> str:
        """The root of all derived keys, made at the first start."""
        path = self.secrets / "secret_key"
        if not path.exists():
            Account().write(path, secrets.token_urlsafe(48))
        return path.read_text().strip()

    def record(self, processes: Mapping[str, tuple[int, int | None]]) -> None:
        """Note the running processes (name → pid, start), so that the next start finds them after a kill -9 of this one."""
        content = {name: {"pid": pid, "start": start} for name, (pid, start) in processes.items()}
        Account().write(self.path / "processes.json", json.dumps({"boot": _boot(), "processes": content}))

    def end_leftovers(self, seconds: float = 10) -> list[str]:
        """Kill what a killed supervisor left behind, and only that: pid and start time must both fit. Returns the names.

        Called with the lock held. Usually the kernel has told the children to stop already, and this waits for them.
        """
        path = self.path / "processes.json"
        try:
            noted = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return []
        if noted.get("boot") != _boot():
            return []
        left = {name: one for name, one in noted["processes"].items() if _alive(one)}
        grace = time.monotonic() + seconds / 2
        deadline = time.monotonic() + seconds
        while any(_alive(one) for one in left.values()):
            if time.monotonic() > grace:
                for one in left.values():
                    if _alive(one):
                        kill_group(one["pid"])
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(one["pid"], signal.SIGKILL)
            if time.monotonic() > deadline:
                raise EmbeddedError(f"Processes of the last run do not end: {', '.join(left)}.")
            time.sleep(0.05)
        return list(left)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a private file, whole or not at all."""
        Account().write(self.path / name, json.dumps(content, indent=1) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Its content; {} when it is missing or broken."""
        try:
            content = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def first_admin(self) -> dict[str, str | None] | None:
        """`{"email", "password"}` of the first administrator while the one-time password waits to be changed."""
        note = self.secrets / FIRST_ADMIN
        return dict(json.loads(note.read_text())) if note.exists() else None

    def forget_first_admin(self) -> None:
        """The one-time password was changed: nothing keeps it any more."""
        (self.secrets / FIRST_ADMIN).unlink(missing_ok=True)


def _alive(one: Mapping[str, Any]) -> bool:
    start = start_ticks(int(one["pid"]))
    return start is not None and start == one["start"]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
