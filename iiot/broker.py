"""Who may log in at the MQTT broker, and to which topics: Mosquitto's dynamic-security plugin, told over MQTT.

Each device is a client of the broker with its uid as user name **and** as client id (without the latter a device could
take over another one's session), and a role of its own, because Mosquitto 2.0 knows no patterns in roles. The plugin knows
one password per user name, so a device with several credentials has several names: the first logs in as `<uid>`, the
others as `<uid>.<slot>`, all of them with the client id `<uid>` and the one role of the device. The plugin is
spoken to over `$CONTROL/dynamic-security/v1`; each call makes a short connection in the calling thread, so that it is
safe in threads and greenlets alike. Without `mqtt_admin_url`, or with amqtt (which reads the database itself), the calls
do nothing.

Source: mosquitto.org/documentation/dynamic-security, and the plugin's source of Mosquitto 2.0.11.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from iiot import config, ids
from iiot.models import Credential, Device

CONTROL: Final = "$CONTROL/dynamic-security/v1"
RESPONSE: Final = "$CONTROL/dynamic-security/v1/response"
TIMEOUT: Final = 2.0
PAGE: Final = 500
# Mosquitto 2.0.11: PBKDF2-HMAC-SHA512, 12 bytes of salt, 64 of hash, 101 rounds. Few, but a token has 256 random bits.
ITERATIONS: Final = 101
SALT_BYTES: Final = 12
HASH_BYTES: Final = 64
# Credentials that a device may have at once. Slot 1 is the plain name.
MAX_SLOTS: Final = 5
ADAPTER: Final = "iiot-adapter"
ADMIN: Final = "iiot-admin"
# What nodes of the smart-home scheme say, and where they are told something: `home/<home>/<node>/<kind>/<entity>/…`.
FROM_HOMES: Final = ("home/+/+/+/+/state", "home/+/+/status")
TO_HOMES: Final = "home/+/+/+/+/set"

DEFAULT_ACCESS: Final = {
    "publishClientSend": False,
    "publishClientReceive": False,
    "subscribe": False,
    "unsubscribe": True,
}


class BrokerUnavailable(Exception):
    """The broker does not answer, or refuses the administrator."""


class BrokerError(Exception):
    """The broker answered that it cannot do what was asked."""


def user_name(uid: str, slot: int) -> str:
    """The name under which the credential of a slot logs in."""
    return uid if slot == 1 else f"{uid}.{slot}"


def read_user_name(user: str) -> tuple[str, int] | None:
    """(uid, slot) of a device's user name, None for any other name: there is one way to write each."""
    uid, _, number = user.partition(".")
    slot = int(number) if number.isascii() and number.isdigit() and len(number) == 1 else 1
    known = ids.is_uid(uid) and 1 <= slot <= MAX_SLOTS and user == user_name(uid, slot)
    return (uid, slot) if known else None


@dataclass(frozen=True, slots=True)
class StoredLogin:
    """What the database knows of one login of a device. `mark` names the token without telling it."""

    uid: str
    slot: int
    enabled: bool
    salt: bytes
    hash: bytes
    iterations: int
    issued_at: datetime

    @property
    def user(self) -> str:
        """See `user_name`."""
        return user_name(self.uid, self.slot)

    @property
    def mark(self) -> str:
        """See `token_mark`."""
        return self.salt.hex()


@dataclass(frozen=True, slots=True)
class BrokerLogin:
    """What the broker knows of one login of a device."""

    user: str
    enabled: bool
    mark: str


def verifier(token: str) -> tuple[bytes, bytes, int]:
    """(salt, hash, iterations) of a token, as Mosquitto stores it.

    The salt is derived from the token, so that it also marks it: two places that show the same salt hold the same token.
    A salt has to be unique, not random; the token's 256 random bits make it so, and cannot be searched through it.
    """
    salt = hashlib.sha256(b"iiot mqtt salt " + token.encode()).digest()[:SALT_BYTES]
    return salt, hashlib.pbkdf2_hmac("sha512", token.encode(), salt, ITERATIONS, HASH_BYTES), ITERATIONS


def token_mark(token: str) -> str:
    """A name of the token, kept beside the client at the broker: it shows whether database and broker mean the same."""
    return verifier(token)[0].hex()


def stored_logins(db: Session) -> list[StoredLogin]:
    """Every token of every device that opens something now. For a session of the scope "provision"."""
    rows = db.execute(
        select(
            Device.uid,
            Credential.slot,
            Device.enabled,
            Credential.mqtt_salt,
            Credential.mqtt_hash,
            Credential.mqtt_iterations,
            Credential.created_at,
        )
        .join(Credential, (Credential.tenant_id == Device.tenant_id) & (Credential.device_id == Device.id))
        .where(
            Credential.revoked_at.is_(None), or_(Credential.expires_at.is_(None), Credential.expires_at > func.now())
        )
        .order_by(Device.uid, Credential.slot)
    )
    return [StoredLogin(*row) for row in rows]


