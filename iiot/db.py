"""Engines: one per PostgreSQL role and process, made at the first use so that forked workers never share a connection."""

import os
import threading
from typing import Any

from psycopg2 import extensions
from sqlalchemy import Engine, create_engine

from iiot import config

_engines: dict[tuple[int, str], tuple[config.Settings, Engine]] = {}
_lock = threading.Lock()

# What a role's pool may hold per process: (kept open, on top at peaks, statement time limit in ms). Two web workers, the adapter and the stream
# stay below thirty connections together; statements take a millisecond, so more of them would only wait inside PostgreSQL instead.
POOLS = {
    "owner": (1, 2, 0),
    "app": (4, 2, 15_000),
    "limited": (1, 1, 15_000),
    "ingest": (1, 1, 30_000),
    "stream": (3, 3, 60_000),
    "auth": (2, 1, 15_000),
    "backup": (1, 0, 0),
}


class OneTripConnection(extensions.connection):
    """A connection whose transactions begin with a statement of the caller's: `BEGIN` and the first statement travel together.

    The driver sends `BEGIN` by itself before the first statement, one round trip in four of a short transaction. Here the driver is in its
    autocommit mode and the transaction is ours: `begin(sql)` opens it, `commit` and `rollback` end it.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.autocommit = True

    def begin(self, first: str) -> None:
        """Open a transaction and run `first` in it, in one round trip; the answer is dropped."""
        with self.cursor() as cursor:
            cursor.execute(f"BEGIN; {first}")

    def commit(self) -> None:
        """End the transaction, if one is open; raises what the server says."""
        self._end("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, if one is open."""
        self._end("ROLLBACK")

    def _end(self, word: str) -> None:
        # A connection that was closed has no known state: the cursor refuses, and a commit that did not happen is never taken for one.
        if not self.closed and self.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE:
            return
        with self.cursor() as cursor:
            cursor.execute(word)


def engine(role: str) -> Engine:
    """The engine of a role in this process; connections open lazily."""
    settings = config.load()
    key = (os.getpid(), role)
    known = _engines.get(key)
    if known is not None and known[0] is settings:
        return known[1]
    with _lock:
        known = _engines.get(key)
        if known is None or known[0] is not settings:
            known = _engines[key] = (settings, _make(role, settings.database_url_for(role)))
        return known[1]


def _make(role: str, url: str) -> Engine:
    size, overflow, limit = POOLS[role]
    options = f"-c search_path=iiot,public -c statement_timeout={limit} -c timezone=UTC"
    if role != "owner":
        options += " -c lock_timeout=10000 -c idle_in_transaction_session_timeout=60000"
    return create_engine(
        url,
        pool_size=size,
        max_overflow=overflow,
        pool_timeout=10,
        pool_recycle=1800,
        pool_pre_ping=False,
        connect_args={
            "connection_factory": OneTripConnection,
            "options": options,
            "application_name": f"iiot-{role}",
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        },
    )


def dispose() -> None:
    """Close every pool of this process."""
    with _lock:
        for _, pool in _engines.values():
            pool.dispose()
        _engines.clear()
