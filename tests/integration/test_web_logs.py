"""What the web workers write: JSON lines, on their output and in the files of IIOT_LOG_DIR, and no error for what people may do."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from iiot.config import Settings
from tests import factories
from tests.live import Listener, WebServer, token_of
from tests.services import eventually


def test_every_line_is_json_in_the_output_and_in_the_files(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IIOT_LOG_DIR", str(folder / "logs"))
    server = WebServer()
    server.start()
    try:
        request = urllib.request.Request(
            f"{server.url}/api/v1/auth/login",
            b'{"email": "nobody@example.com", "password": "a secret of mine"}',
            {"Content-Type": "application/json", "X-Request-ID": "asked-for"},
        )
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=30)
        eventually(lambda: "asked-for" in server.output)
    finally:
        server.stop()
    for text in (server.output, (folder / "logs" / "web.log").read_text()):
        lines = [json.loads(line) for line in text.splitlines()]
        assert {line["process"] for line in lines} == {"web"}
        [asked] = [line for line in lines if line["event"] == "request" and line["request_id"] == "asked-for"]
        assert (asked["route"], asked["status"], asked["level"]) == ("/api/v1/auth/login", 401, "info")
        assert "a secret of mine" not in text
    assert not (folder / "logs" / "web-error.log").exists()


def test_leaving_in_the_middle_of_a_subscription_is_no_error(settings: Settings) -> None:
    tenant = factories.make_tenant()
    token, _ = token_of(factories.make_user(tenant, "viewer"))
    devices = [factories.make_device(tenant).uid for _ in range(50)]
    server = WebServer(workers=1)
    server.start()
    try:
        for _ in range(20):
            leaving = Listener(server.url, token).connect()
            for device in devices:
                leaving.client.emit("subscribe", {"devices": [device]})
            leaving.close()
        staying = Listener(server.url, token).connect()
        assert staying.ask("subscribe", {"devices": devices})["ok"] is True
        staying.close()
    finally:
        server.stop()
    lines = [json.loads(line) for line in server.output.splitlines()]
    assert [line for line in lines if line["level"] == "error"] == []
