"""The way of a new user, from an empty data dir to a reading in a browser: the real product, foreign clients, no step left out."""

import base64
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import socketio

from tests import services

NEW_PASSWORD = "a boat under seven bridges"


class Visitor:
    """Somebody with an HTTP client."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.authorization = ""

    def call(self, method: str, path: str, body: Any = None, authorization: str | None = None) -> tuple[int, Any]:
        """(status, answer) of a JSON request."""
        headers = {"Content-Type": "application/json", "Authorization": authorization or self.authorization}
        headers = {name: value for name, value in headers.items() if value}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        return status, json.loads(content) if content else None

    def sign_in(self, email: str, password: str) -> dict[str, Any]:
        """Log in and keep the token."""
        status, answer = self.call("POST", "/auth/login", {"email": email, "password": password})
        assert status == 200, answer
        self.authorization = f"Bearer {answer['access_token']}"
        return dict(answer)


@pytest.fixture
def fresh(workspace: Path) -> Iterator[services.Stack]:
    """A stack in an empty data dir, whose administrator has not signed in yet."""
    running = services.Stack(workspace / "walk data")
    running.start()
    yield running
    running.stop()


def test_a_new_user_gets_from_an_empty_data_dir_to_a_live_reading(fresh: services.Stack) -> None:
    run = fresh.run
    visitor = Visitor(run["http"])

    # The one-time password opens the door to its own replacement and to nothing else.
    answer = visitor.sign_in(run["admin"]["email"], run["admin"]["password"])
    assert answer["must_change_password"] is True
    status, problem = visitor.call("GET", "/devices")
    assert (status, problem["type"].rpartition("/")[2]) == (403, "password-change-required")
    change = {"current_password": run["admin"]["password"], "new_password": NEW_PASSWORD}
    status, _ = visitor.call("POST", "/auth/password/change", change)
    assert status == 200
    services.eventually(lambda: fresh.run["admin"]["password"] is None)
    visitor.sign_in(run["admin"]["email"], NEW_PASSWORD)

    status, device = visitor.call("POST", "/devices", {"name": "Boiler <1>"})
    assert status == 201
    events, client = _listen(visitor, device["id"])
    try:
        _publish_by_mqtt(run, device, {"temperature": 21.5, "running": True})
        basic = base64.b64encode(f"{device['id']}:{device['token']}".encode()).decode()
        status, stored = visitor.call("POST", "/telemetry", {"pressure": 1.25}, f"Basic {basic}")
        assert (status, stored) == (200, {"stored": 1, "duplicate": 0, "rejected": []})

        def seen() -> bool:
            return {"temperature", "running", "pressure"} <= {key for event in events for key in event["readings"]}

        services.eventually(seen)
    finally:
        client.disconnect()

    def latest() -> dict[str, Any]:
        return {key: value["value"] for key, value in visitor.call("GET", f"/devices/{device['id']}/latest")[1].items()}

    services.eventually(lambda: latest() == {"temperature": 21.5, "running": True, "pressure": 1.25})
    _, raw = visitor.call("GET", f"/devices/{device['id']}/telemetry?keys=temperature,pressure")
    assert [[value for _, value in raw[key]] for key in ("temperature", "pressure")] == [[21.5], [1.25]]
    assert visitor.call("GET", f"/devices/{device['id']}")[1]["status"] == "online"
    _send_with_a_certificate(visitor, run, device, fresh.data_dir.parent)
    services.eventually(lambda: latest()["temperature"] == 34.5, 30)
    _, raw = visitor.call("GET", f"/devices/{device['id']}/telemetry?keys=temperature")
    assert [value for _, value in raw["temperature"]] == [21.5, 33.5, 34.5]


def _send_with_a_certificate(visitor: Visitor, run: dict[str, Any], device: dict[str, Any], folder: Path) -> None:
    """The portal makes it, mosquitto_pub sends 33.5 with it; revoked, its 99 is nothing, and the token's 34.5 comes."""
    uid = device["id"]
    status, made = visitor.call("POST", f"/devices/{uid}/certificates", {"name": "first"})
    assert status == 201, made
    assert made["broker_ca"] == Path(run["mqtt"]["ca_file"]).read_text()
    files = {"cert": folder / "walk.crt", "key": folder / "walk.key"}
    files["cert"].write_text(made["certificate"])
    files["key"].write_text(made["private_key"])
    where = ["-h", run["mqtt"]["host"], "-p", str(run["mqtt"]["cert_port"]), "--cafile", run["mqtt"]["ca_file"]]
    who = ["--cert", str(files["cert"]), "--key", str(files["key"]), "-i", uid]
    what = ["-q", "1", "-t", f"iiot/{uid}/up/telemetry", "-m"]
    command = ["mosquitto_pub", *where, *who, *what]
    subprocess.run([*command, '{"temperature": 33.5}'], check=True, timeout=30, capture_output=True)
    assert visitor.call("DELETE", f"/devices/{uid}/certificates/{made['id']}")[0] == 204
    subprocess.run([*command, '{"temperature": 99}'], check=False, timeout=30, capture_output=True)
    where = ["-h", run["mqtt"]["host"], "-p", str(run["mqtt"]["port"]), "-i", uid, "-u", uid, "-P", device["token"]]
    command = ["mosquitto_pub", *where, *what, '{"temperature": 34.5}']
    subprocess.run(command, check=True, timeout=30, capture_output=True)


def _listen(visitor: Visitor, device_id: str) -> tuple[list[dict[str, Any]], socketio.Client]:
    events: list[dict[str, Any]] = []
    connected = threading.Event()
    client = socketio.Client(reconnection=False)
    client.on("telemetry", events.append)
    client.on("connect", connected.set)
    token = visitor.authorization.removeprefix("Bearer ")
    client.connect(visitor.url, transports=["websocket"], auth={"token": token})
    assert connected.wait(10)
    assert client.call("subscribe", {"devices": [device_id]})["ok"] is True
    return events, client


def _publish_by_mqtt(run: dict[str, Any], device: dict[str, Any], values: dict[str, Any]) -> None:
    program = shutil.which("mosquitto_pub")
    if program is None:
        services.missing("mosquitto_pub (apt-get install mosquitto-clients)")
    where = ["-h", run["mqtt"]["host"], "-p", str(run["mqtt"]["port"])]
    who = ["-u", device["id"], "-P", device["token"], "-i", device["id"]]
    what = ["-q", "1", "-t", f"iiot/{device['id']}/up/telemetry", "-m", json.dumps(values)]
    subprocess.run([program, *where, *who, *what], check=True, timeout=30, capture_output=True)
