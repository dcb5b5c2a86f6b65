"""Who may log in at the MQTT broker, and to which topics: Mosquitto's dynamic-security plugin, told over MQTT.

Each device is a client of the broker with its uid as user name **and** as client id (without the latter a device could
take over another one's session), and a role of its own, because Mosquitto 2.0 knows no patterns in roles. The plugin knows
one password per user name, so a device with several credentials has several names: the first logs in as `<uid>`, the
others as `<uid>.<slot>`, all of them with the client id `<uid>` and the one role of the device. A certificate logs in
under its whole subject, which names the device and the certificate: so each can be shut out alone, at once, whatever the
list of revoked certificates says. Mosquitto does not ask the plugin at such a login, only at every topic; therefore the
client of a certificate is removed where a token's is disabled. Without `mqtt_admin_url`, or with amqtt (which reads the database itself), the calls
do nothing.

Source: mosquitto.org/documentation/dynamic-security, and the plugin's source of Mosquitto 2.0.11.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from iiot import config, ids
from iiot.dynsec import ADMIN, BrokerError, Exchange
from iiot.models import Credential, Device, DeviceCertificate

PAGE: Final = 500
# Mosquitto 2.0.11: PBKDF2-HMAC-SHA512, 12 bytes of salt, 64 of hash, 101 rounds. Few, but a token has 256 random bits.
ITERATIONS: Final = 101
SALT_BYTES: Final = 12
HASH_BYTES: Final = 64
# Credentials that a device may have at once. Slot 1 is the plain name.
MAX_SLOTS: Final = 5
ADAPTER: Final = "iiot-adapter"
SUBJECT: Final = re.compile("CN=([a-z2-7]{26}),serialNumber=[a-z2-7]{26}")
# What nodes of the smart-home scheme say, and where they are told something: `home/<home>/<node>/<kind>/<entity>/…`.
FROM_HOMES: Final = ("home/+/+/+/+/state", "home/+/+/status")
TO_HOMES: Final = "home/+/+/+/+/set"

DEFAULT_ACCESS: Final = {
    "publishClientSend": False,
    "publishClientReceive": False,
    "subscribe": False,
    "unsubscribe": True,
}


def user_name(uid: str, slot: int) -> str:
    """The name under which the credential of a slot logs in."""
    return uid if slot == 1 else f"{uid}.{slot}"


def read_user_name(user: str) -> tuple[str, int] | None:
    """(uid, slot) of a device's user name, None for any other name: there is one way to write each."""
    uid, _, number = user.partition(".")
    slot = int(number) if number.isascii() and number.isdigit() and len(number) == 1 else 1
    known = ids.is_uid(uid) and 1 <= slot <= MAX_SLOTS and user == user_name(uid, slot)
    return (uid, slot) if known else None


def certificate_user(uid: str, certificate_uid: str) -> str:
    """The name under which a certificate logs in: its subject as RFC 2253 writes it (the last part first)."""
    return f"CN={uid},serialNumber={certificate_uid}"


def owner(user: str) -> str | None:
    """The device behind a user name, of a token or of a certificate; None for any other name."""
    login = read_user_name(user)
    if login is not None:
        return login[0]
    subject = SUBJECT.fullmatch(user)
    return subject[1] if subject and ids.is_uid(subject[1]) else None


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
class StoredCertificate:
    """What the database knows of a certificate that opens something now: its device is enabled."""

    uid: str
    certificate_uid: str
    issued_at: datetime
    enabled: bool = True
    mark: str = "certificate"

    @property
    def user(self) -> str:
        """See `certificate_user`."""
        return certificate_user(self.uid, self.certificate_uid)


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


def stored_certificates(db: Session) -> list[StoredCertificate]:
    """Every certificate of every device that opens something now. For a session of the scope "provision"."""
    rows = db.execute(
        select(Device.uid, DeviceCertificate.uid, DeviceCertificate.created_at)
        .join(
            DeviceCertificate,
            (DeviceCertificate.tenant_id == Device.tenant_id) & (DeviceCertificate.device_id == Device.id),
        )
        .where(Device.enabled, DeviceCertificate.revoked_at.is_(None), DeviceCertificate.expires_at > func.now())
        .order_by(Device.uid, DeviceCertificate.uid)
    )
    return [StoredCertificate(*row) for row in rows]


def dynsec_document(
    logins: Iterable[StoredLogin],
    passwords: Mapping[str, str],
    certificates: Iterable[StoredCertificate] = (),
    homes: Mapping[str, Sequence[str]] | None = None,
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
    for each in certificates:
        clients.append(_without_password(each.uid, each.certificate_uid))
        uids.add(each.uid)
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


def end_session(uid: str, token: str, slot: int = 1) -> None:
    """End the session that the broker keeps for a device, with its last will and what waits in it; `token` is the one that lets it in from now on.

    Without this a last will with a delay would speak for the token of before. Raises BrokerUnavailable.
    """
    if is_managed():
        settings = config.load()
        Exchange(str(settings.mqtt_admin_url), settings.mqtt_ca_path, (user_name(uid, slot), token, uid)).visit()


def add_certificate(uid: str, certificate_uid: str) -> None:
    """Give a certificate of a device the device's topics. Nobody logs in under its name with a password."""
    role = {"command": "createRole", "rolename": role_of(uid), "acls": device_acls(uid)}
    client = {"command": "createClient", **_without_password(uid, certificate_uid)}
    role_answer, answer = ask([role, client])
    expect(role_answer, "Role already exists")
    expect(answer, "Client already exists")


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
            if owner(client["username"]) is not None
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


def _without_password(uid: str, certificate_uid: str) -> dict[str, Any]:
    user = certificate_user(uid, certificate_uid)
    return {"username": user, "textname": "certificate", "roles": [{"rolename": role_of(uid)}]}


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
    return Exchange(str(settings.mqtt_admin_url), settings.mqtt_ca_path).run(commands, clear)
