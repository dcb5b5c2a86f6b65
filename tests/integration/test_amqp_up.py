"""`python -m iiot up` with a RabbitMQ of its own."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pika
import psutil
import psycopg2
import pytest

from iiot.embedded import rabbitmq
from tests.services import Stack, eventually, missing

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def stack(folder: Path) -> Iterator[Stack]:
    if rabbitmq.find_rabbitmq() is None:
        missing("RabbitMQ (apt-get install rabbitmq-server)")
    started = Stack(folder / "data with space", {"IIOT_AMQP_URL": ""})
    started.start(120)
    yield started
    started.stop()


def processes_of(data_dir: Path) -> list[int]:
    """What works for a data dir: by arguments or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            hints = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if any(str(data_dir) in hint for hint in hints):
            found.append(process.pid)
    return found


def _stored(stack: Stack) -> int:
    embedded = json.loads((stack.data_dir / "embedded.json").read_text())
    connection = psycopg2.connect(embedded["database_url"])
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM iiot.telemetry")
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def _send(stack: Stack, url: str, device: dict[str, str]) -> None:
    """One reading, confirmed."""
    uid, token = device["id"], device["token"]
    connection = pika.BlockingConnection(pika.URLParameters(url.replace("://", f"://{uid}:{token}@")))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_publish("iiot", f"telemetry.{uid}", b'{"a": 1}', mandatory=True)
    connection.close()


def test_a_device_sends_at_once_the_node_is_private_and_nothing_is_left_behind(stack: Stack, folder: Path) -> None:
    """One start, as it takes long: the address in run.json works, the node survives a kill, and everything ends with the portal."""
    run = stack.run
    url = run["amqp"]["url"]
    assert set(stack.children()) >= {"rabbitmq", "amqp"}
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        # As guest, which does not exist.
        pika.BlockingConnection(pika.URLParameters(url))
    assert stack.command("tenant", "create", "Plant").returncode == 0
    made = stack.command("device", "create", "pump", "--tenant", "Plant", "--json")
    assert made.returncode == 0, made.stderr
    pump = json.loads(made.stdout)
    _send(stack, url, pump)
    eventually(lambda: _stored(stack) == 1, 30)
    series = folder / "ramp.csv"
    series.write_text("timestamp,value\n" + "".join(f"{1_700_000_000 + i * 10},{i}\n" for i in range(50)))
    replayed = stack.command(
        "simulate", str(series), "--protocol", "amqp", "--speed", "2000", "--tenant", "Plant", "--json"
    )
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["acknowledged"] == 50
    eventually(lambda: _stored(stack) == 51, 30)
    parts = urlsplit(url)
    assert (parts.hostname, parts.username) == ("127.0.0.1", None)
    node = psutil.Process(stack.children()["rabbitmq"])
    listening = [
        one for each in [node, *node.children(True)] for one in each.net_connections() if one.status == "LISTEN"
    ]
    assert listening
    assert {one.laddr.ip for one in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    before = node.pid
    node.kill()
    eventually(lambda: stack.children().get("rabbitmq") not in (None, before), 60)
    eventually(lambda: rabbitmq.answers("127.0.0.1", parts.port or 0), 90)
    _send(stack, url, pump)
    eventually(lambda: _stored(stack) == 52, 60)
    stack.stop()
    assert processes_of(stack.data_dir) == []
