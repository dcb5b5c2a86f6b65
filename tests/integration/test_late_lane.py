"""A device that was cut off sends its backlog over MQTT or AMQP while others send live data: nobody waits for it, and nothing is lost."""

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pika
import pytest
import redis

from iiot import config, events, tenancy
from iiot.config import Settings
from iiot.services import batchlog
from iiot.stream import rollup
from iiot.stream.latest import LatestEffect
from iiot.stream.live import LiveEffect
from iiot.stream.log import Tailer
from tests import factories
from tests.integration.mqtt_devices import Device, adapter, online
from tests.rabbit import RabbitServer, publish
from tests.services import MosquittoServer, eventually

MESSAGES, READINGS = 2_000, 50
HOURS = 3
# More than AMQP had on its way before live messages overtook late ones.
BEHIND, LIVE = 10_000, 200


@pytest.fixture
def room(settings: Settings) -> Iterator[Any]:
    """Somebody who listens to a tenant's live events; `.tenant` says whose."""
    with redis.Redis.from_url(str(settings.redis_url)) as client, client.pubsub() as listening:
        yield listening


def backlog(start: int) -> Iterator[bytes]:
    """The readings of the last hours, a second apart or less, oldest first."""
    step = HOURS * 3_600_000 // (MESSAGES * READINGS)
    for number in range(MESSAGES):
        ts = start + number * READINGS * step
        yield json.dumps([{"ts": ts + place * step, "values": {"level": number}} for place in range(READINGS)]).encode()


def heard(room: Any) -> list[dict[str, Any]]:
    """The telemetry events that came."""
    found = []
    while (message := room.get_message(timeout=0.2)) is not None:
        if message["type"] == "message":
            name, data = events.unframe(message["data"])
            if name == "telemetry":
                found.append(json.loads(bytes(data)))
    return found


def drain(tailer: Tailer) -> None:
    while tailer.step().outcome == "stepped":
        pass


def count(statement: str, *values: Any) -> int:
    return int(factories.rows(statement, *values)[0][0])


def test_a_flood_of_late_data_moves_no_live_data_and_is_stored_whole(
    settings: Settings, mosquitto: MosquittoServer, room: Any
) -> None:
    tenant = factories.make_tenant()
    room.subscribe(f"{events.PREFIX}{events.tenant_room(tenant.uid)}")
    late, live = Device(tenant, "back again"), Device(tenant, "steady")
    now = factories.now_ms()
    start = now - (HOURS + 1) * 3_600_000
    stop = threading.Event()
    sent: list[int] = []
    with adapter(settings), online(mosquitto, late) as flooding, online(mosquitto, live) as steady:

        def send_live() -> None:
            while not stop.wait(0.05):
                sent.append(factories.now_ms())
                steady.publish(f"iiot/{live.uid}/up/telemetry", json.dumps({"ts": sent[-1], "values": {"t": 1}}))

        flooding.publish(f"iiot/{late.uid}/up/telemetry", json.dumps({"ts": now, "values": {"level": -1}}))
        thread = threading.Thread(target=send_live)
        thread.start()
        for payload in backlog(start):
            flooding.client.publish(f"iiot/{late.uid}/up/telemetry", payload, qos=1)
        eventually(lambda: late.readings == MESSAGES * READINGS + 1, 60, 0.2)
        stop.set()
        thread.join(30)
        eventually(lambda: live.readings == len(sent), 30)
    assert late.rejections == []
    flood, waits = times(live)
    assert len(waits) == len(sent)
    assert waits[int(len(waits) * 0.95)] < flood / 4, f"live data waited {waits[-5:]} s of a flood of {flood} s"
    check_effects(tenant, late, now, len(sent), room)


@contextlib.contextmanager
def stuck(device: Device) -> Iterator[None]:
    """Nothing new of this device can be stored: its first readings need a row that points to it."""
    connection = factories.connect(autocommit=False)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM iiot.device WHERE id = %s FOR UPDATE", (device.device_id,))
        yield
    finally:
        connection.close()


