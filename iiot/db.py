"""Engines: one per PostgreSQL role and process, made at the first use so that forked workers never share a connection."""

import os
import threading

from sqlalchemy import Engine, create_engine

from iiot import config

_engines: dict[tuple[int, str], tuple[config.Settings, Engine]] = {}
_lock = threading.Lock()

# What a role's pool may hold per process: (kept open, on top at peaks, statement time limit in ms).
POOLS = {
    "owner": (1, 2, 0),
    "app": (5, 5, 15_000),
    "ingest": (2, 2, 30_000),
    "stream": (3, 3, 60_000),
    "auth": (2, 3, 15_000),
    "backup": (1, 0, 0),
}


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
