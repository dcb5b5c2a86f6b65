"""`python -m iiot.embedded.amqtt_broker`: the MQTT broker where Mosquitto cannot be installed, for trials and small sites.

amqtt 0.12.1 looks up and even takes over sessions before it has authenticated, sends last wills without asking whether
their topic is allowed, loses messages when somebody subscribes while it distributes, sends whoever connects the
retained messages of everybody's subscriptions, and goes on with a clean session. All five are mended here; the version is pinned, and
tests/integration/test_amqtt_broker.py and test_mqtt_matrix.py show each.
"""

import asyncio
import contextlib
import hmac
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import amqtt.broker
import structlog
from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.errors import MQTTError
from amqtt.mqtt.connack import NOT_AUTHORIZED, ConnackPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session
from sqlalchemy import func, or_, select

from iiot import auth, broker_homes, config, logs, tenancy
from iiot.broker import FROM_HOMES, TO_HOMES, read_user_name
from iiot.embedded.bootstrap import server_names, tls_files
from iiot.embedded.mqtt import ADAPTER
from iiot.errors import Problem
from iiot.models import Credential, Device, Tenant
from iiot.services import authority, credentials

log = structlog.get_logger(__name__)
CHECK_SECONDS = 0.5
# The role of the database that reads credentials has five connections per process.
CHECKS_AT_ONCE = 4


def allowed(user: str, topic: str, action: Action) -> bool:
    """Whether a user may publish to, subscribe to or receive from a topic: the same rules as Mosquitto's roles."""
    is_publish = action == Action.PUBLISH
    if user == ADAPTER:
        in_homes = _of_homes(not is_publish)
        return topic.startswith("iiot/") or any(_matches(topic, pattern) for pattern in in_homes)
    login = read_user_name(user)
    if login is None:
        return False
    # As in a pattern of MQTT, "up/#" is also "up".
    if f"{topic}/".startswith(f"iiot/{login[0]}/{'up' if is_publish else 'down'}/"):
        return True
    own = [
        each.replace("+", home, 1) for home in broker_homes.known.get(login[0], ()) for each in _of_homes(is_publish)
    ]
    return any(_matches(topic, pattern) for pattern in own)


def _of_homes(is_publish: bool) -> tuple[str, ...]:
    return FROM_HOMES if is_publish else (TO_HOMES,)


def _matches(topic: str, pattern: str) -> bool:
    """Whether a topic, or a subscription that reaches no further, is in the pattern; patterns here know `+` alone."""
    levels, wanted = topic.split("/"), pattern.split("/")
    return len(levels) == len(wanted) and all(
        (word == "+" and level != "#") or word == level for level, word in zip(levels, wanted, strict=True)
    )


def _read_homes() -> None:
    """With every login and every look at who must leave."""
    with tenancy.work(tenancy.system("device-sign-in")) as db:
        broker_homes.remember(broker_homes.stored(db))


class Gate:
    """Decides who may connect, and who must leave again."""

    def __init__(self, adapter_password: str) -> None:
        self._adapter_password = adapter_password
        self._limit = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._proofs: dict[str, str] = {}

    async def admits(self, session: Session) -> bool:
        """Whether user name, password and client id belong together and the last will goes to a topic of its own."""
        user, password = session.username or "", session.password or ""
        will = session.will_topic if session.will_flag else None
        if will and not allowed(user, will, Action.PUBLISH):
            return False
        if user == ADAPTER:
            return hmac.compare_digest(password.encode(), self._adapter_password.encode())
        login = read_user_name(user)
        if login is None or session.client_id != login[0]:
            return False
        async with self._limit:
            admitted = await asyncio.to_thread(_prove, *login, password)
        if admitted:
            self._proofs[user] = auth.device_token_hash(password)
        return admitted

    async def outdated(self, connected: Iterable[str]) -> list[str]:
        """Those of the connected devices whose token no longer opens anything."""
        proofs = {user: self._proofs[user] for user in connected if user in self._proofs}
        self._proofs = proofs
        if not proofs:
            return []
        valid = await asyncio.to_thread(_valid, list(proofs.values()))
        return [user for user, proof in proofs.items() if proof not in valid]


def _prove(uid: str, slot: int, token: str) -> bool:
    try:
        _read_homes()
        with tenancy.work(tenancy.system("device-sign-in")) as db:
            return credentials.authenticate(db, uid, token, slot) is not None
    except Problem:
        return False


def _valid(proofs: list[str]) -> set[str]:
    _read_homes()
    statement = (
        select(Credential.token_hash)
        .join(Device, (Device.tenant_id == Credential.tenant_id) & (Device.id == Credential.device_id))
        .join(Tenant, Tenant.id == Device.tenant_id)
        .where(
            Credential.token_hash.in_(proofs),
            Credential.revoked_at.is_(None),
            or_(Credential.expires_at.is_(None), Credential.expires_at > func.now()),
            Device.enabled,
            Tenant.status == "active",
        )
    )
    with tenancy.work(tenancy.system("device-sign-in")) as db:
        return set(db.scalars(statement))


