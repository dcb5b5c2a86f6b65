"""`python -m iiot tenant …`: the operator's hand on tenants and quotas."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from iiot import cli
from iiot.commands import tenant as command
from iiot.config import Settings
from iiot.services import quotas
from tests import factories


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status, what it printed, and what it said was wrong; in this process, as each start takes a second."""
    done = CliRunner().invoke(cli.cli, ["tenant", *arguments])
    wrong = done.stderr
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        assert isinstance(done.exception, Exception)
        wrong += cli.explain(done.exception) or repr(done.exception)
    return done.exit_code, done.stdout, wrong


def ask(*arguments: str) -> Any:
    code, printed, wrong = run(*arguments, "--json")
    assert code == 0, wrong
    return json.loads(printed)


def test_the_options_are_the_quotas() -> None:
    assert command.LIMITS == quotas.NAMES


def test_a_tenant_is_made_suspended_restored_and_deleted(settings: Settings) -> None:
    made = ask("create", "Works", "--timezone", "Europe/Berlin")
    assert [row["status"] for row in ask("list")] == ["active"]
    suspended = ask("suspend", "works", "--reason", "abuse")
    assert (suspended["status"], suspended["reason"]) == ("suspended", "abuse")
    assert ask("restore", made["id"])["status"] == "active"
    assert run("delete", "Works")[0] == 1, "it asks, and nobody answers"
    deleting = ask("delete", "Works", "--yes")
    assert deleting["status"] == "deleting"
    assert deleting["delete_at"]
    assert ask("restore", "Works")["delete_at"] is None
    trail = factories.rows("SELECT action, actor_kind FROM iiot.audit WHERE object_uid = %s ORDER BY at", made["id"])
    assert [row[0] for row in trail] == [
        "tenant.create", "tenant.suspend", "tenant.activate", "tenant.delete", "tenant.restore",
    ]  # fmt: skip
    assert {row[1] for row in trail} == {"system"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("suspend", "Nobody", "--reason", "x"), 1, "There is no such tenant"),
        (("suspend", "Nobody"), 2, "--reason"),
        (("create", "x", "--timezone", "Moon"), 1, "timezone: not a time zone"),
        (("quota", "set", "Nobody"), 2, "at least one limit"),
        (("quota", "set", "Nobody", "--devices", "-1"), 2, "not in the range"),
    ],
)
def test_wrong_use_says_what_is_wrong(settings: Settings, arguments: tuple[str, ...], code: int, says: str) -> None:
    status, _, wrong = run(*arguments)
    assert (status, says in wrong) == (code, True), wrong


def test_quotas_are_shown_and_set(settings: Settings) -> None:
    tenant = factories.make_tenant()
    factories.make_device(tenant)
    changed = {row["quota"]: row for row in ask("quota", "set", tenant.uid, "--devices", "5")}
    assert changed["devices"] == {"quota": "devices", "limit": 5, "used": 1, "forecast": 2}
    assert tuple(row["quota"] for row in ask("quota", "show", tenant.name)) == quotas.NAMES
    assert "used" in run("quota", "show", tenant.name)[1]
