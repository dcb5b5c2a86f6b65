"""One conversation with Mosquitto's dynamic-security plugin over `$CONTROL/dynamic-security/v1`, and the end of a stored session.

Each is a short connection in the calling thread, so that it is safe in threads and greenlets alike. What is said is in
`iiot.broker`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from iiot import lean

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

CONTROL: Final = "$CONTROL/dynamic-security/v1"
RESPONSE: Final = "$CONTROL/dynamic-security/v1/response"
TIMEOUT: Final = 2.0
ADMIN: Final = "iiot-admin"


class BrokerUnavailable(Exception):
    """The broker does not answer, or refuses the administrator."""


class BrokerError(Exception):
    """The broker answered that it cannot do what was asked."""


class Exchange:
    """One short connection to the plugin, as the administrator of `url`. paho's loop runs in the calling thread.

    `authority`: the PEM file that a broker of `mqtts://` is checked with; None: those of the machine. `login`: user, password and client id of
    another user, who connects instead.
    """

    def __init__(self, url: str, authority: Path | None = None, login: tuple[str, str, str] | None = None) -> None:
        # Imported when it is needed, by few processes.
        lean.load("paho.mqtt.client", "dns")
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

        self.parts = urlsplit(url)
        self.port = self.parts.port or (8883 if self.parts.scheme == "mqtts" else 1883)
        # Random: several processes may talk to the broker at once, and each has to get its own answer.
        own = f"{ADMIN}-{secrets.token_hex(8)}"
        user, password, client_id = login or (
            unquote(self.parts.username or ""),
            unquote(self.parts.password or ""),
            own,
        )
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self.client.username_pw_set(user, password)
        self.client.connect_timeout = TIMEOUT
        if self.parts.scheme == "mqtts":
            self.client.tls_set(None if authority is None else str(authority))
        self._is_fine = MQTTErrorCode.MQTT_ERR_SUCCESS
        self.refusal: str | None = None
        self.connected = False
        self.subscribed = False
        self.answers: dict[str, dict[str, Any]] = {}
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = self._on_message
        self.deadline = time.monotonic() + TIMEOUT

    def visit(self) -> None:
        """Connect with a clean session and leave: what the broker kept under the client id, its last will too, is gone. Raises BrokerUnavailable."""
        try:
            self._connect()
            self.client.disconnect()
        finally:
            self._close()

    def _connect(self) -> None:
        try:
            self.client.connect(self.parts.hostname or "", self.port, keepalive=30)
            self._wait(lambda: self.connected)
        except OSError as error:
            where = f"{self.parts.hostname}:{self.port}"
            raise BrokerUnavailable(f"the broker at {where} cannot be reached: {error}") from error

    def run(self, commands: Sequence[Mapping[str, Any]], clear: Sequence[str]) -> list[dict[str, Any]]:
        """One answer per command, in order. Raises BrokerUnavailable after TIMEOUT seconds."""
        marks = [f"{number}-{secrets.token_hex(4)}" for number in range(len(commands))]
        marked = [{**command, "correlationData": mark} for command, mark in zip(commands, marks, strict=True)]
        try:
            self._connect()
            self.client.subscribe(RESPONSE, qos=1)
            self._wait(lambda: self.subscribed)
            self.client.publish(CONTROL, json.dumps({"commands": marked}), qos=1)
            cleared = [self.client.publish(topic, b"", qos=1, retain=True) for topic in clear]
            self._wait(lambda: len(self.answers) >= len(marks) and all(info.is_published() for info in cleared))
            self.client.disconnect()
        finally:
            self._close()
        return [self.answers[mark] for mark in marks]

    def _wait(self, done: Callable[[], bool]) -> None:
        while not done():
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise BrokerUnavailable(f"the broker did not answer within {TIMEOUT:.0f} seconds")
            code = self.client.loop(min(left, 0.5))
            if self.refusal is not None:
                raise BrokerUnavailable(self.refusal)
            if code != self._is_fine:
                raise BrokerUnavailable(f"the broker ended the connection: {code.name}")

    def _close(self) -> None:
        sock = self.client.socket()
        if sock is not None:
            sock.close()

    def _on_connect(self, _client: Client, _userdata: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            self.refusal = f"the broker refused the administrator: {code}; check IIOT_MQTT_ADMIN_URL"
        self.connected = not code.is_failure

    def _on_subscribe(self, _client: Client, _userdata: Any, _mid: int, codes: list[Any], _properties: Any) -> None:
        if any(code.is_failure for code in codes):
            self.refusal = "the broker's user of IIOT_MQTT_ADMIN_URL is no administrator of dynamic security"
        self.subscribed = True

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        for answer in json.loads(message.payload).get("responses", ()):
            self.answers[str(answer.get("correlationData", ""))] = answer
