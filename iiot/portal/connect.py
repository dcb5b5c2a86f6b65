"""The commands a person pastes to make a device send: an entry for each protocol, with real addresses, and the token where it is known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from flask import render_template, request

from iiot import config, tenancy, web
from iiot.config import Settings, split_bind
from iiot.portal import forms
from iiot.services import adapters, certificates, credentials, devices, oscore

PLACEHOLDER = "YOUR_TOKEN"
# What uals calls itself; its certificate has to say the same.
CLIENT_URI = "urn:example.org:FreeOpcUa:opcua-asyncio"
# What a server binds to when it listens on every address; no device can connect to it by that name.
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
READING = """'{"temperature": 21.5, "running": true}'"""


@dataclass(frozen=True)
class Snippet:
    """Lines to paste, and how they are called."""

    label: str
    text: str


@dataclass(frozen=True)
class Entry:
    """One protocol on the page. `name` is the adapter's; `off`: why it does not run and how to turn it on, empty where it runs."""

    name: str
    title: str
    where: str = ""
    snippets: tuple[Snippet, ...] = ()
    note: str = ""
    off: str = ""


@dataclass(frozen=True)
class Place:
    """Where the reader is, and as whom the device logs in. `running`: the adapters that are connected; None: nobody knows."""

    settings: Settings
    base_url: str
    uid: str
    token: str
    user: str
    running: frozenset[str] | None = None

    @property
    def base(self) -> str:
        """The portal's address as devices reach it."""
        return (self.settings.public_url or self.base_url).rstrip("/")

    @property
    def host(self) -> str:
        """The portal's own name."""
        return urlsplit(self.base).hostname or "127.0.0.1"

    def address(self, name: str) -> tuple[str, int] | None:
        """Host and port of a listener as devices reach it: `<name>_public`, else `<name>_bind` when somebody set it; the default alone says nothing.

        A server that listens on every address is reached by the portal's own name.
        """
        settings = self.settings
        bind = getattr(settings, f"{name}_public", None)
        if bind is None and f"{name}_bind" in settings.model_fields_set:
            bind = getattr(settings, f"{name}_bind")
        if bind is None:
            return None
        host, port = split_bind(bind)
        return (self.host if host in EVERYWHERE else host), port

    def runs(self, name: str) -> bool:
        """Whether the adapter is connected, or may be, as far as anybody knows."""
        return self.running is None or name in self.running


def joined(address: tuple[str, int]) -> str:
    """`host:port`, an IPv6 address in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def writing(files: Mapping[str, str | None]) -> str:
    """Commands that write these files, name → text, so that what is pasted needs nothing else; those without a text are left out."""
    return "".join(f"cat > {name} <<'END'\n{text.strip()}\nEND\n" for name, text in files.items() if text)


def trusting(broker_ca: str | None) -> tuple[str, str]:
    """For the broker's certificate: the command that writes what it is checked with, and the option of mosquitto_pub that names it."""
    name = "broker-ca.crt"
    return writing({name: broker_ca}), f"--cafile {name}" if broker_ca else "--capath /etc/ssl/certs"


# --- the protocols -----------------------------------------------------------------------------------------------------------------------------


def _mqtt(place: Place) -> Entry:
    """The broker is there without the adapter as well: it keeps what devices send until the adapter is back."""
    address = place.address("mqtt") or split_bind(place.settings.mqtt_bind)
    snippets = [Snippet("MQTT", _mosquitto(place, address))]
    if tls := place.address("mqtt_tls"):
        write_ca, trust = trusting(certificates.broker_ca())
        snippets.append(Snippet("MQTT over TLS", write_ca + _mosquitto(place, tls, f"  {trust} \\\n")))
    if web := place.address("mqtt_ws"):
        snippets.append(Snippet("MQTT over WebSocket", _mqtt_js(place, web)))
    snippets.append(Snippet("Python", _paho(place, address)))
    note = (
        "mosquitto_pub is in the package mosquitto-clients. QoS 1: the broker keeps the message until the portal has stored it. "
        "The Python program sends a reading every second; install its library with: pip install paho-mqtt"
    )
    if web:
        note += ". mqtt is the command of the npm package mqtt"
    return Entry("mqtt", "MQTT", joined(address), tuple(snippets), f"{note}.")


def _mosquitto(place: Place, address: tuple[str, int], more: str = "") -> str:
    return (
        f"mosquitto_pub -h {address[0]} -p {address[1]} -q 1 \\\n{more}"
        f"  -i {place.uid} -u {place.user} -P '{place.token}' \\\n"
        f"  -t iiot/{place.uid}/up/telemetry \\\n"
        f"  -m {READING}"
    )


def _mqtt_js(place: Place, address: tuple[str, int]) -> str:
    # With "=", as a token may begin with a dash.
    return (
        f"mqtt pub -l ws -h {address[0]} -p {address[1]} -q 1 \\\n"
        f"  -i {place.uid} -u {place.user} --password='{place.token}' \\\n"
        f"  -t iiot/{place.uid}/up/telemetry \\\n"
        f"  -m {READING}"
    )


def _paho(place: Place, address: tuple[str, int]) -> str:
    host, port = address
    user = "uid" if place.user == place.uid else f'"{place.user}"'
    return f'''import json, random, time
import paho.mqtt.client as mqtt

uid, token = "{place.uid}", "{place.token}"
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=uid)
client.username_pw_set({user}, token)
client.will_set(f"iiot/{{uid}}/up/status", "offline", qos=1, retain=True)
client.connect("{host}", {port})
client.loop_start()
client.publish(f"iiot/{{uid}}/up/status", "online", qos=1, retain=True)
while True:
    reading = {{"temperature": round(random.gauss(21.5, 0.4), 2), "running": True}}
    client.publish(f"iiot/{{uid}}/up/telemetry", json.dumps(reading), qos=1).wait_for_publish()
    time.sleep(1)'''


