"""Paced load: publish → committed, and publish → event in a browser's Socket.IO connection."""

import json
import multiprocessing
import time
import urllib.request
from typing import Any

from bench import wire
from bench.servers import Servers, eventually
from tests.services import http_status

WATCHED = 50
# Caches and connections are cold in the first moments; those messages are sent, counted, and left out of the percentiles.
WARM_UP_MS = 2000
EMAIL = "bench@example.com"
PASSWORD = "twelve quiet boats at noon"


def _publish(login: wire.Login, topics: list[bytes], rate: float, count: int, pipe: Any) -> None:
    publisher = wire.PacedPublisher(login, "bench-paced", topics, rate, count)
    pipe.recv()
    begun = time.time() * 1000
    publisher.start()
    publisher.join()
    pipe.send((begun + WARM_UP_MS, publisher.late))


def _watch(http: str, token: str, uids: list[str], pipe: Any) -> None:
    """A client that subscribes to some devices and notes each reading's time and its age when its event arrives (ms)."""
    import socketio

    ages: list[tuple[int, float]] = []
    client = socketio.Client(reconnection=False)

    def on_telemetry(event: dict[str, Any]) -> None:
        now = time.time() * 1000
        ages.extend((ts, now - ts) for points in event["readings"].values() for ts, _ in points)

    client.on("telemetry", on_telemetry)
    client.connect(http, transports=["websocket"], auth={"token": token})
    pipe.send(client.call("subscribe", {"devices": uids}))
    pipe.recv()
    pipe.send(ages)
    client.disconnect()


def add_member(tenant_id: int) -> None:
    """A person who may look at the bench's tenant."""
    from iiot import tenancy
    from iiot.services import users

    with tenancy.work(tenancy.system("sign-in")) as db:
        users.add_member(db, tenant_id, users.create(db, EMAIL, PASSWORD).id, "viewer")


def sign_in(http: str) -> str:
    """An access token of that person."""
    body = json.dumps({"email": EMAIL, "password": PASSWORD}).encode()
    asked = urllib.request.Request(f"{http}/api/v1/auth/login", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return str(json.load(answer)["access_token"])


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def measure(bench: Servers, tenant_id: int, uids: list[str], rate: float, seconds: int) -> dict[str, float]:
    """The whole path at `rate` messages a second, web included; percentiles in milliseconds."""
    port = _free_port()
    http = f"http://127.0.0.1:{port}"
    count = int(rate * seconds)
    spawn = multiprocessing.get_context("spawn")
    add_member(tenant_id)
    with (
        bench.process("-m", "protocols", "run", "mqtt"),
        bench.process("-m", "iiot", "stream"),
        bench.process(
            "-m", "gunicorn", "-c", "config/gunicorn.conf.py", "app_advanced:app", IIOT_HTTP_BIND=f"127.0.0.1:{port}"
        ),
    ):
        eventually(lambda: http_status(f"{http}/ready") == 200, 30)
        token = sign_in(http)
        ours, theirs = spawn.Pipe()
        watcher = spawn.Process(target=_watch, args=(http, token, uids[:WATCHED], theirs))
        watcher.start()
        answer = ours.recv()
        if not answer.get("ok"):
            raise RuntimeError(f"the subscription was refused: {answer}")
        here, there = spawn.Pipe()
        topics = [f"iiot/{uid}/up/telemetry".encode() for uid in uids]
        publisher = spawn.Process(target=_publish, args=(bench.login, topics, rate, count, there))
        publisher.start()
        with bench.superuser().cursor() as cursor:
            cursor.execute("TRUNCATE iiot.telemetry, iiot.telemetry_batch")
            here.send("go")
            warm, late = here.recv()
            eventually(lambda: _logged(cursor) >= count * 3, 20)
            time.sleep(0.5)
            ours.send("enough")
            seen = ours.recv()
            ages = [age for ts, age in seen if ts >= warm]
            committed = _commit_ages(cursor, warm)
        publisher.join(10)
        watcher.join(10)
    expected = count * 3 * WATCHED // len(uids)
    return {
        "rate": rate,
        "committed_p50_ms": round(percentile(committed, 0.5), 1),
        "committed_p95_ms": round(percentile(committed, 0.95), 1),
        "event_p50_ms": round(percentile(ages, 0.5), 1),
        "event_p95_ms": round(percentile(ages, 0.95), 1),
        "events_missed": max(0, expected - len(seen)),
        "late_sends": late,
    }


def _logged(cursor: Any) -> int:
    cursor.execute("SELECT coalesce(sum(cardinality(signal_ids)), 0) FROM iiot.telemetry_batch")
    return int(cursor.fetchone()[0])


def _commit_ages(cursor: Any, since: float) -> list[float]:
    """Per reading: the time of the commit (PostgreSQL's own note of it) minus the time of sending, in ms."""
    cursor.execute(
        "SELECT 1000 * extract(epoch FROM pg_xact_commit_timestamp(b.xid::text::xid))::double precision - t "
        "FROM iiot.telemetry_batch b, unnest(b.ts) AS t WHERE t >= %s",
        (since,),
    )
    return [row[0] for row in cursor]


def _free_port() -> int:
    from iiot.embedded.ports import free_port

    return free_port()


__all__ = ["add_member", "measure", "percentile", "sign_in"]
