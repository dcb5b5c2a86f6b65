"""Ten tenants with fifty devices each, all sending over MQTT once a second, and a hundred people at work: answers, errors, database connections.

The whole product runs: web, MQTT adapter, stream. Each person repeats one kind of request once a second: lists, devices, latest values, charts,
usage, the audit trail, and changes. What is counted: answers that are not 200 or 201, the 95th percentile of the time to an answer, messages that
were not stored, and the most connections that the portal's roles had open at PostgreSQL.
"""

import argparse
import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from bench import http_load, report, wire
from bench.ingest import KEYS, make_fleet
from bench.ingest_latency import percentile
from bench.servers import Servers, cpu_seconds, eventually, servers
from iiot.embedded.ports import free_port
from tests.services import http_status

TENANTS, DEVICES, PEOPLE = 10, 50, 100
MOST_MS, MOST_CONNECTIONS = 100.0, 30


def person(tenant_id: int, number: int) -> str:
    """A signed-in admin of a tenant, without the 0.3 s of a password; the access token."""
    import app_advanced
    from iiot import config, ids, tenancy, web
    from iiot.models import User
    from iiot.services import sessions, users

    with tenancy.work(tenancy.system("sign-in")) as db:
        user = User(uid=ids.new_uid(), email=f"person-{number}@example.com", password_hash="!")
        db.add(user)
        db.flush()
        users.add_member(db, tenant_id, user.id, "admin")
        opened = sessions.open_session(db, user.id)
    app = app_advanced.create_app(config.load())
    with app.app_context():
        return web.access_token(opened)


def work_of(number: int, uids: list[str], tenant: str, token: str) -> bytes:
    """The request that person `number` repeats: of a hundred people four create or rename, the others read."""
    uid = uids[number % len(uids)]
    now = datetime.now(UTC)
    words = f"keys={KEYS[0]}&from={(now - timedelta(hours=1)).strftime('%Y-%m-%dT%H:%M:%SZ')}&to={(now + timedelta(hours=1)).strftime('%Y-%m-%dT%H:%M:%SZ')}"
    if number % 50 == 0:
        return http_load.request("/api/v1/devices", token, "POST", json.dumps({"name": f"new {number}"}).encode())
    if number % 50 == 1:
        body = json.dumps({"name": f"renamed by {number}"}).encode()
        return http_load.request(f"/api/v1/devices/{uid}", token, "PATCH", body)
    paths = (
        "/api/v1/devices?limit=50",
        f"/api/v1/devices/{uid}",
        f"/api/v1/devices/{uid}/latest",
        f"/api/v1/devices/{uid}/telemetry?{words}&agg=lttb&limit=500",
        f"/api/v1/devices/{uid}/signals",
        f"/api/v1/devices/{uid}/telemetry?{words}&agg=avg&interval=60",
        f"/api/v1/tenants/{tenant}/stats",
        f"/api/v1/tenants/{tenant}/quota",
        "/api/v1/audit?limit=50",
        "/api/v1/auth/me",
    )
    return http_load.request(paths[number % len(paths)], token)


class Connections(threading.Thread):
    """Looks at PostgreSQL twice a second for the connections of the portal's roles."""

    def __init__(self, bench: Servers) -> None:
        super().__init__(daemon=True)
        self._cursor = bench.superuser().cursor()
        self.stop = threading.Event()
        self.most = 0

    def run(self) -> None:
        while not self.stop.wait(0.5):
            self._cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'iiot\\_%' AND backend_type = 'client backend' "
                "AND application_name LIKE 'iiot-%'"
            )
            self.most = max(self.most, int(self._cursor.fetchone()[0]))


def _publish(login: wire.Login, topics: list[bytes], rate: float, count: int, pipe: Any) -> None:
    publisher = wire.PacedPublisher(login, "bench-tenants", topics, rate, count)
    publisher.start()
    publisher.join()
    pipe.send(publisher.late)


