"""One door per concern, read from the source: what would be a second door to the database or to the console is found here."""

import ast
import functools

import pytest

from tests.architecture.source import PRODUCT, ROOT, called, python, tree

CODE = [*python(*PRODUCT), "app_advanced.py"]
# Who may open a connection past tenancy.work, and why.
CONNECTS = {
    "iiot/db.py": "makes the engines",
    "iiot/schema.py": "creates the database and reads its revision, before there are roles",
    "iiot/stream/loop.py": "one connection that listens for NOTIFY",
    "iiot/embedded/postgres.py": "the launcher asks whether the server takes connections, and creates the database",
    "iiot/embedded/up.py": "reads the first administrator's state before the stack is ready",
    "iiot/commands/legacy.py": "reads the old table of another system",
    "migrations/env.py": "alembic's own connection",
}
ENGINE_CALLS = {"create_engine", "raw_connection", "engine_from_config"}
AUTOCOMMITS = {
    "iiot/db.py": "OneTripConnection begins and ends the transaction itself; tenancy.work is the only one to open it",
    "iiot/schema.py": "CREATE DATABASE",
    "iiot/embedded/postgres.py": "CREATE DATABASE",
    "iiot/stream/loop.py": "LISTEN",
}
SETS_ROLE = {"migrations/env.py": "objects belong to iiot_owner, whoever migrates"}
MIGRATIONS = python("migrations")


@functools.cache
def _strings(name: str) -> list[str]:
    """String constants, docstrings left out; the parts of an f-string are among them."""
    docs = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docs.add(first.value)
    return [
        node.value
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs
    ]


def _is_database_connect(node: ast.Call) -> bool:
    if called(node) in ENGINE_CALLS:
        return True
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    name = getattr(owner, "id", getattr(owner, "attr", getattr(getattr(owner, "func", None), "attr", "")))
    return called(node) in ("connect", "begin") and name in ("engine", "psycopg2", "engines", "pool")


def test_only_named_modules_open_connections_past_the_door() -> None:
    found = {
        name
        for name in [*CODE, *MIGRATIONS]
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call) and _is_database_connect(node)
    }
    assert found == set(CONNECTS)


def test_the_engines_are_known_to_the_door_alone() -> None:
    importers = set()
    for name in CODE:
        for node in ast.walk(tree(name)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
            if "iiot.db" in modules:
                importers.add(name)
    allowed = {
        "iiot/tenancy.py": "the door",
        "iiot/stream/loop.py": "listens for NOTIFY",
        "iiot/services/health.py": "closes pools whose server is gone",
    }
    assert importers <= set(allowed)


def test_only_named_modules_leave_transactions() -> None:
    found = set()
    for name in [*CODE, *MIGRATIONS]:
        for node in ast.walk(tree(name)):
            attribute = (
                isinstance(node, ast.Attribute) and node.attr == "autocommit" and isinstance(node.ctx, ast.Store)
            )
            level = isinstance(node, ast.Constant) and node.value == "AUTOCOMMIT"
            call = isinstance(node, ast.Call) and called(node) in ("set_isolation_level", "set_session")
            if attribute or level or call:
                found.add(name)
    assert found == set(AUTOCOMMITS)


@pytest.mark.parametrize("name", [*CODE, *MIGRATIONS])
def test_nothing_outlives_the_transaction_on_a_pooled_connection(name: str) -> None:
    """A session-level setting would be seen by the next tenant that gets the connection from the pool."""
    for text in _strings(name):
        folded = " ".join(text.lower().split())
        assert ", false)" not in folded or "set_config" not in folded, (
            f"{name}: set_config must be local to the transaction"
        )
        if name not in SETS_ROLE:
            assert "set role" not in folded, f"{name}: SET ROLE"
            assert "set session" not in folded, f"{name}: SET SESSION"
        assert "app.tenant_id" not in folded or name in (
            "iiot/tenancy.py",
            "migrations/versions/0001_first_schema.py",
            "migrations/versions/0002_people_and_access.py",
        ), name


def test_nobody_switches_row_security_off() -> None:
    for name in [*CODE, *MIGRATIONS, *python("scripts", "bench", "demo")]:
        for text in _strings(name):
            folded = " ".join(text.lower().split())
            for words in ("disable row level", "no force row level", "row_security", "security_invoker = false"):
                assert words not in folded, f"{name}: {words}"
            if "bypassrls" in folded.replace("nobypassrls", ""):
                assert name == "migrations/roles.py", f"{name}: BYPASSRLS"


def test_scopes_are_minted_by_the_door_alone() -> None:
    for name in CODE:
        if name != "iiot/tenancy.py":
            assert "Scope" not in {called(node) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)}, name


