"""Sessions: one row per sign-in, whose refresh token rotates at each use (RFC 9700 section 4.14.2).

A refresh token is `<session uid><secret>`: 26 and 43 characters. The database holds SHA-256 hashes of the current one and the one before. The
successor of a secret is derived from it with the server's key, so a client that lost the answer gets the same one again within 20 seconds, and an
older token proves that somebody copied it: then the whole family ends.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from iiot import auth, cache, clock, config, ids, metrics, tenancy
from iiot.errors import Invalid, NotFound, Unauthorized
from iiot.models import Membership, RefreshSession, Tenant, User
from iiot.services import audit, mail, standing

log = structlog.get_logger(__name__)

IDLE = timedelta(days=7)
GRACE = timedelta(seconds=20)
TOUCH_EVERY = timedelta(minutes=10)
ENDED = "The session has ended. Sign in again."
REUSED = """A program used an old token of a session of yours. That happens when a token was copied, so the session was ended.

If you did not expect this, change your password and look through your sessions: {link}
"""


@dataclass(frozen=True)
class Client:
    """Where a request comes from."""

    address: str = ""
    user_agent: str = ""

    @property
    def fingerprint(self) -> str:
        return auth.fingerprint(self.user_agent, self.address)


@dataclass(frozen=True)
class Opened:
    """A session just opened or refreshed: what tokens are made of. `refresh_token` is known only here."""

    principal: auth.Principal
    epoch: int
    refresh_token: str
    expires_at: datetime


def open_session(db: Session, user_id: int, client: Client | None = None, tenant: str | None = None) -> Opened:
    """Open a session for a user whose identity was proved elsewhere (sign-in, registration, invitation). `db`: scope "sign-in"."""
    client = client or Client()
    user = db.get_one(User, user_id, with_for_update=True)
    chosen = _choose_tenant(db, user, tenant)
    now = clock.now()
    uid, secret = ids.new_uid(), ids.new_token()
    row = RefreshSession(
        uid=uid,
        user_id=user.id,
        tenant_id=chosen,
        current_hash=auth.refresh_token_hash(uid + secret),
        fingerprint=client.fingerprint,
        user_agent=client.user_agent[:256],
        address=client.address[:64],
        created_at=now,
        last_used_at=now,
        expires_at=now + timedelta(days=config.load().refresh_token_days),
    )
    db.add(row)
    user.last_login_at = now
    db.flush()
    found = _load(db, uid)
    if found is None:
        raise Unauthorized(ENDED)
    principal = found.principal
    audit.record(db, "session.sign-in", ("session", uid), actor=principal)
    return Opened(principal, user.epoch, uid + secret, row.expires_at)


def _tenants_of(db: Session, user_id: int) -> list[Tenant]:
    statement = select(Tenant).join(Membership, Membership.tenant_id == Tenant.id).where(Membership.user_id == user_id)
    return list(db.scalars(statement.order_by(Membership.created_at, Tenant.id)))


def _named(tenants: list[Tenant], wanted: str) -> Tenant:
    for tenant in tenants:
        if wanted in (tenant.uid, tenant.slug):
            return tenant
    raise Invalid(
        "You cannot sign in to that tenant.",
        [{"loc": ["body", "tenant"], "msg": "no tenant of yours has this id or slug"}],
    )


def _choose_tenant(db: Session, user: User, wanted: str | None) -> int | None:
    """The tenant that a new session works in: the one that is asked for, the one used last, or the first that is active."""
    rows = _tenants_of(db, user.id)
    if wanted is not None:
        return _named(rows, wanted).id
    usable = [row for row in rows if row.status == "active"] or rows
    if not usable:
        return None
    last = db.scalar(
        select(RefreshSession.tenant_id)
        .where(RefreshSession.user_id == user.id, RefreshSession.tenant_id.is_not(None))
        .order_by(RefreshSession.last_used_at.desc())
        .limit(1)
    )
    return next((row for row in usable if row.id == last), usable[0]).id


@dataclass(frozen=True)
class _Found:
    """A session with its user, tenant and role."""

    row: RefreshSession
    user: User
    tenant: Tenant | None
    principal: auth.Principal

    def check(self) -> None:
        """Raises Unauthorized when the session, the user or the membership has ended."""
        row, now = self.row, clock.now()
        if row.revoked_at is not None or row.expires_at <= now or row.last_used_at + IDLE <= now:
            raise Unauthorized(ENDED)
        if self.user.status != "active":
            raise Unauthorized("This account is disabled. Ask an admin of your tenant.")
        if row.tenant_id is not None and self.principal.role is None:
            raise Unauthorized(ENDED)


# Nearly every request asks this: built once, as building it costs more than the database takes to answer.
_BY_UID = standing.with_role(
    select(RefreshSession, User, Tenant, *standing.COLUMNS)
    .join(User, User.id == RefreshSession.user_id)
    .outerjoin(Membership, (Membership.user_id == User.id) & (Membership.tenant_id == RefreshSession.tenant_id))
    .outerjoin(Tenant, Tenant.id == RefreshSession.tenant_id)
    .where(RefreshSession.uid == bindparam("uid"))
)
_BY_UID_LOCKED = _BY_UID.with_for_update(of=RefreshSession)


def _load(db: Session, session_uid: str, *, lock: bool = False) -> _Found | None:
    found = db.execute(_BY_UID_LOCKED if lock else _BY_UID, {"uid": session_uid}).one_or_none()
    if found is None:
        return None
    row, user, tenant, role, name, permissions, is_limited = found
    return _Found(row, user, tenant, standing.person(user, tenant, role, (name, permissions), is_limited, row))


def principal_of(session_uid: str, user_uid: str, epoch: int) -> auth.Principal:
    """The person behind an access token, as the database knows it now; raises Unauthorized when the session or its epoch has ended."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        found = _load(db, session_uid)
        if found is None or found.user.uid != user_uid or found.user.epoch != epoch:
            raise Unauthorized(ENDED)
        found.check()
        now = clock.now()
        if found.row.last_used_at + TOUCH_EVERY < now:
            db.execute(update(RefreshSession).where(RefreshSession.id == found.row.id).values(last_used_at=now))
        return found.principal


