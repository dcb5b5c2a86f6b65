"""MQTT.js as a device, over TCP, TLS and WebSocket, with both versions of MQTT."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iiot import tenancy
from iiot.config import Settings
from iiot.services import commands
from tests import factories, services
from tests.integration.mqtt_brokers import UnderTest, running
from tests.integration.mqtt_devices import Device, adapter
from tests.services import eventually

pytestmark = pytest.mark.foreign("MQTT.js")

HERE = Path(__file__).parent / "mqttjs"
SLOW = 60.0
WAYS = {"tcp": ("mqtt", "mqtt_bind"), "tls": ("mqtts", "mqtt_tls_bind"), "websocket": ("ws", "mqtt_ws_bind")}


@pytest.fixture(scope="module")
def under(module_settings: Settings, workspace: Path) -> Iterator[UnderTest]:
    if not (HERE / "node_modules").is_dir():
        services.missing("MQTT.js (scripts/setup.sh --tests)")
    with (
        running("mosquitto", module_settings, workspace / "broker for MQTT.js") as found,
        adapter(found.settings),
    ):
        yield found


class Script:
    """device.js at work; its lines as they come."""

    def __init__(self, under: UnderTest, way: str, uid: str, token: str, version: int, folder: Path) -> None:
        scheme, name = WAYS[way]
        path = "/mqtt" if way == "websocket" else ""
        url = f"{scheme}://localhost:{under.server.ports[name]}{path}"
        trust = [under.ca] if way == "tls" else []
        self.output = folder / "lines"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [services.node(), str(HERE / "device.js"), url, uid, token, str(version), *trust],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What it has said of one kind."""
        found = [json.loads(line) for line in self.output.read_text().splitlines() if line.startswith("{")]
        return [each for each in found if each["event"] == event]

    def topic(self, ending: str) -> list[dict[str, Any]]:
        """The messages on topics with this ending."""
        return [each for each in self.lines("message") if each["topic"].endswith(ending)]

    def end(self) -> int:
        """Wait until it has ended."""
        return self.process.wait(SLOW)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("way", WAYS)
def test_a_device_sends_hears_and_answers(under: UnderTest, folder: Path, way: str, version: int) -> None:
    device = Device(factories.make_tenant())
    script = Script(under, way, device.uid, device.token, version, folder)
    try:
        eventually(lambda: device.values == {0.0, 1.0, 2.0}, SLOW)
        [refused] = eventually(lambda: script.topic("/down/error"), SLOW)
        assert refused["content"]["code"] == "not-json"
        with tenancy.work(tenancy.of(device.tenant)) as db:
            uid = commands.create(db, device.uid, commands.NewCommand("blink", {"times": 3}, 600)).uid
        [order] = eventually(lambda: script.topic("/down/command"), SLOW)
        assert (order["content"]["name"], order["content"]["params"]) == ("blink", {"times": 3})
        if version == 5:
            assert order["response"] == f"iiot/{device.uid}/up/result/{uid}"
            assert order["correlation"] == uid
            assert 500 < order["expiry"] <= 600
        assert script.end() == 0, script.output.read_text()
        query = "SELECT state, result FROM iiot.command WHERE uid = %s"
        eventually(lambda: factories.rows(query, uid) == [("done", "by MQTT.js")], SLOW)
    finally:
        script.process.kill()
        script.process.wait()


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_token_is_refused(under: UnderTest, folder: Path, way: str) -> None:
    device = Device(factories.make_tenant())
    script = Script(under, way, device.uid, "wrong", 5, folder)
    assert script.end() == 1
    assert script.lines("connect") == []
    assert "Not authorized" in script.output.read_text()
