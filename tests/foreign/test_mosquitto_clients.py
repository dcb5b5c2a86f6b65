"""mosquitto_pub and mosquitto_sub as devices, with both versions of MQTT."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from iiot import tenancy
from iiot.config import Settings
from iiot.services import commands
from tests import factories, services
from tests.integration.mqtt_brokers import UnderTest, running
from tests.integration.mqtt_devices import Device, adapter
from tests.services import eventually

pytestmark = pytest.mark.foreign("mosquitto_pub and mosquitto_sub")

SLOW = 30.0
VERSIONS = ("311", "5")


@pytest.fixture(scope="module")
def under(module_settings: Settings, workspace: Path) -> Iterator[UnderTest]:
    if shutil.which("mosquitto_pub") is None:
        services.missing("mosquitto_pub (apt-get install mosquitto-clients)")
    with (
        running("mosquitto", module_settings, workspace / "broker for mosquitto_pub") as found,
        adapter(found.settings),
    ):
        yield found


@pytest.fixture
def pump(under: UnderTest) -> Device:
    return Device(factories.make_tenant())


def arguments(under: UnderTest, device: Device, version: str, *more: str) -> list[str]:
    """How the device logs in, and what else it is told."""
    login = ["-V", version, "-i", device.uid, "-u", device.uid, "-P", device.token]
    return ["-h", "localhost", "-p", str(under.server.port), *login, *more]


def publish(under: UnderTest, device: Device, version: str, name: str, *more: str) -> int:
    """mosquitto_pub; its exit status."""
    whole = arguments(under, device, version, "-t", f"iiot/{device.uid}/up/{name}", *more)
    return subprocess.run(["mosquitto_pub", *whole], check=False, timeout=SLOW).returncode


def subscribe(under: UnderTest, device: Device, version: str, *more: str) -> str:
    """mosquitto_sub to its end; what it printed."""
    whole = arguments(under, device, version, "-q", "1", "-t", f"iiot/{device.uid}/down/#", *more)
    return subprocess.run(["mosquitto_sub", *whole], check=True, timeout=SLOW, capture_output=True, text=True).stdout


def state(device: Device) -> str:
    return str(factories.rows("SELECT status FROM iiot.device WHERE id = %s", device.device_id)[0][0])


@pytest.mark.parametrize("version", VERSIONS)
def test_readings_at_every_quality_of_service(under: UnderTest, pump: Device, version: str) -> None:
    for qos in range(3):
        assert publish(under, pump, version, "telemetry", "-q", str(qos), "-m", json.dumps({"a": qos})) == 0
    eventually(lambda: pump.values == {0.0, 1.0, 2.0}, SLOW)


@pytest.mark.parametrize("version", VERSIONS)
def test_over_tls_with_the_portals_authority(under: UnderTest, pump: Device, version: str) -> None:
    port = str(under.server.ports["mqtt_tls_bind"])
    tls = ["-p", port, "--cafile", under.ca, "-q", "1", "-m", '{"a": 1}']
    assert publish(under, pump, version, "telemetry", *tls) == 0
    eventually(lambda: pump.values == {1.0}, SLOW)
    foreign = ["-p", port, "--capath", "/etc/ssl/certs", "-m", "{}"]
    assert publish(under, pump, version, "telemetry", *foreign) != 0, "the broker proves itself"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_retained_state_and_a_last_will(under: UnderTest, pump: Device, version: str) -> None:
    assert publish(under, pump, version, "status", "-q", "1", "-r", "-m", "online") == 0
    eventually(lambda: state(pump) == "online", SLOW)
    will = [
        "--will-topic",
        f"iiot/{pump.uid}/up/status",
        "--will-payload",
        "offline",
        "--will-qos",
        "1",
        "--will-retain",
    ]
    listen = arguments(under, pump, version, "-t", f"iiot/{pump.uid}/down/#", "-d", *will)
    with subprocess.Popen(["stdbuf", "-oL", "mosquitto_sub", *listen], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert any(b"SUBACK" in line for line in process.stdout)
        process.kill()
    eventually(lambda: state(pump) == "offline", SLOW)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_command_waits_for_a_session(under: UnderTest, pump: Device, version: str) -> None:
    session = ["-c", *(["-x", "3600"] if version == "5" else [])]
    subscribe(under, pump, version, *session, "-E")
    assert publish(under, pump, version, "status", "-q", "1", "-m", "online", *session) == 0
    query = "SELECT command_protocol FROM iiot.device WHERE id = %s"
    eventually(lambda: factories.rows(query, pump.device_id) == [("mqtt",)], SLOW)
    with tenancy.work(tenancy.of(pump.tenant)) as db:
        uid = commands.create(db, pump.uid, commands.NewCommand("restart", {}, 600)).uid
    query = "SELECT state FROM iiot.command WHERE uid = %s"
    eventually(lambda: factories.rows(query, uid) == [("sent",)], SLOW)
    form = "%R|%D|%E|%p" if version == "5" else "||0|%p"
    response, correlation, expiry, payload = subscribe(under, pump, version, *session, "-C", "1", "-F", form).split(
        "|", 3
    )
    assert json.loads(payload)["id"] == uid
    if version == "5":
        assert (response, correlation) == (f"iiot/{pump.uid}/up/result/{uid}", uid)
        assert 500 < int(expiry) <= 600
    answer = ["-q", "2", "-m", '{"status": "done", "result": 7}']
    assert publish(under, pump, version, f"result/{uid}", *answer) == 0
    eventually(lambda: factories.rows(query, uid) == [("done",)], SLOW)


@pytest.mark.parametrize("version", VERSIONS)
def test_refusals_are_heard(under: UnderTest, pump: Device, version: str) -> None:
    session = ["-c", *(["-x", "3600"] if version == "5" else [])]
    subscribe(under, pump, version, *session, "-E")
    assert publish(under, pump, version, "telemetry", "-q", "1", "-m", "{", *session) == 0
    notice = json.loads(subscribe(under, pump, version, *session, "-C", "1"))
    assert notice["code"] == "not-json"
    assert {"reason", "limit", "retry_after", "topic"} <= notice.keys()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrong_token_is_refused(under: UnderTest, pump: Device, version: str) -> None:
    assert publish(under, pump, version, "telemetry", "-P", "wrong", "-q", "1", "-m", "{}") != 0