def dynsec_document(
    logins: Iterable[StoredLogin], passwords: Mapping[str, str], homes: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Any]:
    """The plugin's whole configuration file, as the database knows it. `homes`: see `broker_homes.stored`.

    `passwords` are those of the service users (ADAPTER, ADMIN); they are bound to no client id, because no device may
    use another one than its own anyway.
    """
    clients: list[dict[str, Any]] = []
    roles: list[dict[str, Any]] = []
    for user, password in passwords.items():
        salt, hashed, iterations = verifier(password)
        clients.append(_client(user, salt, hashed, iterations) | {"roles": [{"rolename": user}]})
        roles.append({"rolename": user, "acls": SERVICE_ACLS[user]})
    uids: set[str] = set()
    for login in logins:
        entry = _client(login.user, login.salt, login.hash, login.iterations)
        entry |= {"clientid": login.uid, "textname": login.mark, "roles": [{"rolename": role_of(login.uid)}]}
        if not login.enabled:
            entry["disabled"] = True
        clients.append(entry)
        uids.add(login.uid)
    roles += [{"rolename": role_of(uid), "acls": device_acls(uid, (homes or {}).get(uid, ()))} for uid in sorted(uids)]
    return {"defaultACLAccess": DEFAULT_ACCESS, "clients": clients, "groups": [], "roles": roles}


def add_login(uid: str, token: str, slot: int = 1) -> None:
    """Let a device in with this token under the name of the slot; an older token of that name ends with its open connection.

    Raises BrokerUnavailable or BrokerError; the reconciler mends what was missed.
    """
    user, roles = user_name(uid, slot), [{"rolename": role_of(uid)}]
    client = {"username": user, "clientid": uid, "password": token, "textname": token_mark(token), "roles": roles}
    role = {"command": "createRole", "rolename": role_of(uid), "acls": device_acls(uid)}
    role_answer, answer = ask([role, {"command": "createClient", **client}])
    expect(role_answer, "Role already exists")
    if expect(answer, "Client already exists"):
        changed, enabled = ask([{"command": "modifyClient", **client}, {"command": "enableClient", "username": user}])
        expect(changed)
        expect(enabled)


def remove_login(user: str) -> None:
    """Forget one login of a device, whose open connection ends; its others stay. An unknown one is no error."""
    [answer] = ask([{"command": "deleteClient", "username": user}])
    expect(answer, "Client not found")


def set_enabled(uid: str, enabled: bool) -> None:
    """Let a device in again under every name that it has, or shut it out; open connections of a disabled device end at once."""
    command = "enableClient" if enabled else "disableClient"
    for answer in ask([{"command": command, "username": user} for user in _names(uid)]):
        expect(answer, "Client not found")


def remove_device(uid: str) -> None:
    """Forget a device: its logins, its role, and the state that the broker kept for it. Unknown ones are no error."""
    commands = [{"command": "deleteClient", "username": user} for user in _names(uid)]
    role = {"command": "deleteRole", "rolename": role_of(uid)}
    *clients, role_answer = ask([*commands, role], clear=[f"iiot/{uid}/up/status"])
    for answer in clients:
        expect(answer, "Client not found")
    expect(role_answer, "Role not found")


def _names(uid: str) -> list[str]:
    """Every name that the device may have at the broker, whatever the database remembers."""
    return [user_name(uid, slot) for slot in range(1, MAX_SLOTS + 1)]


def list_logins() -> list[BrokerLogin]:
    """Every login of a device that the broker knows; service users are left out."""
    found: list[BrokerLogin] = []
    offset = 0
    while True:
        [answer] = ask([{"command": "listClients", "verbose": True, "count": PAGE, "offset": offset}])
        expect(answer)
        clients = answer["data"]["clients"]
        found += [
            BrokerLogin(client["username"], not client.get("disabled", False), client.get("textname", ""))
            for client in clients
            if read_user_name(client["username"]) is not None
        ]
        offset += len(clients)
        if not clients or offset >= answer["data"].get("totalCount", 0):
            return found


def secure_defaults() -> bool:
    """Make the broker refuse what no role allows; True when it had to be changed."""
    [answer] = ask([{"command": "getDefaultACLAccess"}])
    expect(answer)
    now = {entry["acltype"]: entry["allow"] for entry in answer["data"]["acls"]}
    if now == DEFAULT_ACCESS:
        return False
    acls = [{"acltype": kind, "allow": allow} for kind, allow in DEFAULT_ACCESS.items()]
    [answer] = ask([{"command": "setDefaultACLAccess", "acls": acls}])
    expect(answer)
    return True


def is_managed() -> bool:
    """Whether this portal tells its broker about devices."""
    settings = config.load()
    return settings.mqtt_broker == "mosquitto" and bool(settings.mqtt_admin_url)