def refresh(token: str, client: Client) -> Opened:
    """Exchange a refresh token for its successor. One that was used before ends the whole family, unless the same client asks again within 20 s."""
    session_uid = token[: ids.UID_LENGTH]
    if len(token) > 128 or not ids.is_uid(session_uid):
        metrics.refreshes.labels("refused").inc()
        raise Unauthorized("The refresh token is not valid. Sign in again.")
    with tenancy.work(tenancy.system("sign-in")) as db:
        found = _load(db, session_uid, lock=True)
        if found is None:
            metrics.refreshes.labels("refused").inc()
            raise Unauthorized("The refresh token is not valid. Sign in again.")
        found.check()
        row, user = found.row, found.user
        successor = _rotate(row, token, client)
        if successor is None:
            _revoke(db, row, "refresh token used twice")
            audit.record(db, "session.token-reused", ("session", row.uid), actor=found.principal)
            if mail.configured():
                mail.after_commit(
                    db, user.email, "A session was ended for safety", REUSED.format(link=mail.link("/account"))
                )
        else:
            db.flush()
    if successor is None:
        cache.forget_everywhere()
        metrics.refreshes.labels("reused").inc()
        log.warning(
            "refresh token used twice, the session was ended",
            user=user.uid,
            session=session_uid,
            address=client.address,
        )
        raise Unauthorized("This refresh token was used before, so the session was ended for safety. Sign in again.")
    return Opened(found.principal, user.epoch, successor, row.expires_at)


def _rotate(row: RefreshSession, token: str, client: Client) -> str | None:
    """The successor of a token under the row's lock, or None when the token is one that was replaced."""
    digest = auth.refresh_token_hash(token)
    successor = row.uid + auth.next_refresh_secret(token)
    now = clock.now()
    if auth.same_text(digest, row.current_hash):
        row.previous_hash, row.current_hash = row.current_hash, auth.refresh_token_hash(successor)
        row.rotated_at = row.last_used_at = now
        row.fingerprint, row.address = client.fingerprint, client.address[:64]
        metrics.refreshes.labels("rotated").inc()
        return successor
    is_previous = row.previous_hash is not None and auth.same_text(digest, row.previous_hash)
    in_grace = row.rotated_at is not None and now - row.rotated_at <= GRACE
    if is_previous and in_grace and auth.same_text(client.fingerprint, row.fingerprint):
        metrics.refreshes.labels("repeated").inc()
        return successor
    return None


def _revoke(db: Session, row: RefreshSession, why: str) -> None:
    db.execute(
        update(RefreshSession).where(RefreshSession.id == row.id).values(revoked_at=clock.now(), revoked_why=why)
    )


