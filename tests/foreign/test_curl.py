"""curl speaks for devices and for people over HTTP."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iiot.config import Settings
from tests import factories, services
from tests.integration.mqtt_devices import Device
from tests.live import WebServer, token_of

pytestmark = pytest.mark.foreign("curl")


@pytest.fixture(scope="module")
def web(module_settings: Settings) -> Iterator[WebServer]:
    """The web server."""
    with WebServer() as server:
        yield server


@pytest.fixture(scope="module")
def pump(web: WebServer) -> Device:
    return Device(factories.make_tenant())


def curl(web: WebServer, path: str, *options: str) -> tuple[int, dict[str, str], Any]:
    """(status, headers, JSON) of one request."""
    program = shutil.which("curl")
    if program is None:
        services.missing("curl (apt-get install curl)")
    form = "%{stderr}%{http_code} %{header_json}"
    argv = [program, "-sS", "-w", form, *options, f"{web.url}{path}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    status, _, headers = done.stderr.partition(" ")
    flat = {name: values[0] for name, values in json.loads(headers).items()}
    return int(status), flat, json.loads(done.stdout) if done.stdout else None


def post(
    web: WebServer, device: Device, *options: str, kind: str = "application/json"
) -> tuple[int, dict[str, str], Any]:
    """A message of a device."""
    login = ["-u", f"{device.uid}:{device.token}"]
    return curl(web, "/api/v1/telemetry", *login, "-H", f"Content-Type: {kind}", *options)


def test_a_reading_is_stored_when_the_answer_comes(web: WebServer, pump: Device) -> None:
    status, _, answer = post(web, pump, "-d", '{"temperature":21.5}')
    assert (status, answer) == (200, {"stored": 1, "duplicate": 0, "rejected": []})
    assert pump.values == {21.5}


def test_a_file_of_senml_is_stored(web: WebServer, pump: Device, folder: Path) -> None:
    path = folder / "pack.json"
    path.write_text('[{"bn":"m/","n":"a","v":3,"t":-5},{"n":"b","v":4.5}]')
    assert post(web, pump, "--data-binary", f"@{path}", kind="application/senml+json")[2]["stored"] == 2


def test_a_large_file_waits_for_the_continue(web: WebServer, pump: Device, folder: Path) -> None:
    path = folder / "large.json"
    path.write_bytes(b'{"large":1' + b" " * 262_000 + b"}")
    assert post(web, pump, "-H", "Expect: 100-continue", "--data-binary", f"@{path}")[0] == 200
    path.write_bytes(b" " * 300_000)
    status, _, problem = post(web, pump, "--data-binary", f"@{path}")
    assert (status, problem["status"]) == (413, 413)


def test_what_is_wrong_is_explained(web: WebServer, pump: Device) -> None:
    status, headers, problem = post(web, pump, "-d", "temperature=5")
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert "not JSON" in problem["detail"]


def test_a_wrong_token_is_refused(web: WebServer, pump: Device) -> None:
    status, headers, _ = curl(web, "/api/v1/telemetry", "-u", f"{pump.uid}:wrong", "-d", '{"a":1}')
    assert status == 401
    assert "www-authenticate" in headers


def test_a_person_reads_with_a_token(web: WebServer, pump: Device) -> None:
    token, _ = token_of(factories.make_user(pump.tenant, "viewer"))
    status, _, page = curl(web, "/api/v1/devices?limit=1", "-H", f"Authorization: Bearer {token}", "--compressed")
    assert (status, [each["id"] for each in page["items"]]) == (200, [pump.uid])
