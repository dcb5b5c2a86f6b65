"""Users of the portal's predecessor, whose passwords are unsalted SHA-256 hashes: taken over at once behind bcrypt, never stored bare.

`v1w$` = bcrypt(12, base64(HMAC-SHA384(pepper, hex))). The next sign-in replaces it by a hash of the password itself. A batch is one transaction, and who
is there already is skipped, so an import that was stopped is simply run again.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from iiot import auth, ids, tenancy
from iiot.models import User
from iiot.services import audit, quotas, users

WORKERS = 4
BATCH = 8
_ADDRESS = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f]{1,189}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
EMAIL_COLUMNS = ("email", "e_mail", "mail", "username", "user_name", "login")
NAME_COLUMNS = ("name", "full_name", "fullname", "display_name")
HASH_COLUMNS = ("password_hash", "password", "passwd", "hash", "sha256")


@dataclass(frozen=True)
class Row:
    """A row of the source. `number` counts from 1; `columns` are its texts by the lower-case names of the columns."""

    number: int
    columns: dict[str, str]

    def first(self, names: tuple[str, ...]) -> str:
        """The first of these columns that holds something."""
        return next((text for name in names if (text := self.columns.get(name, "").strip())), "")


@dataclass(frozen=True)
class Target:
    """What the imported users become members of, and as what; no tenant: nothing yet."""

    tenant_id: int | None = None
    role: str = "viewer"


@dataclass
class Report:
    """What an import did. `rejected`: rows that could not be taken, with the reason."""

    imported: int = 0
    present: int = 0
    rejected: list[tuple[Row, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Person:
    row: Row
    email: str
    name: str
    sha256: str


def import_users(rows: Iterable[Row], target: Target, progress: Callable[[int], object]) -> Report:
    """Take users over, `BATCH` to a transaction, hashing on four threads or as many as there are cores (0.3 s of a core each).

    `progress(n)` is called after each batch with its number of rows. Raises QuotaExceeded when the tenant may not have so many; what was imported
    before stays, and the import can be run again.
    """
    report, seen = Report(), set[str]()
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1), "legacy") as threads:
        for batch in _batches(rows):
            people = [person for row in batch if (person := _read(row, seen, report)) is not None]
            _import(people, target, report, threads)
            progress(len(batch))
    return report


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    each = iter(rows)
    while batch := list(islice(each, BATCH)):
        yield batch


def _read(row: Row, seen: set[str], report: Report) -> _Person | None:
    """The person of a row; None, with the reason in the report, when it cannot be taken."""
    address = next((text for name in EMAIL_COLUMNS if "@" in (text := row.columns.get(name, ""))), "").strip().lower()
    hashed, name = row.first(HASH_COLUMNS), row.first(NAME_COLUMNS)
    reason = None
    if not _ADDRESS.fullmatch(address):
        reason = "no e-mail address"
    elif not _SHA256.fullmatch(hashed):
        reason = "the hash is not 64 hexadecimal digits"
    elif len(name) > users.LONGEST_NAME or not name.isprintable():
        reason = f"the name has more than {users.LONGEST_NAME} characters or a line break"
    elif address in seen:
        reason = "the address stands in an earlier row"
    if reason is not None:
        report.rejected.append((row, reason))
        return None
    seen.add(address)
    return _Person(row, address, name, hashed.lower())


def _import(people: list[_Person], target: Target, report: Report, threads: ThreadPoolExecutor) -> None:
    with tenancy.work(tenancy.system("operator")) as db:
        present = _present(db, people)
    missing = [person for person in people if person.email not in present]
    hashes = list(threads.map(auth.wrap_legacy, [person.sha256 for person in missing]))
    with tenancy.work(tenancy.system("operator", target.tenant_id)) as db:
        # Somebody may have registered while the hashes were made.
        late = _present(db, missing)
        fresh = [pair for pair in zip(missing, hashes, strict=True) if pair[0].email not in late]
        if target.tenant_id is not None and fresh:
            quotas.claim(db, "users", len(fresh))
        for person, hashed in fresh:
            user = User(uid=ids.new_uid(), email=person.email, name=person.name, password_hash=hashed)
            db.add(user)
            db.flush()
            if target.tenant_id is not None:
                users.add_member(db, target.tenant_id, user.id, target.role)
            audit.record(db, "user.import", ("user", user.uid), after={"email": person.email, "role": target.role})
    report.imported += len(fresh)
    report.present += len(people) - len(fresh)


def _present(db: Session, people: list[_Person]) -> set[str]:
    address = func.lower(User.email)
    return set(db.scalars(select(address).where(address.in_([person.email for person in people]))))


def remaining(db: Session) -> list[User]:
    """Who has not signed in since the import, the oldest first. `db`: scope "operator"."""
    return list(db.scalars(select(User).where(User.password_hash.startswith(auth.LEGACY_SCHEME)).order_by(User.id)))
