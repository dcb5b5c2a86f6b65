"""node-opcua, a second implementation of OPC UA, against the portal's server."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iiot import clock
from iiot.config import Settings
from tests import factories, services
from tests.integration.opcua_clients import PASSWORD, Server, Side, serving

HERE = Path(__file__).parent / "opcua"
pytestmark = pytest.mark.foreign("node-opcua")


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[Server]:
    if shutil.which("node") is None or not (HERE / "node_modules").exists():
        services.missing("node-opcua (scripts/setup.sh --tests)")
    with serving(module_settings) as running:
        yield running


def _start(server: Server, **ask: Any) -> "subprocess.Popen[str]":
    asked = {"url": server.url, "folder": str(server.folder / "node-opcua"), "password": PASSWORD, **ask}
    return subprocess.Popen(
        ["node", "client.js", json.dumps(asked)],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _told(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate(timeout=90)
    assert out, err
    return dict(json.loads(out.strip().splitlines()[-1]))


def test_browse_read_write_call_history_and_subscribe(server: Server) -> None:
    side, other = Side(factories.make_tenant()), Side(factories.make_tenant("CANARY"))
    device, foreign = side.device("Kessel 1/2", setpoint=1.0), other.device("CANARY-device", temperature=1.0)
    now = clock.now_ms()
    factories.store(device.uid, *((now - 60_000 + n * 1000, {"temperature": float(n)}) for n in range(10)))
    side.change(device, "temperature", unit="°C", min=-40.0, max=125.0)
    side.change(device, "setpoint", writable=True)
    process = _start(
        server, user=side.user("engineer"), device=device.uid, foreign=foreign.uid, to=now, **{"from": now - 60_000}
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip() == "listening":
                break
        factories.store(device.uid, temperature=77.0)
        told = _told(process)
    finally:
        process.kill()
        process.wait()
    assert "error" not in told, told["error"]
    assert "2:Devices" in told["objects"]
    assert told["devices"] == [[f"ns=2;s={device.uid}", "Kessel 1/2"]]
    assert set(told["children"]) == {"Status", "SetStatus", "setpoint", "temperature"}
    assert told["read"][1:3] == ["Good", "Double"]
    assert told["range"] == [-40.0, 125.0]
    assert told["unit"] == [4408652, "°C"]
    assert told["foreign"] == "BadNodeIdUnknown"
    assert (told["write"], told["denied"]) == ("Good", "BadNotWritable")
    assert told["call"] == ["Good", True]
    assert told["history"] == [float(number) for number in range(10)]
    assert told["heard"][-1] == 77.0
    assert factories.rows("SELECT name, params FROM iiot.command WHERE device_id = %s", device.device_id) == [
        ("write", {"setpoint": 42.5})
    ]


@pytest.mark.parametrize(
    ("ask", "word"),
    [
        ({"password": "wrong"}, "BadUserAccessDenied"),
        ({"user": None}, "ANONYMOUS"),
        ({"mode": "None", "policy": "None"}, ""),
        ({"mode": "Sign"}, ""),
    ],
    ids=["wrong password", "anonymous", "no security", "signed only"],
)
def test_strangers_stay_outside(server: Server, ask: dict[str, Any], word: str) -> None:
    side = Side(factories.make_tenant())
    told = _told(_start(server, **{"user": side.user("viewer")} | ask))
    assert word in told["error"]
    assert "objects" not in told


def test_the_other_policy_works_too(server: Server) -> None:
    side = Side(factories.make_tenant())
    told = _told(_start(server, user=side.user("viewer"), policy="Aes256_Sha256_RsaPss"))
    assert "error" not in told, told["error"]
    assert told["devices"] == []
