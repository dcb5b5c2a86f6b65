"""The broker's clients compared with the credentials of the database, and mended: the database is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta

import structlog
from prometheus_client import Gauge

from iiot import broker, broker_homes, clock, tenancy
from iiot.broker import BrokerLogin, StoredCertificate, StoredLogin
from iiot.config import Settings, load

Stored = StoredLogin | StoredCertificate

# A device is told to the broker right after its commit. One so young that is missing is on its way.
GRACE = timedelta(seconds=30)

drift_gauge = Gauge(
    "iiot_broker_drift",
    "Logins of devices at the broker that differed from the database at the last comparison: missing, extra, wrong_state, wrong_role.",
    ["kind"],
    multiprocess_mode="mostrecent",
)

log = structlog.get_logger("provisioning")


@dataclass(frozen=True, slots=True)
class Drift:
    """User names (`<uid>`, `<uid>.<slot>`, subjects of certificates) that differed. `missing`: not at the broker, or there with another token;
    `extra`: there, but no device has such a credential now; `wrong_state`: let in while disabled, or the other way round;
    `wrong_role`: roles that allow something else than they ought to."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    wrong_state: tuple[str, ...]
    wrong_role: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.wrong_state or self.wrong_role)


def reconcile(settings: Settings | None = None) -> Drift:
    """Compare and mend; returns what was found.

    Extra clients are removed, those of expired credentials among them, and wrong states and roles set. Clients of certificates have no password
    and are made anew. The client of a token cannot be, because the token is stored nowhere: the embedded broker is asked to start again with a file
    made from the verifiers; for any other the log says what to do. A client with another token than the newest is shut out at once. Raises
    BrokerUnavailable.
    """
    settings = settings or load()
    if not broker.is_managed():
        return Drift((), (), ())
    if broker.secure_defaults():
        log.error("the broker allowed by default what no role allows; this was changed")
    # In this order: a device reaches the broker after it is in the database, so an unknown client is really unknown.
    clients = {client.user: client for client in broker.list_logins()}
    listed = broker_homes.list_roles()
    with tenancy.work(tenancy.system("provision")) as db:
        stored: list[Stored] = [*broker.stored_logins(db), *broker.stored_certificates(db)]
        homes = broker_homes.stored(db)
    logins = {login.user: login for login in stored}
    roles = broker_homes.differing(listed, homes)
    drift = replace(compare(clients, logins), wrong_role=tuple(sorted(roles)))
    for kind in ("missing", "extra", "wrong_state", "wrong_role"):
        drift_gauge.labels(kind).set(len(getattr(drift, kind)))
    if drift:
        log.warning("the broker differs", **asdict(drift))
        broker_homes.mend(roles)
        _mend(settings, drift, clients, logins)
    return drift


def compare(clients: Mapping[str, BrokerLogin], logins: Mapping[str, Stored]) -> Drift:
    """What differs between the broker's clients and the credentials, both by user name."""
    young = clock.now() - GRACE
    missing = [
        user
        for user, login in logins.items()
        if login.issued_at < young and (user not in clients or clients[user].mark != login.mark)
    ]
    known = clients.keys() & logins.keys()
    return Drift(
        tuple(sorted(missing)),
        tuple(sorted(clients.keys() - logins.keys())),
        tuple(sorted(user for user in known if clients[user].enabled != logins[user].enabled)),
    )


def _mend(settings: Settings, drift: Drift, clients: Mapping[str, BrokerLogin], logins: Mapping[str, Stored]) -> None:
    states = {login.uid: login.enabled for login in logins.values()}
    for user in drift.extra:
        uid = broker.owner(user) or user
        if uid in states:
            broker.remove_login(user)
        else:
            broker.remove_device(uid)
            broker.remove_login(user)
    wrong = [logins[user] for user in drift.wrong_state]
    for uid in {login.uid for login in wrong if isinstance(login, StoredLogin)}:
        broker.set_enabled(uid, states[uid])
    lost = [logins[user] for user in drift.missing]
    for user in drift.missing:
        if user in clients:
            # Its older token was revoked; until the newest one is there, nobody may come in with it.
            broker.remove_login(user)
    for login in (*lost, *wrong):
        if isinstance(login, StoredCertificate):
            broker.remove_login(login.user)
            broker.add_certificate(login.uid, login.certificate_uid)
    tokens = [login.user for login in lost if isinstance(login, StoredLogin)]
    if not tokens:
        return
    folder = settings.data_dir / "mosquitto"
    if folder.is_dir():
        (folder / "rebuild").touch()
    else:
        log.error(
            "devices cannot log in at the broker; issue a new token for each: POST /api/v1/devices/<uid>/credentials",
            devices=tokens[:20],
            count=len(tokens),
        )