def _http(place: Place) -> Entry:
    """The portal itself: it runs while the page is shown."""
    where = f"{place.base}/api/v1/telemetry"
    text = f"curl -u '{place.uid}:{place.token}' \\\n  -H 'Content-Type: application/json' \\\n  -d {READING} \\\n  {where}"
    note = "The answer says how many readings were stored, and why any were not."
    return Entry("http", "HTTP", where, (Snippet("HTTP", text),), note)


def _coap(place: Place) -> Entry:
    address = place.address("coap")
    if address is None or not place.runs("coap"):
        off = "The adapter does not run. Set IIOT_COAP_BIND and start it: python -m protocols run coap"
        return Entry("coap", "CoAP", off=off)
    if not place.settings.coap_is_on:
        note = (
            "The server takes OSCORE alone: make a key below. Tokens in plain text are off; IIOT_COAP_PLAIN=true allows them, for a network "
            "that protects them."
        )
        return Entry("coap", "CoAP", joined(address), note=note)
    text = (
        "coap-client-notls -m post -t json \\\n"
        f"  -e {READING} \\\n"
        f"  'coap://{joined(address)}/telemetry?uid={place.uid}&token={place.token}'"
    )
    note = "From the package libcoap3-bin. The answer 2.04 means stored. The token travels in plain text: for networks you trust."
    return Entry("coap", "CoAP", joined(address), (Snippet("CoAP", text),), note)


def _amqp(place: Place) -> Entry:
    address = place.address("amqp")
    if not place.settings.amqp_is_on or place.running is None or "amqp" not in place.running:
        off = "No RabbitMQ is connected. Install one (make run WITH_AMQP=1), or set IIOT_AMQP_URL and start the adapter: python -m protocols run amqp"
        return Entry("amqp", "AMQP", off=off)
    if address is None:
        url = urlsplit(place.settings.amqp_url or "")
        address = (url.hostname or place.host, url.port or 5672)
    text = (
        f"amqp-publish -u 'amqp://{place.user}:{place.token}@{joined(address)}' \\\n"
        f"  -e iiot -r telemetry.{place.uid} -p -C application/json \\\n"
        f"  -b {READING}"
    )
    note = (
        "From the package amqp-tools. The broker keeps the message until the portal has stored it. "
        f"Commands wait in the queue command.{place.uid}."
    )
    return Entry("amqp", "AMQP", joined(address), (Snippet("AMQP", text),), note)


def _opcua(place: Place) -> Entry:
    if place.running is None or "opcua" not in place.running:
        off = "The server does not run. Start it: python -m protocols run opcua"
        return Entry("opcua", "OPC UA", off=off)
    url = f"opc.tcp://{joined(place.address('opcua') or split_bind(place.settings.opcua_bind))}/iiot"
    certificate = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 825 -subj /CN=client \\\n"
        f"  -addext subjectAltName=URI:{CLIENT_URI} \\\n"
        "  -keyout client-key.pem -out client-cert.pem"
    )
    text = (
        f"uals --url {url} \\\n  --security Basic256Sha256,SignAndEncrypt,client-cert.pem,client-key.pem \\\n"
        "  --user 'YOUR_EMAIL' --password 'YOUR_PASSWORD' \\\n"
        f"  --nodeid 'ns=2;s={place.uid}'"
    )
    note = (
        "For SCADA programs, which read and command: they sign in as a person of this portal or with an API key, encrypted, with a certificate of "
        f"their own, and find this device's signals as ns=2;s={place.uid}/<signal>. Devices send nothing over it, so it never turns green. "
        "uals is in the Python package asyncua."
    )
    return Entry("opcua", "OPC UA", url, (Snippet("A certificate, once", certificate), Snippet("OPC UA", text)), note)


# In this order on the page. One that is added here is on it.
PROTOCOLS: tuple[Callable[[Place], Entry], ...] = (_mqtt, _http, _coap, _amqp, _opcua)


def entries(place: Place) -> list[Entry]:
    """An entry for every protocol: commands where it runs, and how to turn it on where it does not."""
    return [make(place) for make in PROTOCOLS]


def page(ctx: web.Context, uid: str, issued: credentials.Issued | None = None, token: str | None = None) -> str:
    """The Connect tab. With a token just made (`issued`, or `token` of a new device) it is shown, and the browser gives the page its own address,
    so that a reload sends no form. Raises NotFound."""
    with tenancy.work(ctx.scope) as db:
        device = devices.get(db, uid)
        has_token = any(not each.is_expired for each in credentials.list_all(db, device))
        has_key = bool(oscore.list_all(db, device)) or any(
            not certificates.has_ended(each) for each in certificates.list_all(db, device)
        )
    token = issued.token if issued else token
    # HTTP and CoAP take every token of the device with its uid; the brokers know the later ones by names of their own.
    user = issued.user_name if issued else device.uid
    place = Place(config.load(), request.host_url, device.uid, token or PLACEHOLDER, user, adapters.running())
    return render_template(
        "device_connect.html",
        tab="connect",
        device=device,
        token=token,
        has_token=has_token,
        has_key=has_key,
        user_name=user,
        kept_others=issued is not None and issued.credential.slot != 1,
        entries=entries(place),
        placeholder=PLACEHOLDER,
        address=f"/devices/{device.uid}/connect" if token else None,
        ends=forms.ENDS,
    )
