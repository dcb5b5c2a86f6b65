"""What gateways say for others, on its way in: whose child or entity it is, what is made at once, and what waits for somebody's word.

`resolve` comes before the readings are stored and `note` after it, so that a message which is tried again is counted once. Nothing is remembered
between batches: an approval counts from the next message on. Nothing here stores a reading; `services.ingest` does, child by child.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from iiot import clock, ids, tenancy
from iiot.errors import QuotaExceeded
from iiot.models import Device, Discovery, Entity, Home, Tenant
from iiot.services import devices, entities

# Things of one gateway that wait at a time; whatever comes beyond them is refused until somebody has looked.
MOST_WAITING: Final = 100
# Entities of a node that are remembered while it waits.
MOST_SHOWN: Final = 100
KEPT_PAYLOAD: Final = 16 * 1024

State = Literal["known", "waiting", "ignored", "old", "full", "closed", "unknown-home", "not-a-gateway"]


class Changed(Exception):
    """Somebody approved what was just going to wait: the batch has to be looked at anew."""


@dataclass(slots=True)
class Sighting:
    """Something that a message says of a child: the gateway by its uid or by its home, the child's name there, and the entity `<kind>/<entity>`.

    Without a name only the gateway is looked up. `is_news`: False for what a broker repeats, which makes nothing new.
    """

    name: str = ""
    part: str = ""
    gateway_uid: str = ""
    home: str = ""
    protocol: str = ""
    topic: str = ""
    payload: bytes = b""
    # In milliseconds since the epoch.
    received_ms: int = 0
    is_news: bool = True


@dataclass(slots=True)
class Gateway:
    """A device that sends for others. `is_open`: it and its tenant may send at all. `takes_all`: its tenant takes new children without asking."""

    uid: str
    tenant_id: int
    device_id: int
    is_gateway: bool
    is_open: bool
    takes_all: bool


@dataclass(slots=True)
class Place:
    """What a sighting came to; "closed": the gateway or its tenant may not send now, "old": not known and no news.

    `child_uid` and `entity_id` are set when it is known; `reason` says why it waits although the tenant takes all."""

    state: State
    gateway: Gateway | None = None
    child_uid: str = ""
    entity_id: int | None = None
    reason: str = ""


@dataclass(slots=True)
class _Child:
    uid: str
    device_id: int
    # `<kind>/<entity>` → the entity's id.
    parts: dict[str, int] = field(default_factory=dict)


_Key = tuple[int, int]
_DEVICE, _ENTITY = "device", "entity"


def thing(sighting: Sighting, child_is_known: bool) -> tuple[str, str]:
    """Kind and name of what has to be approved first: the device, or on a known one the entity."""
    if child_is_known and sighting.part:
        return _ENTITY, f"{sighting.name}/{sighting.part}"
    return _DEVICE, sighting.name


def resolve(sightings: Sequence[Sighting]) -> list[Place]:
    """One place per sighting, in order; makes what is new where the tenant takes all. Raises what the database raises."""
    if not sightings:
        return []
    with tenancy.work(tenancy.system("ingest")) as db:
        found = _Look(db, sightings)
    return [found.place(sighting) for sighting in sightings]


class _Look:
    """What the database knows of a batch of sightings."""

    def __init__(self, db: Session, sightings: Sequence[Sighting]) -> None:
        self.by_uid, self.by_home = _gateways(db, sightings)
        names: dict[_Key, set[str]] = defaultdict(set)
        for sighting in sightings:
            gateway = self.gateway(sighting)
            if gateway is not None:
                names[gateway.tenant_id, gateway.device_id].add(sighting.name)
        self.children = _children(db, names)
        self.states, self.waiting = _discoveries(db, list(names))
        # Why a gateway's tenant takes nothing more; asked once per batch.
        self.refused: dict[_Key, str] = {}

    def gateway(self, sighting: Sighting) -> Gateway | None:
        """The gateway that speaks."""
        return self.by_home.get(sighting.home) if sighting.home else self.by_uid.get(sighting.gateway_uid)

    def place(self, sighting: Sighting) -> Place:
        """See `resolve`."""
        gateway = self.gateway(sighting)
        if gateway is None:
            return Place("unknown-home" if sighting.home else "not-a-gateway")
        if not (gateway.is_gateway and gateway.is_open):
            return Place("closed" if gateway.is_gateway else "not-a-gateway", gateway)
        if not sighting.name:
            return Place("known", gateway)
        key = (gateway.tenant_id, gateway.device_id)
        child = self.children[key].get(sighting.name)
        if child is not None and (not sighting.part or sighting.part in child.parts):
            return Place("known", gateway, child.uid, child.parts.get(sighting.part))
        kind, name = thing(sighting, child is not None)
        state = self.states.get((*key, kind, name))
        if state == "ignored" or not sighting.is_news:
            return Place("ignored" if sighting.is_news else "old", gateway)
        reason = ""
        if gateway.takes_all:
            reason = self.refused.get(key) or self._make(gateway, sighting)
            if not reason:
                return self.place(sighting)
            self.refused[key] = reason
        if state is None:
            if self.waiting[key] >= MOST_WAITING:
                return Place("full", gateway)
            self.waiting[key] += 1
            self.states[*key, kind, name] = "waiting"
        return Place("waiting", gateway, reason=reason)

    def _make(self, gateway: Gateway, sighting: Sighting) -> str:
        """Make the child and the entity; why it cannot be, or nothing."""
        key = (gateway.tenant_id, gateway.device_id)
        try:
            with tenancy.work(tenancy.system("discovery", gateway.tenant_id)) as db:
                lock_gateways(db, [gateway.device_id])
                child = _children(db, {key: {sighting.name}})[key].get(sighting.name)
                if child is None:
                    new = devices.NewDevice(sighting.name.rpartition("/")[2] if sighting.home else sighting.name)
                    made = devices.create_child(db, new, gateway.device_id, sighting.name)
                    child = _Child(made.uid, made.id)
                if sighting.part and sighting.part not in child.parts:
                    kind, _, name = sighting.part.partition("/")
                    address = f"home/{sighting.name}/{sighting.part}"
                    child.parts[sighting.part] = entities.add(db, child.device_id, kind, name, address).id
                _forget(db, gateway.device_id, sighting)
        except (QuotaExceeded, entities.TooMany) as refused:
            return refused.detail
        self.children[key][sighting.name] = child
        return ""


def _forget(db: Session, gateway_id: int, sighting: Sighting) -> None:
    """Remove what waited of this, since when the tenant took nothing by itself."""
    names = [sighting.name, f"{sighting.name}/{sighting.part}"]
    waiting = select(Discovery).where(
        Discovery.device_id == gateway_id, Discovery.name.in_(names), Discovery.state == "waiting"
    )
    for row in db.scalars(waiting):
        db.delete(row)


def _gateways(db: Session, sightings: Iterable[Sighting]) -> tuple[dict[str, Gateway], dict[str, Gateway]]:
    """Gateways by uid, and by the names of their homes."""
    is_open = (Device.enabled & (Tenant.status == "active")).label("is_open")
    columns = (
        Device.uid,
        Device.tenant_id,
        Device.id,
        Device.is_gateway,
        is_open,
        (Tenant.discovery == "auto").label("auto"),
    )
    wanted = [list({getattr(each, name) for each in sightings} - {""}) for name in ("gateway_uid", "home")]
    by_uid, by_home = {}, {}
    if wanted[0]:
        rows = db.execute(select(*columns).join(Tenant, Tenant.id == Device.tenant_id).where(Device.uid.in_(wanted[0])))
        by_uid = {row[0]: Gateway(*row) for row in rows}
    if wanted[1]:
        rows_of_homes = db.execute(
            select(*columns, Home.name)
            .join(Tenant, Tenant.id == Device.tenant_id)
            .join(Home, (Home.tenant_id == Device.tenant_id) & (Home.device_id == Device.id))
            .where(Home.name.in_(wanted[1]))
        )
        by_home = {row[6]: Gateway(*row[:6]) for row in rows_of_homes}
    return by_uid, by_home


def _children(db: Session, names: dict[_Key, set[str]]) -> dict[_Key, dict[str, _Child]]:
    """Per gateway the children of these names, with their entities."""
    found: dict[_Key, dict[str, _Child]] = {key: {} for key in names}
    wanted = [(*key, name) for key, some in names.items() for name in some]
    if not wanted:
        return found
    own = tuple_(Device.tenant_id, Device.gateway_id, Device.child_name).in_(wanted)
    rows = db.execute(select(Device.tenant_id, Device.gateway_id, Device.child_name, Device.uid, Device.id).where(own))
    by_id: dict[_Key, _Child] = {}
    for tenant_id, gateway_id, name, uid, device_id in rows:
        child = by_id[tenant_id, device_id] = _Child(uid, device_id)
        found[tenant_id, gateway_id or 0][name or ""] = child
    if by_id:
        of_children = tuple_(Entity.tenant_id, Entity.device_id).in_(list(by_id))
        columns = (Entity.tenant_id, Entity.device_id, Entity.kind, Entity.name, Entity.id)
        for tenant_id, device_id, kind, name, entity_id in db.execute(select(*columns).where(of_children)):
            by_id[tenant_id, device_id].parts[f"{kind}/{name}"] = entity_id
    return found


def _discoveries(
    db: Session, gateways: list[_Key]
) -> tuple[dict[tuple[int, int, str, str], str], defaultdict[_Key, int]]:
    """What is in the inboxes of these gateways: (tenant, gateway, kind, name) → its state; and how many wait in each."""
    states: dict[tuple[int, int, str, str], str] = {}
    waiting: defaultdict[_Key, int] = defaultdict(int)
    if gateways:
        columns = (Discovery.tenant_id, Discovery.device_id, Discovery.kind, Discovery.name, Discovery.state)
        of_gateways = tuple_(Discovery.tenant_id, Discovery.device_id).in_(gateways)
        for tenant_id, device_id, kind, name, state in db.execute(select(*columns).where(of_gateways)):
            states[tenant_id, device_id, kind, name] = state
            waiting[tenant_id, device_id] += state == "waiting"
    return states, waiting


def lock_gateways(db: Session, device_ids: Iterable[int]) -> None:
    """Until the end of the transaction nobody else adds to these gateways, or approves what waits there. The session has a tenant."""
    db.execute(select(Device.id).where(Device.id.in_(set(device_ids))).order_by(Device.id).with_for_update()).all()


# --- what waits ------------------------------------------------------------------------------------------------------------------------------


def note(waiting: Sequence[tuple[Sighting, Place]]) -> None:
    """Keep what waits: counted, with the newest message of each thing. Raises Changed when one of them was approved meanwhile."""
    by_tenant: dict[int, list[tuple[Sighting, Place]]] = defaultdict(list)
    for sighting, place in waiting:
        if place.gateway is not None:
            by_tenant[place.gateway.tenant_id].append((sighting, place))
    for tenant_id, pairs in by_tenant.items():
        with tenancy.work(tenancy.system("discovery", tenant_id)) as db:
            _note(db, tenant_id, pairs)


def _note(db: Session, tenant_id: int, pairs: list[tuple[Sighting, Place]]) -> None:
    gateways = {place.gateway.device_id for _, place in pairs if place.gateway}
    lock_gateways(db, gateways)
    names: dict[_Key, set[str]] = {(tenant_id, device_id): set() for device_id in gateways}
    for sighting, place in pairs:
        if place.gateway:
            names[tenant_id, place.gateway.device_id].add(sighting.name)
    children = _children(db, names)
    rows = {
        (row.device_id, row.kind, row.name): row
        for row in db.scalars(select(Discovery).where(Discovery.device_id.in_(gateways)))
    }
    for sighting, place in pairs:
        if place.gateway is None:
            continue
        device_id = place.gateway.device_id
        child = children[tenant_id, device_id].get(sighting.name)
        if child is not None and (not sighting.part or sighting.part in child.parts):
            raise Changed(f"{sighting.name} was approved meanwhile")
        kind, name = thing(sighting, child is not None)
        row = rows.get((device_id, kind, name))
        if row is None:
            row = Discovery(uid=ids.new_uid(), device_id=device_id, kind=kind, name=name, messages=0, entities=[])
            row.state = "waiting"
            db.add(row)
            rows[device_id, kind, name] = row
        if row.state == "waiting":
            _keep(row, sighting, place.reason)


def _keep(row: Discovery, sighting: Sighting, reason: str) -> None:
    row.messages += 1
    row.reason = reason
    row.last_seen_at = clock.from_ms(sighting.received_ms)
    row.protocol, row.topic = sighting.protocol, sighting.topic[:1024].replace("\0", "")
    row.payload = sighting.payload if len(sighting.payload) <= KEPT_PAYLOAD else None
    if sighting.part and sighting.part not in row.entities and len(row.entities) < MOST_SHOWN:
        row.entities = [*row.entities, sighting.part]


def count_waiting(db: Session) -> int:
    """How many things of the session's tenant wait."""
    return db.scalar(select(func.count()).select_from(Discovery).where(Discovery.state == "waiting")) or 0
