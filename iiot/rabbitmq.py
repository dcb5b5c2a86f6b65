"""Who may log in at RabbitMQ, and what they may do there: told over the HTTP API of its management plugin.

A device is a user of its own, `<uid>` for its first credential and `<uid>.<slot>` for the others (as at the MQTT broker, see `iiot.broker`). It may
write to the exchange `iiot` under its own routing keys and read its own queue of commands; it may make nothing. RabbitMQ allows every routing key
to a user without a topic permission, so that one is set before the others; and it remembers permissions per connection, so a login is changed by
deleting the user, which ends its connections, and making it anew. The queue is made along with the user. Each call makes one short connection in
the calling thread. Without `amqp_management_url` the calls do nothing.

Sources: rabbitmq.com/docs/access-control (topic authorisation, revoking), rabbitmq.com/docs/passwords, the API's own page at /api/index.html.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import secrets
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self
from urllib.parse import quote, unquote, urlsplit

from sqlalchemy import or_, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import now

from iiot import config
from iiot.broker import MAX_SLOTS, read_user_name, user_name
from iiot.dynsec import BrokerError, BrokerUnavailable
from iiot.models import Credential, Device

EXCHANGE: Final = "iiot"
COMMANDS: Final = "command."
HASHING: Final = "rabbit_password_hashing_sha256"
SALT_BYTES: Final = 4
TIMEOUT: Final = 2.0
# Lists of ten thousand users have some megabytes.
LIST_TIMEOUT: Final = 30.0
NOTHING: Final = "^$"


@dataclass(frozen=True, slots=True)
class Login:
    """One login of a device. `hash` is the salt and the SHA-256 of its token, empty when the token was made before there was AMQP."""

    uid: str
    slot: int
    hash: bytes

    @property
    def user(self) -> str:
        """The name under which it logs in."""
        return user_name(self.uid, self.slot)


@dataclass(frozen=True, slots=True)
class Rights:
    """What RabbitMQ lets a user do, everywhere: (virtual host, configure, write, read), (virtual host, exchange, write, read) and its tags."""

    hash: bytes
    permissions: frozenset[tuple[str, str, str, str]]
    topics: frozenset[tuple[str, str, str, str]]
    tags: tuple[str, ...] = ()


def password_hash(token: str) -> bytes:
    """A token as RabbitMQ stores it: four random bytes, and the SHA-256 of them and the token."""
    salt = secrets.token_bytes(SALT_BYTES)
    return salt + hashlib.sha256(salt + token.encode()).digest()


def is_managed() -> bool:
    """Whether this portal tells RabbitMQ about devices."""
    return bool(config.load().amqp_management_url)


def virtual_host(url: str | None) -> str:
    """The virtual host of an AMQP URL: `/` when it names none (as pika reads it)."""
    path = urlsplit(url or "").path
    return unquote(path[1:]) or "/"


def command_queue(uid: str) -> str:
    """Where the commands of a device wait for it (CONTRACT 7)."""
    return f"{COMMANDS}{uid}"


def rights(login: Login, vhost: str) -> Rights:
    """What a device shall be allowed: no more than its own routing keys and its own queue. A uid has no sign that means something in a pattern."""
    # Not `$`: that would let a line break follow.
    keys = rf"^(telemetry|result)\.{login.uid}\z"
    return Rights(
        login.hash,
        frozenset({(vhost, NOTHING, f"^{EXCHANGE}$", rf"^command\.{login.uid}$")}),
        frozenset({(vhost, EXCHANGE, keys, NOTHING)}),
    )


def stored_logins(db: Session) -> list[tuple[Login, datetime]]:
    """Every token of every enabled device that opens something now, and when it was made. For a session of the scope "provision"."""
    rows = db.execute(
        select(Device.uid, Credential.slot, Credential.amqp_hash, Credential.created_at)
        .join(Credential, (Credential.tenant_id == Device.tenant_id) & (Credential.device_id == Device.id))
        .where(Device.enabled, Credential.revoked_at.is_(None), Credential.amqp_hash.is_not(None))
        .where(or_(Credential.expires_at.is_(None), Credential.expires_at > now()))
        .order_by(Device.uid, Credential.slot)
    )
    return [(Login(uid, slot, hashed or b""), made) for uid, slot, hashed, made in rows]


def add_logins(logins: Iterable[Login]) -> None:
    """Let a device in with these tokens; whoever is connected under one of the names with an older token is thrown out.

    Raises BrokerUnavailable or BrokerError; the reconciler mends what was missed.
    """
    wanted = [login for login in logins if login.hash]
    if not (wanted and is_managed()):
        return
    with _Management() as api:
        for login in wanted:
            api.add(login)


def remove_login(user: str) -> None:
    """Forget one login, whose connections end at once. An unknown one is no error."""
    if is_managed():
        with _Management() as api:
            api.remove(user)


def set_enabled(uid: str, logins: Iterable[Login]) -> None:
    """Let a device in with these logins and no others; none shut it out, its open connections end. Its queue of commands stays."""
    if not is_managed():
        return
    with _Management() as api:
        for slot in range(1, MAX_SLOTS + 1):
            api.remove(user_name(uid, slot))
        for login in logins:
            api.add(login)


def remove_device(uid: str) -> None:
    """Forget a device: its logins and its queue of commands. Unknown ones are no error."""
    if is_managed():
        set_enabled(uid, ())
        remove_queue(uid)


def make_queues(uids: Iterable[str]) -> None:
    """Make the queues of commands of these devices."""
    with _Management() as api:
        for uid in uids:
            api.make_queue(uid)


def remove_queue(uid: str) -> None:
    """Delete the queue of commands of a device, with what waits in it. An unknown one is no error."""
    with _Management() as api:
        api.ask("DELETE", f"/api/queues/{api.path}/{quote(command_queue(uid), safe='')}")


def list_logins() -> dict[str, Rights]:
    """What RabbitMQ knows of devices, by user name; service users and people are left out."""
    with _Management(LIST_TIMEOUT) as api:
        users = api.ask("GET", "/api/users")
        permissions = _by_user(api.ask("GET", "/api/permissions"), "configure")
        topics = _by_user(api.ask("GET", "/api/topic-permissions"), "exchange")
    return {
        user["name"]: Rights(
            _decoded(user.get("password_hash", "")),
            permissions.get(user["name"], frozenset()),
            topics.get(user["name"], frozenset()),
            tuple(user["tags"].split(",") if isinstance(user["tags"], str) and user["tags"] else user["tags"] or ()),
        )
        for user in users
        if read_user_name(user["name"]) is not None
    }


def list_queues() -> set[str]:
    """The devices, by uid, that have a queue of commands."""
    with _Management(LIST_TIMEOUT) as api:
        found = api.ask("GET", f"/api/queues/{api.path}?columns=name&disable_stats=true&enable_queue_totals=true")
    return {queue["name"].removeprefix(COMMANDS) for queue in found if queue["name"].startswith(COMMANDS)}


def _by_user(rows: list[Mapping[str, str]], second: str) -> dict[str, frozenset[tuple[str, str, str, str]]]:
    found: dict[str, set[tuple[str, str, str, str]]] = {}
    for row in rows:
        found.setdefault(row["user"], set()).add((row["vhost"], row[second], row["write"], row["read"]))
    return {user: frozenset(each) for user, each in found.items()}


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError:
        return b""


class _Management:
    """One short connection to the management API."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        settings = config.load()
        parts = urlsplit(settings.amqp_management_url or "")
        host = parts.hostname or "127.0.0.1"
        self.where = f"{host}:{parts.port or 15672}"
        self.vhost = virtual_host(settings.amqp_url)
        self.path = quote(self.vhost, safe="")
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
        self.headers = {
            "Authorization": f"Basic {base64.b64encode(login).decode()}",
            "Content-Type": "application/json",
        }
        self.connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self.connection = http.client.HTTPSConnection(host, parts.port or 15671, timeout=timeout, context=context)
        else:
            self.connection = http.client.HTTPConnection(host, parts.port or 15672, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer's JSON, None when it has none. What is deleted need not be there. Raises BrokerUnavailable, BrokerError."""
        try:
            self.connection.request(method, path, None if body is None else json.dumps(body), self.headers)
            answer = self.connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise BrokerUnavailable(f"RabbitMQ's management at {self.where} cannot be reached: {error}") from error
        if answer.status == 401:
            raise BrokerUnavailable("RabbitMQ refuses the administrator; check IIOT_AMQP_MANAGEMENT_URL")
        if method == "DELETE" and answer.status == 404:
            return None
        if answer.status >= 300:
            raise BrokerError(
                f"{method} {path.partition('?')[0]}: {answer.status} {content[:200].decode(errors='replace')}"
            )
        return json.loads(content) if content else None

    def remove(self, user: str) -> None:
        """Delete a user."""
        self.ask("DELETE", f"/api/users/{user}")

    def add(self, login: Login) -> None:
        """Make a user anew, with its topics first: see the module."""
        user, allowed = login.user, rights(login, self.vhost)
        self.remove(user)
        password = {"password_hash": base64.b64encode(login.hash).decode(), "hashing_algorithm": HASHING, "tags": ""}
        self.ask("PUT", f"/api/users/{user}", password)
        self.make_queue(login.uid)
        for _, exchange, write, read in allowed.topics:
            topic = {"exchange": exchange, "write": write, "read": read}
            self.ask("PUT", f"/api/topic-permissions/{self.path}/{user}", topic)
        for _, configure, write, read in allowed.permissions:
            permission = {"configure": configure, "write": write, "read": read}
            self.ask("PUT", f"/api/permissions/{self.path}/{user}", permission)

    def make_queue(self, uid: str) -> None:
        """The queue of commands of a device, which it may read and not make; one that is there stays as it is."""
        self.ask("PUT", f"/api/queues/{self.path}/{quote(command_queue(uid), safe='')}", {"durable": True})
