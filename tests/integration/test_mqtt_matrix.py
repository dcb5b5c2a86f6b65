"""Who reaches what over MQTT: every topic of the contract and every pattern, of the device itself, of a sibling and of another tenant's device.

A cell is an act of one device on one topic. The table says which cells are allowed; a witness who sees everything says what happened. Expected:
the device's own acts, and nothing else.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from iiot import broker
from iiot.config import Settings
from iiot.embedded import mqtt
from tests import factories
from tests.integration.mqtt_brokers import KINDS, V5, Options, Peer, UnderTest, running
from tests.integration.mqtt_devices import Device
from tests.services import eventually

# Topics of one device or home. `{uid}` is the device's, `{home}` the home of its tenant.
OF_DEVICE = (
    "iiot/{uid}/up/telemetry",
    "iiot/{uid}/up/status",
    "iiot/{uid}/up/result/7k2q",
    "iiot/{uid}/up/gateway/telemetry",
    "iiot/{uid}/down/command",
    "iiot/{uid}/down/error",
    "iiot/{uid}/down/ack",
    "iiot/{uid}",
    "iiot/{uid}/up",
    "iiot/{uid}/down",
    "home/{home}/node/light/ceiling/state",
    "home/{home}/node/light/ceiling/set",
    "home/{home}/node/status",
)
OF_NOBODY = (
    "iiot/service/mqtt/status",
    "$CONTROL/dynamic-security/v1",
    "$CONTROL/dynamic-security/v1/response",
    "$SYS/broker/clients/total",
    "telemetry",
    "/",
)
PATTERNS_OF_DEVICE = (
    "iiot/{uid}/#",
    "iiot/{uid}/+/+",
    "iiot/{uid}/up/#",
    "iiot/{uid}/down/#",
    "iiot/{uid}/down/+",
    "$share/group/iiot/{uid}/down/#",
    "$share/group/iiot/{uid}/up/#",
    "home/{home}/#",
)
PATTERNS = (
    "#", "+/#", "+/+/#", "iiot/#", "iiot/+/#", "iiot/+/up/#", "iiot/+/down/#", "iiot/+/down/command", "home/#", "home/+/+/+/+/set",
    "$SYS/#", "$CONTROL/#", "$share/group/#", "$share/group/iiot/+/up/#", "$share/group/$SYS/#",
)  # fmt: skip
WHOSE = ("own", "sibling", "other")
ALLOWED = {
    "publish": ("iiot/{uid}/up",),
    "retain": ("iiot/{uid}/up",),
    "will": ("iiot/{uid}/up",),
    # Not through a shared subscription: a device has nobody to share its commands with.
    "subscribe": ("iiot/{uid}/down",),
    "receive": ("iiot/{uid}/down",),
    "receive retained": ("iiot/{uid}/down",),
}


@dataclass(frozen=True)
class Cell:
    """An act on a topic of somebody (`whose` is empty for topics of nobody)."""

    act: str
    template: str
    whose: str

    @property
    def allowed(self) -> bool:
        """Whether the device may."""
        return self.whose == "own" and self.template.startswith(ALLOWED[self.act])


@dataclass(frozen=True)
class People:
    """Who is who: uid and home by `whose`."""

    devices: dict[str, Device]

    def topic(self, cell: Cell) -> str:
        """The topic of a cell."""
        device = self.devices[cell.whose or "own"]
        return cell.template.format(uid=device.uid, home=f"home-{device.tenant.tenant_id}")


def cells(*acts: str) -> list[Cell]:
    """The table: every act on every topic that it makes sense for."""
    found = []
    for act in acts:
        whole = (*OF_DEVICE, *PATTERNS_OF_DEVICE) if act == "subscribe" else OF_DEVICE
        found += [Cell(act, template, whose) for template in whole for whose in WHOSE]
        found += [Cell(act, template, "") for template in OF_NOBODY]
        found += [Cell(act, template, "") for template in PATTERNS if act == "subscribe"]
    return found


@pytest.fixture(scope="module", params=KINDS)
def under(request: pytest.FixtureRequest, module_settings: Settings, workspace: Path) -> Iterator[UnderTest]:
    with running(request.param, module_settings, workspace / f"matrix {request.param}") as found:
        yield found


@pytest.fixture(scope="module")
def people(under: UnderTest) -> People:
    tenant = factories.make_tenant()
    return People({"own": Device(tenant), "sibling": Device(tenant), "other": Device(factories.make_tenant())})


@pytest.fixture(scope="module")
def witness(under: UnderTest, people: People) -> Iterator[Peer]:
    peer = under.witness()
    yield peer
    peer.close()


class Matrix:
    """Does the acts of one version of MQTT, and says which of them had an effect."""

    def __init__(self, under: UnderTest, people: People, witness: Peer, version: MQTTProtocolVersion) -> None:
        self.under, self.people, self.witness, self.version = under, people, witness, version
        self.actor = people.devices["own"]

    def connect(self, **options: object) -> Peer:
        """The acting device."""
        uid, token = self.actor.uid, self.actor.token
        return Peer(self.under, uid, token, uid, Options(self.version, **options))  # type: ignore[arg-type]

    def settle(self, peer: Peer) -> None:
        """Wait until all that `peer` sent before has reached the witness."""
        mark = f"end-{id(peer)}".encode()
        peer.publish(f"iiot/{self.actor.uid}/up/status", mark)
        eventually(lambda: any(payload == mark for _, payload, _ in self.witness.messages), 30)

    def seen(self, table: list[Cell]) -> set[Cell]:
        """The cells whose mark the witness has got, on the cell's own topic."""
        got = {(topic, payload) for topic, payload, _ in self.witness.messages}
        return {cell for cell in table if (self.people.topic(cell), _mark(cell)) in got}

    def publishes(self) -> set[Cell]:
        """Publish, also retained. MQTT 5 says for each whether it was allowed; that must be what the witness saw."""
        table = cells("publish", "retain")
        # amqtt does not listen any more to a client that has published to a topic of the broker itself.
        reserved = [cell for cell in table if self.people.topic(cell).startswith("$") and self.under.kind == "amqtt"]
        for cell in reserved:
            peer = self.connect()
            peer.client.publish(self.people.topic(cell), _mark(cell), 1, cell.act == "retain")
            peer.drop()
        peer = self.connect()
        sent = {
            cell: peer.client.publish(self.people.topic(cell), _mark(cell), 1, cell.act == "retain")
            for cell in table
            if cell not in reserved
        }
        eventually(lambda: len(peer.published) == len(sent), 30)
        self.settle(peer)
        peer.close()
        seen = self.seen(table)
        if self.version == V5:
            assert {cell for cell, info in sent.items() if peer.published[info.mid]} == seen
        return seen

    def wills(self) -> set[Cell]:
        """Die with a last will; a refused login is a refused will."""
        table = cells("will")
        for cell in table:
            before = len(self.witness.messages)
            peer = self.connect(will=self.people.topic(cell))
            peer.drop()
            if peer.admitted and cell.allowed:
                eventually(lambda n=before: len(self.witness.messages) > n, 30)  # type: ignore[misc]
        peer = self.connect()
        self.settle(peer)
        peer.close()
        got = {topic for topic, payload, _ in self.witness.messages if payload == b"will"}
        return {cell for cell in table if self.people.topic(cell) in got}

    def subscriptions(self) -> set[Cell]:
        """Subscribe to everything, then let the witness send something on every topic."""
        feed = cells("receive retained")
        feedable = [cell for cell in feed if not self.people.topic(cell).startswith(("$", "/")) or cell.allowed]
        for cell in feedable:
            self.witness.publish(self.people.topic(cell), _mark(cell), retain=True)
        table = cells("subscribe")
        peer = self.connect()
        asked = {cell: peer.client.subscribe(self.people.topic(cell), 1)[1] for cell in table}
        eventually(lambda: len(peer.granted) >= len(asked), 30)
        live = [Cell("receive", cell.template, cell.whose) for cell in feedable]
        for cell in live:
            self.witness.publish(self.people.topic(cell), _mark(cell))
        last = (f"iiot/{self.actor.uid}/down/ack", b"last")
        self.witness.publish(*last)
        eventually(lambda: last in {(topic, payload) for topic, payload, _ in peer.messages}, 30)
        for cell in feedable:
            self.witness.publish(self.people.topic(cell), b"", retain=True)
        peer.close()
        got = {(topic, payload) for topic, payload, _ in peer.messages}
        received = {cell for cell in (*feedable, *live) if (self.people.topic(cell), _mark(cell)) in got}
        assert {topic for topic, *_ in peer.messages if not topic.startswith(f"iiot/{self.actor.uid}/down")} == set()
        return {cell for cell, mid in asked.items() if peer.granted[mid]} | received


