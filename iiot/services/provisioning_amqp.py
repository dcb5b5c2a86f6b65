"""RabbitMQ's users compared with the credentials of the database, and mended: the database is right, and has all that a user is made of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace

import structlog
from prometheus_client import Gauge
from sqlalchemy import select

from iiot import clock, rabbitmq, tenancy
from iiot.broker import read_user_name
from iiot.config import load
from iiot.models import Device
from iiot.rabbitmq import Login, Rights
from iiot.services.provisioning import GRACE

amqp_drift = Gauge(
    "iiot_amqp_drift",
    "What differed at RabbitMQ at the last comparison: users missing, extra, wrong_rights; queues of devices that are gone; devices unqueued.",
    ["kind"],
    multiprocess_mode="mostrecent",
)

log = structlog.get_logger("provisioning")


@dataclass(frozen=True, slots=True)
class Drift:
    """User names that differed. `missing`: not there, or with another token; `extra`: there, but no device has such a credential now;
    `wrong_rights`: may do something else than a device, or has no topic permission, which allows every routing key. `queues`: uids of devices
    that are gone; `unqueued`: of those whose queue is missing."""

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    wrong_rights: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    unqueued: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any((self.missing, self.extra, self.wrong_rights, self.queues, self.unqueued))


def reconcile() -> Drift:
    """Compare and mend; returns what was found. Raises BrokerUnavailable."""
    if not rabbitmq.is_managed():
        return Drift()
    # In this order: a device reaches RabbitMQ after it is in the database, so an unknown user is really unknown.
    users, queues = rabbitmq.list_logins(), rabbitmq.list_queues()
    logins, young = _stored()
    drift = compare(users, logins, young, rabbitmq.virtual_host(load().amqp_url))
    mute = {login.uid for user, login in logins.items() if user not in young} - queues
    drift = replace(drift, queues=_without_device(queues), unqueued=tuple(sorted(mute)))
    for kind in ("missing", "extra", "wrong_rights", "queues", "unqueued"):
        amqp_drift.labels(kind).set(len(getattr(drift, kind)))
    if drift:
        log.warning(
            "RabbitMQ differs",
            missing=drift.missing[:20],
            extra=drift.extra[:20],
            wrong_rights=drift.wrong_rights[:20],
            queues=drift.queues[:20],
            unqueued=drift.unqueued[:20],
            count=sum(len(getattr(drift, each.name)) for each in fields(drift)),
        )
        _mend(drift, logins)
    return drift


def compare(users: dict[str, Rights], logins: dict[str, Login], young: Collection[str], vhost: str) -> Drift:
    """What differs between RabbitMQ's users and the credentials, both by user name. `young`: told just now, perhaps on their way."""
    missing, wrong = [], []
    for user, login in logins.items():
        found = users.get(user)
        if found is None or found.hash != login.hash:
            if user not in young:
                missing.append(user)
        elif found != rabbitmq.rights(login, vhost) and (user not in young or _is_open(found)):
            wrong.append(user)
    return Drift(tuple(sorted(missing)), tuple(sorted(users.keys() - logins.keys())), tuple(sorted(wrong)))


def _is_open(found: Rights) -> bool:
    """Whether it may write without being bound to its keys: while it is made it never is, as the topics come first."""
    return bool(found.permissions) and not found.topics


def _stored() -> tuple[dict[str, Login], set[str]]:
    """The logins of the database by user name, and which of them are young."""
    young = clock.now() - GRACE  # see `services.provisioning`
    with tenancy.work(tenancy.system("provision")) as db:
        found = rabbitmq.stored_logins(db)
    return {login.user: login for login, _ in found}, {login.user for login, made in found if made >= young}


def _without_device(uids: set[str]) -> tuple[str, ...]:
    """Of these uids the ones that no device has."""
    if not uids:
        return ()
    with tenancy.work(tenancy.system("provision")) as db:
        known = set(db.scalars(select(Device.uid).where(Device.uid.in_(uids))))
    return tuple(sorted(uids - known))


def _mend(drift: Drift, logins: dict[str, Login]) -> None:
    for user in drift.extra:
        rabbitmq.remove_login(user)
    again = [logins[user] for user in (*drift.missing, *drift.wrong_rights)]
    rabbitmq.add_logins(again)
    rabbitmq.make_queues(drift.unqueued)
    for uid in drift.queues:
        if read_user_name(uid) is not None:
            rabbitmq.remove_queue(uid)
    if again:
        # A credential may have been revoked while its user was made here; then it was removed too early.
        valid, _ = _stored()
        for login in again:
            if valid.get(login.user) != login:
                rabbitmq.remove_login(login.user)
