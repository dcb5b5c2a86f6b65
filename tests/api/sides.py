"""A tenant full of things whose every text is a canary, and the eight kinds of callers."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from flask_jwt_extended import create_access_token
from werkzeug.test import TestResponse

from iiot import auth, tenancy, web
from iiot.ids import new_uid
from iiot.models import Discovery, Plan
from iiot.services import devices, entities, homes, sessions
from tests import factories
from tests.api.conftest import basic


@dataclass
class Caller:
    """Somebody who calls: as a program with a token, and as a browser with a cookie. `home`: ids of their own tenant's objects."""

    name: str
    client: FlaskClient
    token: dict[str, str] = field(default_factory=dict)
    cookie: dict[str, str] = field(default_factory=dict)
    home: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, **options: Any) -> TestResponse:
        """An answer. The request id is always the same, so that two answers may be equal."""
        proof = self.token if path.startswith(("/api/", "/health", "/ready")) else self.cookie
        return self.client.open(path, method=method, headers={"X-Request-ID": "same"} | proof, **options)


@dataclass
class Side:
    """A tenant, one object of each kind in it, and those who work there."""

    letter: str
    tenant: factories.TenantRow
    ids: dict[str, str]
    admin: Caller
    viewer: Caller
    device: Caller
    # The viewer's session, signed in anew: for what ends a session.
    member_again: Callable[[], Caller]

    @property
    def canaries(self) -> tuple[str, ...]:
        """What nobody else may ever receive: compared with lower-case text."""
        return (
            f"canary-{self.letter}",
            NUMBERS[self.letter],
            *(self.ids[name] for name in ("device", "member", "session")),
        )


NUMBERS = {"a": "424242.0137", "b": "535353.0173"}


def make_side(app: Flask, letter: str, plan: str) -> Side:
    """Everything is made through the door and the API, as a customer's people would make it."""
    canary = _canaries(letter)
    tenant = factories.make_tenant(canary())
    people = [
        factories.make_user(tenant, role, email=f"{canary()}@example.com", name=canary())
        for role in ("admin", "viewer", "operator")
    ]
    with tenancy.work(tenancy.of(tenant)) as db:
        row, token = devices.create(db, devices.NewDevice(canary(), canary(), canary(), False, (canary(),)))
        thing = row.uid
    factories.store(
        thing,
        (factories.now_ms(), {canary(): float(NUMBERS[letter]), canary(): canary()}),
        (factories.now_ms() - 5, {"t": 1.5, f"signal-{letter}": 1.5}),
    )
    factories.ingest([factories.refused(thing, reason=canary(), payload=canary().encode())])
    factories.status([factories.StatusEvent(thing, True, canary())])
    admin, viewer, member = (caller(app, f"{letter} {user.role}", user) for user in people)
    ids = {"tenant": tenant.uid, "device": thing, "member": people[2].uid, "plan": plan, "signal": f"signal-{letter}"}
    side = Side(
        letter,
        tenant,
        ids,
        admin,
        viewer,
        device_caller(app, f"{letter} device", thing, token),
        lambda: caller(app, "again", people[1]),
    )

    def make(path: str, **body: Any) -> dict[str, Any]:
        answer = admin.call("POST", f"/api/v1{path}", json=body)
        assert answer.status_code == 201, (path, answer.get_data(as_text=True))
        found: dict[str, Any] = answer.get_json()
        return found

    ids["role"] = make(f"/tenants/{tenant.uid}/roles", name=canary(), permissions=["device:read"])["id"]
    ids["site"] = make("/sites", name=canary())["id"]
    ids["account"] = make("/service-accounts", name=canary(), role="viewer")["id"]
    ids["key"] = make("/api-keys", name=canary(), service_account=ids["account"])["id"]
    ids["invitation"] = make(f"/tenants/{tenant.uid}/invitations", email=f"{canary()}@example.com", role="viewer")["id"]
    ids["credential"] = make(f"/devices/{thing}/credentials", name=canary(), keep_others=True)["credential_id"]
    ids["certificate"] = make(f"/devices/{thing}/certificates", name=canary())["id"]
    ids["oscore"] = make(f"/devices/{thing}/oscore", name=canary())["id"]
    ids["command"] = make(f"/devices/{thing}/commands", name=canary(), params={canary(): canary()})["id"]
    ids["rejected"] = factories.rows("SELECT uid FROM iiot.rejected_message WHERE tenant_id = %s", tenant.tenant_id)[0][
        0
    ]
    ids |= _with_gateway(tenant, thing, canary)
    ids["session"] = str(member.home.pop("session"))
    admin.home = viewer.home = side.device.home = ids
    return side


