"""The web server with its two workers, the stream process, and Socket.IO clients, for tests of live events."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import socketio

import app_advanced
from iiot import config, tenancy, web
from iiot.embedded import ports
from iiot.services import sessions
from tests import factories
from tests.services import ROOT, eventually, http_status


class Process:
    """A process of the product that a test may kill."""

    def __init__(self, arguments: list[str], **environment: str) -> None:
        self._arguments = arguments
        self._environment = environment
        self._log = config.load().data_dir / f"{arguments[-1]}.log"
        self.popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; whoever needs it ready waits for an effect."""
        with open(self._log, "ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, *self._arguments],
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def output(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def stop(self) -> float:
        """SIGTERM; returns how many seconds it took to end."""
        began = time.monotonic()
        if self.popen is not None:
            self.popen.terminate()
            self.popen.wait(20)
            self.popen = None
        return time.monotonic() - began

    def kill(self) -> None:
        """kill -9."""
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait(20)
            self.popen = None


class WebServer(Process):
    """Gunicorn as the product runs it."""

    def __init__(self, workers: int = 2) -> None:
        self.port = ports.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        bind = f"127.0.0.1:{self.port}"
        super().__init__(
            ["-m", "gunicorn", "-c", "config/gunicorn.conf.py", "app_advanced:app"],
            IIOT_HTTP_BIND=bind,
            IIOT_WEB_WORKERS=str(workers),
            IIOT_SUPERVISED="1",
        )

    def start(self) -> None:
        super().start()
        eventually(lambda: http_status(f"{self.url}/login"), 30)


def stream() -> Process:
    """`python -m iiot stream`."""
    return Process(["-m", "iiot", "stream"])


def token_of(user: factories.UserRow) -> tuple[str, str]:
    """A new session of the user: (access token, session uid)."""
    app = app_advanced.create_app()
    with tenancy.work(tenancy.system("sign-in")) as db:
        opened = sessions.open_session(db, user.user_id)
    with app.app_context():
        return web.access_token(opened), str(opened.principal.session_uid)


class Listener:
    """A Socket.IO client that keeps what it received, as a browser would: readings by (device, key, ts)."""

    def __init__(self, url: str, token: str | None, headers: dict[str, str] | None = None) -> None:
        self.client = socketio.Client(reconnection=False)
        self.readings: dict[tuple[str, str, int], Any] = {}
        self.quality: dict[tuple[str, str, int], str] = {}
        self.order: list[tuple[str, str, int]] = []
        self.others: list[tuple[str, Any]] = []
        self.cursor: str | None = None
        self.gone = threading.Event()
        self.refused: Any = None
        self._url, self._token, self._headers = url, token, headers or {}
        self.client.on("telemetry", self._telemetry)
        self.client.on("*", self._other)
        self.client.on("disconnect", lambda *_: self.gone.set())
        self.client.on("connect_error", self._refused)

    def _telemetry(self, data: dict[str, Any]) -> None:
        self.cursor = data["cursor"]
        for key, values in data["readings"].items():
            for ts, value in values:
                self.readings[data["device_id"], key, ts] = value
                self.order.append((data["device_id"], key, ts))

        for key, marks in data.get("quality", {}).items():
            self.quality |= {(data["device_id"], key, int(ts)): word for ts, word in marks.items()}

    def _other(self, event: str, data: Any = None) -> None:
        if event == "cursor":
            self.cursor = data["cursor"]
        self.others.append((event, data))

    def _refused(self, data: Any) -> None:
        self.refused = data

    def connect(self) -> "Listener":
        """Connect; raises socketio's ConnectionError when refused."""
        self.gone.clear()
        auth = {"token": self._token} if self._token is not None else None
        self.client.connect(self._url, auth=auth, headers=self._headers, transports=["websocket"], wait_timeout=10)
        return self

    def ask(self, event: str, *data: Any) -> Any:
        """Send an event and return its acknowledgement."""
        return self.client.call(event, data if len(data) != 1 else data[0], timeout=20)

    def close(self) -> None:
        """Disconnect, and close what the library leaves open after it was refused or cut off."""
        self.client.disconnect()
        eventually(lambda: not self.client.connected)
        if self.client.eio.ws is not None:
            self.client.eio.ws.shutdown()


@contextmanager
def listening(url: str, token: str, **request: Any) -> Iterator[Listener]:
    """A connected client that has subscribed."""
    listener = Listener(url, token).connect()
    try:
        if request:
            answer = listener.ask("subscribe", request)
            assert answer["ok"], answer
        yield listener
    finally:
        listener.close()