def sign_out(db: Session, session_uid: str) -> None:
    """End one session; its access tokens die at once on this machine. `db`: scope "sign-in"."""
    db.execute(
        update(RefreshSession)
        .where(RefreshSession.uid == session_uid, RefreshSession.revoked_at.is_(None))
        .values(revoked_at=clock.now(), revoked_why="signed out")
    )
    audit.record(db, "session.sign-out", ("session", session_uid))
    tenancy.after_commit(db, cache.forget_everywhere)


def end_all(db: Session, user_id: int, why: str, *, keep: str | None = None) -> None:
    """End every session of a user, but the one with the uid `keep`, and raise the epoch: all access tokens made before are dead."""
    statement = update(RefreshSession).where(RefreshSession.user_id == user_id, RefreshSession.revoked_at.is_(None))
    if keep is not None:
        statement = statement.where(RefreshSession.uid != keep)
    db.execute(statement.values(revoked_at=clock.now(), revoked_why=why))
    db.execute(update(User).where(User.id == user_id).values(epoch=User.epoch + 1))
    tenancy.after_commit(db, cache.forget_everywhere)


def mine(db: Session, principal: auth.Principal) -> list[RefreshSession]:
    """The caller's sessions that work, the newest use first. `db`: scope "sign-in"."""
    statement = select(RefreshSession).where(RefreshSession.user_id == principal.user_id, *_live())
    return list(db.scalars(statement.order_by(RefreshSession.last_used_at.desc(), RefreshSession.id.desc())))


def _live() -> tuple[ColumnElement[bool], ...]:
    now = clock.now()
    return (
        RefreshSession.revoked_at.is_(None),
        RefreshSession.expires_at > now,
        RefreshSession.last_used_at > now - IDLE,
    )


def end_one(db: Session, principal: auth.Principal, session_uid: str) -> None:
    """End one of the caller's sessions; raises NotFound for any other. `db`: scope "sign-in"."""
    ended = db.execute(
        update(RefreshSession)
        .where(RefreshSession.uid == session_uid, RefreshSession.user_id == principal.user_id, *_live())
        .values(revoked_at=clock.now(), revoked_why="ended by its person")
        .returning(RefreshSession.id)
    ).one_or_none()
    if ended is None:
        raise NotFound("session")
    audit.record(db, "session.end", ("session", session_uid))
    tenancy.after_commit(db, cache.forget_everywhere)


def end_others(db: Session, principal: auth.Principal) -> int:
    """End all of the caller's sessions but the one that asks; returns how many there were. `db`: scope "sign-in"."""
    ended = db.scalars(
        update(RefreshSession)
        .where(RefreshSession.user_id == principal.user_id, RefreshSession.uid != principal.session_uid, *_live())
        .values(revoked_at=clock.now(), revoked_why="ended by its person")
        .returning(RefreshSession.id)
    ).all()
    audit.record(db, "session.end-others", ("user", principal.uid), after={"ended": len(ended)})
    tenancy.after_commit(db, cache.forget_everywhere)
    return len(ended)


def switch(db: Session, principal: auth.Principal, tenant: str, client: Client) -> Opened:
    """This session in another tenant of the caller's (uid or slug), with fresh tokens; those made before are dead. `db`: scope "sign-in".

    Raises Invalid for a tenant that is not theirs, whether it exists or not.
    """
    chosen = _named(_tenants_of(db, principal.user_id or 0), tenant)
    found = _load(db, principal.session_uid or "", lock=True)
    if found is None:
        raise Unauthorized(ENDED)
    found.check()
    found.row.tenant_id = chosen.id
    db.flush()
    opened = renew(db, found.row.uid, client)
    audit.record(
        db,
        "session.switch",
        ("session", found.row.uid),
        actor=opened.principal,
        before={"tenant": principal.tenant_uid},
        after={"tenant": chosen.uid},
    )
    tenancy.after_commit(db, cache.forget_everywhere)
    return opened


def renew(db: Session, session_uid: str, client: Client) -> Opened:
    """A new refresh token and the new epoch for a session that lives on."""
    found = _load(db, session_uid, lock=True)
    if found is None:
        raise Unauthorized(ENDED)
    row, user = found.row, found.user
    db.refresh(user)
    token = row.uid + ids.new_token()
    row.current_hash, row.previous_hash, row.rotated_at = auth.refresh_token_hash(token), None, None
    row.fingerprint, row.last_used_at = client.fingerprint, clock.now()
    db.flush()
    found = _load(db, session_uid)
    if found is None:
        raise Unauthorized(ENDED)
    return Opened(found.principal, user.epoch, token, row.expires_at)