def _with_gateway(tenant: factories.TenantRow, thing: str, canary: Callable[[], str]) -> dict[str, str]:
    """A gateway with a home, something in its inbox, and an entity of the device."""
    with tenancy.work(tenancy.of(tenant)) as db:
        gateway, _ = devices.create(db, devices.NewDevice(canary(), is_gateway=True))
        home = homes.claim(db, canary(), gateway.uid)
        entity = entities.create(db, thing, "light", canary())
        found = Discovery(uid=new_uid(), device_id=gateway.id, kind="device", name=canary(), reason=canary())
        found.state, found.payload, found.last_seen_at = "ignored", canary().encode(), factories.now()
        db.add(found)
        db.flush()
        return {"gateway": gateway.uid, "home": home.uid, "entity": entity.uid, "discovery": found.uid}


def _canaries(letter: str) -> Callable[[], str]:
    count = iter(range(1, 1000))
    return lambda: f"CANARY-{letter.upper()}-{next(count)}"


_addresses = itertools.count(1)


def stranger(app: Flask, name: str = "none") -> Caller:
    """Nobody in particular, with an address of their own, so that limits do not add up."""
    client = app.test_client(use_cookies=False)
    number = next(_addresses)
    client.environ_base["REMOTE_ADDR"] = f"198.51.{number >> 8}.{number & 255}"
    return Caller(name, client)


def caller(app: Flask, name: str, user: factories.UserRow, *, expired: bool = False) -> Caller:
    """A person, signed in both ways; `expired`: with tokens that were good a minute ago."""
    made = stranger(app, name)
    with tenancy.work(tenancy.system("sign-in")) as db:
        opened = sessions.open_session(db, user.user_id)
    with app.test_request_context():
        response = app.response_class()
        web.set_session_cookie(app, response, opened)
        token = web.access_token(opened)
        cookie = response.headers["Set-Cookie"].partition(";")[0]
        if expired:
            token, cookie = _expired(opened, "api"), f"{cookie.partition('=')[0]}={_expired(opened, 'page')}"
    made.token = {"Authorization": f"Bearer {token}"}
    made.cookie = {"Cookie": cookie, "X-CSRF-Token": auth.csrf_token(str(opened.principal.session_uid))}
    made.home = {"session": str(opened.principal.session_uid)}
    return made


def _expired(opened: sessions.Opened, use: str) -> str:
    claims = {
        "sid": opened.principal.session_uid,
        "epoch": opened.epoch,
        "tid": opened.principal.tenant_uid,
        "use": use,
    }
    return str(
        create_access_token(
            opened.principal.user_uid,
            expires_delta=timedelta(seconds=-60),
            additional_claims=claims,
            additional_headers={"typ": "at+jwt"},
        )
    )


def device_caller(app: Flask, name: str, uid: str, token: str) -> Caller:
    """A device."""
    made = stranger(app, name)
    made.token = basic(uid, token)
    return made


def make_plan() -> str:
    """A plan of the platform; its uid."""
    with tenancy.work(tenancy.system("platform")) as db:
        plan = Plan(uid=new_uid(), name=f"plan {new_uid()}")
        db.add(plan)
        db.flush()
        return plan.uid
