"""Prometheus metrics of every process, summed up over the workers through files in PROMETHEUS_MULTIPROC_DIR, served on loopback alone.

The variable must be set before this module is imported: the supervisor and the gunicorn configuration do so. Without it (tests, the command
line) each process counts for itself.
"""

import os
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from prometheus_client.exposition import MetricsHandler

from iiot import config

LATENCY = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

http_requests = Counter("iiot_http_requests_total", "Requests answered.", ["method", "route", "status"])
http_seconds = Histogram(
    "iiot_http_request_seconds", "Time to answer a request, in seconds.", ["route"], buckets=LATENCY
)
http_in_progress = Gauge("iiot_http_requests_in_progress", "Requests being served.", multiprocess_mode="livesum")
logins = Counter("iiot_logins_total", "Sign-ins by their end: ok, wrong, disabled, limited.", ["result"])
password_checks = Counter(
    "iiot_password_checks_total", "Passwords compared with a bcrypt hash, the dummy one included."
)
refreshes = Counter(
    "iiot_token_refreshes_total", "Uses of refresh tokens: rotated, repeated, reused, refused.", ["result"]
)
device_logins = Counter(
    "iiot_device_logins_total", "Devices that proved themselves over HTTP: ok, wrong, disabled, limited.", ["result"]
)
mails = Counter("iiot_mails_total", "Mails by their end: sent, failed, dropped.", ["result"])
devices_created = Counter("iiot_devices_created_total", "Devices created.")
limited = Counter("iiot_rate_limited_total", "Requests refused by a rate limit.", ["limit"])
dependency_up = Gauge(
    "iiot_dependency_up", "Whether the last readiness check reached it.", ["name"], multiprocess_mode="livemin"
)


def directory() -> Path:
    """Where the processes keep their metric files."""
    return config.load().data_dir / "metrics"


def forget(pid: int) -> None:
    """Called when a worker has ended: its gauges no longer count (its counters do)."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def registry() -> CollectorRegistry:
    """What /metrics shows: all processes when they share a directory, else this one."""
    path = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not path:
        return REGISTRY
    whole = CollectorRegistry()
    multiprocess.MultiProcessCollector(whole, path)  # type: ignore[no-untyped-call]
    return whole


class _Handler(MetricsHandler):
    """GET /metrics and nothing else; collected anew at each request."""

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        self.registry = registry()
        super().do_GET()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


def serve(bind: str) -> ThreadingHTTPServer:
    """Answer `GET /metrics` on `bind` ("127.0.0.1:9464") from a thread; returns the server, which `shutdown()` ends.

    Raises OSError when the port is taken. Never to be bound to a public address: it is not authenticated.
    """
    host, port = config.split_bind(bind)
    server = _Server((host, port), _Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


# --- the stream: tailers, live events, housekeeping --------------------------------------------------------------------------------------------
stream_readings = Counter("iiot_stream_readings_total", "Readings that a tailer carried into effects.", ["tailer"])
stream_failures = Counter("iiot_stream_failures_total", "Steps of a tailer that failed and are repeated.", ["tailer"])
stream_step_seconds = Histogram(
    "iiot_stream_step_seconds", "Time of one step of a tailer, in seconds.", ["tailer"], buckets=LATENCY
)
stream_lag_rows = Gauge(
    "iiot_stream_lag_rows", "Rows of the log a tailer has not read, counted to 10,000.", ["tailer"],
    multiprocess_mode="livemax",
)  # fmt: skip
stream_lag_seconds = Gauge(
    "iiot_stream_lag_seconds", "Age of the oldest row a tailer has not read.", ["tailer"], multiprocess_mode="livemax"
)
live_events = Counter("iiot_live_events_total", "Events published to rooms that somebody listens to.", ["event"])
live_lost = Counter("iiot_live_publish_failures_total", "Events that could not be published because Redis was down.")
live_clients = Gauge("iiot_live_clients", "Connected Socket.IO clients.", multiprocess_mode="livesum")
live_refused = Counter("iiot_live_refused_total", "Socket.IO connections and events refused.", ["reason"])
live_replayed = Counter("iiot_live_replayed_total", "Readings sent again from the log to clients that missed them.")
housekeeping_success = Gauge(
    "iiot_housekeeping_success_timestamp_seconds", "When a duty last succeeded.", ["duty"], multiprocess_mode="livemax"
)
housekeeping_failures = Counter("iiot_housekeeping_failures_total", "Failures of a duty.", ["duty"])
