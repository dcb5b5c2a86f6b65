"""Commands over MQTT: the PUBLISH that carries one. Not an adapter."""

from __future__ import annotations

import json
from typing import Any, Final

from paho.mqtt.client import Client
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from protocols.base import NobodyThere, Order

# For the broker's PUBACK; without one the command comes again.
CONFIRM_SECONDS: Final = 2.0
RESULT: Final = "result/"
# "No matching subscribers" (MQTT 5 section 3.4.2.1).
NO_SUBSCRIBER: Final = 0x10


class Unheard:
    """The numbers of what the broker took and gave to nobody; the callback of `Client.on_publish`."""

    def __init__(self) -> None:
        self.numbers: set[int] = set()

    def __call__(self, _client: Client, _data: Any, number: int, code: ReasonCode, _properties: Any) -> None:
        if code.value == NO_SUBSCRIBER:
            self.numbers.add(number)


def publish(client: Client, order: Order, unheard: Unheard, *, five: bool) -> bool:
    """Publish a command at QoS 1; True once the broker has confirmed it. Raises NobodyThere when nobody subscribes to it.

    To `iiot/<uid>/down/command`; what controls an entity of the smart-home scheme to its `…/set`, with nothing but what it shall become.

    With MQTT 5 the broker drops it when its time is up before the device is there (Message Expiry Interval, section
    3.3.2.3.3), and the device finds in Response Topic and Correlation Data where its answer goes. Only there the broker
    tells that nobody subscribes: neither a device that is there nor a session that waits for one.
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
    # Of notices, which nobody asks about.
    unheard.numbers.clear()
    info = client.publish(topic, payload, qos=1, properties=properties)
    try:
        info.wait_for_publish(CONFIRM_SECONDS)
    except (RuntimeError, ValueError):
        # The connection has ended, or the queue of the client is full.
        return False
    if info.mid in unheard.numbers:
        raise NobodyThere
    return info.is_published()
