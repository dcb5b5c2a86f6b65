"""The audit trail: what is written, and how it is written last in the transaction that it speaks of.

PostgreSQL numbers and chains the entries (migration 0002): hash = SHA-256(previous hash ‖ canonical JSON). Nobody but a superuser can change one,
and then `chain.verify` names it.
"""

import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from iiot import auth, tenancy
from iiot.models import PLATFORM, Audit
from iiot.tenancy import ScopedSession

# Never written down, whatever the caller hands over.
SECRET_WORDS = ("password", "token", "secret", "hash", "salt", "seed", "key_hash")
LONGEST = 2_000
MOST = 100


def record(
    db: Session,
    action: str,
    thing: tuple[str, str] = ("", ""),
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    actor: auth.Principal | None = None,
) -> None:
    """Note an act. `action` is `noun.verb` ("device.create", "session.sign-in"); `thing` is kind and uid of what it was done to.

    `before` and `after` are JSON objects; what looks like a secret is left out of them. `actor`: who, when it is not the principal of the request.
    The entry belongs to the session's tenant, else to the actor's; to the platform's own chain where platform administrators work without a tenant.
    """
    who, where = actor or auth.acting(), auth.origin()
    owner = db.scope.tenant_id if isinstance(db, ScopedSession) else None
    if owner is None:
        is_platforms = isinstance(db, ScopedSession) and db.scope.reason == "platform"
        owner = PLATFORM if is_platforms or who is None else who.tenant_id or PLATFORM
    kind, uid, label = _actor(who)
    row = {
        "tenant_id": owner,
        "actor_kind": kind,
        "actor_uid": uid,
        "actor_label": _text(label),
        "address": _text(where.address)[:64],
        "user_agent": _text(where.user_agent)[:256],
        "request_id": _text(where.request_id)[:64],
        "action": action,
        "object_kind": thing[0],
        "object_uid": _text(thing[1]),
        "before": _clean(before),
        "after": _clean(after),
    }
    # The chain's head is locked until the commit, so it is taken last.
    tenancy.before_commit(db, lambda: db.execute(insert(Audit).inline(), row))


def _actor(who: auth.Principal | None) -> tuple[str, str, str]:
    if who is None:
        return "system", "", auth.origin().user_agent or "system"
    return who.kind, who.uid, who.label or who.uid


def _clean(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Without what looks like a secret, and short."""
    if values is None:
        return None
    return {
        _text(name): "•••" if any(word in name for word in SECRET_WORDS) else _plain(value)
        for name, value in values.items()
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value[:MOST]]
    if isinstance(value, Mapping):
        return _clean(value)
    return _text(str(value))


def _text(value: str) -> str:
    """What PostgreSQL can store: no NUL, no half of a surrogate pair; and short."""
    return value[:LONGEST].replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that differ, as they were and as they are."""
    names = [name for name in after if before.get(name) != after[name]]
    return {name: before.get(name) for name in names}, {name: after[name] for name in names}
