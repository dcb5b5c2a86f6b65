"""Metrics of the supervisor. Import it after PROMETHEUS_MULTIPROC_DIR is set."""

from prometheus_client import Counter, Gauge

restarts = Counter("iiot_process_restarts_total", "Restarts of a supervised process that had died.", ["process"])
up = Gauge("iiot_process_up", "Whether a supervised process runs.", ["process"], multiprocess_mode="livemax")
