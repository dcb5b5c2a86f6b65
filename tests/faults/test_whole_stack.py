"""The whole product under `up`: 10,000 QoS 1 messages while one process after the other is killed; all stored once, all seen live."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import socketio
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from iiot import clock
from tests import services
from tests.integration.test_walk import NEW_PASSWORD, Visitor

MESSAGES = 10_000
VICTIMS = ("valkey", "postgres", "mqtt", "stream")


@pytest.fixture
def running(workspace: Path) -> Iterator[services.Stack]:
    stack = services.Stack(workspace / "fault data")
    stack.start()
    yield stack
    stack.stop()


def _signed_in(stack: services.Stack) -> Visitor:
    run = stack.run
    visitor = Visitor(run["http"])
    visitor.sign_in(run["admin"]["email"], run["admin"]["password"])
    change = {"current_password": run["admin"]["password"], "new_password": NEW_PASSWORD}
    assert visitor.call("POST", "/auth/password/change", change)[0] == 200
    visitor.sign_in(run["admin"]["email"], NEW_PASSWORD)
    return visitor


class Publisher(threading.Thread):
    """A device that sends its share of the messages for each victim, and the next share when it is told to."""

    def __init__(self, run: dict[str, Any], device: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.topic = f"iiot/{device['id']}/up/telemetry"
        self.go = threading.Semaphore(0)
        self.client = Client(CallbackAPIVersion.VERSION2, device["id"], clean_session=False)
        self.client.username_pw_set(device["id"], device["token"])
        self.client.connect(run["mqtt"]["host"], run["mqtt"]["port"])
        self.client.loop_start()
        self.start()

    def run(self) -> None:
        """Send, wait for the broker's confirmations, go on."""
        begun = clock.now_ms() - MESSAGES
        share = MESSAGES // len(VICTIMS)
        for part in range(len(VICTIMS)):
            self.go.acquire()
            numbers = range(part * share, (part + 1) * share)
            sent = [
                self.client.publish(self.topic, b'{"ts":%d,"values":{"n":%d}}' % (begun + n, n), 1) for n in numbers
            ]
            for info in sent:
                info.wait_for_publish(60)
        self.client.disconnect()
        self.client.loop_stop()


@pytest.mark.timeout(240)
def test_ten_thousand_messages_survive_the_death_of_every_process(running: services.Stack) -> None:
    visitor = _signed_in(running)
    device = visitor.call("POST", "/devices", {"name": "Survivor"})[1]
    seen: set[float] = set()

    def on_telemetry(event: dict[str, Any]) -> None:
        seen.update(value for _, value in event["readings"].get("n", []))

    client = socketio.Client(reconnection=False)
    client.on("telemetry", on_telemetry)
    client.connect(visitor.url, transports=["websocket"], auth={"token": visitor.authorization.removeprefix("Bearer ")})
    assert client.call("subscribe", {"devices": [device["id"]]})["ok"] is True
    publisher = Publisher(running.run, device)
    for victim in VICTIMS:
        publisher.go.release()
        pid = running.children()[victim]
        os.kill(pid, signal.SIGKILL)
        services.eventually(lambda victim=victim, pid=pid: running.children().get(victim) not in (None, pid), 30)
    publisher.join(120)

    expected = {float(number) for number in range(MESSAGES)}
    services.eventually(lambda: seen == expected, 90, 0.2)
    client.disconnect()

    def stored() -> int:
        query = "keys=n&from=now-1h&agg=count"
        answer = visitor.call("GET", f"/devices/{device['id']}/telemetry?{query}")[1]
        return int(sum(value for _, value in answer["n"]))

    services.eventually(lambda: stored() == MESSAGES, 30, 0.5)
