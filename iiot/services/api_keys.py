"""API keys: how programs prove that they act for a member or for a service account.

A key is `iip_`, eight characters that stay visible, and 256 random bits; only its SHA-256 is stored, and the key is shown once. It can do what its
owner may do now, or those permissions alone that it was made with; it dies with the owner's membership or account.
"""

import base64
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from iiot import auth, cache, clock, ids, tenancy
from iiot.errors import Forbidden, Invalid, NotFound, Unauthorized
from iiot.models import ApiKey, Membership, Role, ServiceAccount, Tenant, User
from iiot.services import audit, roles, standing
from iiot.services.listing import Found, Wanted, find
from iiot.services.names import check_name

MARK = "iip_"
VISIBLE = 8
LONGEST = 256
# How exactly the last use is known.
TOUCH_EVERY = timedelta(minutes=1)
WRONG = "The API key is not valid: it is unknown, has expired or was revoked."
MANAGE = "api-key:write"

_SHAPE = re.compile(rf"{MARK}[a-z2-7]{{{VISIBLE}}}[A-Za-z0-9_-]{{43}}")
SORTS: dict[str, Any] = {"name": func.lower(ApiKey.name), "created_at": ApiKey.created_at}


@dataclass(frozen=True)
class Wish:
    """What a person says of a new key. `scopes` None: whatever the owner may do. `service_account`: its id; None: the key is the caller's own."""

    name: str
    scopes: tuple[str, ...] | None = None
    expires_at: datetime | None = None
    service_account: str | None = None


@dataclass(frozen=True)
class Listed:
    """A key as lists show it: nothing that opens anything. `owner_kind`: "user" or "service"; `owner`: mail address or name."""

    uid: str
    name: str
    prefix: str
    owner_kind: str
    owner_uid: str
    owner: str
    scopes: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_address: str

    @property
    def is_expired(self) -> bool:
        """Whether it has stopped working by itself."""
        return self.expires_at is not None and self.expires_at <= clock.now()


def looks_like_one(token: str) -> bool:
    """Whether a bearer token claims to be an API key; it need not be a well-formed one."""
    return token.startswith(MARK)


def visible_part(key: str) -> str:
    """What may be shown and counted of a key, well-formed or not."""
    return key[: len(MARK) + VISIBLE]


def new_key() -> str:
    """`iip_` + 8 characters of `a-z2-7` + 43 of URL-safe base64, 256 bits."""
    visible = base64.b32encode(secrets.token_bytes(5)).decode("ascii").lower()
    return MARK + visible + ids.new_token()


# --- making, listing, revoking -----------------------------------------------------------------------------------------------------------------


def create(db: Session, principal: auth.Principal, wish: Wish) -> tuple[Listed, str]:
    """A key and its text, which is known only here. Raises Invalid, NotFound (service account) or Forbidden (more than the caller holds)."""
    _check_may_change(principal)
    name, expires_at = check_name(wish.name), wish.expires_at
    if expires_at is not None and expires_at <= clock.now():
        raise _invalid("expires_at", "must be in the future, or left out")
    account = _account(db, principal, wish.service_account)
    scopes = _scopes(db, principal, account, wish.scopes)
    key = new_key()
    row = ApiKey(
        uid=ids.new_uid(),
        name=name,
        prefix=visible_part(key),
        key_hash=auth.refresh_token_hash(key),
        user_id=None if account else principal.user_id,
        service_account_id=account.id if account else None,
        scopes=scopes,
        expires_at=expires_at,
    )
    db.add(row)
    db.flush()
    listed = _listed(db, [row])[0]
    audit.record(db, "api-key.create", ("api-key", row.uid), after=_noted(listed))
    return listed, key


def _check_may_change(principal: auth.Principal) -> None:
    """People make and end keys of their own; programs only with a key that may do so. Nobody while the tenant may only be read."""
    if principal.tenant_status != "active":
        raise Forbidden(auth.READ_ONLY[principal.tenant_status], f"tenant-{principal.tenant_status}")
    if principal.api_key_uid is not None:
        principal.require(MANAGE)


def _account(db: Session, principal: auth.Principal, uid: str | None) -> ServiceAccount | None:
    if uid is None:
        if principal.user_id is None:
            raise _invalid("service_account", "say which service account the key is for: this caller is no person")
        return None
    principal.require(MANAGE)
    roles.check_unlimited(principal)
    account = db.scalar(select(ServiceAccount).where(ServiceAccount.uid == uid)) if ids.is_uid(uid) else None
    if account is None:
        raise NotFound("service account")
    return account


