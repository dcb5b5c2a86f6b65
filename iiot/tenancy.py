"""The one door to a database session.

`with work(scope) as db` opens a transaction that sees one tenant, or acts for a named purpose of the portal itself. Two walls stand behind it:
this module filters ORM statements and stamps inserts, and PostgreSQL's row-level security decides again by `app.tenant_id`, which is set for the
transaction alone. Without a tenant there are no rows.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, Integer, event, text
from sqlalchemy.orm import (
    Mapped,
    ORMExecuteState,
    Session,
    SessionTransaction,
    mapped_column,
    sessionmaker,
    with_loader_criteria,
)
from sqlalchemy.orm.util import LoaderCriteriaOption
from sqlalchemy.sql.elements import TextClause

from iiot import db as engines

# Why the portal may act without a tenant: reason → (PostgreSQL role, explanation). docs/reference/scopes.md is compared with this by a test.
REASONS: dict[str, tuple[str, str]] = {
    "ingest": ("ingest", "Batches hold messages of many tenants; the resolver maps each uid to its tenant."),
    "stream": ("stream", "Tailers read the batch log of all tenants and write their effects."),
    "sign-in": ("auth", "Before a person has signed in no tenant is known."),
    "device-sign-in": ("auth", "Before a device has proved itself no tenant is known."),
    "discovery": (
        "app",
        "What a gateway brings is made, or waits, in the tenant of the gateway that the broker has let in.",
    ),
    "provision": ("stream", "The broker's clients are compared with the devices of all tenants."),
    "health": ("app", "Readiness asks the database for nothing but an answer."),
    "platform": ("auth", "Platform administrators manage tenants, plans and quotas, never what tenants own."),
    "migrate": ("owner", "Migrations change the schema."),
    "operator": (
        "auth",
        "The operator's command line finds tenants and users by name; what tenants own it reads in their scope.",
    ),
}


class TenancyError(RuntimeError):
    """A programming error: something tried to pass the door without a valid scope."""


class NoTenant(TenancyError):
    """A principal without a tenant asked for tenant data."""


class CrossTenant(TenancyError):
    """A statement or object of another tenant, or raw SQL that was not reviewed, in a tenant's session."""


class _DeadConnection(Exception):
    """A connection of the pool had been closed by the server."""


class HasTenant(Protocol):
    """What `of` needs to know of a principal or a device. A principal may also have `limited_user_id`: see Scope."""

    @property
    def tenant_id(self) -> int | None: ...


@dataclass(frozen=True)
class Scope:
    """On whose behalf a session acts. Minted by `of`, `of_device` and `system` only.

    `limited_user`: a member who sees some devices alone; PostgreSQL decides which by `membership_limit`.
    """

    role: str
    tenant_id: int | None
    reason: str
    limited_user: int | None = None


def of(principal: HasTenant) -> Scope:
    """The scope of a signed-in principal: its own tenant, and of that only what a limited member may see."""
    if principal.tenant_id is None:
        raise NoTenant("This account belongs to no tenant.")
    limited_user = getattr(principal, "limited_user_id", None)
    return Scope("app" if limited_user is None else "limited", principal.tenant_id, "principal", limited_user)


def of_device(device: HasTenant) -> Scope:
    """The scope of an authenticated device: its tenant."""
    if device.tenant_id is None:
        raise NoTenant("This device belongs to no tenant.")
    return Scope("app", device.tenant_id, "device")


def system(reason: str, tenant_id: int | None = None) -> Scope:
    """The scope of the portal itself for one of `REASONS`; raises TenancyError for any other."""
    if reason not in REASONS:
        raise TenancyError(f"{reason!r} is not a reason listed in tenancy.REASONS")
    return Scope(REASONS[reason][0], tenant_id, reason)


class TenantOwned:
    """Mixin of every mapped class whose rows belong to a tenant: `tenant_id` leads every key."""

    tenant_id: Mapped[int] = mapped_column(Integer, primary_key=True, sort_order=-10)


def sql(statement: str) -> TextClause:
    """Raw SQL that a reviewer has read: it may run in a tenant's session, where row-level security still decides."""
    return text(statement).execution_options(reviewed=True)


class ScopedSession(Session):
    """A session that knows its scope."""

    @property
    def scope(self) -> Scope:
        scope: Scope = self.info["scope"]
        return scope


