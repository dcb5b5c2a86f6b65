"""Service accounts: programs with a role of their own in a tenant. They prove themselves by API keys and belong to no person."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from iiot import auth, cache, clock, ids, tenancy
from iiot.errors import Conflict, NotFound
from iiot.models import ApiKey, Role, ServiceAccount
from iiot.services import audit, roles
from iiot.services.listing import Found, Wanted, find
from iiot.services.names import check_name

SORTS: dict[str, Any] = {"name": func.lower(ServiceAccount.name), "created_at": ServiceAccount.created_at}


@dataclass(frozen=True)
class Listed:
    """A service account as lists show it. `role`: a built-in name or the id of a role of the tenant; `keys`: how many it has that work."""

    uid: str
    name: str
    role: str
    role_name: str
    enabled: bool
    created_at: datetime
    keys: int


@dataclass(frozen=True)
class Change:
    """What shall change; None stays."""

    name: str | None = None
    role: str | None = None
    enabled: bool | None = None


def search(db: Session, wanted: Wanted) -> Found[Listed]:
    """A page of the tenant's service accounts."""
    found: Found[ServiceAccount] = find(db, select(ServiceAccount), SORTS, ServiceAccount.id, wanted)  # type: ignore[arg-type]
    return Found(_listed(db, found.items), found.next_position, found.total)


def get(db: Session, uid: str) -> ServiceAccount:
    """A service account of the session's tenant, locked; raises NotFound for any other."""
    statement = select(ServiceAccount).where(ServiceAccount.uid == uid).with_for_update()
    account = db.scalar(statement) if ids.is_uid(uid) else None
    if account is None:
        raise NotFound("service account")
    return account


def create(db: Session, principal: auth.Principal, name: str, role: str) -> Listed:
    """A service account without a key yet. Raises Invalid, Conflict (name taken) or Forbidden (a role that holds more than the caller)."""
    roles.check_unlimited(principal)
    account = ServiceAccount(uid=ids.new_uid(), name=check_name(name), enabled=True)
    _set_role(db, principal, account, role)
    _save(db, account)
    listed = _listed(db, [account])[0]
    audit.record(db, "service-account.create", ("service-account", account.uid), after=_noted(listed))
    return listed


def change(db: Session, principal: auth.Principal, uid: str, wanted: Change) -> Listed:
    """Rename it, give it another role, shut it out or let it in; its keys follow at once."""
    roles.check_unlimited(principal)
    account = get(db, uid)
    before = _noted(_listed(db, [account])[0])
    # Who may not give a role may not take it away or put it to use again either.
    roles.check_grant(principal, roles.permissions_of(db, account.role, account.role_id))
    if wanted.name is not None:
        account.name = check_name(wanted.name)
    if wanted.role is not None:
        _set_role(db, principal, account, wanted.role)
    if wanted.enabled is not None:
        account.enabled = wanted.enabled
    _save(db, account)
    listed = _listed(db, [account])[0]
    was, now = audit.changes(before, _noted(listed))
    if now:
        audit.record(db, "service-account.change", ("service-account", uid), before=was, after=now)
        tenancy.after_commit(db, cache.forget_everywhere)
    return listed


def remove(db: Session, principal: auth.Principal, uid: str) -> None:
    """Delete a service account with its keys, which stop working at once."""
    roles.check_unlimited(principal)
    account = get(db, uid)
    roles.check_grant(principal, roles.permissions_of(db, account.role, account.role_id))
    before = _noted(_listed(db, [account])[0])
    db.delete(account)
    db.flush()
    audit.record(db, "service-account.delete", ("service-account", uid), before=before)
    tenancy.after_commit(db, cache.forget_everywhere)


def _set_role(db: Session, principal: auth.Principal, account: ServiceAccount, wanted: str) -> None:
    role, role_id = roles.resolve(db, wanted)
    roles.check_grant(principal, roles.permissions_of(db, role, role_id))
    account.role, account.role_id = role, role_id


def _save(db: Session, account: ServiceAccount) -> None:
    try:
        with db.begin_nested():
            db.add(account)
    except IntegrityError as error:
        if "uq_service_account_tenant_id_name" not in str(error.orig):
            raise
        raise Conflict("Another service account of this tenant has this name.", "name-taken") from None


def _noted(account: Listed) -> dict[str, Any]:
    """What the audit trail keeps of a service account."""
    return {"name": account.name, "role": account.role, "role_name": account.role_name, "enabled": account.enabled}


def _listed(db: Session, accounts: list[ServiceAccount]) -> list[Listed]:
    custom = {account.role_id for account in accounts} - {None}
    known = {role.id: role for role in db.scalars(select(Role).where(Role.id.in_(custom)))}
    counted = db.execute(
        select(ApiKey.service_account_id, func.count())
        .where(
            ApiKey.service_account_id.in_([account.id for account in accounts]),
            ApiKey.revoked_at.is_(None),
            func.coalesce(ApiKey.expires_at, "infinity") > clock.now(),
        )
        .group_by(ApiKey.service_account_id)
    )
    keys: dict[int | None, int] = {row[0]: row[1] for row in counted}
    found = []
    for account in accounts:
        role = known.get(account.role_id or 0)
        shown = (role.uid, role.name) if role else (account.role, account.role)
        found.append(
            Listed(account.uid, account.name, *shown, account.enabled, account.created_at, keys.get(account.id, 0))
        )
    return found