def _scopes(
    db: Session, principal: auth.Principal, account: ServiceAccount | None, wanted: Collection[str] | None
) -> list[str] | None:
    """The scopes to store: never more than the caller holds."""
    if wanted is not None:
        unknown = sorted(set(wanted) - auth.ALL_PERMISSIONS)
        if unknown or not wanted:
            message = f"unknown: {', '.join(unknown[:5])}" if unknown else "choose at least one, or leave it out"
            raise _invalid("scopes", f"{message}; known are {', '.join(sorted(auth.ALL_PERMISSIONS))}")
    held = principal.permissions if account is None else roles.permissions_of(db, account.role, account.role_id)
    roles.check_grant(principal, held if wanted is None else wanted)
    if wanted is not None:
        beyond = sorted(set(wanted) - held)
        if beyond:
            raise _invalid("scopes", f"the owner of the key does not hold {', '.join(beyond)}")
        return sorted(set(wanted))
    # What a key makes for its own member stays as narrow as that key, even when the member may do more.
    return sorted(held) if account is None and principal.api_key_uid is not None else None


def _invalid(field: str, message: str) -> Invalid:
    return Invalid("The API key is not valid.", [{"loc": ["body", field], "msg": message}])


def search(db: Session, principal: auth.Principal, wanted: Wanted, *, mine: bool = False) -> Found[Listed]:
    """A page of the keys that were not revoked: the caller's own, or with `api-key:write` all of the tenant."""
    if principal.api_key_uid is not None and MANAGE not in principal.held:
        principal.require(MANAGE)
    statement = select(ApiKey).where(ApiKey.revoked_at.is_(None))
    if mine or MANAGE not in principal.held:
        statement = statement.where(_own(principal))
    found: Found[ApiKey] = find(db, statement, SORTS, ApiKey.id, wanted)  # type: ignore[arg-type]
    return Found(_listed(db, found.items), found.next_position, found.total)


def _own(principal: auth.Principal) -> ColumnElement[bool]:
    """The keys of the caller. A program has no user id, and `user_id = NULL` would mean every program's keys."""
    if principal.user_id is not None:
        return ApiKey.user_id == principal.user_id
    account = select(ServiceAccount.id).where(ServiceAccount.uid == principal.service_uid)
    return ApiKey.service_account_id.in_(account)


def of_account(db: Session, account: ServiceAccount) -> list[Listed]:
    """The keys of a service account that were not revoked."""
    statement = select(ApiKey).where(ApiKey.service_account_id == account.id, ApiKey.revoked_at.is_(None))
    return _listed(db, list(db.scalars(statement.order_by(ApiKey.id))))


def _listed(db: Session, rows: list[ApiKey]) -> list[Listed]:
    users = {row.user_id for row in rows} - {None}
    accounts = {row.service_account_id for row in rows} - {None}
    people = {row.id: row for row in db.execute(select(User.id, User.uid, User.email).where(User.id.in_(users)))}
    programs: dict[int, ServiceAccount] = {}
    if accounts:
        # Members who see some devices alone may not read this table, and have no such key to list.
        programs = {row.id: row for row in db.scalars(select(ServiceAccount).where(ServiceAccount.id.in_(accounts)))}
    found = []
    for row in rows:
        if row.user_id is not None:
            kind, uid, owner = "user", people[row.user_id].uid, people[row.user_id].email
        else:
            program = programs[row.service_account_id or 0]
            kind, uid, owner = "service", program.uid, program.name
        found.append(
            Listed(
                row.uid, row.name, row.prefix, kind, uid, owner,
                row.scopes, row.created_at, row.expires_at, row.last_used_at, row.last_used_address,
            )
        )  # fmt: skip
    return found


def revoke(db: Session, principal: auth.Principal, uid: str) -> None:
    """End a key of one's own, or with `api-key:write` any of the tenant; it stops working at once. Raises NotFound for any other."""
    _check_may_change(principal)
    statement = select(ApiKey).where(ApiKey.uid == uid, ApiKey.revoked_at.is_(None))
    if MANAGE not in principal.permissions:
        statement = statement.where(_own(principal))
    row = db.scalar(statement) if ids.is_uid(uid) else None
    if row is None:
        raise NotFound("API key")
    noted = _noted(_listed(db, [row])[0])
    row.revoked_at = clock.now()
    db.flush()
    audit.record(db, "api-key.revoke", ("api-key", uid), before=noted)
    tenancy.after_commit(db, cache.forget_everywhere)


