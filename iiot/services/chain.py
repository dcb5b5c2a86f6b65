"""Checking the audit trail's hash chains: every entry is read again and its hash is computed here, in Python, independently of the database.

    hash = SHA-256(hash of the entry before ‖ canonical JSON), the first one following SHA-256 of nothing (migration 0002, `iiot.audit_digest`).

A change of any column, a removed entry, one put elsewhere and a cut-off end break the chain. Whoever may write everything, the table of heads too,
can compute a whole chain anew: that shows when heads that were kept elsewhere are compared (`against`).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from iiot import tenancy

START = hashlib.sha256(b"").digest()
# Heads and entries in one statement, so in one snapshot: who appends meanwhile disturbs nothing. jsonb is read as PostgreSQL writes it.
_ALL = """
DECLARE entries NO SCROLL CURSOR FOR
SELECT coalesce(a.tenant_id, h.tenant_id), h.seq, h.hash, a.seq, a.at, a.actor_kind, a.actor_uid, a.actor_label, a.address, a.user_agent,
       a.request_id, a.action, a.object_kind, a.object_uid, a.before::text, a.after::text, a.previous_hash, a.hash
FROM iiot.audit a FULL JOIN iiot.audit_head h ON h.tenant_id = a.tenant_id
WHERE :chain IS NULL OR coalesce(a.tenant_id, h.tenant_id) = CAST(:chain AS integer)
ORDER BY 1, a.seq
"""
_BATCH = 2_000


@dataclass(frozen=True)
class Fault:
    """What is wrong: in the chain of `tenant_id`, at entry `seq` (for what is missing, the first such entry).

    kind: content (the entry was changed), replaced (changed, its hash too), missing (removed), end (the newest ones were removed), extra (entries
    that the head does not know), rewritten (the chain is whole and not the one whose head was kept).
    """

    tenant_id: int
    seq: int
    kind: str
    detail: str


@dataclass
class Verdict:
    """The faults, and the head of every chain as it was computed: {tenant id: (seq, hash in hex)}."""

    entries: int = 0
    heads: dict[int, tuple[int, str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class _Entry:
    tenant_id: int
    head_seq: int | None
    head_hash: bytes
    seq: int | None
    fields: tuple[Any, ...]
    previous_hash: bytes
    hash: bytes


def verify(
    db: Session,
    *,
    chain: int | None = None,
    against: dict[int, tuple[int, str]] | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Verdict:
    """Check all chains, or one. `db`: scope "operator". `against`: heads kept elsewhere. `progress` is told how many entries were read since."""
    verdict = Verdict()
    kept = dict(against or {})
    walk: _Walk | None = None
    for entry in _read(db, chain):
        if walk is None or walk.tenant_id != entry.tenant_id:
            if walk is not None:
                walk.end()
            walk = _Walk(verdict, entry, kept.pop(entry.tenant_id, None))
        if entry.seq is not None:
            walk.step(entry, entry.seq)
            verdict.entries += 1
            progress(1)
    if walk is not None:
        walk.end()
    for tenant_id, (seq, _) in sorted(kept.items()):
        if chain is None or tenant_id == chain:
            verdict.faults.append(Fault(tenant_id, 1, "end", f"all {seq} entries are gone, and the head with them"))
    return verdict


def _read(db: Session, chain: int | None) -> Iterator[_Entry]:
    # The whole trail is sorted before its first row comes; elsewhere no statement may take that long.
    db.execute(tenancy.sql("SET LOCAL statement_timeout = 0"))
    db.execute(tenancy.sql(_ALL), {"chain": chain})
    while rows := db.execute(tenancy.sql(f"FETCH {_BATCH} FROM entries")).all():
        for tenant_id, head_seq, head_hash, seq, *fields, previous_hash, hashed in rows:
            yield _Entry(
                tenant_id, head_seq, _bytes(head_hash), seq, tuple(fields), _bytes(previous_hash), _bytes(hashed)
            )
    db.execute(tenancy.sql("CLOSE entries"))


def _bytes(value: Any) -> bytes:
    return b"" if value is None else bytes(value)


class _Walk:
    """Along one chain, from its first entry to its last."""

    def __init__(self, verdict: Verdict, first: _Entry, kept: tuple[int, str] | None) -> None:
        self.tenant_id = first.tenant_id
        self._verdict = verdict
        self._head = first
        self._kept = kept
        self._seq = 0
        self._hash = START
        self._is_sound = True

    def _fault(self, seq: int, kind: str, detail: str) -> None:
        self._verdict.faults.append(Fault(self.tenant_id, seq, kind, detail))

    def step(self, entry: _Entry, seq: int) -> None:
        """The next entry."""
        follows = seq == self._seq + 1
        if not follows:
            self._fault(self._seq + 1, "missing", f"{_count(seq - self._seq - 1)} before entry {seq} removed")
        content = digest(entry.previous_hash, self.tenant_id, seq, entry.fields) == entry.hash
        if not content:
            self._fault(seq, "content", "the entry is not what it was when its hash was made")
        elif follows and self._is_sound and entry.previous_hash != self._hash:
            # This entry is whole, and it carries another hash of the one before: that one was exchanged together with its hash.
            detail = (
                "the entry was exchanged: the next one carries another hash"
                if seq > 1
                else "the chain does not begin here"
            )
            self._fault(max(seq - 1, 1), "replaced", detail)
        if self._kept is not None and self._kept[0] == seq and self._kept[1] != entry.hash.hex():
            self._fault(seq, "rewritten", "the head that was kept elsewhere has another hash: the chain was made anew")
        self._seq, self._hash, self._is_sound = seq, entry.hash, content

    def end(self) -> None:
        """After the last entry."""
        seq, hashed = self._head.head_seq, self._head.head_hash
        newest = max(seq or 0, self._kept[0] if self._kept else 0)
        if newest > self._seq:
            self._fault(self._seq + 1, "end", f"{_count(newest - self._seq)} at the end removed")
        elif seq is None or seq < self._seq:
            self._fault((seq or 0) + 1, "extra", "the head of the chain does not know this entry")
        elif hashed != self._hash and self._is_sound:
            self._fault(self._seq, "replaced", "the head of the chain has another hash")
        self._verdict.heads[self.tenant_id] = (self._seq, self._hash.hex())


def _count(number: int) -> str:
    return "1 entry was" if number == 1 else f"{number} entries were"


def digest(previous_hash: bytes, tenant_id: int, seq: int, fields: tuple[Any, ...]) -> bytes:
    """The hash of an entry; `fields` are at, the eight texts up to object_uid, and before and after as PostgreSQL writes jsonb."""
    at, *texts, before, after = fields
    values = [str(tenant_id), str(seq), _text(_moment(at)), *map(_text, texts), before or "null", after or "null"]
    return hashlib.sha256(previous_hash + f"[{', '.join(values)}]".encode()).digest()


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _moment(at: datetime) -> str:
    """As jsonb holds a timestamp: ISO 8601 in UTC, without zeros at the end of the fraction."""
    at = at.astimezone(UTC)
    fraction = f".{at.microsecond:06d}".rstrip("0").rstrip(".")
    return f"{at:%Y-%m-%dT%H:%M:%S}{fraction}+00:00"
