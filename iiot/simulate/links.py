"""How a simulated device reaches the portal, like a real one: MQTT, and what links of all protocols share."""

import contextlib
import json
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from iiot.simulate.portal import Login, Portal

Message = dict[str, Any]
LOGIN_SECONDS = 10.0
REQUEST_SECONDS = 30.0
WAITING = 2_000


class LinkError(Exception):
    """The portal cannot be reached, or does not let the device in; the text says which."""


@dataclass
class Tally:
    """What became of the messages of all devices; shared by their threads. `settled` messages were answered, well or badly."""

    sent: int = 0
    settled: int = 0
    errors: int = 0
    last_error: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, sent: int = 0, settled: int = 0, errors: int = 0, reason: str = "") -> None:
        """Count messages."""
        with self._lock:
            self.sent += sent
            self.settled += settled
            self.errors += errors
            self.last_error = reason or self.last_error

    @property
    def acknowledged(self) -> int:
        """Messages that the portal has stored."""
        return max(0, self.settled - self.errors)


class Link(Protocol):
    """One device's connection; used from one thread."""

    def send(self, message: Message) -> None:
        """Hand over a message; blocks while too many wait for their answer. The tally learns of its fate."""

    def poll(self) -> None:
        """Count what was answered meanwhile."""

    def close(self) -> None:
        """Say goodbye and end the connection."""


class MqttLink:
    """MQTT 5, QoS 1, in the name of the device; refusals arrive on its own error topic."""

    def __init__(self, portal: Portal, login: Login, tally: Tally) -> None:
        from paho.mqtt.client import Client, MQTTMessageInfo, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion

        if portal.mqtt is None:
            raise LinkError("this portal has no MQTT broker; take another --protocol")
        self._tally = tally
        self._prefix = f"iiot/{login.uid}"
        self._waiting: deque[MQTTMessageInfo] = deque()
        self._answered = threading.Event()
        self._refusal = ""
        self._client = Client(CallbackAPIVersion.VERSION2, login.uid, protocol=MQTTv5)
        self._client.username_pw_set(login.uid, login.token)
        self._client.will_set(f"{self._prefix}/up/status", "offline", qos=1, retain=True)
        self._client.max_inflight_messages_set(100)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_error
        self._log_in(*portal.mqtt)

    def _log_in(self, host: str, port: int) -> None:
        try:
            self._client.connect(host, port, keepalive=30)
        except OSError as error:
            raise LinkError(f"the MQTT broker at {host}:{port} does not answer ({error})") from error
        self._client.loop_start()
        if not self._answered.wait(LOGIN_SECONDS) or self._refusal:
            self._client.loop_stop()
            raise LinkError(f"the MQTT broker does not let the device in: {self._refusal or 'no answer'}")

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._refusal = str(reason) if reason.is_failure else ""
        if not self._refusal:
            self._client.subscribe(f"{self._prefix}/down/error", qos=1)
            self._client.publish(f"{self._prefix}/up/status", "online", qos=1, retain=True)
        self._answered.set()

    def _on_error(self, _client: Any, _data: Any, message: Any) -> None:
        reason = "a message was refused"
        with contextlib.suppress(ValueError, AttributeError):
            reason = str(json.loads(message.payload).get("reason", reason))
        self._tally.add(errors=1, reason=reason)

    def send(self, message: Message) -> None:
        """What cannot leave now leaves after the reconnect."""
        while len(self._waiting) >= WAITING:
            self._waiting[0].wait_for_publish(1)
            self.poll()
        self._waiting.append(self._client.publish(f"{self._prefix}/up/telemetry", json.dumps(message), qos=1))
        self._tally.add(sent=1)

    def poll(self) -> None:
        """PUBACKs come in the order of the messages."""
        settled = 0
        while self._waiting and self._waiting[0].is_published():
            self._waiting.popleft()
            settled += 1
        self._tally.add(settled=settled)

    def close(self) -> None:
        """`offline`, then DISCONNECT."""
        farewell = self._client.publish(f"{self._prefix}/up/status", "offline", qos=1, retain=True)
        with contextlib.suppress(RuntimeError, ValueError):
            farewell.wait_for_publish(2)
        self._client.disconnect()
        self._client.loop_stop()


@dataclass(frozen=True)
class Answer:
    """What the portal said to a batch. `refused`: how many of it, and why. `wait`: seconds after which all of it is sent again; None: it was settled.

    `ends`: the device itself is not let in, so nothing more is tried.
    """

    refused: int = 0
    reason: str = ""
    wait: float | None = None
    ends: bool = False


class QueuedLink(ABC):
    """A connection with a thread of its own: messages that wait leave together, and again until the portal has answered."""

    # How many messages leave together.
    batch = 200

    def __init__(self, login: Login, tally: Tally) -> None:
        self.login = login
        self._tally = tally
        self._queue: queue.Queue[Message | None] = queue.Queue(WAITING)
        self._ended = threading.Event()
        self._refusal = ""
        self._thread = threading.Thread(target=self._work, name=f"link-{login.uid[:6]}", daemon=True)
        self._thread.start()

    @abstractmethod
    def _post(self, batch: Sequence[Message]) -> Answer:
        """Send them once. Called by the link's own thread, as `_disconnect`."""

    @abstractmethod
    def _disconnect(self) -> None:
        """End the connection, if there is one."""

    def send(self, message: Message) -> None:
        """Blocks while 2,000 messages wait. Raises LinkError once the portal has refused the device itself."""
        if self._refusal:
            raise LinkError(f"the portal does not let the device in: {self._refusal}")
        self._queue.put(message)
        self._tally.add(sent=1)

    def poll(self) -> None:  # noqa: B027 - right for all of them
        """The thread counts by itself."""

    def close(self) -> None:
        """What still waits is tried once more, then the connection ends."""
        self._ended.set()
        self._queue.put(None)
        self._thread.join(REQUEST_SECONDS)

    def _work(self) -> None:
        while (message := self._queue.get()) is not None:
            batch = [message]
            while len(batch) < self.batch and not self._queue.empty():
                following = self._queue.get()
                if following is None:
                    self._queue.put(None)
                    break
                batch.append(following)
            self._deliver(batch)
        self._disconnect()

    def _deliver(self, batch: Sequence[Message]) -> None:
        """Until the portal has answered: it may be starting, or ask for patience."""
        pause = 0.2
        while True:
            answer = self._post(batch)
            if answer.wait is None or self._ended.is_set():
                refused = len(batch) if answer.wait is not None else answer.refused
                self._tally.add(settled=len(batch), errors=refused, reason=answer.reason)
                self._refusal = answer.reason if answer.ends else ""
                return
            self._tally.add(reason=answer.reason)
            self._ended.wait(max(pause, answer.wait))
            pause = min(5.0, pause * 2)
