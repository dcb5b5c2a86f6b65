"""The system user under which servers run when the portal itself is started by root.

PostgreSQL refuses to run as root, and no server needs to. The permissions of existing folders are never changed: what the
system user cannot reach (a virtual environment or a data dir beneath a 0700 home) is copied to, or kept in, a folder it can.
"""

import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iiot.embedded import EmbeddedError

NAME = "iiot-embedded"
FALLBACK = Path("/var/lib/iiot-portal")


@dataclass(frozen=True)
class Account:
    """Who runs the servers; `uid` is None when that is simply the current user."""

    uid: int | None = None
    gid: int | None = None

    def popen_options(self) -> dict[str, Any]:
        """Arguments for subprocess that drop the privileges of root."""
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give `path` to the account."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def make_dir(self, path: Path, mode: int = 0o700) -> Path:
        """Create a folder that belongs to the account; an existing one keeps its content."""
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
        self.own(path)
        return path

    def write(self, path: Path, content: str) -> None:
        """Write a private file (0600) of the account, whole or not at all."""
        new = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.own(new)
        new.replace(path)

    def reaches(self, path: Path, flag: str = "-x") -> bool:
        """Whether the account passes `test <flag> path`; asked as that user, since ACLs and mounts count too."""
        if self.uid is None:
            return os.access(path, os.X_OK if flag == "-x" else os.R_OK)
        result = self.run(["/usr/bin/test", flag, str(path)])
        return result.returncode == 0

    def run(self, argv: Sequence[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a short program as the account, from the root folder, and collect its output."""
        try:
            # A session of its own: Ctrl-C on the terminal is for the supervisor, never for a half-done initdb.
            return subprocess.run(
                list(argv),
                capture_output=True,
                text=True,
                cwd="/",
                timeout=timeout,
                check=False,
                start_new_session=True,
                **self.popen_options(),
            )
        except PermissionError as error:
            return subprocess.CompletedProcess(list(argv), 126, "", str(error))


def current() -> Account:
    """The account for servers: the current user, or the system user `iiot-embedded` when that is root."""
    if os.geteuid() != 0:
        return Account()
    try:
        entry = pwd.getpwnam(NAME)
    except KeyError:
        _create()
        entry = pwd.getpwnam(NAME)
    return Account(entry.pw_uid, entry.pw_gid)


def _create() -> None:
    useradd = shutil.which("useradd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if useradd is None:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and there is no `useradd` to make the user {NAME}. "
            "Start the portal as a normal user, or install the package `passwd`."
        )
    nologin = shutil.which("nologin", path="/usr/sbin:/sbin:/usr/bin:/bin") or "/bin/false"
    result = subprocess.run(
        [
            useradd,
            "--system",
            "--user-group",
            "--no-create-home",
            "--home-dir",
            "/nonexistent",
            "--shell",
            nologin,
            NAME,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    # Two portals that start at the same moment both try; the second finds the user there (exit status 9).
    if result.returncode not in (0, 9):
        raise EmbeddedError(f"The system user {NAME} could not be made: {result.stderr.strip()}")


def service_dir(data_dir: Path, account: Account) -> Path:
    """Where the servers keep their files: the data dir, or a folder under /var/lib when the account cannot reach that.

    The choice is remembered in `<data_dir>/service_dir`, so that a data dir that was deleted never meets old databases.
    """
    note = data_dir / "service_dir"
    if note.exists():
        path = Path(note.read_text().strip())
        if path.is_dir() and account.reaches(path):
            return path
        raise EmbeddedError(
            f"{note} says that the databases are in {path}, which cannot be reached. Restore that folder."
        )
    if account.reaches(data_dir):
        return data_dir
    FALLBACK.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = FALLBACK / secrets.token_hex(6)
    path.mkdir(mode=0o711)
    Account().write(note, f"{path}\n")
    return path


def private_copy(source: Path, target: Path, account: Account) -> None:
    """Copy a folder of programs to where the account can run it; done once, whole or not at all."""
    if target.exists():
        return
    new = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns("include", "*.a", "pkgconfig", "__pycache__")
    shutil.copytree(source, new, symlinks=True, ignore=ignored)
    for folder, _, _ in os.walk(new):
        Path(folder).chmod(0o755)
    new.replace(target)
    if not account.reaches(target):
        raise EmbeddedError(f"The user {NAME} cannot reach {target}.")
