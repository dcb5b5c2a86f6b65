"""Whatever people, admins and thieves do to sessions in whatever order: tokens work exactly when the model says so."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from werkzeug.test import TestResponse

from iiot import auth, cache, tenancy, web
from iiot.services import sessions, users
from tests import factories

# Ten in the suite, a thousand with the profile "nightly".
EXAMPLES, STEPS = settings.default.max_examples // 10 if settings.default else 10, 30


@dataclass
class Family:
    """A session as the model sees it: its refresh tokens in order, which of them are spent, and its newest access token."""

    tenant: int
    current: str
    access: str
    epoch: int
    previous: str | None = None
    in_grace: bool = False
    is_alive: bool = True
    spent: list[str] = field(default_factory=list)
    dead_access: list[str] = field(default_factory=list)


class Sessions(RuleBasedStateMachine):
    """One person in two tenants, on one machine."""

    app: Flask

    families = Bundle("families")

    @initialize(target=families)
    def begin(self) -> Family:
        self.client: FlaskClient = self.app.test_client(use_cookies=False)
        self.tenants = [factories.make_tenant(), factories.make_tenant()]
        self.user = factories.make_user(self.tenants[0], "admin")
        self.roles = ["admin", "viewer"]
        with tenancy.work(tenancy.system("sign-in")) as db:
            users.add_member(db, self.tenants[1].tenant_id, self.user.user_id, "viewer")
        self.epoch, self.is_enabled = 0, True
        self.known: list[Family] = []
        return self._open(0)

    def _open(self, tenant: int) -> Family:
        with tenancy.work(tenancy.system("sign-in")) as db:
            opened = sessions.open_session(db, self.user.user_id, self._thing(), self.tenants[tenant].uid)
        with self.app.app_context():
            family = Family(tenant, opened.refresh_token, web.access_token(opened), self.epoch)
        self.known.append(family)
        return family

    @staticmethod
    def _thing() -> sessions.Client:
        """The client that `_refresh` looks like."""
        return sessions.Client("127.0.0.1", "machine")

    def _call(self, method: str, path: str, family: Family, body: Any = None) -> TestResponse:
        headers = {"Authorization": f"Bearer {family.access}", "User-Agent": "machine"}
        return self.client.open(f"/api/v1{path}", method=method, json=body, headers=headers)

    def _refresh(self, token: str, agent: str = "machine") -> TestResponse:
        return self.client.post("/api/v1/auth/refresh", json={"refresh_token": token}, headers={"User-Agent": agent})

    def _works(self, family: Family) -> bool:
        return family.is_alive and self.is_enabled and family.epoch == self.epoch

    def _take(self, family: Family, answer: TestResponse, *, rotated: bool) -> None:
        """A fresh pair of tokens; `rotated`: the one before may be repeated for 20 seconds."""
        body = answer.get_json()
        if rotated:
            if family.previous:
                family.spent.append(family.previous)
            family.previous, family.in_grace = family.current, True
        else:
            family.spent += [each for each in (family.previous, family.current) if each]
            family.previous, family.in_grace = None, False
        family.current, family.access = body["refresh_token"], body["access_token"]

    # --- what people do

    @rule(target=families, tenant=st.integers(0, 1))
    def sign_in(self, tenant: int) -> Any:
        return self._open(tenant) if self.is_enabled else multiple()

    @rule(family=families)
    def refresh(self, family: Family) -> None:
        answer = self._refresh(family.current)
        if not (family.is_alive and self.is_enabled):
            assert answer.status_code == 401
            return
        assert answer.status_code == 200
        # A refresh carries a session over a raised epoch: the session itself was not ended.
        family.epoch = self.epoch
        self._take(family, answer, rotated=True)

    @rule(family=families)
    def repeat_a_refresh(self, family: Family) -> None:
        """The same client asks again for what it lost: the same answer in the grace period, the end of the family after it."""
        if family.previous is None:
            return
        answer = self._refresh(family.previous)
        if family.is_alive and self.is_enabled and family.in_grace:
            assert answer.status_code == 200
            assert answer.get_json()["refresh_token"] == family.current
        else:
            assert answer.status_code == 401
            family.is_alive = family.is_alive and not self.is_enabled

    @rule(family=families)
    def steal_a_refresh(self, family: Family) -> None:
        """Another program uses the token before: the family ends, also within the grace period."""
        if family.previous is None:
            return
        assert self._refresh(family.previous, "a thief").status_code == 401
        family.is_alive = family.is_alive and not self.is_enabled

    @rule(family=families, data=st.data())
    def reuse_an_old_token(self, family: Family, data: st.DataObject) -> None:
        if not family.spent:
            return
        assert self._refresh(data.draw(st.sampled_from(family.spent))).status_code == 401
        family.is_alive = family.is_alive and not self.is_enabled

    @rule(family=families)
    def wait(self, family: Family) -> None:
        """More than 20 seconds pass."""
        uid = family.current[:26]
        factories.rows(
            "UPDATE iiot.session SET rotated_at = rotated_at - %s WHERE uid = %s", timedelta(seconds=21), uid
        )
        family.in_grace = False

    @rule(family=consumes(families))
    def sign_out(self, family: Family) -> None:
        answer = self._call("POST", "/auth/logout", family)
        assert answer.status_code == (204 if self._works(family) else 401)
        family.is_alive = family.is_alive and answer.status_code != 204

    @rule(family=families)
    def end_others(self, family: Family) -> None:
        answer = self._call("POST", "/auth/sessions/end-others", family)
        if not self._works(family):
            assert answer.status_code == 401
            return
        others = [each for each in self.known if each is not family and each.is_alive]
        assert answer.get_json() == {"ended": len(others)}
        for each in others:
            each.is_alive = False

    @rule(family=families, other=families)
    def end_one(self, family: Family, other: Family) -> None:
        answer = self._call("DELETE", f"/auth/sessions/{other.current[:26]}", family)
        if not self._works(family):
            assert answer.status_code == 401
        else:
            assert answer.status_code == (204 if other.is_alive else 404)
            other.is_alive = False

    @rule(family=families, tenant=st.integers(0, 1))
    def switch(self, family: Family, tenant: int) -> None:
        answer = self._call("POST", "/auth/switch", family, {"tenant": self.tenants[tenant].uid})
        if not self._works(family):
            assert answer.status_code == 401
            return
        assert answer.status_code == 200
        if tenant != family.tenant:
            family.dead_access.append(family.access)
        family.tenant = tenant
        self._take(family, answer, rotated=False)

    @rule(family=families)
    def change_the_password(self, family: Family) -> None:
        """What passwords.change does to sessions, without the third of a second of its hash."""
        if not self._works(family):
            return
        uid = family.current[:26]
        with tenancy.work(tenancy.system("sign-in")) as db:
            sessions.end_all(db, self.user.user_id, "password changed", keep=uid)
            opened = sessions.renew(db, uid, self._thing())
        self.epoch += 1
        for each in self.known:
            each.is_alive = each.is_alive and each is family
        family.dead_access.append(family.access)
        family.spent += [each for each in (family.previous, family.current) if each]
        family.previous, family.in_grace, family.epoch = None, False, self.epoch
        with self.app.app_context():
            family.current, family.access = opened.refresh_token, web.access_token(opened)

    # --- what admins do

    @rule()
    def end_everything(self) -> None:
        with tenancy.work(tenancy.system("sign-in")) as db:
            sessions.end_all(db, self.user.user_id, "by an admin")
        self.epoch += 1
        for each in self.known:
            each.is_alive = False

    @rule()
    def disable_or_enable(self) -> None:
        self.is_enabled = not self.is_enabled
        status = "active" if self.is_enabled else "disabled"
        factories.rows("UPDATE iiot.user_account SET status = %s WHERE id = %s", status, self.user.user_id)
        cache.forget_everywhere()

    @rule(tenant=st.integers(0, 1), role=st.sampled_from(["admin", "operator", "viewer"]))
    def give_a_role(self, tenant: int, role: str) -> None:
        self.roles[tenant] = role
        statement = "UPDATE iiot.membership SET role = %s WHERE user_id = %s AND tenant_id = %s"
        factories.rows(statement, role, self.user.user_id, self.tenants[tenant].tenant_id)
        cache.forget_everywhere()

    # --- what must hold after each step

    @invariant()
    @precondition(lambda self: hasattr(self, "known"))
    def access_tokens_work_when_the_model_says_so(self) -> None:
        for family in self.known:
            answer = self._call("GET", "/auth/me", family)
            assert answer.status_code == (200 if self._works(family) else 401)
            if answer.status_code == 200:
                assert answer.get_json()["tenant"]["id"] == self.tenants[family.tenant].uid
                assert answer.get_json()["permissions"] == sorted(auth.PERMISSIONS[self.roles[family.tenant]])

    @invariant()
    @precondition(lambda self: hasattr(self, "known"))
    def dead_access_tokens_stay_dead(self) -> None:
        for family in self.known:
            for token in family.dead_access[-2:]:
                if claims_fit(token, family, self):
                    continue
                answer = self.client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"})
                assert answer.status_code == 401


def claims_fit(token: str, family: Family, machine: Sessions) -> bool:
    """Whether an older token speaks of the tenant that its session has come back to: then it is as good as the newest."""
    import jwt

    claims = jwt.decode(token, options={"verify_signature": False})
    return bool(
        machine._works(family)
        and claims["tid"] == machine.tenants[family.tenant].uid
        and claims["epoch"] == machine.epoch
    )


@pytest.fixture
def machine(app: Flask) -> type[Sessions]:
    """The machine with the application that it drives."""
    Sessions.app = app
    return Sessions


def test_sessions_do_what_their_model_says(machine: type[Sessions]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
