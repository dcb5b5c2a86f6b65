"""The broker's clients compared with the devices of the database, and mended: the database is right."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import structlog
from prometheus_client import Gauge

from iiot import broker, clock, tenancy
from iiot.broker import BrokerClient, StoredDevice
from iiot.config import Settings, load

# A device is told to the broker right after its commit. One so young that is missing is on its way.
GRACE = timedelta(seconds=30)

drift_gauge = Gauge(
    "iiot_broker_drift",
    "Devices whose login at the broker differed from the database at the last comparison: missing, extra, wrong_state.",
    ["kind"],
    multiprocess_mode="mostrecent",
)

log = structlog.get_logger("provisioning")


@dataclass(frozen=True, slots=True)
class Drift:
    """Uids that differed. `missing`: not at the broker, or there with another token; `extra`: there, but no device;
    `wrong_state`: let in while disabled, or the other way round."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    wrong_state: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.wrong_state)


def reconcile(settings: Settings | None = None) -> Drift:
    """Compare and mend; returns what was found.

    Extra clients are removed and wrong states set. A missing client cannot be made here, because its token is stored
    nowhere: the embedded broker is asked to start again with a file made from the verifiers; for any other the log says
    what to do. A client with another token than the newest is shut out at once. Raises BrokerUnavailable.
    """
    settings = settings or load()
    if not broker.is_managed():
        return Drift((), (), ())
    if broker.secure_defaults():
        log.error("the broker allowed by default what no role allows; this was changed")
    # In this order: a device reaches the broker after it is in the database, so an unknown client is really unknown.
    clients = {client.uid: client for client in broker.list_devices()}
    with tenancy.work(tenancy.system("provision")) as db:
        devices = {device.uid: device for device in broker.stored_devices(db)}
    drift = compare(clients, devices)
    for kind in ("missing", "extra", "wrong_state"):
        drift_gauge.labels(kind).set(len(getattr(drift, kind)))
    if drift:
        log.warning("the broker differs", missing=drift.missing, extra=drift.extra, wrong_state=drift.wrong_state)
        _mend(settings, drift, clients, devices)
    return drift


def compare(clients: dict[str, BrokerClient], devices: dict[str, StoredDevice]) -> Drift:
    """What differs between the broker's clients and the devices, both by uid."""
    young = clock.now() - GRACE
    missing = [
        uid
        for uid, device in devices.items()
        if device.issued_at < young and (uid not in clients or clients[uid].mark != device.mark)
    ]
    known = clients.keys() & devices.keys()
    return Drift(
        tuple(sorted(missing)),
        tuple(sorted(clients.keys() - devices.keys())),
        tuple(sorted(uid for uid in known if clients[uid].enabled != devices[uid].enabled)),
    )


def _mend(settings: Settings, drift: Drift, clients: dict[str, BrokerClient], devices: dict[str, StoredDevice]) -> None:
    for uid in drift.extra:
        broker.remove_device(uid)
    for uid in drift.wrong_state:
        broker.set_enabled(uid, devices[uid].enabled)
    if not drift.missing:
        return
    for uid in drift.missing:
        if uid in clients:
            # Its older token was revoked; until the newest one is there, nobody may come in with it.
            broker.remove_device(uid)
    folder = settings.data_dir / "mosquitto"
    if folder.is_dir():
        (folder / "rebuild").touch()
    else:
        log.error(
            "devices cannot log in at the broker; issue a new token for each: POST /api/v1/devices/<uid>/credentials",
            devices=drift.missing[:20],
            count=len(drift.missing),
        )
