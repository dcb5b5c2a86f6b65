"""HTTP: no adapter but the portal's own door, for tests that go through every protocol."""

import base64
import contextlib
import http.client
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests import services
from tests.drivers import Driver, Send
from tests.live import WebServer


class Protocol(Driver):
    """200 comes after the commit."""

    def start(self, _request: pytest.FixtureRequest) -> None:
        self.settings = self.settings.model_copy(update={"device_rate": 100_000, "device_burst": 100_000})
        with services.active(self.settings):
            self.web = WebServer()
            self.web.start()

    def stop(self) -> None:
        self.web.stop()

    def processes(self) -> list[int]:
        """The workers that answer."""
        assert self.web.popen is not None
        return sorted(child.pid for child in psutil.Process(self.web.popen.pid).children())

    @contextmanager
    def device(self, uid: str, token: str) -> Iterator[Send]:
        """One connection that is kept."""
        login = base64.b64encode(f"{uid}:{token}".encode()).decode()
        connection = http.client.HTTPConnection("127.0.0.1", self.web.port, timeout=30)

        def send(payload: bytes, content_type: str | None) -> None:
            headers = {"Authorization": f"Basic {login}"} | ({"Content-Type": content_type} if content_type else {})
            try:
                connection.request("POST", "/api/v1/telemetry", payload, headers)
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()

        with contextlib.closing(connection):
            yield send