def test_reasons_are_written_out_where_they_are_used() -> None:
    """So that a search finds every place where the portal acts without a tenant."""
    from iiot.tenancy import REASONS

    used = set()
    for name in [*CODE, *python("demo", "bench")]:
        for node in ast.walk(tree(name)):
            if (
                isinstance(node, ast.Call)
                and called(node) == "system"
                and getattr(getattr(node.func, "value", None), "id", "") == "tenancy"
            ):
                reason = node.args[0]
                assert isinstance(reason, ast.Constant), f"{name}:{node.lineno}"
                used.add(reason.value)
    assert used <= set(REASONS)


def test_only_one_module_writes_telemetry() -> None:
    writers = set()
    for name in CODE:
        for text in _strings(name):
            folded = " ".join(text.lower().split())
            if (
                "insert into iiot.telemetry" in folded
                or "update iiot.telemetry" in folded
                or "copy iiot.telemetry" in folded
            ):
                writers.add(name)
        for node in ast.walk(tree(name)):
            if (
                isinstance(node, ast.Call)
                and called(node) == "insert"
                and node.args
                and "telemetry" in ast.dump(node.args[0])
            ):
                writers.add(name)
    assert writers == {"iiot/services/ingest.py"}


def test_the_product_prints_nothing_but_in_its_commands() -> None:
    for name in CODE:
        if name.startswith(("iiot/commands/", "iiot/cli.py", "protocols/__main__.py")):
            continue
        prints = [
            node.lineno
            for node in ast.walk(tree(name))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        ]
        assert prints == [], name


def test_settings_are_read_when_they_are_needed_not_at_import() -> None:
    for name in CODE:
        for statement in tree(name).body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.If):
                continue
            for node in ast.walk(statement):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and getattr(node.func.value, "id", "") == "config"
                ):
                    assert node.func.attr not in ("load", "read"), f"{name}:{node.lineno}"


def test_environment_variables_of_the_portal_are_read_by_config_alone() -> None:
    allowed = {"iiot/config.py"}  # The supervisor and the commands hand variables on to the processes that they start.
    for name in CODE:
        if name in allowed or name.startswith(("iiot/embedded/", "iiot/commands/", "iiot/simulate/")):
            continue
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Subscript | ast.Call) and "environ" in ast.unparse(node)[:40]:
                names = [
                    part.value
                    for part in ast.walk(node)
                    if isinstance(part, ast.Constant) and str(part.value).startswith("IIOT_")
                ]
                assert names == [], f"{name}: {names}"


def test_no_file_swallows_everything_silently() -> None:
    for name in CODE:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.ExceptHandler):
                bare = node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
                assert not (bare and all(isinstance(part, ast.Pass) for part in node.body)), f"{name}:{node.lineno}"


def test_tests_do_not_sleep() -> None:
    for name in python("tests"):
        if name == "tests/services.py":
            continue
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep"):
                pytest.fail(f"{name}:{node.lineno} sleeps; wait for a condition with tests.services.eventually")


def test_the_root_is_the_repository() -> None:
    assert (ROOT / "app_advanced.py").exists()
    assert len(CODE) > 60
