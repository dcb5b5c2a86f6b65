"""What RabbitMQ is told to keep to: how often a message is handed out, how many are on their way, and which rights come first."""

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, urlsplit

import pytest

from iiot import clock
from iiot.config import Settings
from protocols import amqp, amqp_out
from tests import factories, services
from tests.contract import Counting, locked
from tests.integration.mqtt_devices import Device
from tests.rabbit import RabbitServer, publish
from tests.services import eventually

pytestmark = pytest.mark.timeout(300)
TELEMETRY, LATER = 50, 150


@pytest.fixture
def pump(rabbit: RabbitServer, settings: Settings) -> Device:
    return Device(factories.make_tenant())


@pytest.fixture
def runner(pump: Device, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """The adapter in this process, with low limits."""
    monkeypatch.setattr(amqp, "LIMIT", 2)
    monkeypatch.setattr(amqp, "PREFETCH", TELEMETRY)
    counting = Counting("amqp")
    thread = threading.Thread(target=counting.run, args=(amqp.make(settings),))
    thread.start()
    yield counting
    counting.stop.set()
    thread.join(30)


def test_no_more_than_the_prefetch_is_on_its_way_while_the_database_is_away(
    runner: Counting, rabbit: RabbitServer, pump: Device
) -> None:
    start = clock.now_ms() - 10_000
    with rabbit.online(pump) as channel:
        eventually(lambda: _has_consumer(rabbit), 30)
        with locked():
            for number in range(TELEMETRY + LATER):
                publish(channel, pump.uid, b'{"ts":%d,"values":{"n":%d}}' % (start + number, number))
            eventually(lambda: runner.taken == TELEMETRY, 30)
            # A command's answer is not behind them.
            publish(channel, pump.uid, b"?", "result")
            eventually(lambda: runner.taken == TELEMETRY + 1, 30)
            assert rabbit.waiting("telemetry") == LATER
            assert runner.settled == 0
    eventually(lambda: pump.readings == TELEMETRY + LATER, 30)
    assert runner.most <= TELEMETRY + 1
    eventually(lambda: rabbit.unsettled("telemetry") == 0, 30)


def _has_consumer(rabbit: RabbitServer) -> bool:
    with rabbit.adapter_login() as channel:
        try:
            return bool(channel.queue_declare("telemetry", passive=True).method.consumer_count)
        except Exception:
            return False


def test_what_is_handed_out_too_often_goes_to_the_dead(runner: Counting, rabbit: RabbitServer, pump: Device) -> None:
    eventually(lambda: _has_consumer(rabbit), 30)
    runner.stop.set()
    eventually(lambda: not _has_consumer(rabbit), 30)
    with rabbit.online(pump) as channel:
        publish(channel, pump.uid, '{"a": 1}')
    handed_out = 0

    def hand_out() -> bool:
        """The connection ends without an acknowledgement, as when the adapter is killed."""
        nonlocal handed_out
        with rabbit.adapter_login() as channel:
            handed_out += channel.basic_get("telemetry")[0] is not None
        return handed_out > amqp.LIMIT

    eventually(hand_out, 30)
    [(properties, body)] = rabbit.dead(1)
    assert body == b'{"a": 1}'
    [death] = (properties.headers or {})["x-death"]
    assert (death["reason"], death["queue"], death["count"]) == ("delivery_limit", "telemetry", 1)
    assert death["routing-keys"] == [f"telemetry.{pump.uid}"]


def test_copies_that_do_not_reach_the_dead_are_counted_and_told(
    runner: Counting,
    rabbit: RabbitServer,
    pump: Device,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    eventually(lambda: _has_consumer(rabbit), 30)
    before = amqp_out.dead_lost_total._value.get()
    with rabbit.online(pump) as channel:
        publish(channel, pump.uid, "in time")
        rabbit.dead(1, pump.uid)
        with rabbit.adapter_login() as own:
            own.queue_delete(amqp.DEAD)
        publish(channel, pump.uid, "no queue")
        eventually(lambda: amqp_out.dead_lost_total._value.get() == before + 1, 30)
        # As when RabbitMQ does not confirm.
        monkeypatch.setattr(amqp_out, "UNCONFIRMED", 0)
        for _ in range(20):
            publish(channel, pump.uid, "too many")
        eventually(lambda: amqp_out.dead_lost_total._value.get() == before + 21, 30)
    assert pump.rejections == ["not-json"] * 22
    eventually(lambda: rabbit.unsettled("telemetry") == 0, 30)
    assert 1 <= capsys.readouterr().out.count("were lost") <= 3


class Between(BaseHTTPRequestHandler):
    """Passes calls of the management API on, and asks RabbitMQ before each what the user may do so far."""

    rabbit: RabbitServer
    calls: list[tuple[str, str, int, int]]

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        before = [
            sum(self.rabbit.vhost == each["vhost"] for each in self.rabbit.ask("GET", f"/api/{kind}"))
            for kind in ("topic-permissions", "permissions")
        ]
        self.calls.append((self.command, self.path, *before))  # type: ignore[arg-type]
        node = http.client.HTTPConnection("127.0.0.1", urlsplit(self.rabbit.node.management_url).port or 0, timeout=30)
        node.request(self.command, self.path, body or None, dict(self.headers))
        answer = node.getresponse()
        content = answer.read()
        node.close()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_user_may_write_nowhere_before_it_is_bound_to_its_keys(rabbit: RabbitServer, settings: Settings) -> None:
    Between.rabbit, Between.calls = rabbit, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Between)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    parts = urlsplit(rabbit.node.management_url)
    between = f"http://{parts.username}:{parts.password}@127.0.0.1:{server.server_port}"
    try:
        with services.active(settings.model_copy(update={"amqp_management_url": between})):
            device = Device(factories.make_tenant())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    vhost = quote(rabbit.vhost, safe="")
    told = {path: (topics, rights) for method, path, topics, rights in Between.calls if method == "PUT"}
    others = told[f"/api/users/{device.uid}"][1]
    # What RabbitMQ had when it was told: neither; then the keys, and no right yet.
    assert told[f"/api/topic-permissions/{vhost}/{device.uid}"] == (0, others)
    assert told[f"/api/permissions/{vhost}/{device.uid}"] == (1, others)
    order = [path.split("/")[2] for path in told]
    assert order == ["users", "queues", "topic-permissions", "permissions"]
    with rabbit.online(device):
        pass
