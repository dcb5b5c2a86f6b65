"""Nobody sees what is not theirs: every route × method × eight callers × two tenants, driven by the URL map.

The oracle: the answer about another tenant's object equals the answer about one that does not exist, byte for byte but for the ids that were asked
for. What a caller receives never holds a canary of the other tenant, and their calls change none of its rows.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from iiot import auth
from tests import factories
from tests.api.route_examples import NOWHERE, OBJECTS, Ids, Route, missing_examples, parameters, removes, routes
from tests.api.sides import Caller, Side, caller, make_plan, make_side, stranger

_numbers = itertools.count(1)
# Tables whose rows belong to people, by the column that leads to them.
OF_PEOPLE = {
    "user_account": "id",
    "session": "user_id",
    "second_factor": "user_id",
    "recovery_code": "user_id",
    "password_reset": "user_id",
}


@dataclass
class World:
    """Two tenants full of canaries, and everybody else."""

    app: Flask
    a: Side
    b: Side
    platform: Caller
    suspended: Caller
    expired: Caller
    nobody: Caller
    received: list[str] = field(default_factory=list)

    def foreigners(self, side: Side) -> list[Caller]:
        """Everybody to whom the side's things are none of their business."""
        other = self.b if side is self.a else self.a
        return [other.admin, other.viewer, other.device, self.suspended, self.expired, self.nobody]


@pytest.fixture(scope="module")
def world(app: Flask) -> World:
    plan = make_plan()
    a, b = make_side(app, "a", plan), make_side(app, "b", plan)
    closed = factories.make_tenant(status="suspended")
    return World(
        app,
        a,
        b,
        caller(app, "platform admin", factories.make_user(None, is_platform_admin=True)),
        caller(app, "suspended", factories.make_user(closed)),
        caller(app, "expired", factories.make_user(a.tenant), expired=True),
        stranger(app),
    )


def test_every_route_has_an_example(app: Flask) -> None:
    assert missing_examples(app) == [], "tell tests/api/route_examples.py which objects and body these routes take"


def test_every_rule_of_the_api_is_in_the_document(app: Flask) -> None:
    document = app.test_client().get("/api/v1/openapi.json").get_json()
    documented = {
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
        if path.startswith("/api/")
    }
    served = {
        (method, "/".join(f"{{{parameters(part)[0]}}}" if "<" in part else part for part in rule.rule.split("/")))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/api/")
    }
    assert documented == served


def test_the_sides_hold_what_the_matrix_asks_for(world: World) -> None:
    for side in (world.a, world.b):
        assert set(OBJECTS.values()) <= set(side.ids)
        assert len(set(side.ids.values())) == len(side.ids)


def ask(who: Caller, route: Route, ids: Ids, number: int) -> TestResponse:
    return who.call(route.method, route.path(ids), **route.body(ids, number))


def comparable(answer: TestResponse, ids: Ids) -> tuple[int, list[tuple[str, str]], str]:
    """Status, headers and body with every id that was asked for replaced."""
    text = answer.get_data(as_text=True)
    headers = [(name, value) for name, value in answer.headers if name not in ("Date", "Content-Length")]
    for value in ids.values():
        text = text.replace(value, NOWHERE)
        headers = [(name, header.replace(value, NOWHERE)) for name, header in headers]
    return answer.status_code, sorted(headers), text


def questions(route: Route, home: Ids, foreign: Ids) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Pairs of ids to ask with: of another tenant's objects, and of ones that do not exist.

    All of them foreign; and each one alone among the caller's own, where the caller has own ones.
    """
    names = route.references
    yield {name: foreign[name] for name in names}, dict.fromkeys(names, NOWHERE)
    if len(names) > 1 and set(names) <= set(home):
        for name in names:
            if home[name] != foreign[name]:
                own = {each: home[each] for each in names}
                yield own | {name: foreign[name]}, own | {name: NOWHERE}


def rows_of(side: Side) -> dict[str, str]:
    """A hash of the side's rows, per table."""
    tables = factories.rows(
        "SELECT c.relname, EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id') FROM pg_class c "
        "WHERE c.relnamespace = 'iiot'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1"
    )
    people = "(SELECT user_id FROM iiot.membership WHERE tenant_id = %s)"
    found = {}
    for table, has_tenant in tables:
        column = OF_PEOPLE.get(table)
        where = (
            "tenant_id = %s"
            if has_tenant
            else f"{column} IN {people}"
            if column
            else "id = %s"
            if table == "tenant"
            else None
        )
        if where is not None:
            statement = f"SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM iiot.{table} t WHERE {where}"
            found[table] = str(factories.rows(statement, side.tenant.tenant_id)[0][0])
    return found