@event.listens_for(ScopedSession, "after_begin")
def _set_tenant(session: ScopedSession, transaction: SessionTransaction, connection: Connection) -> None:
    """Begin every transaction with its tenant, in one round trip; without a tenant too: it shows whether the pooled connection is still alive."""
    if transaction.nested:
        # A savepoint lies in a transaction that has begun.
        return
    scope = session.scope
    statement = f"SELECT set_config('app.tenant_id', '{_number(scope.tenant_id)}', true)"
    if scope.limited_user is not None:
        statement += f", set_config('app.limited_user', '{_number(scope.limited_user)}', true)"
    dialect = connection.dialect
    raw = connection.connection
    try:
        driver: Any = raw.dbapi_connection
        driver.begin(statement)
    except Exception as error:
        dbapi = dialect.loaded_dbapi
        if isinstance(error, dbapi.Error) and dialect.is_disconnect(error, raw.dbapi_connection, None):
            connection.invalidate(error)
            raise _DeadConnection from error
        raise
    except BaseException:
        # A greenlet killed in the middle: the driver has closed the connection, and a rollback on it would hide the kill behind an error.
        connection.invalidate()
        raise


def _number(value: int | None) -> str:
    return "" if value is None else str(int(value))


@functools.lru_cache(maxsize=1024)
def _criteria(tenant_id: int) -> LoaderCriteriaOption:
    return with_loader_criteria(TenantOwned, lambda cls: cls.tenant_id == tenant_id, include_aliases=True)


@event.listens_for(ScopedSession, "do_orm_execute")
def _check_statement(state: ORMExecuteState) -> None:
    tenant_id = state.session.info["scope"].tenant_id
    if tenant_id is None:
        return
    if not state.is_orm_statement:
        if not state.execution_options.get("reviewed"):
            raise CrossTenant("Raw SQL in a tenant's session needs tenancy.sql() or execution_options(reviewed=True).")
        return
    if state.is_insert:
        given: Any = state.parameters
        rows = given if isinstance(given, list) else [given or {}]
        if not rows or any(row.get("tenant_id") != tenant_id for row in rows):
            raise CrossTenant("A bulk insert must carry the session's own tenant_id in every row.")
        return
    if state.is_select and (state.is_column_load or state.is_relationship_load):
        return
    state.statement = state.statement.options(_criteria(tenant_id))


@event.listens_for(ScopedSession, "before_flush")
def _check_objects(session: ScopedSession, _context: Any, _instances: Any) -> None:
    tenant_id = session.scope.tenant_id
    if tenant_id is None:
        return
    for item in session.new:
        if isinstance(item, TenantOwned) and item.tenant_id is None:
            item.tenant_id = tenant_id
    for item in (*session.new, *session.dirty, *session.deleted):
        if isinstance(item, TenantOwned) and item.tenant_id != tenant_id:
            raise CrossTenant(f"{type(item).__name__} belongs to another tenant than the session.")


_sessions = sessionmaker(class_=ScopedSession, expire_on_commit=False)


def _open(scope: Scope) -> ScopedSession:
    """A session whose transaction has begun. Connections that died in the pool are replaced once, before anything was done."""
    for attempt in (1, 2):
        engine = engines.engine(scope.role)
        session = _sessions(bind=engine, info={"scope": scope, "before_commit": [], "after_commit": []})
        try:
            session.connection()
        except _DeadConnection as dead:
            session.close()
            if attempt == 2:
                raise dead.__cause__ or dead from None
            engine.dispose()
        except BaseException:
            session.close()
            raise
        else:
            return session
    raise AssertionError("unreachable")


@contextmanager
def work(scope: Scope) -> Iterator[ScopedSession]:
    """A session in one transaction: committed at the end, rolled back when the block raises.

    Raises whatever the database raises; functions given to `before_commit` run last in the transaction, those given to `after_commit` after a
    successful commit only.
    """
    session = _open(scope)
    try:
        yield session
        for function in session.info["before_commit"]:
            function()
        session.commit()
    except BaseException:
        session.rollback()
        raise
    finally:
        session.close()
    for function in session.info["after_commit"]:
        function()


def before_commit(db: Session, function: Callable[[], object]) -> None:
    """Run `function` as the last act of `db`'s transaction: for what takes locks that many wait for."""
    db.info["before_commit"].append(function)


def after_commit(db: Session, function: Callable[[], object]) -> None:
    """Run `function` once `db`'s transaction has been committed; never when it is rolled back."""
    db.info["after_commit"].append(function)
