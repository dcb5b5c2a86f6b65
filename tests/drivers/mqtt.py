"""MQTT through Mosquitto with dynamic security."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.drivers import Driver, Send
from tests.services import MosquittoServer


class Protocol(Driver):
    """The broker confirms to the device; only `down/ack` would say that the reading is stored."""

    commits = False

    def start(self, _request: pytest.FixtureRequest) -> None:
        self.broker = server = MosquittoServer(self.folder / "broker")
        server.start()
        self.settings = self.settings.model_copy(update=server.fields)

    def stop(self) -> None:
        if self.broker is not None:
            self.broker.stop()

    @contextmanager
    def device(self, uid: str, token: str) -> Iterator[Send]:
        """MQTT 5, which has a property for the content type; QoS 1."""
        host, _, port = self.settings.mqtt_bind.rpartition(":")
        client = Client(CallbackAPIVersion.VERSION2, uid, protocol=MQTTProtocolVersion.MQTTv5)
        client.username_pw_set(uid, token)
        client.connect(host, int(port))
        client.loop_start()

        def send(payload: bytes, content_type: str | None) -> None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if content_type is not None:
                properties.ContentType = content_type
            client.publish(f"iiot/{uid}/up/telemetry", payload, qos=1, properties=properties).wait_for_publish(30)

        try:
            yield send
        finally:
            client.disconnect()
            client.loop_stop()
