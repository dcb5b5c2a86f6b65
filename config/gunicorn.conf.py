"""Gunicorn: the embedded stack's and the systemd unit's configuration.

It is read before the workers are forked and patched by gevent, so it imports nothing of the portal: the address comes from
the environment, which the supervisor sets, or from `python -m iiot config show`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# What Socket.IO and the limits take along wherever it is installed, for a client's side and for another store: 8 MB a worker.
sys.modules.update(dict.fromkeys(("requests", "websocket", "valkey")))  # type: ignore[arg-type]

ROOT = Path(__file__).resolve().parents[1]


def _settings() -> dict[str, Any]:
    """The few settings that gunicorn needs, read by a process of their own."""
    shown = subprocess.run(
        [sys.executable, "-m", "iiot", "config", "show", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if shown.returncode:
        sys.exit(shown.stderr)
    return {row["name"]: row["value"] for row in json.loads(shown.stdout)}


if os.environ.get("IIOT_SUPERVISED"):
    _values: dict[str, Any] = dict(os.environ)
else:
    _values = _settings()

bind = _values["IIOT_HTTP_BIND"]
workers = int(_values.get("IIOT_WEB_WORKERS") or 2)
# gevent-websocket's worker is the only one that serves Socket.IO beside pages; ours shares the connections out evenly.
worker_class = "iiot.balance.BalancedWorker"
worker_connections = 1000
chdir = str(ROOT)
proc_name = "iiot-web"
# Gunicorn 27 opens a control socket in $HOME; two portals of one user would collide on it.
control_socket_disable = True
timeout = 60
# How long a stopping worker may finish its requests; the supervisor gives it five seconds in all.
graceful_timeout = 3
keepalive = 30
max_requests = int(os.environ.get("IIOT_WEB_MAX_REQUESTS") or 0)
max_requests_jitter = max_requests // 10
limit_request_line = 8190
limit_request_field_size = 16380
forwarded_allow_ips = "127.0.0.1,::1"
accesslog = None
errorlog = "-"
loglevel = "warning"


def pre_fork(server: Any, worker: Any) -> None:
    """In the master: a place where the worker will say how many connections it holds."""
    from iiot.balance import loads

    worker.slot = loads.take()


def post_fork(server: Any, worker: Any) -> None:
    """In the new worker, before the application is imported: sockets, locks and psycopg2 wait in greenlets from here on."""
    from gevent import monkey

    monkey.patch_all()
    from psycogreen.gevent import patch_psycopg

    patch_psycopg()
    from iiot import logs
    from iiot.balance import BalancedServer

    BalancedServer.slot = worker.slot
    # The worker's own words go with ours; the master, which never imports the portal, keeps gunicorn's format.
    logs.setup("web")
    worker.log.error_log.handlers.clear()
    worker.log.error_log.propagate = True


def child_exit(server: Any, worker: Any) -> None:
    """In the master, when a worker has ended: its connections and its gauges no longer count."""
    from iiot.balance import loads

    loads.free(worker.slot)
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.pid)
