"""socket.io-client from npm listens to live events, is refused with a wrong token, and finds back after the server restarts."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from iiot.config import Settings
from tests import factories, services
from tests.live import Process, WebServer, stream, token_of
from tests.services import eventually

pytestmark = pytest.mark.foreign("socket.io-client")


@pytest.fixture(scope="module")
def web(module_settings: Settings) -> Iterator[WebServer]:
    """The web server and the stream."""
    server, tailers = WebServer(), stream()
    for process in (server, tailers):
        process.start()
    yield server
    for process in (server, tailers):
        Process.stop(process)


class Listener:
    """The program, and what it has said."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.said: list[tuple[str, Any]] = []
        self.process = process
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            content = json.loads(line)
            self.said.append((content["what"], content.get("data")))

    def all(self, what: str) -> list[Any]:
        """The contents of one kind of line."""
        return [data for word, data in self.said if word == what]

    def close(self) -> int:
        """End of input: it disconnects and ends by itself; its exit status."""
        with self.process as process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                return process.wait(20)
            finally:
                process.kill()
                self._thread.join(10)


@contextmanager
def listening(web: WebServer, token: str, uid: str) -> Iterator[Listener]:
    """The program, running."""
    folder = services.foreign("socket_io")
    argv = [services.node(), str(folder / "listen.cjs"), web.url, token, uid]
    listener = Listener(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    try:
        yield listener
    finally:
        status = listener.close()
    assert status == 0


def test_it_hears_readings_of_its_own_devices(web: WebServer) -> None:
    tenant = factories.make_tenant()
    device, foreign = factories.make_device(tenant), factories.make_device(factories.make_tenant())
    token, _ = token_of(factories.make_user(tenant, "viewer"))
    with listening(web, token, device.uid) as listener:
        eventually(lambda: [answer["ok"] for answer in listener.all("subscribed")] == [True], 30)
        factories.store(foreign.uid, n=1.0)
        factories.store(device.uid, n=2.0)
        [event] = eventually(lambda: listener.all("telemetry"), 30)
        assert (event["device_id"], [value for _, value in event["readings"]["n"]]) == (device.uid, [2.0])


def test_a_device_of_another_tenant_is_refused(web: WebServer) -> None:
    foreign = factories.make_device(factories.make_tenant())
    token, _ = token_of(factories.make_user(factories.make_tenant(), "admin"))
    with listening(web, token, foreign.uid) as listener:
        [answer] = eventually(lambda: listener.all("subscribed"), 30)
        assert answer["ok"] is False


def test_a_wrong_token_is_refused(web: WebServer) -> None:
    with listening(web, "wrong", "u" * 26) as listener:
        assert eventually(lambda: listener.all("refused"), 30)
        assert listener.all("subscribed") == []


def test_it_connects_again_when_the_server_was_killed(web: WebServer) -> None:
    tenant = factories.make_tenant()
    device = factories.make_device(tenant)
    token, _ = token_of(factories.make_user(tenant, "viewer"))
    with listening(web, token, device.uid) as listener:
        eventually(lambda: len(listener.all("subscribed")) == 1, 30)
        web.stop()
        eventually(lambda: listener.all("disconnect"), 30)
        web.start()
        eventually(lambda: len(listener.all("subscribed")) == 2, 60)
        factories.store(device.uid, n=3.0)
        eventually(lambda: listener.all("telemetry"), 30)
