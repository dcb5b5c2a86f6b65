"""The commands a person pastes to make a device send: real addresses, and the token where it is known."""

from dataclasses import dataclass

from flask import render_template, request

from iiot import config
from iiot.config import Settings, split_bind
from iiot.models import Device
from iiot.portal import forms
from iiot.services import credentials

PLACEHOLDER = "YOUR_TOKEN"
# What a server binds to when it listens on every address; no device can connect to it by that name.
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


@dataclass(frozen=True)
class Example:
    """One way to send a first reading."""

    title: str
    where: str
    text: str
    note: str = ""


def mqtt_address(settings: Settings, http_host: str) -> tuple[str, int]:
    """Host and port of the broker as a device reaches it; one that listens everywhere is reached by the portal's own name."""
    host, port = split_bind(settings.mqtt_public or settings.mqtt_bind)
    return (http_host if host in EVERYWHERE else host), port


def examples(
    settings: Settings, base_url: str, uid: str, token: str | None, user_name: str | None = None
) -> list[Example]:
    """Commands for the device `uid`; `base_url` is the portal as the reader's browser reaches it.

    `user_name`: what the token logs in with at the broker, when it is not the uid. HTTP takes every token of the device with the uid.
    """
    base = (settings.public_url or base_url).rstrip("/")
    web_host = base.partition("://")[2].partition("/")[0].rpartition(":")[0] or base
    host, port = mqtt_address(settings, web_host)
    word, user = token or PLACEHOLDER, user_name or uid
    mqtt_note = (
        "From the package mosquitto-clients. QoS 1: the broker keeps the message until the portal has stored it."
    )
    http_note = "The answer says how many readings were stored, and why any were not."
    python_note = "Sends a reading every second. Install the library with: pip install paho-mqtt"
    found = [
        Example("MQTT", f"{host}:{port}", _mosquitto(host, port, uid, user, word), mqtt_note),
        Example("HTTP", f"{base}/api/v1/telemetry", _curl(base, uid, word), http_note),
        Example("Python", "paho-mqtt 2", _paho(host, port, uid, user, word), python_note),
    ]
    # Set by `up`, or by the operator who runs the adapter; the default alone says nothing about it.
    if settings.coap_is_on and "coap_bind" in settings.model_fields_set:
        found.insert(2, _coap(*split_bind(settings.coap_bind), web_host, uid, word))
    if settings.amqp_is_on:
        amqp_host, amqp_port = split_bind(settings.amqp_public or settings.amqp_bind)
        found.insert(-1, _amqp(web_host if amqp_host in EVERYWHERE else amqp_host, amqp_port, uid, user, word))
    return found


def _amqp(host: str, port: int, uid: str, user: str, token: str) -> Example:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    text = (
        f"amqp-publish -u 'amqp://{user}:{token}@{address}' \\\n"
        f"  -e iiot -r telemetry.{uid} -p -C application/json \\\n"
        """  -b '{"temperature": 21.5, "running": true}'"""
    )
    note = f"From the package amqp-tools. Commands wait in the queue command.{uid}, which is there after the first message."
    return Example("AMQP", address, text, note)


def _coap(host: str, port: int, web_host: str, uid: str, token: str) -> Example:
    host = web_host.strip("[]") if host in EVERYWHERE else host
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    text = (
        "coap-client-notls -m post -t json \\\n"
        """  -e '{"temperature": 21.5, "running": true}' \\\n"""
        f"  'coap://{address}/telemetry?uid={uid}&token={token}'"
    )
    note = "From the package libcoap3-bin. The answer 2.04 means stored. The token travels in plain text: for networks you trust."
    return Example("CoAP", address, text, note)


def _mosquitto(host: str, port: int, uid: str, user: str, token: str) -> str:
    return (
        f"mosquitto_pub -h {host} -p {port} -q 1 \\\n"
        f"  -i {uid} -u {user} -P '{token}' \\\n"
        f"  -t iiot/{uid}/up/telemetry \\\n"
        """  -m '{"temperature": 21.5, "running": true}'"""
    )


def _curl(base: str, uid: str, token: str) -> str:
    return (
        f"curl -u '{uid}:{token}' \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        """  -d '{"temperature": 21.5, "running": true}' \\\n"""
        f"  {base}/api/v1/telemetry"
    )


def _paho(host: str, port: int, uid: str, user: str, token: str) -> str:
    return f'''import json, random, time
import paho.mqtt.client as mqtt

uid, token = "{uid}", "{token}"
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=uid)
client.username_pw_set({"uid" if user == uid else f'"{user}"'}, token)
client.will_set(f"iiot/{{uid}}/up/status", "offline", qos=1, retain=True)
client.connect("{host}", {port})
client.loop_start()
client.publish(f"iiot/{{uid}}/up/status", "online", qos=1, retain=True)
while True:
    reading = {{"temperature": round(random.gauss(21.5, 0.4), 2), "running": True}}
    client.publish(f"iiot/{{uid}}/up/telemetry", json.dumps(reading), qos=1).wait_for_publish()
    time.sleep(1)'''


def page(device: Device, issued: credentials.Issued | None = None, token: str | None = None) -> str:
    """The Connect tab. With a token just made (`issued`, or `token` of a new device) it is shown, and the browser gives the page its own address,
    so that a reload sends no form."""
    token = issued.token if issued else token
    user_name = issued.user_name if issued else device.uid
    found = examples(config.load(), request.host_url, device.uid, token, user_name)
    return render_template(
        "device_connect.html",
        tab="connect",
        device=device,
        token=token,
        user_name=user_name,
        kept_others=issued is not None and issued.credential.slot != 1,
        examples=found,
        placeholder=PLACEHOLDER,
        address=f"/devices/{device.uid}/connect" if token else None,
        ends=forms.ENDS,
    )
