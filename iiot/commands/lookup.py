"""How the operator names a tenant or a user."""

from dataclasses import dataclass

from sqlalchemy import func, or_, select

from iiot import tenancy
from iiot.errors import NotFound
from iiot.models import Tenant


@dataclass(frozen=True)
class Operator:
    """The operator of the machine, at work for one tenant."""

    tenant_id: int
    tenant_uid: str


def operator_for(name: str) -> Operator:
    """By id, slug or exact name; raises NotFound."""
    with tenancy.work(tenancy.system("operator")) as db:
        found = db.scalars(
            select(Tenant).where(or_(Tenant.uid == name, Tenant.slug == name, func.lower(Tenant.name) == name.lower()))
        ).all()
    if len(found) != 1:
        raise NotFound("tenant")
    return Operator(found[0].id, found[0].uid)
