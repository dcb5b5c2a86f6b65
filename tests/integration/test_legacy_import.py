"""Users of the portal's predecessor: nothing is lost, no bare hash is stored, and an import that was killed goes on."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from iiot import auth, config, tenancy
from iiot.commands.legacy import import_
from iiot.commands.user import user
from iiot.config import Settings
from iiot.errors import Unauthorized
from iiot.services import legacy, sign_in
from iiot.services.sessions import Client
from tests import factories
from tests.services import ROOT, environment, eventually


def sha256(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


@pytest.fixture(autouse=True)
def fresh(module_settings: Settings) -> Iterator[None]:
    """A database, and the key that belongs to it."""
    auth._key.cache_clear()
    yield
    factories.rows("DELETE FROM iiot.user_account")


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(import_, ["users", *arguments, "--json"])


def report(*arguments: str) -> dict[str, Any]:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def people(count: int) -> list[dict[str, str]]:
    return [
        {"email": f"old{number}@example.com", "name": f"Old {number}", "password_hash": sha256(f"secret {number}")}
        for number in range(count)
    ]


def everything() -> str:
    """Every value of every row that the import may have touched."""
    tables = ("user_account", "audit", "membership")
    return str([factories.rows(f"SELECT t::text FROM iiot.{table} t") for table in tables])


def test_people_sign_in_with_the_passwords_they_have_and_get_a_better_hash(tmp_path: Path) -> None:
    tenant = factories.make_tenant("Old works")
    file = write(tmp_path / "users.csv", people(3))
    done = report(str(file), "--tenant", "Old works", "--role", "operator")
    assert done == {"imported": 3, "already_there": 0, "rejected": 0, "rejects": None}
    stored = everything()
    assert not [row for row in people(3) if row["password_hash"] in stored]
    hashes = dict(factories.rows("SELECT email, password_hash FROM iiot.user_account"))
    assert all(each.startswith("v1w$$2b$12$") for each in hashes.values())
    opened = sign_in.sign_in("OLD1@example.com", "secret 1", Client())
    assert (opened.principal.tenant_id, opened.principal.role) == (tenant.tenant_id, "operator")
    hashes = dict(factories.rows("SELECT email, password_hash FROM iiot.user_account"))
    assert hashes["old1@example.com"].startswith("v2$$2b$12$")
    assert sign_in.sign_in("old1@example.com", "secret 1", Client())
    for wrong in ("secret 2", sha256("secret 0"), hashes["old0@example.com"]):
        with pytest.raises(Unauthorized):
            sign_in.sign_in("old0@example.com", wrong, Client())
    left = json.loads(CliRunner().invoke(user, ["legacy", "--json"]).stdout)
    assert [row["email"] for row in left] == ["old0@example.com", "old2@example.com"]
    for number in (0, 2):
        sign_in.sign_in(f"old{number}@example.com", f"secret {number}", Client())
    assert "Nobody is left" in CliRunner().invoke(user, ["legacy"]).stdout


def test_a_second_run_skips_who_is_there(tmp_path: Path) -> None:
    file = write(tmp_path / "users.csv", people(2))
    factories.make_user(None, email="OLD0@example.com")
    assert report(str(file))["imported"] == 1
    assert report(str(file)) == {"imported": 0, "already_there": 2, "rejected": 0, "rejects": None}
    assert factories.rows("SELECT password_hash FROM iiot.user_account WHERE email = 'OLD0@example.com'") == [("!",)]


def test_bad_rows_are_kept_as_they_came(tmp_path: Path) -> None:
    good = people(1)[0]
    bad = [
        good | {"email": "no address"},
        good | {"email": ""},
        good | {"email": "x@example.com", "password_hash": "abc"},
        good | {"email": "y@example.com", "password_hash": "$2b$12$already.bcrypt"},
        good | {"email": "z@example.com", "name": "two\nlines"},
        good,
    ]
    file, rejects = write(tmp_path / "users.csv", [good, *bad]), tmp_path / "rejects.csv"
    done = report(str(file), "--rejects", str(rejects))
    assert (done["imported"], done["rejected"], done["rejects"]) == (1, 6, str(rejects))
    assert rejects.stat().st_mode & 0o077 == 0
    with rejects.open(newline="") as kept:
        rows = list(csv.DictReader(kept))
    assert [{name: row[name] for name in good} for row in rows] == bad
    assert [row["row"] for row in rows] == ["2", "3", "4", "5", "6", "7"]
    assert all(row["reason"] for row in rows)
    # Mended, the file of rejects is itself a source.
    write(
        rejects,
        [
            row | {"email": f"mended{n}@example.com", "password_hash": sha256("x"), "name": ""}
            for n, row in enumerate(rows)
        ],
    )
    assert report(str(rejects))["imported"] == 6


def test_columns_may_have_other_names_and_a_user_name_may_be_the_address(tmp_path: Path) -> None:
    rows = [{"Username": "Eve@example.com", "SHA256": sha256("eve's secret").upper(), "Full_Name": "Eve"}]
    file = write(tmp_path / "users.csv", rows)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert report(str(file))["imported"] == 1
    assert sign_in.sign_in("eve@example.com", "eve's secret", Client())


def test_the_old_table(module_settings: Settings) -> None:
    factories.rows("CREATE SCHEMA old")
    factories.rows("CREATE TABLE old.users (id int, username text, email text, password text, created_at timestamptz)")
    factories.rows("INSERT INTO old.users VALUES (1, 'kay', 'kay@example.com', %s, now())", sha256("kay's secret"))
    factories.rows("INSERT INTO old.users VALUES (2, 'lee@example.com', NULL, %s, now())", sha256("lee's secret"))
    url = str(module_settings.database_url).replace("+psycopg2", "")
    try:
        assert report("--database-url", url, "--table", "old.users")["imported"] == 2
        assert sign_in.sign_in("lee@example.com", "lee's secret", Client())
        assert len(factories.rows("SELECT * FROM old.users")) == 2, "the old table stays as it is"
        missing = run("--database-url", url, "--table", "old.nothing")
        assert missing.exit_code == 1
        assert "cannot be read" in missing.output
    finally:
        factories.rows("DROP SCHEMA old CASCADE")
    nowhere = run("--database-url", "postgresql://x@127.0.0.1:1/x")
    assert nowhere.exit_code == 1
    assert "does not answer" in nowhere.output


def test_a_file_or_a_database_and_a_tenant_that_exists(tmp_path: Path) -> None:
    assert run().exit_code == 2
    file = write(tmp_path / "users.csv", people(1))
    assert run(str(file), "--database-url", "postgresql://x").exit_code == 2
    assert run(str(file), "--tenant", "no such tenant").exit_code == 1


def test_a_tenant_cannot_be_overfilled(tmp_path: Path) -> None:
    factories.make_tenant("Small works", users=3)
    file = write(tmp_path / "users.csv", people(4))
    refused = run(str(file), "--tenant", "Small works")
    assert refused.exit_code == 1
    assert "users" in str(refused.exception)
    assert not factories.rows("SELECT 1 FROM iiot.user_account")


def test_who_registers_meanwhile_is_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [legacy.Row(1, people(1)[0])]
    wrap = auth.wrap_legacy

    def slowly(text: str) -> str:
        factories.make_user(None, email="old0@example.com")
        return wrap(text)

    monkeypatch.setattr(auth, "wrap_legacy", slowly)
    done = legacy.import_users(rows, legacy.Target(), lambda _: None)
    assert (done.imported, done.present) == (0, 1)


def test_killed_in_the_middle_and_run_again(module_settings: Settings, tmp_path: Path) -> None:
    count = legacy.BATCH * 2
    file = write(tmp_path / "users.csv", people(count))
    command = [sys.executable, "-m", "iiot", "import", "users", str(file)]
    options: dict[str, Any] = {"cwd": ROOT, "env": environment(config.load()), "stdout": subprocess.DEVNULL}
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)

    def there() -> int:
        return int(factories.rows("SELECT count(*) FROM iiot.user_account")[0][0])

    try:
        eventually(lambda: there() >= legacy.BATCH, timeout=60)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    before = there()
    assert before % legacy.BATCH == 0
    assert before < count, "the kill came too late to prove anything"
    done = subprocess.run(
        [*command, "--json"], check=True, capture_output=True, text=True, cwd=ROOT, env=options["env"]
    )
    assert json.loads(done.stdout[done.stdout.index("{") :])["imported"] == count - before
    assert there() == count
    assert not [row for row in people(count) if row["password_hash"] in everything()]
    with tenancy.work(tenancy.system("operator")) as db:
        assert len(legacy.remaining(db)) == count
