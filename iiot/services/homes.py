"""Homes of the smart-home scheme: whose `home/<name>/…` is, and which gateway speaks for it.

A name exists once in the whole installation, as the topics do not name the tenant. Who claims one that is taken hears that it cannot be had, in the
same words whoever has it; asking is limited per person, so that nobody lists the names of others.
"""

import re
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, selectinload

from iiot import broker_homes, ids
from iiot.errors import Conflict, Invalid, NotFound
from iiot.models import Device, Home
from iiot.payloads.gateway import WORD
from iiot.services import audit, credentials, devices, roles
from iiot.services.listing import Found, Wanted, find
from iiot.tenancy import ScopedSession

MOST_OF_DEVICE: Final = 20
SORTS: dict[str, Any] = {"name": Home.name, "created_at": Home.created_at}


def search(db: ScopedSession, wanted: Wanted) -> Found[Home]:
    """A page of the session's tenant's homes."""
    return find(db, select(Home).options(selectinload(Home.device)), SORTS, Home.id, wanted)  # type: ignore[arg-type]


def of_device(db: Session, device: Device) -> list[Home]:
    """The homes that a gateway speaks for, by name."""
    return list(db.scalars(select(Home).where(Home.device_id == device.id).order_by(Home.name)))


def claim(db: ScopedSession, name: str, device_uid: str) -> Home:
    """Give a gateway the home. Raises NotFound, Invalid, Conflict (the name cannot be had, or the device is no gateway), Forbidden (limited)."""
    roles.check_unlimited(db.scope)
    if re.fullmatch(WORD, name) is None:
        raise Invalid(
            "The home is not valid.", [{"loc": ["body", "name"], "msg": "1 to 40 characters of A-Za-z0-9_.:-"}]
        )
    device = devices.locked(db, device_uid)
    if not device.is_gateway:
        raise Conflict("This device is no gateway. Mark it as one first.", "not-a-gateway")
    have = db.scalar(select(func.count()).select_from(Home).where(Home.device_id == device.id)) or 0
    if have >= MOST_OF_DEVICE:
        raise Conflict(f"A gateway speaks for at most {MOST_OF_DEVICE} homes.", "too-many-homes")
    home = Home(uid=ids.new_uid(), name=name, device_id=device.id)
    try:
        with db.begin_nested():
            db.add(home)
    except IntegrityError as error:
        if "uq_home_name" not in str(error.orig):
            raise
        raise Conflict("This name cannot be had. Take another one.", "home-name-taken") from None
    audit.record(db, "home.create", ("home", home.uid), after={"name": name, "device": device_uid})
    _tell(db, device)
    return home


def release(db: ScopedSession, uid: str) -> None:
    """Give the home up: its name may be claimed by anybody, its devices stay. Raises NotFound, or Forbidden for limited members."""
    roles.check_unlimited(db.scope)
    statement = select(Home).where(Home.uid == uid).options(selectinload(Home.device))
    home = db.scalar(statement) if ids.is_uid(uid) else None
    if home is None:
        raise NotFound("home")
    device = home.device
    db.delete(home)
    db.flush()
    audit.record(db, "home.delete", ("home", uid), before={"name": home.name, "device": device.uid})
    _tell(db, device)


def _tell(db: Session, device: Device) -> None:
    """The broker's role of the gateway follows its homes. Its connection ends, so that the new rights count at once."""
    uid, names = device.uid, [home.name for home in of_device(db, device)]
    credentials.tell_broker(db, "set_homes", uid, lambda: broker_homes.set_homes(uid, names))
