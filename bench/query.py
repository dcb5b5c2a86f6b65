"""Reading a day as a chart and a month by the hour, out of ten million readings, beside the same rows by a bare psycopg2 query.

The product answers over HTTP, by gunicorn, as the role iiot_app behind row-level security. The limit reads the same rows on one connection as
the same role, with the fastest transport that was found (arrays in PostgreSQL's binary form) and nothing else: no HTTP, no JSON, no downsampling.
Everything is warm; each run asks for another signal and day. The readings are made in the database; hours are summed up by the real sweep.
"""

import argparse
import http.client
import json
import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

import psycopg2

from bench import report
from bench.ingest import make_fleet
from bench.ingest_latency import add_member, percentile, sign_in
from bench.servers import Servers, eventually, servers
from iiot.embedded.ports import free_port
from tests.services import http_status

DAYS = 30
KEY = "temperature"
CHART_MS, HOURLY_MS = 50.0, 100.0

LOAD = """
INSERT INTO iiot.telemetry (tenant_id, signal_id, ts, num)
SELECT %(tenant)s, s, %(day)s + g * interval '1 second', 20 + 5 * sin(g / 13750.0) + random()
FROM unnest(%(signals)s) AS s, generate_series(0, 86399, %(every)s) AS g
"""
BARE_CHART = """
SELECT string_agg(timestamptz_send(ts) || float8send(num), ''::bytea) FROM (
    SELECT ts, num FROM iiot.telemetry WHERE signal_id = %s AND ts >= %s AND ts < %s ORDER BY ts) AS r
"""
BARE_ROWS = "SELECT ts, num FROM iiot.telemetry WHERE signal_id = %s AND ts >= %s AND ts < %s ORDER BY ts"
BARE_HOURLY = (
    "SELECT hour, total / n FROM iiot.rollup_1h WHERE signal_id = %s AND hour >= %s AND hour < %s ORDER BY hour"
)


def load(bench: Servers, tenant_id: int, signals: list[int], first: datetime, every: int) -> int:
    """Fill the days and let the tailer's sweep sum up their hours; returns the number of readings."""
    from iiot import tenancy
    from iiot.services import rollups
    from iiot.stream import rollup

    connection = bench.superuser()
    with connection.cursor() as cursor:
        for day in range(DAYS):
            report.progress(f"loading day {day + 1} of {DAYS}")
            cursor.execute(
                LOAD, {"tenant": tenant_id, "signals": signals, "day": first + timedelta(days=day), "every": every}
            )
        report.progress("vacuum")
        cursor.execute("VACUUM ANALYZE iiot.telemetry")
        cursor.execute("SELECT count(*) FROM iiot.telemetry")
        (count,) = cursor.fetchone()
    rollup.tailer().step()
    with tenancy.work(tenancy.system("stream")) as db:
        db.execute(tenancy.sql("SET LOCAL statement_timeout = 0"))
        rollups.mark_all(db, first)
    while done := rollup.sweep():
        report.progress(f"summing up hours, {done} more")
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE iiot.rollup_1h")
    connection.close()
    return int(count)


