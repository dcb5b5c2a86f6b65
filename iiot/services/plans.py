"""Plans: templates of limits that platform administrators make. Giving a tenant a plan copies its limits into the tenant's quota."""

from dataclasses import replace
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from iiot import auth, ids
from iiot.errors import Conflict, Invalid, NotFound
from iiot.models import Plan
from iiot.services import audit, quotas
from iiot.services.listing import Found, Wanted, find

MAX_NAME = 100


def platform_actor() -> auth.Principal | None:
    """Whoever is acting, as somebody of the platform: acts on plans and on the list of tenants belong to the platform's own trail."""
    acting = auth.acting()
    return None if acting is None else replace(acting, tenant_id=None, tenant_uid=None)


def limits_of(plan: Plan) -> dict[str, int]:
    """The limits of a plan by name."""
    return {name: getattr(plan, name) for name in quotas.NAMES}


def search(db: Session, wanted: Wanted) -> Found[Plan]:
    """A page of the plans. `db`: scope "platform"."""
    columns: dict[str, Any] = {"name": func.lower(Plan.name), "created_at": Plan.created_at}
    return find(db, select(Plan), columns, Plan.id, wanted)  # type: ignore[arg-type]


def every(db: Session) -> list[Plan]:
    """All plans by name, for a choice. `db`: scope "platform"."""
    return list(db.scalars(select(Plan).order_by(func.lower(Plan.name))))


def get(db: Session, uid: str) -> Plan:
    """A plan; raises NotFound. `db`: scope "platform" or "operator"."""
    plan = db.scalar(select(Plan).where(Plan.uid == uid)) if ids.is_uid(uid) else None
    if plan is None:
        raise NotFound("plan")
    return plan


def named(db: Session, uid: str, loc: str = "plan") -> Plan:
    """The plan that a request asks for in its field `loc`; raises Invalid for an unknown one."""
    try:
        return get(db, uid)
    except NotFound:
        raise Invalid("There is no such plan.", [{"loc": ["body", loc], "msg": "no plan has this id"}]) from None


def create(db: Session, name: str, limits: dict[str, int]) -> Plan:
    """A new plan; limits that are not given have the default of a new tenant. Raises Conflict when the name is taken."""
    plan = Plan(uid=ids.new_uid(), name=_name(name), **limits)
    _flush(db, plan)
    db.refresh(plan)
    audit.record(db, "plan.create", ("plan", plan.uid), after=_described(plan), actor=platform_actor())
    return plan


def change(db: Session, uid: str, name: str | None, limits: dict[str, int]) -> Plan:
    """Change a plan. Tenants that have it keep their quotas: a plan is a template, and a change must not take anything away unseen."""
    plan = get(db, uid)
    before = _described(plan)
    if name is not None:
        plan.name = _name(name)
    for each, value in limits.items():
        setattr(plan, each, value)
    _flush(db, plan)
    old, new = audit.changes(before, _described(plan))
    audit.record(db, "plan.change", ("plan", uid), before=old, after=new, actor=platform_actor())
    return plan


def remove(db: Session, uid: str) -> None:
    """Delete a plan; tenants that have it keep their quotas and have no plan."""
    plan = get(db, uid)
    audit.record(db, "plan.delete", ("plan", uid), before=_described(plan), actor=platform_actor())
    db.delete(plan)
    db.flush()


def _described(plan: Plan) -> dict[str, Any]:
    return {"name": plan.name, **limits_of(plan)}


def _name(text: str) -> str:
    name = " ".join(text.split())
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise Invalid(
            "The plan is not valid.", [{"loc": ["body", "name"], "msg": f"1 to {MAX_NAME} printable characters"}]
        )
    return name


def _flush(db: Session, plan: Plan) -> None:
    name = plan.name
    try:
        with db.begin_nested():
            db.add(plan)
            db.flush()
    except IntegrityError as error:
        if "uq_plan_name" not in str(error.orig):
            raise
        raise Conflict(f"There is a plan called '{name}' already. Take another name.", "name-taken") from None
