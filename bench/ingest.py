"""MQTT QoS 1 → commit → acknowledgement, publisher and broker on the same cores, beside the limit measured in the same run.

The limit is a bare socket reader with the same insert: no client library, no validation, no tenants, no errors, no tailer. The product runs as in
production: `python -m protocols run mqtt`, and `python -m iiot stream` with the live tailer. Counted in the database: lost and duplicate readings.
"""

import argparse
import multiprocessing
import multiprocessing.connection
import statistics
import threading
import time
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import psycopg2

from bench import report, wire
from bench.servers import Servers, cpu_seconds, eventually, servers

KEYS = ("temperature", "pressure", "vibration")
CONNECTIONS = 4


class Telemetry(msgspec.Struct):
    """The only message that the bare reader understands."""

    ts: int
    values: dict[str, float]


def make_fleet(count: int, quota: int | None = None) -> tuple[int, list[str]]:
    """A tenant with `count` devices and their signals, and room for `quota` devices; (tenant id, uids)."""
    from sqlalchemy import insert

    from iiot import ids, tenancy
    from iiot.models import Device, Quota, Signal, Tenant

    with tenancy.work(tenancy.system("sign-in")) as db:
        tenant = Tenant(uid=ids.new_uid(), name="Bench", slug=ids.new_uid())
        db.add(tenant)
        db.flush()
        db.add(Quota(tenant_id=tenant.id, devices=quota or count))
        tenant_id = tenant.id
    with tenancy.work(tenancy.Scope("app", tenant_id, "bench")) as db:
        devices = [Device(uid=ids.new_uid(), name=f"device {number}") for number in range(count)]
        db.add_all(devices)
        db.flush()
        rows = [
            {"tenant_id": tenant_id, "device_id": device.id, "key": key, "type": "number"}
            for device in devices
            for key in KEYS
        ]
        uids = [device.uid for device in devices]
    with tenancy.work(tenancy.system("ingest")) as db:
        db.execute(insert(Signal).inline(), rows)
    return tenant_id, uids


def publish_all(login: wire.Login, uids: list[str], first: int, count: int, pipe: Any) -> None:
    """A process: prepares `count` messages, waits for the word, sends them; answers (start, messages acknowledged)."""
    # One message a second and device, up to now: live data, as plants send it.
    base = int(time.time()) * 1000 - count // len(uids) * 1000 + first
    topics = [f"iiot/{uid}/up/telemetry".encode() for uid in uids]
    packets = [
        wire.publish(
            topics[number % len(topics)], wire.payload(number, base + number // len(topics) * 1000), number % 65535 + 1
        )
        for number in range(count)
    ]
    publishers = [wire.Publisher(login, f"bench-{part}", packets[part::CONNECTIONS]) for part in range(CONNECTIONS)]
    pipe.send("ready")
    pipe.recv()
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join()
    pipe.send(
        (min(publisher.started_at for publisher in publishers), sum(publisher.acknowledged for publisher in publishers))
    )


class BareReader:
    """The limit: one thread reads the socket, one decodes and commits; acknowledgements of a batch leave in one write."""

    def __init__(self, bench: Servers, tenant_id: int) -> None:
        from iiot.services.ingest import INSERT

        self.statement, self.tenant = INSERT, tenant_id
        self.database = psycopg2.connect(bench.settings.database_url_for("ingest").replace("+psycopg2", ""))
        with bench.superuser().cursor() as cursor:
            cursor.execute(
                "SELECT d.uid, s.key, s.id FROM iiot.signal s JOIN iiot.device d ON d.tenant_id = s.tenant_id AND d.id = s.device_id"
            )
            self.signals = {(f"iiot/{uid}/up/telemetry".encode(), key): number for uid, key, number in cursor}
        self.connection = wire.connect(bench.login, "bench-reader")
        wire.subscribe(self.connection, "iiot/+/up/#")
        self.waiting: list[tuple[bytes, bytes, bytes]] = []
        self.news = threading.Condition()
        self.threads = [threading.Thread(target=loop, daemon=True) for loop in (self._read, self._write)]
        for thread in self.threads:
            thread.start()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                data = self.connection.recv(262144)
            except OSError:
                return
            if not data:
                return
            buffer = rest + data
            out: list[tuple[bytes, bytes, bytes]] = []
            rest = buffer[wire.parse(buffer, out) :]
            with self.news:
                self.waiting.extend(out)
                if len(self.waiting) >= 2000:
                    self.news.notify()

    def _write(self) -> None:
        decode = msgspec.json.Decoder(Telemetry).decode
        signals = self.signals
        while self.connection.fileno() >= 0:
            with self.news:
                if len(self.waiting) < 2000:
                    self.news.wait(0.05)
                batch, self.waiting = self.waiting[:5000], self.waiting[5000:]
            if not batch:
                continue
            ids, times, values = [], [], []
            for _, topic, data in batch:
                message = decode(data)
                for key, value in message.values.items():
                    ids.append(signals[topic, key])
                    times.append(message.ts)
                    values.append(value)
            arrays = [
                "{" + ",".join(map(form, column)) + "}" for form, column in ((str, ids), (str, times), (repr, values))
            ]  # type: ignore[operator]
            with self.database.cursor() as cursor:
                cursor.execute(self.statement, (self.tenant, *arrays, None, None, False, "mqtt"))
            self.database.commit()
            self.connection.sendall(wire.pubacks([number for number, _, _ in batch]))

    def close(self) -> None:
        """Hang up."""
        self.connection.close()
        self.database.close()


class Counter:
    """Counts what is committed, from outside."""

    def __init__(self, bench: Servers) -> None:
        self.cursor = bench.superuser().cursor()

    def logged(self) -> int:
        """Readings in the batch log."""
        self.cursor.execute("SELECT coalesce(sum(cardinality(signal_ids)), 0) FROM iiot.telemetry_batch")
        return int(self.cursor.fetchone()[0])

    def stored(self) -> int:
        """Readings in telemetry."""
        self.cursor.execute("SELECT count(*) FROM iiot.telemetry")
        return int(self.cursor.fetchone()[0])

    def last_commit(self) -> float:
        """When PostgreSQL committed the last batch, in seconds since the epoch."""
        self.cursor.execute(
            "SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xid::text::xid))) FROM iiot.telemetry_batch"
        )
        return float(self.cursor.fetchone()[0])

    def tailed(self) -> bool:
        """Whether the live tailer has read the whole log."""
        self.cursor.execute(
            "SELECT NOT EXISTS (SELECT 1 FROM iiot.telemetry_batch b WHERE (b.xid, b.id) > "
            "(SELECT c.xid, c.id FROM iiot.stream_cursor c WHERE c.name = 'latest'))"
        )
        return bool(self.cursor.fetchone()[0])

    def clear(self) -> None:
        """Forget the readings of the run before; the log's cursor stays."""
        self.cursor.execute("TRUNCATE iiot.telemetry, iiot.telemetry_batch")
        self.cursor.execute("CHECKPOINT")


def flood(bench: Servers, uids: list[str], first: int, count: int, pids: dict[str, int]) -> dict[str, float]:
    """Publish `count` messages as fast as they are acknowledged; figures until the last commit."""
    counter = Counter(bench)
    counter.clear()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=publish_all, args=(bench.login, uids, first, count, there)
    )
    process.start()
    here.recv()
    before = {name: cpu_seconds([pid]) for name, pid in pids.items()}
    here.send("go")
    begun = last = time.time()
    seen = 0
    while seen < count * len(KEYS) and time.time() - last < 15:
        time.sleep(0.25)
        now = counter.logged()
        if now != seen:
            seen, last = now, time.time()
    used = {name: (cpu_seconds([pid]) - before[name]) / (last - begun) for name, pid in pids.items()}
    started, acknowledged = here.recv() if here.poll(10) else (begun, 0)
    process.join(10)
    expected = count * len(KEYS)
    stored = counter.stored()
    figures = {
        "messages_per_s": count / (last - started),
        "lost": expected - stored,
        "duplicates": counter.logged() - stored,
    }
    return figures | {"acknowledged": acknowledged} | {f"cores_{name}": round(value, 2) for name, value in used.items()}


