"""Commands over MQTT: the PUBLISH that carries one. Not an adapter."""

from __future__ import annotations

import json
from typing import Final

from paho.mqtt.client import Client
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from protocols.base import Order

# For the broker's PUBACK; without one the command comes again.
CONFIRM_SECONDS: Final = 2.0
RESULT: Final = "result/"


def publish(client: Client, order: Order, *, five: bool) -> bool:
    """Publish a command at QoS 1; True once the broker has confirmed it.

    To `iiot/<uid>/down/command`; what controls an entity of the smart-home scheme to its `…/set`, with nothing but what it shall become.

    With MQTT 5 the broker drops it when its time is up before the device is there (Message Expiry Interval, section
    3.3.2.3.3), and the device finds in Response Topic and Correlation Data where its answer goes.
    """
    properties = None
    if five:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.MessageExpiryInterval = order.seconds_left()
        properties.ResponseTopic = f"iiot/{order.uid}/up/{RESULT}{order.id}"
        properties.CorrelationData = order.id.encode()
        properties.ContentType = "application/json"
    topic, payload = f"iiot/{order.uid}/down/command", order.payload()
    if order.address is not None:
        change = {name: value for name, value in order.params.items() if name != "entity"}
        topic, payload = f"{order.address}/set", json.dumps(change).encode()
    info = client.publish(topic, payload, qos=1, properties=properties)
    try:
        info.wait_for_publish(CONFIRM_SECONDS)
        return info.is_published()
    except (RuntimeError, ValueError):
        # The connection has ended, or the queue of the client is full.
        return False