def _acl(kind: str, topic: str) -> dict[str, Any]:
    return {"acltype": kind, "topic": topic, "priority": 0, "allow": True}


def device_acls(uid: str, homes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A device writes below its own `up` and reads below its own `down` (CONTRACT 5), a gateway also in its homes; all else is refused."""
    written = [f"iiot/{uid}/up/#", *[each.replace("+", home, 1) for home in homes for each in FROM_HOMES]]
    read = [f"iiot/{uid}/down/#", *[TO_HOMES.replace("+", home, 1) for home in homes]]
    acls = [_acl("publishClientSend", topic) for topic in written]
    return acls + [_acl(kind, topic) for topic in read for kind in ("publishClientReceive", "subscribePattern")]


SERVICE_ACLS: Final[dict[str, list[dict[str, Any]]]] = {
    ADAPTER: [
        _acl("subscribePattern", "iiot/+/up/#"),
        _acl("publishClientReceive", "iiot/+/up/#"),
        _acl("publishClientSend", "iiot/+/down/#"),
        _acl("publishClientSend", "iiot/service/#"),
        *[_acl(kind, topic) for topic in FROM_HOMES for kind in ("subscribePattern", "publishClientReceive")],
        _acl("publishClientSend", TO_HOMES),
    ],
    ADMIN: [
        _acl("publishClientSend", "$CONTROL/dynamic-security/#"),
        _acl("publishClientReceive", "$CONTROL/dynamic-security/#"),
        _acl("subscribePattern", "$CONTROL/dynamic-security/#"),
        _acl("publishClientReceive", "$SYS/#"),
        _acl("subscribePattern", "$SYS/#"),
        # To clear the retained state of a device that is removed.
        _acl("publishClientSend", "iiot/+/up/status"),
    ],
}


def role_of(uid: str) -> str:
    """The name of a device's role."""
    return f"device-{uid}"


def _client(username: str, salt: bytes, hashed: bytes, iterations: int) -> dict[str, Any]:
    return {
        "username": username,
        "password": base64.b64encode(hashed).decode("ascii"),
        "salt": base64.b64encode(salt).decode("ascii"),
        "iterations": iterations,
    }


def expect(answer: Mapping[str, Any], *harmless: str) -> bool:
    """True when the command met a harmless state; raises BrokerError for any other complaint."""
    error = answer.get("error")
    if error is None:
        return False
    if error in harmless:
        return True
    raise BrokerError(f"{answer.get('command')}: {error}")


def ask(commands: Sequence[Mapping[str, Any]], clear: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Send commands, clear retained topics, and return one answer per command.

    Where the broker is not managed, every command answers that it went well.
    """
    settings = config.load()
    if not is_managed():
        empty = {"clients": [], "acls": [{"acltype": kind, "allow": allow} for kind, allow in DEFAULT_ACCESS.items()]}
        return [{"command": command["command"], "data": empty} for command in commands]
    return _Exchange(str(settings.mqtt_admin_url)).run(commands, clear)


class _Exchange:
    """One short connection to the plugin. paho's loop runs in the calling thread."""

    def __init__(self, url: str) -> None:
        self.parts = urlsplit(url)
        # Random: several processes may talk to the broker at once, and each has to get its own answer.
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            f"{ADMIN}-{secrets.token_hex(8)}",
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self.client.username_pw_set(unquote(self.parts.username or ""), unquote(self.parts.password or ""))
        self.client.connect_timeout = TIMEOUT
        if self.parts.scheme == "mqtts":
            self.client.tls_set()
        self.refusal: str | None = None
        self.connected = False
        self.subscribed = False
        self.answers: dict[str, dict[str, Any]] = {}
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = self._on_message
        self.deadline = time.monotonic() + TIMEOUT

    def run(self, commands: Sequence[Mapping[str, Any]], clear: Sequence[str]) -> list[dict[str, Any]]:
        """One answer per command, in order. Raises BrokerUnavailable after TIMEOUT seconds."""
        marks = [f"{number}-{secrets.token_hex(4)}" for number in range(len(commands))]
        marked = [{**command, "correlationData": mark} for command, mark in zip(commands, marks, strict=True)]
        try:
            self.client.connect(self.parts.hostname or "", self.parts.port or 1883, keepalive=30)
            self._wait(lambda: self.connected)
            self.client.subscribe(RESPONSE, qos=1)
            self._wait(lambda: self.subscribed)
            self.client.publish(CONTROL, json.dumps({"commands": marked}), qos=1)
            cleared = [self.client.publish(topic, b"", qos=1, retain=True) for topic in clear]
            self._wait(lambda: len(self.answers) >= len(marks) and all(info.is_published() for info in cleared))
            self.client.disconnect()
        except OSError as error:
            where = f"{self.parts.hostname}:{self.parts.port}"
            raise BrokerUnavailable(f"the broker at {where} cannot be reached: {error}") from error
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
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
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