def _mark(cell: Cell) -> bytes:
    return f"{cell.act}|{cell.whose}|{cell.template}".encode()


def test_the_table_has_three_hundred_cells() -> None:
    every = cells(*ALLOWED)
    assert len(every) * 2 >= 300
    assert Counter(cell.allowed for cell in every)[True] >= 15


def test_a_device_does_its_own_acts_and_no_others(under: UnderTest, people: People, witness: Peer) -> None:
    for version in under.versions:
        matrix = Matrix(under, people, witness, version)
        done = matrix.publishes() | matrix.wills() | matrix.subscriptions()
        expected = {cell for cell in cells(*ALLOWED) if cell.allowed}
        assert done - expected == set(), "foreign acts"
        assert expected - done == set(), "own acts that failed"
        witness.messages.clear()


def test_nobody_borrows_a_client_id(under: UnderTest, people: People) -> None:
    own = people.devices["own"]
    names = [*(people.devices[whose].uid for whose in ("sibling", "other")), mqtt.ADAPTER, mqtt.ADMIN, "", "x"]
    for version in under.versions:
        for name in names:
            peer = Peer(under, own.uid, own.token, name, Options(version))
            assert not peer.admitted, name
            peer.close()
        for whose in ("sibling", "other"):
            peer = Peer(under, people.devices[whose].uid, own.token, people.devices[whose].uid, Options(version))
            assert not peer.admitted, whose
            peer.close()


def test_orders_to_the_brokers_own_administration_have_no_effect(under: UnderTest, people: People) -> None:
    own = people.devices["own"]
    before = {login.user for login in broker.list_logins()}
    order = b'{"commands":[{"command":"createClient","username":"%s","password":"x"}]}' % ("b" * 26).encode()
    for version in under.versions:
        for topic in ("$CONTROL/dynamic-security/v1", "$CONTROL/dynamic-security/v1/response", "$SYS/x"):
            peer = Peer(under, own.uid, own.token, own.uid, Options(version))
            peer.client.publish(topic, order, 1)
            peer.close()
    assert {login.user for login in broker.list_logins()} == before