class Client:
    """One kept connection to the product."""

    def __init__(self, base: str, token: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(base).netloc)
        self._headers = {"Authorization": f"Bearer {token}"}

    def read(self, uid: str, start: datetime, stop: datetime, **query: str) -> list[Any]:
        """The points of one answer."""
        words = {"keys": KEY, "from": start.isoformat(), "to": stop.isoformat()} | query
        self._connection.request("GET", f"/api/v1/devices/{uid}/telemetry?{urlencode(words)}", headers=self._headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(body.decode())
        found: list[Any] = json.loads(body)[KEY]
        return found


def measure(question: Callable[[int, datetime], None], tasks: list[tuple[int, datetime]]) -> list[float]:
    """Milliseconds of each run, the first round of all tasks thrown away: it warms the caches."""
    for task in tasks:
        question(*task)
    taken = []
    for task in tasks:
        began = time.perf_counter()
        question(*task)
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def bare(
    bench: Servers, tenant_id: int, statement: str, days: int, signals: list[int]
) -> Callable[[int, datetime], None]:
    """A question to the database alone, as the role of the portal."""
    url = bench.settings.database_url_for("app").replace("+psycopg2", "", 1)
    connection = psycopg2.connect(url)
    cursor = connection.cursor()
    cursor.execute("SELECT set_config('app.tenant_id', %s, false)", (str(tenant_id),))

    def ask(device: int, start: datetime) -> None:
        cursor.execute(statement, (signals[device], start, start + timedelta(days=days)))
        cursor.fetchall()

    return ask


def run(bench: Servers, options: argparse.Namespace) -> dict[str, list[float]]:
    """All measurements, in ms."""
    tenant_id, uids = make_fleet(4 * options.every)
    add_member(tenant_id)
    superuser = bench.superuser()
    with superuser.cursor() as cursor:
        cursor.execute(
            "SELECT d.uid, s.id FROM iiot.signal s JOIN iiot.device d ON d.id = s.device_id WHERE s.key = %s", (KEY,)
        )
        by_uid = dict(cursor.fetchall())
    signals = [by_uid[uid] for uid in uids]
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first = today - timedelta(days=DAYS)
    count = load(bench, tenant_id, signals, first, options.every)
    report.row("loaded", readings=count, signals=len(signals), days=DAYS)
    random.seed(4)
    tasks = [(n % len(uids), first + timedelta(days=random.randrange(DAYS))) for n in range(options.runs)]
    months = [(n % len(uids), first) for n in range(options.runs)]
    port = free_port()
    with bench.process(
        "-m", "gunicorn", "-c", "config/gunicorn.conf.py", "app_advanced:app", IIOT_HTTP_BIND=f"127.0.0.1:{port}"
    ):
        base = f"http://127.0.0.1:{port}"
        eventually(lambda: http_status(f"{base}/health") == 200, 30)
        client = Client(base, sign_in(base))

        def chart(device: int, start: datetime) -> None:
            points = client.read(uids[device], start, start + timedelta(days=1), agg="lttb", limit="2000")
            assert len(points) == 2000

        def hourly(device: int, start: datetime) -> None:
            points = client.read(uids[device], start, start + timedelta(days=DAYS), agg="avg", interval="1h")
            assert len(points) == DAYS * 24

        report.progress("one day as 2,000 points")
        found = {"chart": measure(chart, tasks)}
        report.progress("30 days hourly")
        found["hourly"] = measure(hourly, months)
    report.progress("the same rows, bare")
    found["chart_limit"] = measure(bare(bench, tenant_id, BARE_CHART, 1, signals), tasks)
    found["chart_rows"] = measure(bare(bench, tenant_id, BARE_ROWS, 1, signals), tasks[:10])
    found["hourly_limit"] = measure(bare(bench, tenant_id, BARE_HOURLY, DAYS, signals), months)
    return found


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.query", description=__doc__)
    parser.add_argument("--runs", type=int, default=60, help="runs of each question")
    parser.add_argument(
        "--every", type=int, default=1, help="seconds between readings; 30 days of 4 signals per second"
    )
    options = parser.parse_args()
    with servers() as bench:
        found = run(bench, options)
    for name, taken in found.items():
        report.row(name, p50_ms=statistics.median(taken), p95_ms=percentile(taken, 0.95), worst_ms=max(taken))
    chart, hourly = percentile(found["chart"], 0.95), percentile(found["hourly"], 0.95)
    limit, hourly_limit = percentile(found["chart_limit"], 0.95), percentile(found["hourly_limit"], 0.95)
    # Shorter is better here: the ratio is what part of the time is the limit's.
    report.final(
        "query",
        round(chart, 1),
        f"ms p95, one day of a signal every {options.every} s as 2,000 points",
        round(limit, 1),
        ratio=round(limit / chart, 3),
        hourly_p95_ms=round(hourly, 1),
        hourly_limit_ms=round(hourly_limit, 1),
        hourly_ratio=round(hourly_limit / hourly, 3),
    )
    return 0 if chart <= CHART_MS and hourly <= HOURLY_MS else 1


if __name__ == "__main__":
    raise SystemExit(main())