def guarded(gate: Gate) -> type[BrokerProtocolHandler]:
    """amqtt's handler, which asks the gate before any session is looked at."""

    class Guarded(BrokerProtocolHandler):  # type: ignore[misc]
        @classmethod
        async def init_from_connect(cls, reader: Any, writer: Any, plugins_manager: Any, loop: Any = None) -> Any:
            handler, session = await super().init_from_connect(reader, writer, plugins_manager, loop)
            try:
                admitted = await gate.admits(session)
            except Exception as error:
                log.warning("a login could not be checked", error=str(error)[:200])
                admitted = False
            if not admitted:
                with contextlib.suppress(OSError):
                    await ConnackPacket.build(0, NOT_AUTHORIZED).to_stream(writer)
                await writer.close()
                raise MQTTError("refused by the gate")
            return handler, session

    return Guarded


class Welcome(BaseAuthPlugin):  # type: ignore[misc]
    """Who came this far was admitted by the gate."""

    async def authenticate(self, *, session: Session) -> bool:
        """Always true: see `guarded`."""
        return True

    @dataclass
    class Config:
        """Nothing to set."""


class Topics(BaseTopicPlugin):  # type: ignore[misc]
    """Asked for every publish, subscription and delivery."""

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        """See `allowed`."""
        return session is not None and action is not None and allowed(session.username or "", topic or "", action)

    @dataclass
    class Config:
        """Nothing to set."""


class Subscriptions(dict[str, list[Any]]):
    """amqtt walks through its subscriptions across awaits; a subscription meanwhile must not stop the walk."""

    def items(self) -> Any:
        """A snapshot."""
        return [(topic, list(sessions)) for topic, sessions in super().items()]

    def __iter__(self) -> Any:
        return iter(list(super().keys()))


class Fenced(Broker):  # type: ignore[misc]
    """amqtt's broker, which sends retained messages to those alone who have subscribed to them, and forgets a clean session at its end."""

    async def _handle_disconnect(self, client_session: Session, handler: Any, disconnect_waiter: Any) -> None:
        """MQTT 3.1.1, 3.1.2.4: a clean session's state must not be used again; a later session that lasts would be this one, which queues nothing."""
        await super()._handle_disconnect(client_session, handler, disconnect_waiter)
        name = client_session.client_id
        if client_session.clean_session and self._sessions.get(name, (None,))[0] is client_session:
            await self._delete_session(name)

    async def _publish_retained_messages_for_subscription(self, subscription: Any, session: Session) -> None:
        if any(subscriber is session for subscriber, _ in self._subscriptions.get(subscription[0], ())):
            await super()._publish_retained_messages_for_subscription(subscription, session)


def make(settings: config.Settings, gate: Gate) -> Broker:
    """A broker that admits whom the gate admits, over TCP, TLS and WebSocket; start() it. It takes no certificates of devices."""
    amqtt.broker.BrokerProtocolHandler = guarded(gate)
    pki = authority.ours()
    tls_files(pki, server_names(settings))
    tls = {"ssl": True, "certfile": str(pki.folder / "server.crt"), "keyfile": str(pki.folder / "server.key")}
    broker = Fenced(
        {
            "listeners": {
                "default": {"type": "tcp", "bind": settings.mqtt_bind, "max_connections": 1000},
                "tls": {"type": "tcp", "bind": settings.mqtt_tls_bind, "max_connections": 1000, **tls},
                "ws": {"type": "ws", "bind": settings.mqtt_ws_bind, "max_connections": 1000},
            },
            "plugins": {f"{__package__}.amqtt_broker.{plugin}": {} for plugin in ("Welcome", "Topics")},
        }
    )
    broker._subscriptions = Subscriptions(broker._subscriptions)
    return broker


async def end_outdated(broker: Broker, gate: Gate) -> None:
    """Close the connections of devices that were disabled or deleted, or whose token was revoked or has expired."""
    connected = {session.username: handler for session, handler in list(broker.sessions.values()) if session.username}
    for user in await gate.outdated(connected):
        log.info("a device must leave", device=user)
        await connected[user].handle_connection_closed()


async def serve(settings: config.Settings) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    password = unquote(urlsplit(settings.mqtt_url or "").password or "")
    if not password:
        raise config.SettingsError("IIOT_MQTT_URL does not name the adapter's password.")
    gate = Gate(password)
    broker = make(settings, gate)
    await broker.start()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), CHECK_SECONDS)
        try:
            await end_outdated(broker, gate)
        except Exception as error:
            log.warning("devices could not be compared with the database", error=str(error)[:200])
    await broker.shutdown()


if __name__ == "__main__":
    logs.setup("broker")
    asyncio.run(serve(config.load()))
