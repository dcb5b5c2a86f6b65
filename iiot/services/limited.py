"""What a limited member may see: some devices, the devices of some sites, and those with some tags. PostgreSQL enforces it (migration 0002)."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from iiot import ids
from iiot.errors import Invalid
from iiot.models import Device, MembershipLimit, Site
from iiot.services.names import check_name

MOST = 200


@dataclass(frozen=True)
class LimitedTo:
    """Ids of devices and sites, and tags; a device is seen when one of them fits."""

    devices: list[str] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, list[str]]:
        """As it stands in answers, in invitations and in the audit trail."""
        return asdict(self)


def _refuse(name: str, message: str) -> Invalid:
    return Invalid("The limits are not valid.", [{"loc": ["body", "limited_to", name], "msg": message}])


def check(db: Session, wanted: LimitedTo) -> LimitedTo:
    """The limits without repetition; raises Invalid for none at all, too many, and for devices and sites that the tenant does not have."""
    for tag in wanted.tags:
        check_name(tag, "tags")
    once = LimitedTo(*(list(dict.fromkeys(each)) for each in (wanted.devices, wanted.sites, wanted.tags)))
    count = len(once.devices) + len(once.sites) + len(once.tags)
    if not count:
        raise _refuse("tags", "name a device, a site or a tag; null lets the member see everything")
    if count > MOST:
        raise _refuse("devices", f"at most {MOST} devices, sites and tags together; give the devices a tag")
    for name, model, uids in (("devices", Device, once.devices), ("sites", Site, once.sites)):
        known = _ids(db, model, uids)
        missing = [uid for uid in uids if uid not in known]
        if missing:
            raise _refuse(name, f"your tenant has none with the id {missing[0][:64]}")
    return once


def _ids(db: Session, model: Any, uids: Collection[str]) -> dict[str, int]:
    """uid → id of those that exist."""
    asked = [uid for uid in uids if ids.is_uid(uid)]
    return {row.uid: row.id for row in db.execute(select(model.uid, model.id).where(model.uid.in_(asked)))}


def named(db: Session, texts: Collection[str]) -> list[str]:
    """Ids of devices that a person wrote as ids or names; raises Invalid for a name that none or several have."""
    found = []
    for text in (check_name(each, "devices", 200) for each in texts):
        wanted = (Device.uid == text.lower()) | (func.lower(Device.name) == text.lower())
        uids = db.scalars(select(Device.uid).where(wanted).limit(2)).all()
        if len(uids) != 1:
            what = "several devices have the name" if uids else "there is no device"
            raise Invalid(
                "The limits are not valid.", [{"loc": ["body", "devices"], "msg": f"{what} {text[:64]!r}; use its ID"}]
            )
        found.append(uids[0])
    return found


def names(db: Session, uids: Collection[str]) -> list[str]:
    """Devices as a person reads them and `named` understands them: by name where only one has it and it has no comma."""
    found = []
    for uid, name in db.execute(select(Device.uid, Device.name).where(Device.uid.in_(uids)).order_by(Device.id)):
        same = db.scalar(select(func.count()).select_from(Device).where(func.lower(Device.name) == name.lower()))
        found.append(name if same == 1 and "," not in name else uid)
    return found


def replace(db: Session, tenant_id: int, user_id: int, wanted: LimitedTo | None) -> None:
    """Put the limits of a member in place of those before; devices and sites that are gone meanwhile are left out.

    `membership.is_limited` is the caller's to set. `db`: a scope with the tenant.
    """
    db.execute(delete(MembershipLimit).where(MembershipLimit.user_id == user_id))
    if wanted is not None:
        add(db, tenant_id, user_id, wanted)


def add(db: Session, tenant_id: int, user_id: int, wanted: LimitedTo) -> None:
    """The limits of a member who has none yet. `db`: a scope with the tenant."""
    devices, sites = _ids(db, Device, wanted.devices), _ids(db, Site, wanted.sites)
    rows = [MembershipLimit(tenant_id=tenant_id, user_id=user_id, device_id=each) for each in devices.values()]
    rows += [MembershipLimit(tenant_id=tenant_id, user_id=user_id, site_id=each) for each in sites.values()]
    rows += [MembershipLimit(tenant_id=tenant_id, user_id=user_id, tag=each) for each in wanted.tags]
    db.add_all(rows)
    db.flush()


def read(db: Session, user_ids: Collection[int]) -> dict[int, LimitedTo]:
    """User id → limits; a limited reader is told of the devices and sites alone that they see themselves."""
    found: dict[int, LimitedTo] = {user_id: LimitedTo() for user_id in user_ids}
    statement = (
        select(MembershipLimit.user_id, MembershipLimit.tag, Device.uid, Site.uid)
        .outerjoin(Device, (Device.tenant_id == MembershipLimit.tenant_id) & (Device.id == MembershipLimit.device_id))
        .outerjoin(Site, (Site.tenant_id == MembershipLimit.tenant_id) & (Site.id == MembershipLimit.site_id))
        .where(MembershipLimit.user_id.in_(user_ids))
        .order_by(MembershipLimit.id)
    )
    for user_id, tag, device, site in db.execute(statement):
        limits = found[user_id]
        for value, names in ((tag, limits.tags), (device, limits.devices), (site, limits.sites)):
            if value is not None:
                names.append(value)
    return found
