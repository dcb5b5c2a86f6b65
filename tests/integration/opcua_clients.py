"""The OPC UA adapter as a real process with the stream beside it, and asyncua's client against it."""

import asyncio
import contextlib
import datetime
import functools
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from asyncua import Client, Node, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from iiot import auth, tenancy
from iiot.config import Settings
from iiot.embedded import ports
from iiot.services import api_keys, devices, limited, members, signals
from tests import factories, services
from tests.integration.mqtt_devices import AdapterProcess
from tests.live import stream
from tests.metrics import metric

T = TypeVar("T")
PASSWORD = "seven purple lanterns at sea"
SECONDS = 30.0
APPLICATION = "urn:test:client"


@functools.cache
def password_hash() -> str:
    """The hash of PASSWORD, made once."""
    return auth.hash_password(PASSWORD)


@functools.cache
def pair(folder: Path, name: str = "client") -> tuple[Path, Path]:
    """A client's certificate (DER) and key (PEM)."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(True, True, True, True, False, True, False, False, False)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(APPLICATION)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.der", folder / f"{name}.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.DER))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@dataclass
class Server:
    """A running adapter."""

    process: AdapterProcess
    url: str
    folder: Path
    metrics: Path | None = None

    def metric(self, name: str, **labels: str) -> float:
        """One of its metrics, which go to a folder of its own."""
        assert self.metrics is not None
        assert self.process.process is not None
        return metric(self.metrics, self.process.process.pid, name, **labels)

    def client(self, user: str, password: str = PASSWORD, name: str = "client") -> Client:
        """A client that has not connected yet."""
        # It looks once a second otherwise, and gives up when a longer answer is before its own.
        made = Client(self.url, timeout=SECONDS, watchdog_intervall=SECONDS)
        made.application_uri = APPLICATION
        made.set_user(user)
        made.set_password(password)
        made.certificate_pair = pair(self.folder, name)
        return made

    @contextlib.asynccontextmanager
    async def connected(self, user: str, password: str = PASSWORD, name: str = "client") -> AsyncIterator[Client]:
        """A client with a session."""
        made = self.client(user, password, name)
        await secure(made)
        async with made:
            yield made

    async def channel(self, user: str, name: str = "client") -> Client:
        """A client with a secure channel and no session."""
        made = self.client(user, name=name)
        await secure(made)
        await made.connect_socket()
        await made.send_hello()
        await made.open_secure_channel()
        return made


async def secure(client: Client) -> None:
    """Basic256Sha256, SignAndEncrypt."""
    certificate, key = client.certificate_pair
    await client.set_security(SecurityPolicyBasic256Sha256, certificate, key)


@dataclass
class Side:
    """A tenant with people and devices."""

    tenant: factories.TenantRow
    people: dict[str, factories.UserRow] = field(default_factory=dict)

    def user(self, role: str) -> str:
        """The address of a user with this role, who signs in with PASSWORD."""
        if role not in self.people:
            self.people[role] = factories.make_user(self.tenant, role, password_hash=password_hash())
        return self.people[role].email

    def device(self, name: str | None = None, **sent: Any) -> factories.DeviceRow:
        """A device that has sent these values."""
        with tenancy.work(tenancy.of(self.tenant)) as db:
            row, _ = devices.create(db, devices.NewDevice(name or f"pump {len(sent)} {id(sent)}"))
            made = factories.DeviceRow(row.tenant_id, row.id, row.uid, row.name)
        if sent:
            factories.store(made.uid, **sent)
        return made

    def change(self, device: factories.DeviceRow, key: str, **changes: Any) -> None:
        """Unit, range or writability of a signal."""
        with tenancy.work(tenancy.of(self.tenant)) as db:
            signals.change(db, device.uid, key, changes)

    def principal(self, role: str) -> auth.Principal:
        """The user with this role, signed in."""
        self.user(role)
        person = self.people[role]
        return auth.Principal(
            kind="user", tenant_id=self.tenant.tenant_id, tenant_uid=self.tenant.uid, user_id=person.user_id,
            user_uid=person.uid, role=role, label=person.email,
        )  # fmt: skip

    def limited(self, role: str, *seen: factories.DeviceRow) -> str:
        """The address of another user with this role, who sees these devices alone."""
        person = factories.make_user(self.tenant, role, password_hash=password_hash())
        limits = limited.LimitedTo(devices=[each.uid for each in seen])
        admin = self.principal("admin")
        with tenancy.work(tenancy.of(admin)) as db:
            members.change(db, admin, person.uid, members.Changes(set_limits=True, limited_to=limits))
        return person.email

    def key(self, role: str = "admin", *scopes: str) -> tuple[str, str]:
        """An API key of the user with this role: (its text, its id)."""
        principal = self.principal(role)
        with tenancy.work(tenancy.of(principal)) as db:
            listed, text = api_keys.create(db, principal, api_keys.Wish("scada", tuple(scopes) or None))
        return text, listed.uid

    def revoke(self, role: str, uid: str) -> float:
        """Revoke this API key of the user with this role; returns when it was done, in monotonic seconds."""
        principal = self.principal(role)
        with tenancy.work(tenancy.of(principal)) as db:
            api_keys.revoke(db, principal, uid)
        return time.monotonic()


@contextlib.contextmanager
def serving(settings: Settings, **fields: Any) -> Iterator[Server]:
    """A running adapter on a port of its own, and the stream that brings news."""
    bind = f"127.0.0.1:{ports.free_port()}"
    changed = settings.model_copy(update={"opcua_bind": bind, **fields})
    object.__setattr__(changed, "__pydantic_fields_set__", changed.model_fields_set | {"opcua_bind", *fields})
    with services.active(changed):
        beside = stream()
        beside.start()
        try:
            process = AdapterProcess(changed, "opcua")
            metrics = Path(tempfile.mkdtemp(prefix="metrics ", dir=settings.data_dir))
            try:
                os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
                try:
                    process.start()
                finally:
                    del os.environ["PROMETHEUS_MULTIPROC_DIR"]
                yield Server(process, f"opc.tcp://{bind}/iiot", settings.data_dir, metrics)
            finally:
                process.stop()
        finally:
            beside.stop()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own."""
    return asyncio.run(asyncio.wait_for(coroutine, 100))


async def soon(check: Callable[[], Coroutine[Any, Any, T]], seconds: float = SECONDS) -> T:
    """Ask until the answer is true."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        found = await check()
        if found:
            return found
        assert loop.time() < deadline, f"not within {seconds} s: {found!r}"
        await asyncio.sleep(0.05)


class Heard:
    """What a subscription has brought: (node, value), in order."""

    def __init__(self) -> None:
        self.values: list[tuple[str, Any]] = []
        self.raw: list[ua.DataValue] = []

    def datachange_notification(self, node: Node, value: Any, data: Any) -> None:
        """Called by asyncua."""
        self.values.append((node.nodeid.Identifier, value))
        self.raw.append(data.monitored_item.Value)

    def status_change_notification(self, status: Any) -> None:
        """Called by asyncua when the subscription ends."""

    async def until(self, *wanted: tuple[str, Any]) -> None:
        """Wait until all of these came."""

        async def came() -> bool:
            return all(each in self.values for each in wanted)

        await soon(came)


def node(client: Client, text: str) -> Node:
    """A node of a device."""
    return client.get_node(ua.NodeId(text, 2))


async def is_over(client: Client) -> bool:
    """Whether its session has ended."""
    try:
        await client.nodes.server_state.read_value()
    except (TimeoutError, ua.UaError, ConnectionError):
        return True
    return False