@pytest.mark.timeout(300)
def test_live_messages_over_amqp_are_acknowledged_while_late_ones_before_them_are_not(
    rabbit: RabbitServer, settings: Settings
) -> None:
    late, live = Device(factories.make_tenant(), "back again"), Device(factories.make_tenant(), "steady")
    start = factories.now_ms() - 2 * 3_600_000
    with adapter(settings, "amqp"), contextlib.ExitStack() as held:
        held.enter_context(stuck(late))
        with contextlib.closing(rabbit.connect(late.uid, late.token)) as connection:
            channel = connection.channel()
            for number in range(BEHIND):
                body = b'{"ts":%d,"values":{"level":%d}}' % (start + number, number)
                channel.basic_publish("iiot", f"telemetry.{late.uid}", body, pika.BasicProperties(delivery_mode=2))
        eventually(lambda: (rabbit.waiting("telemetry"), rabbit.unsettled("telemetry")) == (0, BEHIND), 60, 0.2)
        with rabbit.online(live) as channel:
            for number in range(LIVE):
                publish(channel, live.uid, json.dumps({"t": number}))
        eventually(lambda: live.readings == LIVE, 30)
        eventually(lambda: rabbit.unsettled("telemetry") == BEHIND, 30)
        assert late.readings == 0
        held.close()
        eventually(lambda: rabbit.unsettled("telemetry") == 0, 60, 0.2)
    assert late.readings == BEHIND
    assert late.rejections == live.rejections == []


def times(live: Device) -> tuple[float, list[float]]:
    """Seconds that the flood took to be stored, and that each live reading waited for its commit to begin, ascending."""
    [(flood,)] = factories.rows(
        "SELECT extract(epoch FROM max(created_at) - min(created_at)) FROM iiot.telemetry_batch WHERE late"
    )
    waits = factories.rows(
        "SELECT extract(epoch FROM b.created_at) - u.ts / 1000.0 FROM iiot.telemetry_batch b, unnest(b.signal_ids, b.ts) AS u (signal, ts) "
        "WHERE NOT b.late AND u.signal IN (SELECT id FROM iiot.signal WHERE device_id = %s) ORDER BY 1",
        live.device_id,
    )
    return float(flood), [float(row[0]) for row in waits]


def check_effects(tenant: factories.TenantRow, late: Device, now: int, steady: int, room: Any) -> None:
    """Live events hold no late reading, the newest value stays the newest, and the sums are those of all readings."""
    drain(Tailer("live", LiveEffect()))
    told = [point for each in heard(room) for points in each["readings"].values() for point in points]
    assert len(told) == steady + 1
    assert min(ts for ts, _ in told) >= now
    drain(Tailer("latest", LatestEffect()))
    newest = factories.rows(
        "SELECT l.num FROM iiot.latest l JOIN iiot.signal s ON s.id = l.signal_id WHERE s.device_id = %s",
        late.device_id,
    )
    assert newest == [(-1.0,)]
    drain(rollup.tailer())
    while rollup.sweep():
        pass
    # Hours are summed up some minutes after their end (rollup.GRACE), so the newest of the flood may not be yet.
    summed = now - int(rollup.GRACE.total_seconds() * 1000)
    raw = factories.rows(
        "SELECT date_trunc('hour', t.ts), count(*), sum(t.num) FROM iiot.telemetry t JOIN iiot.signal s ON s.id = t.signal_id "
        "WHERE s.device_id = %s AND t.ts < date_trunc('hour', to_timestamp(%s / 1000.0)) GROUP BY 1 ORDER BY 1",
        late.device_id,
        summed,
    )
    sums = factories.rows(
        "SELECT r.hour, r.n, r.total FROM iiot.rollup_1h r JOIN iiot.signal s ON s.id = r.signal_id "
        "WHERE s.device_id = %s AND r.n > 0 AND r.hour < date_trunc('hour', to_timestamp(%s / 1000.0)) ORDER BY 1",
        late.device_id,
        summed,
    )
    assert sums == raw
    assert len(raw) >= HOURS


def test_late_data_over_http_is_not_told_live_and_is_not_replayed_to_those_who_come_back(settings: Settings) -> None:
    tenant = factories.make_tenant()
    device = factories.make_device(tenant)
    old = factories.now_ms() - config.load().late_after * 1000 - 1000
    factories.ingest([factories.message(device.uid, (old, {"t": 1.0}))], late=True)
    factories.store(device.uid, (factories.now_ms(), {"t": 2.0}))
    with tenancy.work(tenancy.of(tenant)) as db:
        rows, _, _ = batchlog.read_rows(db, batchlog.START)
        readings = batchlog.read_live(db, batchlog.START, rows)
    assert [row.late for row in rows] == [True, False]
    assert readings.num.tolist() == [2.0]
    assert [row.protocol for row in rows] == ["test", "test"]