def _noted(key: Listed) -> dict[str, Any]:
    """What the audit trail keeps of a key."""
    names = ("name", "prefix", "owner_kind", "owner", "scopes", "expires_at")
    return {name: getattr(key, name) for name in names}


# --- proving -----------------------------------------------------------------------------------------------------------------------------------


def authenticate(key: str, address: str) -> auth.Proof | None:
    """Whom a key stands for and until when, None for one that is unknown, has expired, was revoked or whose owner has gone.

    The use is noted, at most once a minute.
    """
    if _SHAPE.fullmatch(key) is None:
        return None
    with tenancy.work(tenancy.system("sign-in")) as db:
        found = _load(db, ApiKey.key_hash == auth.refresh_token_hash(key))
        if found is None:
            return None
        row, principal = found
        _touch(db, row, address)
        return auth.Proof(principal, row.expires_at)


def principal_of(uid: str) -> auth.Principal:
    """Whom the key with this id stands for now; raises Unauthorized when it no longer does."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        found = _load(db, ApiKey.uid == uid)
    if found is None:
        raise Unauthorized(WRONG, 'Bearer error="invalid_token"')
    return found[1]


def _load(db: Session, condition: Any) -> tuple[ApiKey, auth.Principal] | None:
    """A key that works now, with its principal. `db`: scope "sign-in"."""
    role_id = func.coalesce(Membership.role_id, ServiceAccount.role_id)
    found = db.execute(
        select(ApiKey, Tenant, User, Membership, ServiceAccount, Role)
        .join(Tenant, Tenant.id == ApiKey.tenant_id)
        .outerjoin(Membership, (Membership.tenant_id == ApiKey.tenant_id) & (Membership.user_id == ApiKey.user_id))
        .outerjoin(User, User.id == Membership.user_id)
        .outerjoin(
            ServiceAccount,
            (ServiceAccount.tenant_id == ApiKey.tenant_id) & (ServiceAccount.id == ApiKey.service_account_id),
        )
        .outerjoin(Role, (Role.tenant_id == ApiKey.tenant_id) & (Role.id == role_id))
        .where(
            condition,
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > clock.now()),
        )
    ).one_or_none()
    if found is None:
        return None
    key, tenant, user, membership, account, role = found
    custom = (role.name, role.permissions) if role else (None, None)
    if membership is not None and user is not None and user.status == "active":
        person = standing.person(user, tenant, membership.role, custom, membership.is_limited)
        # A key belongs to one tenant: its owner's power over the platform does not come with it.
        principal = replace(person, is_platform_admin=False, label=f"{user.email} ({key.prefix})")
    elif account is not None and account.enabled:
        principal = _program(tenant, account, custom)
    else:
        return None
    granted = principal.granted if key.scopes is None else principal.held & frozenset(key.scopes)
    return key, replace(principal, granted=granted, api_key_uid=key.uid)


def _program(tenant: Tenant, account: ServiceAccount, custom: tuple[str | None, list[str] | None]) -> auth.Principal:
    name, permissions = custom
    is_custom = account.role == roles.CUSTOM
    return auth.Principal(
        kind="service",
        tenant_id=tenant.id,
        tenant_uid=tenant.uid,
        role=name if is_custom else account.role,
        granted=frozenset(permissions or ()) & auth.ALL_PERMISSIONS if is_custom else None,
        tenant_status=tenant.status,
        service_uid=account.uid,
        label=f"service:{account.name}",
    )


def _touch(db: Session, row: ApiKey, address: str) -> None:
    now = clock.now()
    if row.last_used_at is not None and row.last_used_at > now - TOUCH_EVERY:
        return
    db.execute(
        update(ApiKey)
        .where(
            ApiKey.tenant_id == row.tenant_id,
            ApiKey.id == row.id,
            or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= now - TOUCH_EVERY),
        )
        .values(last_used_at=now, last_used_address=address[:64])
        .execution_options(synchronize_session=False)
    )