@pytest.mark.parametrize(
    "number", range(6), ids=["other admin", "other viewer", "other device", "suspended", "expired", "none"]
)
@pytest.mark.parametrize("letter", ["a", "b"])
def test_what_is_not_yours_answers_exactly_like_what_does_not_exist(world: World, letter: str, number: int) -> None:
    side: Side = getattr(world, letter)
    who = world.foreigners(side)[number]
    before = rows_of(side)
    wrong: list[object] = []
    asked = 0
    for route in routes(world.app):
        if "/logout" in route.rule or route.rule.endswith("/auth/sessions/end-others"):
            continue
        for foreign, missing in questions(route, who.home, side.ids):
            count = next(_numbers)
            answers = (
                [ask(who, route, ids, count) for ids in (foreign, missing)] if foreign else [ask(who, route, {}, count)]
            )
            asked += len(answers)
            received = "\n".join(str(answer.headers) + answer.get_data(as_text=True) for answer in answers).lower()
            for value in foreign.values():
                received = received.replace(value, "")
            wrong += [(route.name, "received", canary) for canary in side.canaries if canary in received]
            # The limits of guessing are a person's own; a route that names objects must get an answer.
            if any(answer.status_code >= 500 or (answer.status_code == 429 and foreign) for answer in answers):
                wrong.append((route.name, [answer.get_data(as_text=True) for answer in answers]))
            if foreign and comparable(answers[0], foreign) != comparable(answers[1], missing):
                wrong.append((route.name, foreign, [comparable(answer, foreign) for answer in answers]))
            if route.references and answers[0].status_code < 300 and _names_all_foreign(route, foreign, who):
                wrong.append((route.name, "let in", answers[0].status_code, answers[0].get_data(as_text=True)))
            if number >= 4 and not is_refused(answers[0], route):
                wrong.append((route.name, "let a stranger in", answers[0].status_code))
    assert not wrong, "\n".join(map(str, wrong))
    assert asked > 100
    after = rows_of(side)
    assert {table for table in before if before[table] != after[table]} == set(), "tables in which rows have changed"


def _names_all_foreign(route: Route, foreign: Ids, who: Caller) -> bool:
    """Whether nothing in the question is the caller's own, so that no answer may be a success. (A plan belongs to nobody.)"""
    return all(who.home.get(name) != value for name, value in foreign.items()) and bool(parameters(route.rule))


def is_refused(answer: TestResponse, route: Route) -> bool:
    """Whether a stranger was turned away: 401, or the way to the sign-in."""
    if route.is_page:
        return answer.status_code == 303 and answer.headers["Location"].startswith("/login")
    return answer.status_code == 401


@pytest.mark.parametrize("letter", ["a", "b"])
def test_a_viewer_reads_and_changes_nothing(world: World, letter: str) -> None:
    """May read is not may change: what needs more than a viewer holds is refused, before it is known whether the object exists."""
    side: Side = getattr(world, letter)
    wrong: list[object] = []
    for route in routes(world.app):
        permission = _permission(world.app, route)
        if permission is None:
            continue
        answer = ask(side.viewer, route, side.ids, next(_numbers))
        if permission in auth.PERMISSIONS["viewer"]:
            allowed = answer.status_code in (200, 304) or (
                answer.status_code == 403 and _is_platforms(world.app, route)
            )
            if route.method == "GET" and not allowed:
                wrong.append((route.name, answer.status_code, answer.get_data(as_text=True)[:300]))
        elif answer.status_code != 403:
            wrong.append((route.name, answer.status_code, answer.get_data(as_text=True)[:300]))
    assert not wrong, "\n".join(map(str, wrong))


def _options(app: Flask, route: Route) -> dict[str, object]:
    if route.operation is not None:
        return dict(route.operation.options)
    found = [
        rule.endpoint
        for rule in app.url_map.iter_rules()
        if rule.rule == route.rule and route.method in (rule.methods or ())
    ]
    return dict(app.extensions["iiot.pages"][found[0]])