def reference(bench: Servers, tenant_id: int, uids: list[str], run: int, count: int) -> dict[str, float]:
    """One run of the limit."""
    reader = BareReader(bench, tenant_id)
    try:
        return flood(bench, uids, run * 2, count, {"broker": bench.broker.pid, "database": bench.postgres.pid})
    finally:
        reader.close()


def product(bench: Servers, uids: list[str], run: int, count: int) -> dict[str, float]:
    """One run of the product, with its live tailer."""
    try:
        with (
            bench.process("-m", "protocols", "run", "mqtt") as adapter,
            bench.process("-m", "iiot", "stream") as stream,
        ):
            eventually(lambda: _subscribed(bench), 20)
            pids = {
                "adapter": adapter.pid,
                "stream": stream.pid,
                "broker": bench.broker.pid,
                "database": bench.postgres.pid,
            }
            figures = flood(bench, uids, run * 2 + 1, count, pids)
            caught_up = time.time()
            eventually(Counter(bench).tailed, 60)
            return figures | {"tailer_behind_s": round(time.time() - caught_up, 2)}
    finally:
        forget_adapter(bench)


def forget_adapter(bench: Servers) -> None:
    """End the adapter's persistent session: else the broker would queue the next run of the limit for it."""
    address = urlsplit(str(bench.settings.mqtt_url))
    login = wire.Login(
        str(address.hostname), int(address.port or 1883), str(address.username), unquote(str(address.password))
    )
    wire.connect(login, "iiot-adapter").close()


def _subscribed(bench: Servers) -> bool:
    log = bench.folder / "protocols-run.log"
    return log.exists() and '"connected"' in log.read_text()


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__)
    parser.add_argument("--messages", type=int, default=120_000, help="messages per run (three readings each)")
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of the limit and of the product, in turn; medians count"
    )
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=20, help="length of the paced run")
    options = parser.parse_args()
    with servers(track_commit_timestamp="on") as bench:
        tenant_id, uids = make_fleet(options.devices)
        limits: list[dict[str, float]] = []
        results: list[dict[str, float]] = []
        for run in range(options.runs):
            report.progress(f"limit {run + 1} of {options.runs}")
            limits.append(reference(bench, tenant_id, uids, run, options.messages))
            report.progress(f"product {run + 1} of {options.runs}")
            results.append(product(bench, uids, run, options.messages))
        from bench import ingest_latency

        paced = ingest_latency.measure(bench, tenant_id, uids, 1000, options.seconds)
    speed = statistics.median(run["messages_per_s"] for run in results)
    limit = statistics.median(run["messages_per_s"] for run in limits)
    for name, runs in (("limit", limits), ("product", results)):
        for run in runs:
            report.row(name, **run)
    report.row("paced 1000/s", **paced)
    lost = sum(int(run["lost"]) for run in results)
    duplicates = sum(int(run["duplicates"]) for run in results)
    report.final(
        "ingest",
        round(speed),
        "messages/s",
        round(limit),
        readings_per_s=round(speed * 3),
        lost=lost,
        duplicates=duplicates,
        **paced,
    )
    passed = not lost and not duplicates and speed / limit >= 0.5
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
