"""Sign-in, refresh, sign-out: one row per sign-in, whose refresh token rotates at each use (RFC 9700 section 4.14.2).

A refresh token is `<session uid><secret>`: 26 and 43 characters. The database holds SHA-256 hashes of the current one and the one before. The
successor of a secret is derived from it with the server's key, so a client that lost the answer gets the same one again within 20 seconds, and an
older token proves that somebody copied it: then the whole family ends.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from iiot import auth, cache, clock, config, ids, metrics, tenancy
from iiot.errors import Forbidden, Invalid, Unauthorized
from iiot.models import Membership, RefreshSession, Tenant, User

log = structlog.get_logger(__name__)

IDLE = timedelta(days=7)
GRACE = timedelta(seconds=20)
TOUCH_EVERY = timedelta(minutes=10)
WRONG = "The e-mail address or the password is wrong."
ENDED = "The session has ended. Sign in again."


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


def sign_in(email: str, password: str, client: Client, tenant: str | None = None) -> Opened:
    """Open a session for the right password; raises Unauthorized for a wrong one and for an unknown address, alike and after the same time.

    `tenant`: uid or slug of the tenant to work in; without it the one used last, or the first. Opens its own transactions, as hashing for 0.3 s
    must not hold a connection.
    """
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = _user_by_email(db, email)
    good = auth.verify_password(password, user.password_hash if user else None)
    if user is None or not good:
        metrics.logins.labels("wrong").inc()
        log.info("sign-in refused", address=client.address)
        raise Unauthorized(WRONG)
    if user.status != "active":
        metrics.logins.labels("disabled").inc()
        raise Forbidden("This account is disabled. Ask an admin of your tenant.", "account-disabled")
    with tenancy.work(tenancy.system("sign-in")) as db:
        opened = open_session(db, user.id, client, tenant)
    metrics.logins.labels("ok").inc()
    log.info("signed in", user=user.uid, address=client.address)
    return opened


def _user_by_email(db: Session, email: str) -> User | None:
    return db.scalar(select(User).where(func.lower(User.email) == email.strip().lower()))


def open_session(db: Session, user_id: int, client: Client | None = None, tenant: str | None = None) -> Opened:
    """Open a session for a user whose identity was proved elsewhere (sign-in, registration). `db`: scope "sign-in"."""
    client = client or Client()
    user = db.get_one(User, user_id, with_for_update=True)
    membership = _choose_membership(db, user, tenant)
    now = clock.now()
    uid, secret = ids.new_uid(), ids.new_token()
    row = RefreshSession(
        uid=uid,
        user_id=user.id,
        tenant_id=membership[0].tenant_id if membership else None,
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
    role, found = (membership[0].role, membership[1]) if membership else (None, None)
    return Opened(_principal(user, row, role, found), user.epoch, uid + secret, row.expires_at)


def _choose_membership(db: Session, user: User, wanted: str | None) -> tuple[Membership, Tenant] | None:
    rows = db.execute(
        select(Membership, Tenant)
        .join(Tenant, Tenant.id == Membership.tenant_id)
        .where(Membership.user_id == user.id)
        .order_by(Membership.created_at, Tenant.id)
    ).all()
    if wanted is not None:
        chosen = next((row for row in rows if wanted in (row[1].uid, row[1].slug)), None)
        if chosen is None:
            raise Invalid(
                "You cannot sign in to that tenant.",
                [{"loc": ["body", "tenant"], "msg": "no tenant of yours has this id or slug"}],
            )
        return chosen[0], chosen[1]
    usable = [row for row in rows if row[1].status == "active"] or list(rows)
    if not usable:
        return None
    last = db.scalar(
        select(RefreshSession.tenant_id)
        .where(RefreshSession.user_id == user.id, RefreshSession.tenant_id.is_not(None))
        .order_by(RefreshSession.last_used_at.desc())
        .limit(1)
    )
    chosen = next((row for row in usable if row[0].tenant_id == last), usable[0])
    return chosen[0], chosen[1]


def _principal(user: User, row: RefreshSession, role: str | None, tenant: Tenant | None) -> auth.Principal:
    return auth.Principal(
        kind="user",
        tenant_id=tenant.id if tenant else None,
        tenant_uid=tenant.uid if tenant else None,
        user_id=user.id,
        user_uid=user.uid,
        role=role,
        session_uid=row.uid,
        is_platform_admin=user.is_platform_admin,
        must_change_password=user.must_change_password,
    )


def _load(
    db: Session, session_uid: str, *, lock: bool = False
) -> tuple[RefreshSession, User, str | None, Tenant | None] | None:
    """The session with its user, role and tenant."""
    statement = (
        select(RefreshSession, User, Membership.role, Tenant)
        .join(User, User.id == RefreshSession.user_id)
        .outerjoin(Membership, (Membership.user_id == User.id) & (Membership.tenant_id == RefreshSession.tenant_id))
        .outerjoin(Tenant, Tenant.id == RefreshSession.tenant_id)
        .where(RefreshSession.uid == session_uid)
    )
    if lock:
        statement = statement.with_for_update(of=RefreshSession)
    found = db.execute(statement).one_or_none()
    return None if found is None else (found[0], found[1], found[2], found[3])


def _check_alive(row: RefreshSession, user: User, role: str | None, tenant: Tenant | None) -> None:
    now = clock.now()
    if row.revoked_at is not None or row.expires_at <= now or row.last_used_at + IDLE <= now:
        raise Unauthorized(ENDED)
    if user.status != "active":
        raise Unauthorized("This account is disabled. Ask an admin of your tenant.")
    if row.tenant_id is not None and role is None:
        raise Unauthorized(ENDED)
    if tenant is not None and tenant.status != "active":
        raise Forbidden("This tenant is suspended. Ask the platform administrator.", "tenant-suspended")


def principal_of(session_uid: str, user_uid: str, epoch: int) -> auth.Principal:
    """The person behind an access token, as the database knows it now; raises Unauthorized when the session or its epoch has ended."""
    with tenancy.work(tenancy.system("sign-in")) as db:
        found = _load(db, session_uid)
        if found is None or found[1].uid != user_uid or found[1].epoch != epoch:
            raise Unauthorized(ENDED)
        row, user, role, tenant = found
        _check_alive(row, user, role, tenant)
        now = clock.now()
        if row.last_used_at + TOUCH_EVERY < now:
            db.execute(update(RefreshSession).where(RefreshSession.id == row.id).values(last_used_at=now))
        return _principal(user, row, role, tenant)


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
        row, user, role, tenant = found
        _check_alive(row, user, role, tenant)
        successor = _rotate(row, token, client)
        if successor is None:
            _revoke(db, row, "refresh token used twice")
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
    return Opened(_principal(user, row, role, tenant), user.epoch, successor, row.expires_at)


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
    tenancy.after_commit(db, cache.forget_everywhere)


def end_all(db: Session, user_id: int, why: str, *, keep: str | None = None) -> None:
    """End every session of a user, but the one with the uid `keep`, and raise the epoch: all access tokens made before are dead."""
    statement = update(RefreshSession).where(RefreshSession.user_id == user_id, RefreshSession.revoked_at.is_(None))
    if keep is not None:
        statement = statement.where(RefreshSession.uid != keep)
    db.execute(statement.values(revoked_at=clock.now(), revoked_why=why))
    db.execute(update(User).where(User.id == user_id).values(epoch=User.epoch + 1))
    tenancy.after_commit(db, cache.forget_everywhere)


def change_password(principal: auth.Principal, current: str, new: str, client: Client) -> Opened:
    """Replace the caller's password: this session lives on with fresh tokens, all others end. Raises Invalid for a wrong or poor password.

    Opens its own transactions, as hashing must not hold a connection.
    """
    with tenancy.work(tenancy.system("sign-in")) as db:
        user = db.get_one(User, principal.user_id)
    if not auth.verify_password(current, user.password_hash):
        raise Invalid(
            "The password was not changed.",
            [{"loc": ["body", "current_password"], "msg": "this is not your current password"}],
        )
    auth.check_password_policy(new, email=user.email, name=user.name, loc="new_password")
    if new == current:
        raise Invalid(
            "The password was not changed.",
            [{"loc": ["body", "new_password"], "msg": "take one that differs from the current one"}],
        )
    hashed = auth.hash_password(new)
    with tenancy.work(tenancy.system("sign-in")) as db:
        changed = db.execute(
            update(User)
            .where(User.id == user.id, User.password_hash == user.password_hash)
            .values(password_hash=hashed, must_change_password=False)
            .returning(User.id)
        ).one_or_none()
        if changed is None:
            raise Invalid(
                "The password was changed elsewhere meanwhile.",
                [{"loc": ["body", "current_password"], "msg": "no longer your password"}],
            )
        end_all(db, user.id, "password changed", keep=principal.session_uid)
        return _renew(db, principal.session_uid or "", client)


def _renew(db: Session, session_uid: str, client: Client) -> Opened:
    """A new refresh token and the new epoch for a session that lives on."""
    found = _load(db, session_uid, lock=True)
    if found is None:
        raise Unauthorized(ENDED)
    row, user, role, tenant = found
    db.refresh(user)
    token = row.uid + ids.new_token()
    row.current_hash, row.previous_hash, row.rotated_at = auth.refresh_token_hash(token), None, None
    row.fingerprint, row.last_used_at = client.fingerprint, clock.now()
    db.flush()
    return Opened(_principal(user, row, role, tenant), user.epoch, token, row.expires_at)