def _permission(app: Flask, route: Route) -> str | None:
    permission = _options(app, route).get("permission")
    return str(permission) if permission else None


def _is_platforms(app: Flask, route: Route) -> bool:
    return bool(_options(app, route).get("platform"))


@pytest.mark.parametrize("letter", ["a", "b"])
def test_a_platform_admin_manages_tenants_and_reads_nothing_they_own(world: World, letter: str) -> None:
    """In a tenant that is not theirs: name, members, roles, quota; never a device, a reading, a site, a key or the audit trail."""
    side: Side = getattr(world, letter)
    names = {side.ids["device"], *_texts_of_devices(side)}
    wrong: list[object] = []
    for route in routes(world.app):
        options = _options(world.app, route)
        if route.method != "GET":
            continue
        answer = ask(world.platform, route, side.ids, next(_numbers))
        text = answer.get_data(as_text=True).replace(route.path(side.ids), "")
        wrong += [(route.name, name) for name in names if name in text]
        if options.get("auth") == "device":
            expected = {401}
        elif options.get("of_tenant"):
            expected = {200} if options["permission"] in auth.PLATFORM_PERMISSIONS else {403}
        elif options.get("permission"):
            expected = {403}
        else:
            expected = {200, 303, 403, 404}
        if answer.status_code not in expected:
            wrong.append((route.name, answer.status_code, text[:300]))
    assert not wrong, "\n".join(map(str, wrong))


def _texts_of_devices(side: Side) -> set[str]:
    found = factories.rows(
        "SELECT name FROM iiot.device WHERE tenant_id = %s UNION SELECT name FROM iiot.site WHERE tenant_id = %s "
        "UNION SELECT key FROM iiot.signal WHERE tenant_id = %s AND key LIKE 'CANARY%%'",
        *[side.tenant.tenant_id] * 3,
    )
    return {str(name) for (name,) in found}


def test_the_side_is_full_of_canaries(world: World) -> None:
    """Every table of a tenant that holds text for people holds a canary, so that a leak of any of them is seen."""
    without = []
    columns = factories.rows(
        "SELECT table_name, column_name FROM information_schema.columns c JOIN pg_class t ON t.oid = ('iiot.' || c.table_name)::regclass "
        "WHERE table_schema = 'iiot' AND NOT t.relispartition AND column_name IN ('name', 'label', 'email', 'tags', 'key', 'external_id', 'reason', "
        "'payload', 'after', 'text', 'actor_label') AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attname = 'tenant_id')"
    )
    for table, column in columns:
        ((hit,),) = factories.rows(
            f"SELECT coalesce(bool_or(CASE WHEN pg_typeof({column})::text = 'bytea' THEN encode({column}::text::bytea, 'escape') "
            f"ELSE {column}::text END ILIKE '%%canary-a-%%'), false) FROM iiot.{table} WHERE tenant_id = %s",
            world.a.tenant.tenant_id,
        )
        if not hit:
            without.append(f"{table}.{column}")
    assert without == []


@pytest.mark.parametrize("letter", ["b", "a"])
def test_the_examples_reach_what_they_name(world: World, letter: str) -> None:
    """The other half of the oracle: to the tenant's own admin the same questions are answered, so a 404 elsewhere says something.

    Runs last: it uses up what the sides hold."""
    side: Side = getattr(world, letter)
    wrong = []
    removed: set[str] = set()
    for route in routes(world.app):
        # Of the sessions one may end one's own alone, and then nothing more could be asked.
        if _is_platforms(world.app, route) or "/logout" in route.rule or "<session_id>" in route.rule:
            continue
        is_things = route.operation is not None and route.operation.auth == "device"
        answer = ask(side.device if is_things else side.admin, route, side.ids, next(_numbers))
        names = parameters(route.rule)
        if removes(route) and names and answer.status_code < 400:
            removed.add(OBJECTS[names[-1]])
        is_gone = removed.intersection(route.references)
        refused = {401, 404, 429} if route.references and not is_gone else {401}
        if answer.status_code in refused or answer.status_code >= 500:
            wrong.append((route.name, answer.status_code, answer.get_data(as_text=True)[:300]))
    assert not wrong, "\n".join(map(str, wrong))
