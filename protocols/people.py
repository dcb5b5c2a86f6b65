"""Who connects to an adapter that serves stored things: portal users and API keys, by the same proofs as over HTTP.

A person signs in with e-mail address and password, which opens a session of the portal: it is listed on the account page and
may be ended there. A program names anything and gives an API key as password. Failures are counted in this process, as it
alone serves its protocol.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import structlog

from iiot import auth, cache, ids, tenancy
from iiot.errors import Forbidden, Problem, Unauthorized, Unavailable
from iiot.services import api_keys, sessions, sign_in
from protocols.base import Refusal
from protocols.buckets import Buckets
from protocols.served import Away, Visitor

# Failures a minute of one name from one source, and of one source alone.
FAILURES_OF_NAME: Final = 5
FAILURES_OF_SOURCE: Final = 30
AWAY_SECONDS: Final = 5
LONGEST: Final = 1_024
NEEDED: Final = ("device:read", "telemetry:read")
WRONG: Final = Refusal("unauthorized", "the user or the password is wrong")

log = structlog.get_logger("protocols")


@dataclass(frozen=True)
class Known:
    """What is kept of a visitor: who it is, since when, and from where it came. `epoch`: of a person's session."""

    visitor: Visitor
    principal: auth.Principal
    epoch: int
    origin: auth.Origin


class People:
    """The visitors of one adapter. May be used from any thread."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        self._failures = Buckets(FAILURES_OF_NAME / 60, FAILURES_OF_NAME)
        self._failures_of_source = Buckets(FAILURES_OF_SOURCE / 60, FAILURES_OF_SOURCE)
        self._revocations: cache.Memory[str, str] = cache.Memory(1.0)

    def admit(self, user: str, password: str, source: str, program: str) -> Visitor | Refusal:
        """See `served.Plant.admit`."""
        name = f"{user.strip().casefold()[:320]} {source}"
        wait = max(self._failures.wait(name), self._failures_of_source.wait(source))
        if wait > 0:
            seconds = math.ceil(wait)
            return Refusal("rate-limited", f"too many failed attempts, try again in {seconds} s", "sign-in", seconds)
        origin = auth.Origin(address=source, user_agent=program)
        try:
            with _as(None, origin):
                principal, epoch = self._prove(user, password, sessions.Client(source, program))
        except Unauthorized:
            self._failures.take(name)
            self._failures_of_source.take(source)
            return WRONG
        except Unavailable as error:
            return Refusal("unavailable", error.detail, None, AWAY_SECONDS)
        except Problem as error:
            # The password was right, or the key: this is no guessing.
            return Refusal(error.code, error.detail)
        except Exception as error:
            log.warning("nobody can be let in", error=f"{type(error).__name__}: {error}"[:200])
            return Refusal("unavailable", "the portal cannot look at its users now", None, AWAY_SECONDS)
        visitor = _visitor(ids.new_uid(), principal)
        self._known[visitor.id] = Known(visitor, principal, epoch, origin)
        return visitor

    def _prove(self, user: str, password: str, client: sessions.Client) -> tuple[auth.Principal, int]:
        """The principal and its session's epoch; raises Problem."""
        if len(user) > LONGEST or len(password) > LONGEST or "\0" in user + password:
            raise Unauthorized
        if api_keys.looks_like_one(password):
            proof = api_keys.authenticate(password, client.address)
            if proof is None:
                raise Unauthorized
            _check(proof.principal)
            return proof.principal, 0
        email, _, tenant = user.partition("#")
        opened = sign_in.sign_in(email, password, client, tenant or None)
        try:
            _check(opened.principal)
        except Problem:
            self._sign_out(opened.principal)
            raise
        return opened.principal, opened.epoch

    def check(self, visitor: Visitor) -> Visitor | None:
        """See `served.Plant.check`. A database that is away changes nothing."""
        known = self._known.get(visitor.id)
        if known is None:
            return None
        before = known.principal
        try:
            if before.api_key_uid is not None:
                now = api_keys.principal_of(before.api_key_uid)
            else:
                now = sessions.principal_of(before.session_uid or "", before.user_uid or "", known.epoch)
            _check(now)
        except Problem as problem:
            log.info("visitor loses its right", reason=problem.code)
            return None
        except Exception as error:
            log.warning("visitor not checked", error=f"{type(error).__name__}: {error}"[:200])
            return visitor
        made = _visitor(visitor.id, now)
        if made == visitor:
            made = visitor
        self._known[visitor.id] = replace(known, visitor=made, principal=now)
        return made

    def leave(self, visitor: Visitor) -> None:
        """See `served.Plant.leave`: a person's session of the portal ends."""
        known = self._known.pop(visitor.id, None)
        if known is not None and known.principal.session_uid is not None:
            with _as(known.principal, known.origin):
                self._sign_out(known.principal)

    def _sign_out(self, principal: auth.Principal) -> None:
        try:
            with tenancy.work(tenancy.system("sign-in")) as db:
                sessions.sign_out(db, principal.session_uid or "")
        except Exception as error:
            log.warning("session not signed out", error=f"{type(error).__name__}: {error}"[:200])

    def mark(self) -> bytes:
        """See `served.Plant.mark`."""
        return self._revocations.mark()

    def principal(self, visitor: Visitor) -> auth.Principal:
        """Whom a visitor stands for, as it was when it was last checked; raises Away for one that has left."""
        known = self._known.get(visitor.id)
        if known is None:
            raise Away("the visitor has left")
        return known.principal

    @contextlib.contextmanager
    def acting(self, visitor: Visitor) -> Iterator[auth.Principal]:
        """What happens meanwhile is noted in the visitor's name."""
        known = self._known.get(visitor.id)
        if known is None:
            raise Away("the visitor has left")
        with _as(known.principal, known.origin):
            yield known.principal


@contextlib.contextmanager
def _as(principal: auth.Principal | None, origin: auth.Origin) -> Iterator[None]:
    before = auth.acting(), auth.origin()
    auth.set_current(principal)
    auth.set_origin(origin)
    try:
        yield
    finally:
        auth.set_current(before[0])
        auth.set_origin(before[1])


def _check(principal: auth.Principal) -> None:
    """Raises Forbidden for those who have no tenant to look at, or may not look at it."""
    if principal.tenant_id is None:
        raise Forbidden("This account belongs to no tenant.", "no-tenant")
    if principal.tenant_status != "active":
        raise Forbidden("The tenant is suspended or being deleted.", f"tenant-{principal.tenant_status}")
    if principal.must_change_password:
        raise Forbidden("Change the one-time password in the portal first.", "password-change-required")
    if principal.must_set_up_mfa:
        raise Forbidden("Your tenant asks for a second factor: set it up in the portal first.", "mfa-setup-required")
    for permission in NEEDED:
        principal.require(permission)


def _visitor(id_: str, principal: auth.Principal) -> Visitor:
    return Visitor(
        id=id_,
        identity=principal.api_key_uid or principal.uid,
        tenant=principal.tenant_uid or "",
        view=(principal.tenant_uid, principal.limited_user_id),
        may_command="device:command" in principal.permissions,
        may_change="device:write" in principal.permissions,
    )
