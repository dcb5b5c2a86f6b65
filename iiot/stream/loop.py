"""What drives a tailer: NOTIFY wakes it, polling is the fallback, its own work paces it, failures back off."""

import random
import select
import threading
import time
from typing import Any, NamedTuple

import structlog

from iiot import db as engines
from iiot import metrics
from iiot.stream.log import Progress, Tailer

log = structlog.get_logger(__name__)

CHANNEL = "telemetry_batch"
POLL_SECONDS = 0.5
STANDBY_SECONDS = 1.0
LAG_SECONDS = 5.0
LONGEST_BACK_OFF = 3.0
# A row that waits for another writer becomes readable without a further NOTIFY, so it is asked for again soon, then less and less often.
FIRST_RETRY = 0.005


class Doorbell:
    """Wakes waiting threads when a batch was committed. One LISTEN connection per process; while it is lost, waiting ends by polling alone."""

    def __init__(self) -> None:
        self._rung = 0
        self._condition = threading.Condition()

    def ring(self) -> None:
        """Wake everybody."""
        with self._condition:
            self._rung += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout: float) -> int:
        """Return once it has rung since `seen`, or after `timeout` seconds; gives the new count."""
        with self._condition:
            if self._rung == seen:
                self._condition.wait(timeout)
            return self._rung

    def listen(self, stop: threading.Event) -> None:
        """Ring at every NOTIFY until `stop`; reconnects with back-off. Runs in a thread of its own."""
        failures = 0
        while not stop.is_set():
            try:
                self._listen_once(stop)
                failures = 0
            except Exception as error:
                failures += 1
                log.warning("LISTEN lost, polling goes on", error=str(error).strip())
                stop.wait(back_off(failures))

    def _listen_once(self, stop: threading.Event) -> None:
        # A connection of the pool may not be kept waiting, so this one is taken out of it.
        proxy = engines.engine("stream").raw_connection()
        connection: Any = proxy.driver_connection
        proxy.detach()
        try:
            connection.set_session(autocommit=True)
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {CHANNEL}")
            self.ring()
            while not stop.is_set():
                if not any(select.select([connection], [], [], 1.0)):
                    continue
                connection.poll()
                if connection.notifies:
                    connection.notifies.clear()
                    self.ring()
        finally:
            connection.close()


class Pace(NamedTuple):
    """How a tailer that keeps up rests between steps, in seconds; one that is behind does not rest.

    After a step that took d seconds of the processor it rests d * (1 / duty - 1), `least` at least and `longest` at most. So the first reading after
    a silence is taken at once, and many readings in large steps, which cost less.
    """

    duty: float = 0.25
    least: float = 0.0
    longest: float = 1.0

    def rest(self, seconds: float) -> float:
        """How long to rest after a step that took `seconds` of this thread's processor time."""
        return min(self.longest, max(self.least, seconds * (1 / self.duty - 1)))


def back_off(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0.1 s doubling to 3 s, with jitter."""
    longest = min(LONGEST_BACK_OFF, 0.1 * 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 jitter is no secret


def follow(tailer: Tailer, stop: threading.Event, doorbell: Doorbell, pace: Pace | None = None) -> None:
    """Run a tailer until `stop` is set; the step at work is finished. Never raises: failures are logged, counted and tried again."""
    pace = pace or Pace()
    failures, retry, seen = 0, FIRST_RETRY, 0
    lag_due = 0.0
    while not stop.is_set():
        begin, spent = time.monotonic(), time.thread_time()
        try:
            progress = tailer.step()
            if begin >= lag_due:
                _measure_lag(tailer)
                lag_due = begin + LAG_SECONDS
            failures = 0
        except Exception as error:
            failures += 1
            metrics.stream_failures.labels(tailer.name).inc()
            log.error("step failed, nothing of it has happened", tailer=tailer.name, failures=failures, exc_info=error)
            stop.wait(back_off(failures))
            continue
        _count(tailer, progress, time.monotonic() - begin)
        if progress.outcome == "standby":
            stop.wait(STANDBY_SECONDS)
        elif progress.outcome == "idle" and not progress.waiting:
            retry = FIRST_RETRY
            seen = doorbell.wait(seen, POLL_SECONDS)
        elif progress.waiting:
            seen = doorbell.wait(seen, retry)
            retry = min(POLL_SECONDS, retry * 2) if progress.outcome == "idle" else FIRST_RETRY
        elif not progress.more:
            stop.wait(pace.rest(time.thread_time() - spent))


def _count(tailer: Tailer, progress: Progress, seconds: float) -> None:
    if progress.outcome == "stepped":
        metrics.stream_readings.labels(tailer.name).inc(progress.readings)
        metrics.stream_step_seconds.labels(tailer.name).observe(seconds)


def _measure_lag(tailer: Tailer) -> None:
    lag = tailer.lag()
    metrics.stream_lag_rows.labels(tailer.name).set(lag.rows)
    metrics.stream_lag_seconds.labels(tailer.name).set(lag.seconds)
