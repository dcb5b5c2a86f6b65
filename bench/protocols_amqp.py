"""AMQP: from the queue over the commit to the acknowledgement through the real adapter, beside a bare pika consumer that only acknowledges.

Both empty the same quorum queue of the same node, filled beforehand with the same messages; the adapter runs as in production, `python -m protocols
run amqp`. Counted from its login to the last commit.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika

from bench import report
from bench.ingest import KEYS, make_fleet
from iiot.config import Settings
from tests.integration.mqtt_devices import AdapterProcess
from tests.rabbit import RabbitServer
from tests.services import PostgresServer, ValkeyServer, active, eventually

GOAL_RATE = 8_000
GOAL_RATIO = 0.4
DEVICES = 100
# What is filled in for a second of measuring: somewhat more than a quick consumer takes.
PER_SECOND = 12_000
ACK_EVERY = 250


@dataclass
class Bench:
    """The servers, and the devices in whose name messages are filled in."""

    settings: Settings
    postgres: PostgresServer
    rabbit: RabbitServer
    uids: list[str]
    next_ts: int

    def fill(self, count: int) -> None:
        """Put messages into the queue, live data of the last minutes, none like another."""
        login = pika.PlainCredentials("iiot-adapter", self.rabbit.users.password("iiot-adapter"))
        connection = pika.BlockingConnection(
            pika.ConnectionParameters(self.rabbit.host, self.rabbit.port, self.rabbit.vhost, login)
        )
        channel = connection.channel()
        properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
        for number in range(count):
            values = ",".join(f'"{key}":{number % 1000 + place / 10}' for place, key in enumerate(KEYS))
            body = f'{{"ts":{self.next_ts},"values":{{{values}}}}}'
            channel.basic_publish("iiot", f"telemetry.{self.uids[number % len(self.uids)]}", body.encode(), properties)
            self.next_ts += 1

        def filled() -> bool:
            waiting = self.rabbit.waiting("telemetry")
            assert waiting == count, f"{waiting} of {count} messages wait"
            return True

        # Without confirms, what a quorum queue has not taken yet is lost with its channel.
        eventually(filled, 60)
        connection.close()

    def readings(self) -> int:
        """Readings in the database."""
        return self._ask("SELECT count(*) FROM iiot.telemetry")

    def logged(self) -> int:
        """Readings in the batch log: some thousand rows, so that asking costs those nothing who are measured."""
        return self._ask("SELECT coalesce(sum(cardinality(signal_ids)), 0) FROM iiot.telemetry_batch")

    def _ask(self, query: str) -> int:
        import psycopg2

        name = str(self.settings.database_url).rpartition("/")[2]
        connection = psycopg2.connect(self.postgres.postgres.url(name))
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return int(cursor.fetchone()[0])
        finally:
            connection.close()


@contextlib.contextmanager
def servers() -> Iterator[Bench]:
    """PostgreSQL with fsync, Valkey, RabbitMQ; a fresh migrated database with devices, and the adapter's queues."""
    with tempfile.TemporaryDirectory(prefix="iiot-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = PostgresServer(folder / "postgres", fsync="on", shared_buffers="128MB")
        valkey, rabbit = ValkeyServer(folder / "valkey"), RabbitServer(folder / "rabbit")
        for server in (postgres, valkey, rabbit):
            server.start()
            stack.callback(server.stop)
        stack.enter_context(rabbit.virtual_host())
        (folder / "data").mkdir()
        settings = postgres.database(redis_url=valkey.url(0), data_dir=folder / "data", **rabbit.fields)
        stack.enter_context(active(settings))
        _, uids = make_fleet(DEVICES)
        adapter = AdapterProcess(settings, "amqp")
        adapter.start()
        adapter.stop()
        # A millisecond each, so the last of some hundred thousand are still in the past; older than ten minutes they would be late data, whose lane is slower.
        yield Bench(settings, postgres, rabbit, uids, int(time.time() * 1000) - 480_000)


def bare(bench: Bench, count: int) -> float:
    """Messages a second of pika's BlockingConnection that acknowledges every 250 and does nothing else."""
    bench.fill(count)
    login = pika.PlainCredentials("iiot-adapter", bench.rabbit.users.password("iiot-adapter"))
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(bench.rabbit.host, bench.rabbit.port, bench.rabbit.vhost, login)
    )
    channel = connection.channel()
    channel.basic_qos(prefetch_count=8_000)
    seen = 0

    def take(_channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        nonlocal seen
        seen += 1
        if seen % ACK_EVERY == 0 or seen == count:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if seen == count:
            channel.stop_consuming()

    began = time.perf_counter()
    channel.basic_consume("telemetry", take)
    channel.start_consuming()
    took = time.perf_counter() - began
    connection.close()
    return count / took


def real(bench: Bench, count: int) -> float:
    """Messages a second of the adapter, from its login to the last commit, which the last acknowledgement follows."""
    before, logged = bench.readings(), bench.logged()
    bench.fill(count)
    adapter = AdapterProcess(bench.settings, "amqp")
    adapter.start()
    try:
        began = time.perf_counter()
        eventually(lambda: bench.logged() - logged >= count * len(KEYS), 120, 0.05)
        took = time.perf_counter() - began
    finally:
        adapter.stop()
    # What was not acknowledged would be back in the queue now.
    assert bench.rabbit.waiting("telemetry") == 0
    stored = bench.readings() - before
    assert stored == count * len(KEYS), f"{stored} of {count * len(KEYS)} readings were stored"
    return count / took


def measure(seconds: float, runs: int) -> dict[str, Any]:
    """Medians of `runs`: figure and limit in messages a second, and whether the goals are reached."""
    count = max(2_000, int(PER_SECOND * seconds))
    figures, limits = [], []
    with servers() as bench:
        for number in range(runs):
            report.progress(f"AMQP, run {number + 1} of {runs}: bare consumer")
            limits.append(bare(bench, count))
            report.progress(f"AMQP, run {number + 1} of {runs}: adapter")
            figures.append(real(bench, count))
    figure, limit = statistics.median(figures), statistics.median(limits)
    ratio = figure / limit
    return {
        "figure": round(figure),
        "unit": "messages/s",
        "limit": round(limit),
        "ratio": round(ratio, 3),
        "goal": {"figure": GOAL_RATE, "ratio": GOAL_RATIO},
        "passed": figure >= GOAL_RATE and ratio >= GOAL_RATIO,
        "messages": count,
        "runs": runs,
        "figures": [round(each) for each in figures],
        "limits": [round(each) for each in limits],
    }


def main() -> int:
    """0 when the goals are reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    found = measure(options.seconds, options.runs)
    report.row("AMQP", adapter=found["figure"], bare=found["limit"], ratio=found["ratio"])
    more = {name: found[name] for name in ("goal", "passed", "messages", "runs", "figures", "limits")}
    report.final("protocols_amqp", found["figure"], found["unit"], found["limit"], **more)
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
