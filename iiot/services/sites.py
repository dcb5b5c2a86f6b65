"""Sites: the places of a tenant that devices stand at. Members may be limited to some."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from iiot import cache, ids, tenancy
from iiot.errors import Conflict, Invalid, NotFound
from iiot.models import Device, Site
from iiot.services import audit, roles
from iiot.services.listing import Found, Wanted, find
from iiot.services.names import check_name
from iiot.tenancy import ScopedSession

MAX_SITES = 1000
SORTS: dict[str, Any] = {"name": func.lower(Site.name), "created_at": Site.created_at}


@dataclass(frozen=True)
class Place:
    """A site with the number of devices there that the reader sees."""

    uid: str
    name: str
    devices: int
    created_at: datetime


def search(db: Session, wanted: Wanted) -> Found[Place]:
    """A page of the session's tenant's sites; limited members see those that they or devices of theirs are at."""
    found = find(db, select(Site), SORTS, Site.id, wanted)  # type: ignore[arg-type]
    counts = _devices_at(db, [site.id for site in found.items])
    return Found([_place(site, counts) for site in found.items], found.next_position, found.total)


def choices(db: Session) -> list[Site]:
    """All sites by name, for a form."""
    return list(db.scalars(select(Site).order_by(func.lower(Site.name), Site.id).limit(MAX_SITES)))


def _devices_at(db: Session, site_ids: list[int]) -> dict[int, int]:
    statement = select(Device.site_id, func.count()).where(Device.site_id.in_(site_ids)).group_by(Device.site_id)
    return {int(row[0] or 0): int(row[1]) for row in db.execute(statement)}


def _place(site: Site, counts: dict[int, int]) -> Place:
    return Place(site.uid, site.name, counts.get(site.id, 0), site.created_at)


def get(db: Session, uid: str) -> Site:
    """A site of the session's tenant; raises NotFound for any other."""
    site = db.scalar(select(Site).where(Site.uid == uid)) if ids.is_uid(uid) else None
    if site is None:
        raise NotFound("site")
    return site


def id_of(db: Session, uid: str | None) -> int | None:
    """The id behind a device's field `site`; raises Invalid when the tenant has no such site."""
    if uid is None:
        return None
    found = db.scalar(select(Site.id).where(Site.uid == uid)) if ids.is_uid(uid) else None
    if found is None:
        raise Invalid(
            "There is no such site.", [{"loc": ["body", "site"], "msg": "not the id of a site of your tenant"}]
        )
    return found


def create(db: ScopedSession, name: str) -> Place:
    """A new site; raises Conflict when the name is taken, Forbidden for limited members."""
    roles.check_unlimited(db.scope)
    if (db.scalar(select(func.count()).select_from(Site)) or 0) >= MAX_SITES:
        raise Conflict(f"A tenant has at most {MAX_SITES} sites. Delete one first.", "too-many-sites")
    site = Site(uid=ids.new_uid(), name=check_name(name))
    _save(db, site)
    audit.record(db, "site.create", ("site", site.uid), after={"name": site.name})
    return _place(site, {})


def _save(db: Session, site: Site) -> None:
    try:
        with db.begin_nested():
            db.add(site)
    except IntegrityError as error:
        if "uq_site_tenant_id_name" not in str(error.orig):
            raise
        raise Conflict("Another site of this tenant has this name.", "name-taken") from None


def change(db: ScopedSession, uid: str, name: str | None) -> Place:
    """Rename a site."""
    roles.check_unlimited(db.scope)
    site = get(db, uid)
    before = site.name
    if name is not None:
        site.name = check_name(name)
        _save(db, site)
    if site.name != before:
        audit.record(db, "site.change", ("site", uid), before={"name": before}, after={"name": site.name})
    return _place(site, _devices_at(db, [site.id]))


def remove(db: ScopedSession, uid: str) -> None:
    """Delete a site where no device stands; members who were limited to it see nothing of it any more."""
    roles.check_unlimited(db.scope)
    site = db.scalar(select(Site).where(Site.uid == uid).with_for_update()) if ids.is_uid(uid) else None
    if site is None:
        raise NotFound("site")
    used = _devices_at(db, [site.id]).get(site.id, 0)
    if used:
        raise Conflict(
            f"{used} {'device stands' if used == 1 else 'devices stand'} at this site. Move them elsewhere first.",
            "site-in-use",
        )
    db.delete(site)
    db.flush()
    audit.record(db, "site.delete", ("site", uid), before={"name": site.name})
    tenancy.after_commit(db, cache.forget_everywhere)
