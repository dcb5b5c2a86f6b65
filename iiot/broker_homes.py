"""The rights of gateways in their homes, at Mosquitto's dynamic-security plugin: set, compared with the database, mended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from iiot import broker
from iiot.models import Device, Home

# The homes of all gateways, as a broker of our own last read them: the module of such a broker runs twice, as a program and as a plugin of amqtt.
known: dict[str, list[str]] = {}


def remember(homes: dict[str, list[str]]) -> None:
    """Replace `known` in one step: an event loop reads it meanwhile."""
    global known
    known = homes


def stored(db: Session) -> dict[str, list[str]]:
    """The homes of every gateway that has some, by its uid. For a session of the scope "provision"."""
    rows = db.execute(
        select(Device.uid, Home.name)
        .join(Home, (Home.tenant_id == Device.tenant_id) & (Home.device_id == Device.id))
        .order_by(Home.name)
    )
    homes: dict[str, list[str]] = {}
    for uid, name in rows:
        homes.setdefault(uid, []).append(name)
    return homes


def set_homes(uid: str, homes: Sequence[str]) -> None:
    """Let a device speak for these homes and no others; its open connection ends. One that has never had a login is no error.

    Raises BrokerUnavailable or BrokerError; the reconciler mends what was missed.
    """
    _set(broker.role_of(uid), broker.device_acls(uid, homes))


def _set(role: str, acls: Sequence[Mapping[str, Any]]) -> None:
    [answer] = broker.ask([{"command": "modifyRole", "rolename": role, "acls": acls}])
    broker.expect(answer, "Role not found")


def differing(
    roles: Mapping[str, Sequence[Mapping[str, Any]]], homes: Mapping[str, Sequence[str]]
) -> dict[str, list[dict[str, Any]]]:
    """Those of the broker's roles that do not allow what the database says, with the rights that they ought to have: of devices and the adapter."""
    differ = {}
    for name, acls in roles.items():
        if name == broker.ADAPTER:
            wanted = broker.SERVICE_ACLS[broker.ADAPTER]
        elif name.startswith(broker.role_of("")):
            uid = name.removeprefix(broker.role_of(""))
            wanted = broker.device_acls(uid, homes.get(uid, ()))
        else:
            continue
        if _rights(acls) != _rights(wanted):
            differ[name] = wanted
    return differ


def mend(roles: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Give roles the rights that they ought to have."""
    for name, acls in roles.items():
        _set(name, acls)


def _rights(acls: Sequence[Mapping[str, Any]]) -> set[tuple[Any, ...]]:
    return {(each["acltype"], each["topic"], each["allow"]) for each in acls}


def list_roles() -> dict[str, list[dict[str, Any]]]:
    """Every role at the broker with its rights."""
    found: dict[str, list[dict[str, Any]]] = {}
    offset = 0
    while True:
        [answer] = broker.ask([{"command": "listRoles", "verbose": True, "count": broker.PAGE, "offset": offset}])
        broker.expect(answer)
        roles = answer["data"].get("roles", [])
        found |= {role["rolename"]: role.get("acls", []) for role in roles}
        offset += len(roles)
        if not roles or offset >= answer["data"].get("totalCount", 0):
            return found
