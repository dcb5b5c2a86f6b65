"""Whether an adapter is connected, for the metrics and for the Connect page. Not an adapter."""

from __future__ import annotations

import threading

from prometheus_client import Gauge

from iiot.services import adapters

connected = Gauge(
    "iiot_protocol_connected", "Whether the adapter is connected.", ["protocol"], multiprocess_mode="livemin"
)


class Beat:
    """Says it in the metrics at once, and to the portal at once and every five seconds."""

    def __init__(self, name: str, stop: threading.Event) -> None:
        self.name = name
        self._stop = stop
        self._is_connected = False
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name}-beat", daemon=True)

    def start(self) -> None:
        """Begin to tell the portal, in a thread of its own that ends with `stop`."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """After `stop`: wait until the portal knows, so many seconds at most."""
        self._news.set()
        self._thread.join(seconds)

    def tell(self, is_connected: bool) -> None:
        """The connection came up or went down."""
        self._is_connected = is_connected
        connected.labels(self.name).set(is_connected)
        self._news.set()

    def _run(self) -> None:
        while True:
            # In this order: what is told after the look is not waited out.
            self._news.clear()
            if self._stop.is_set():
                break
            adapters.beat(self.name, self._is_connected)
            self._news.wait(adapters.BEAT_SECONDS)
        adapters.beat(self.name, False)