def crowd(bench: Servers) -> tuple[list[bytes], list[str]]:
    """Tenants, devices and people: what each person asks, and the uids of all devices."""
    from iiot import db as engines

    fleets = [make_fleet(DEVICES, quota=2 * DEVICES + 1000) for _ in range(TENANTS)]
    with bench.superuser().cursor() as cursor:
        cursor.execute("SELECT id, uid FROM iiot.tenant")
        tenant_uids = dict(cursor.fetchall())
    requests = []
    for number in range(PEOPLE):
        # A kind of request is done in every tenant: ten people of each, a tenant apart.
        tenant_id, uids = fleets[number // (PEOPLE // TENANTS)]
        requests.append(work_of(number, uids, tenant_uids[tenant_id], person(tenant_id, number)))
    engines.dispose()
    return requests, [uid for _, fleet in fleets for uid in fleet]


@contextmanager
def product(bench: Servers) -> Iterator[tuple[int, dict[str, int]]]:
    """The web server, the MQTT adapter and the stream: the port, and the pids of all processes by name."""
    port = free_port()
    gunicorn = ("-m", "gunicorn", "-c", "config/gunicorn.conf.py", "app_advanced:app")
    with (
        bench.process("-m", "protocols", "run", "mqtt") as adapter,
        bench.process("-m", "iiot", "stream") as stream,
        bench.process(*gunicorn, IIOT_HTTP_BIND=f"127.0.0.1:{port}") as web,
    ):
        eventually(lambda: http_status(f"http://127.0.0.1:{port}/ready") == 200, 30)
        own = {"adapter": adapter.pid, "stream": stream.pid, "web": web.pid}
        yield port, own | {"broker": bench.broker.pid, "database": bench.postgres.pid}


def run(bench: Servers, options: argparse.Namespace) -> dict[str, float]:
    """The figures."""
    requests, uids = crowd(bench)
    spawn = multiprocessing.get_context("spawn")
    with product(bench) as (port, pids):
        http_load.pace(port, requests, PEOPLE, PEOPLE, 3)
        watcher = Connections(bench)
        watcher.start()
        here, there = spawn.Pipe()
        count = len(uids) * options.seconds
        topics = [f"iiot/{uid}/up/telemetry".encode() for uid in uids]
        publisher = spawn.Process(target=_publish, args=(bench.login, topics, float(len(uids)), count, there))
        publisher.start()
        before = {name: cpu_seconds([pid]) for name, pid in pids.items()}
        paced = http_load.pace(port, requests, PEOPLE, PEOPLE, options.seconds)
        used = {f"cores_{name}": (cpu_seconds([pid]) - before[name]) / options.seconds for name, pid in pids.items()}
        late = here.recv()
        publisher.join()
        cursor = bench.superuser().cursor()
        eventually(lambda: _stored(cursor) >= count * len(KEYS), 20)
        watcher.stop.set()
        watcher.join()
        return {
            "requests": len(paced.latencies),
            "errors": paced.bad,
            "p50_ms": round(percentile(paced.latencies, 0.5), 1),
            "p95_ms": round(percentile(paced.latencies, 0.95), 1),
            "messages": count,
            "readings_missing": count * len(KEYS) - _stored(cursor),
            "late_sends": late,
            "connections": watcher.most,
            **{name: round(cores, 2) for name, cores in used.items()},
        }


def _stored(cursor: Any) -> int:
    cursor.execute("SELECT count(*) FROM iiot.telemetry")
    return int(cursor.fetchone()[0])


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.tenants", description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="length of the run")
    options = parser.parse_args()
    with servers() as bench:
        report.progress("making tenants, devices and people")
        begun = time.monotonic()
        figures = run(bench, options)
    report.row("work", took_s=round(time.monotonic() - begun), **figures)
    report.final("tenants", figures["p95_ms"], "ms p95 of 100 people's requests", MOST_MS, **figures)
    good = not figures["errors"] and not figures["readings_missing"] and figures["connections"] <= MOST_CONNECTIONS
    return 0 if good and figures["p95_ms"] <= MOST_MS else 1


if __name__ == "__main__":
    raise SystemExit(main())
