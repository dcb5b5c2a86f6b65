"""A limit for incoming WebSocket messages while they are read.

Engine.IO looks at the size of a message that is in memory already, and gevent-websocket reads whatever length a frame announces: without this,
anybody could fill the worker's memory before saying who they are.
"""

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import structlog

from iiot import metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = structlog.get_logger(__name__)


class BoundedFrames:
    """WSGI middleware: a WebSocket ends when one message, in all its frames, is longer than `limit` bytes.

    What goes wrong in a connection ends that connection and makes one line in the log, not a traceback that strangers can cause.
    """

    def __init__(self, app: "WSGIApplication", limit: int) -> None:
        self._app = app
        self._limit = limit

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        websocket = environ.get("wsgi.websocket")
        if websocket is None:
            return self._app(environ, start_response)
        environ["wsgi.websocket"] = BoundedSocket(websocket, self._limit)
        try:
            return list(self._app(environ, start_response))
        except Exception as error:
            metrics.live_refused.labels("malformed").inc()
            log.warning("connection ended", error=f"{type(error).__name__}: {error}"[:200])
            with contextlib.suppress(Exception):
                websocket.close()
            return []


class BoundedSocket:
    """A gevent-websocket connection that reads `limit` bytes per message at most; more reads as the end of the stream."""

    def __init__(self, websocket: Any, limit: int) -> None:
        self._websocket = websocket
        self._limit = limit
        self._left = limit
        self._read = websocket.raw_read
        websocket.raw_read = self._bounded_read

    def _bounded_read(self, size: int) -> bytes:
        self._left -= size
        payload: bytes = self._read(size) if self._left >= 0 else b""
        return payload

    def receive(self) -> Any:
        """The next message; None when the connection has ended."""
        self._left = self._limit
        return self._websocket.receive()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._websocket, name)
