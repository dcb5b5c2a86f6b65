"""The audit trail as somebody who wants to change it would try: as a role of the portal, as the owner, and as a superuser."""

import json
import threading
from pathlib import Path

import psycopg2
import pytest
from click.testing import CliRunner
from psycopg2 import errors

from iiot import auth, tenancy
from iiot.cli import cli
from iiot.config import Settings
from iiot.models import PLATFORM
from iiot.services import audit, chain
from tests import factories

pytestmark = pytest.mark.usefixtures("module_settings")
STRANGE = {
    "text": 'quotes " \\ / \b\f\n\r\t \x01\x7f é 漢字 🙂',
    "numbers": [0, -1.5, 1e300, 1e-7, 10**30, True, None],
    "": {},
    "b": {},
}


def write(tenant: factories.TenantRow, count: int = 1, **after: object) -> None:
    for number in range(count):
        with tenancy.work(tenancy.of(tenant)) as db:
            audit.record(
                db, "test.write", ("test", str(number)), before={"n": number}, after=after or {"n": number + 1}
            )


def faults(tenant: factories.TenantRow | None = None) -> list[tuple[int, str]]:
    """(seq, kind) of what verify names in the tenant's chain."""
    with tenancy.work(tenancy.system("operator")) as db:
        found = chain.verify(db, chain=tenant.tenant_id if tenant else None)
    return [(each.seq, each.kind) for each in found.faults]


@pytest.fixture
def tenant(module_settings: Settings) -> factories.TenantRow:
    """A tenant with five entries."""
    made = factories.make_tenant()
    write(made, 5)
    return made


def tamper(statement: str, *values: object) -> None:
    """As a superuser who switches the triggers off."""
    connection = factories.connect(autocommit=False)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET session_replication_role = replica")
            cursor.execute(statement, values)
            assert cursor.rowcount > 0
        connection.commit()
    finally:
        connection.close()


def test_a_whole_chain_verifies_whatever_it_holds(tenant: factories.TenantRow) -> None:
    """The hash computed in Python is the one that PostgreSQL computed, for every kind of JSON and with other settings of the writer."""
    write(tenant, 1, **STRANGE)
    with tenancy.work(tenancy.of(tenant)) as db:
        db.execute(tenancy.sql("SET LOCAL timezone = 'Asia/Kathmandu'"))
        db.execute(tenancy.sql("SET LOCAL datestyle = 'German, DMY'"))
        audit.record(db, "test.nothing")
    assert faults(tenant) == []


def test_nobody_numbers_dates_or_chains_an_entry(tenant: factories.TenantRow) -> None:
    rows = factories.rows(
        "SELECT seq, previous_hash, hash, at > now() - interval '1 minute' FROM iiot.audit WHERE tenant_id = %s ORDER BY seq",
        tenant.tenant_id,
    )
    assert [seq for seq, *_ in rows] == [1, 2, 3, 4, 5]
    assert all(recent for *_, recent in rows)
    assert [bytes(previous) for _, previous, *_ in rows] == [
        chain.START,
        *[bytes(hashed) for _, _, hashed, _ in rows[:-1]],
    ]


@pytest.mark.parametrize("role", ["app", "auth", "stream", "ingest"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE iiot.audit SET action = 'x'",
        "DELETE FROM iiot.audit",
        "TRUNCATE iiot.audit",
        "UPDATE iiot.audit_head SET seq = 0",
        "DELETE FROM iiot.audit_head",
        "ALTER TABLE iiot.audit DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "SELECT iiot.chain_audit()",
    ],
)
def test_the_portals_roles_can_only_append(tenant: factories.TenantRow, role: str, statement: str) -> None:
    connection = factories.connect(role)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('app.tenant_id', %s, false)", (str(tenant.tenant_id),))
            with pytest.raises(errors.InsufficientPrivilege):
                cursor.execute(statement)
    finally:
        connection.close()


@pytest.mark.parametrize(
    "statement", ["UPDATE iiot.audit SET action = 'x'", "DELETE FROM iiot.audit", "TRUNCATE iiot.audit"]
)
def test_even_a_superuser_meets_the_triggers(tenant: factories.TenantRow, statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege, match="append-only"):
        factories.rows(statement)


def test_an_entry_cannot_be_written_for_another_tenant(tenant: factories.TenantRow) -> None:
    other = factories.make_tenant()
    connection = factories.connect("app", autocommit=False)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('app.tenant_id', %s, true)", (str(tenant.tenant_id),))
            with pytest.raises(errors.InsufficientPrivilege):
                cursor.execute(
                    "INSERT INTO iiot.audit (tenant_id, actor_kind, actor_uid, actor_label, address, user_agent, request_id, action, object_kind, "
                    "object_uid) VALUES (%s, 'user', '', '', '', '', '', 'x', '', '')",
                    (other.tenant_id,),
                )
    finally:
        connection.close()


COLUMNS = {
    "at": "at + interval '1 microsecond'",
    "actor_kind": "'service'",
    "actor_uid": "'somebody'",
    "actor_label": "'somebody else'",
    "address": "'192.0.2.1'",
    "user_agent": "'curl'",
    "request_id": "'r'",
    "action": "'test.other'",
    "object_kind": "'device'",
    "object_uid": "'x'",
    "before": "'{\"n\": 7}'",
    "after": "NULL",
    "previous_hash": "sha256('x')",
    "hash": "sha256('x')",
}


def test_every_column_of_an_entry_is_part_of_its_hash() -> None:
    found = factories.rows(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'iiot' AND table_name = 'audit'"
    )
    assert {name for (name,) in found} == {"tenant_id", "seq", *COLUMNS}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_changed_column_is_named(tenant: factories.TenantRow, column: str) -> None:
    statement = f"UPDATE iiot.audit SET {column} = {COLUMNS[column]} WHERE tenant_id = %s AND seq = 3"
    tamper(statement, tenant.tenant_id)
    assert (3, "content") in faults(tenant)
    assert {seq for seq, _ in faults(tenant)} == {3}


def test_an_entry_that_was_changed_with_its_hash_is_named(tenant: factories.TenantRow) -> None:
    tamper("UPDATE iiot.audit SET action = 'test.other' WHERE tenant_id = %s AND seq = 3", tenant.tenant_id)
    tamper("UPDATE iiot.audit a SET hash = iiot.audit_digest(a) WHERE tenant_id = %s AND seq = 3", tenant.tenant_id)
    assert faults(tenant) == [(3, "replaced")]


def test_a_changed_newest_entry_with_its_hash_is_named(tenant: factories.TenantRow) -> None:
    tamper("UPDATE iiot.audit SET action = 'test.other' WHERE tenant_id = %s AND seq = 5", tenant.tenant_id)
    tamper("UPDATE iiot.audit a SET hash = iiot.audit_digest(a) WHERE tenant_id = %s AND seq = 5", tenant.tenant_id)
    assert faults(tenant) == [(5, "replaced")]


def test_removed_entries_are_named(tenant: factories.TenantRow) -> None:
    tamper("DELETE FROM iiot.audit WHERE tenant_id = %s AND seq IN (2, 3)", tenant.tenant_id)
    assert faults(tenant) == [(2, "missing")]


def test_a_removed_beginning_is_named(tenant: factories.TenantRow) -> None:
    tamper("DELETE FROM iiot.audit WHERE tenant_id = %s AND seq = 1", tenant.tenant_id)
    assert faults(tenant) == [(1, "missing")]


def test_a_cut_off_end_is_named(tenant: factories.TenantRow) -> None:
    tamper("DELETE FROM iiot.audit WHERE tenant_id = %s AND seq > 3", tenant.tenant_id)
    assert faults(tenant) == [(4, "end")]


def test_an_emptied_chain_is_named(tenant: factories.TenantRow) -> None:
    tamper("DELETE FROM iiot.audit WHERE tenant_id = %s", tenant.tenant_id)
    assert faults(tenant) == [(1, "end")]


def test_an_entry_behind_the_head_is_named(tenant: factories.TenantRow) -> None:
    tamper("UPDATE iiot.audit_head SET seq = 4 WHERE tenant_id = %s", tenant.tenant_id)
    assert faults(tenant) == [(5, "extra")]


def test_a_removed_head_is_named(tenant: factories.TenantRow) -> None:
    tamper("DELETE FROM iiot.audit_head WHERE tenant_id = %s", tenant.tenant_id)
    assert faults(tenant) == [(1, "extra")]


def test_two_entries_that_changed_places_are_named(tenant: factories.TenantRow) -> None:
    for old, new in ((2, 99), (4, 2), (99, 4)):
        tamper("UPDATE iiot.audit SET seq = %s WHERE tenant_id = %s AND seq = %s", new, tenant.tenant_id, old)
    assert faults(tenant) == [(2, "content"), (4, "content")]


def test_an_entry_moved_to_another_tenant_is_named(tenant: factories.TenantRow) -> None:
    other = factories.make_tenant()
    write(other, 5)
    tamper("DELETE FROM iiot.audit WHERE tenant_id = %s AND seq = 3", other.tenant_id)
    tamper("UPDATE iiot.audit SET tenant_id = %s WHERE tenant_id = %s AND seq = 3", other.tenant_id, tenant.tenant_id)
    assert faults(tenant) == [(3, "missing")]
    assert faults(other)[0] == (3, "content")


def test_twenty_writers_make_one_gapless_chain_and_wait_for_the_commit_alone() -> None:
    """The head is locked last in each transaction, so writers that hold other locks in any order cannot wait for each other in a circle."""
    tenant = factories.make_tenant()
    devices = [factories.make_device(tenant) for _ in range(2)]
    failed: list[BaseException] = []
    start = threading.Barrier(20)

    def work(number: int) -> None:
        try:
            start.wait()
            for turn in range(10):
                with tenancy.work(tenancy.of(tenant)) as db:
                    # An entry is asked for before the rows are locked, and written after all of them.
                    audit.record(db, "test.race", ("test", f"{number}-{turn}"))
                    statement = "UPDATE iiot.device SET name = :name WHERE id = :id"
                    db.execute(tenancy.sql(statement), {"name": f"{number}-{turn}", "id": devices[0].device_id})
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    rows = factories.rows(
        "SELECT array_agg(seq ORDER BY seq), count(DISTINCT object_uid) FROM iiot.audit WHERE tenant_id = %s",
        tenant.tenant_id,
    )
    assert rows == [(list(range(1, 201)), 200)]
    assert faults(tenant) == []


def test_an_entry_is_not_waited_for_before_the_commit(tenant: factories.TenantRow) -> None:
    with tenancy.work(tenancy.of(tenant)) as slow:
        audit.record(slow, "test.slow")
        write(tenant)
    actions = factories.rows(
        "SELECT action FROM iiot.audit WHERE tenant_id = %s AND seq > 5 ORDER BY seq", tenant.tenant_id
    )
    assert actions == [("test.write",), ("test.slow",)]


def test_what_is_rolled_back_leaves_no_entry_and_no_gap(tenant: factories.TenantRow) -> None:
    with pytest.raises(ZeroDivisionError):
        _fail(tenant)
    write(tenant)
    assert factories.rows("SELECT max(seq), count(*) FROM iiot.audit WHERE tenant_id = %s", tenant.tenant_id) == [
        (6, 6)
    ]


def _fail(tenant: factories.TenantRow) -> None:
    with tenancy.work(tenancy.of(tenant)) as db:
        audit.record(db, "test.never")
        raise ZeroDivisionError


def test_secrets_are_never_written_and_strange_values_always_are(tenant: factories.TenantRow) -> None:
    after = {
        "password": "p", "new_token": "t", "key_hash": "h", "inner": {"secret": "s", "nul\x00": "a\x00b"}, "half": "\ud800",
        "nan": float("nan"), "set": {"b", "a"}, "long": "x" * 5_000, "many": list(range(500)),
    }  # fmt: skip
    with tenancy.work(tenancy.of(tenant)) as db:
        audit.record(db, "test.strange", ("test", "x\x00"), after=after)
    ((written,),) = factories.rows("SELECT after FROM iiot.audit WHERE tenant_id = %s AND seq = 6", tenant.tenant_id)
    assert written == {
        "password": "•••", "new_token": "•••", "key_hash": "•••", "inner": {"secret": "•••", "nul": "ab"}, "half": "?", "nan": "nan",
        "set": ["a", "b"], "long": "x" * 2_000, "many": list(range(100)),
    }  # fmt: skip
    assert faults(tenant) == []


def test_whose_chain_an_entry_belongs_to(tenant: factories.TenantRow) -> None:
    member = auth.Principal("user", tenant.tenant_id, tenant.uid, user_uid="m", label="member@example.com")
    stranger = auth.Principal("user", None, None, user_uid="s", label="stranger@example.com")
    cases = [
        (tenancy.of(tenant), stranger, tenant.tenant_id),
        (tenancy.system("sign-in"), member, tenant.tenant_id),
        (tenancy.system("sign-in"), stranger, PLATFORM),
        (tenancy.system("sign-in"), None, PLATFORM),
        (tenancy.system("platform"), member, PLATFORM),
        (tenancy.system("platform", tenant.tenant_id), stranger, tenant.tenant_id),
        (tenancy.system("operator"), None, PLATFORM),
        (tenancy.system("stream", tenant.tenant_id), None, tenant.tenant_id),
    ]
    for number, (scope, actor, _) in enumerate(cases):
        with tenancy.work(scope) as db:
            audit.record(db, "test.whose", ("case", f"{tenant.uid}{number}"), actor=actor)
    found = factories.rows("SELECT object_uid, tenant_id FROM iiot.audit WHERE object_uid LIKE %s", tenant.uid + "%")
    assert dict(found) == {f"{tenant.uid}{number}": owner for number, (*_, owner) in enumerate(cases)}


# --- python -m iiot audit ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(settings: Settings) -> factories.TenantRow:
    """A tenant with five entries in a database of its own."""
    tenant = factories.make_tenant()
    write(tenant, 5)
    return tenant


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(cli, ["audit", *arguments])
    assert result.exit_code == status, result.output
    return result.stdout


def test_the_command_says_that_all_is_well(alone: factories.TenantRow) -> None:
    assert "5 entries in 1 chains: all as they were written." in run("verify")
    assert json.loads(run("verify", "--json"))["faults"] == []
    assert "5 entries" in run("verify", "--tenant", alone.name)


def test_the_command_names_what_was_changed(alone: factories.TenantRow) -> None:
    tamper(
        "UPDATE iiot.audit SET address = '' , actor_label = 'nobody' WHERE tenant_id = %s AND seq = 2", alone.tenant_id
    )
    ((slug,),) = factories.rows("SELECT slug FROM iiot.tenant WHERE id = %s", alone.tenant_id)
    named = json.loads(run("verify", "--json", status=1))["faults"]
    assert [(each["tenant"], each["seq"], each["fault"]) for each in named] == [(slug, 2, "content")]
    lines = run("verify", status=1).splitlines()
    assert lines[1].split()[:3] == [slug, "2", "content"]


def test_a_chain_that_was_made_anew_is_noticed_by_heads_kept_elsewhere(
    alone: factories.TenantRow, tmp_path: Path
) -> None:
    heads = tmp_path / "heads.json"
    run("verify", "--heads", str(heads))
    write(alone, 2)
    run("verify", "--heads", str(heads))
    _make_anew(alone)
    run("verify")
    kept = heads.read_text()
    named = json.loads(run("verify", "--heads", str(heads), "--json", status=1))["faults"]
    assert [(each["seq"], each["fault"]) for each in named] == [(7, "rewritten")]
    assert heads.read_text() == kept, "the good heads stay"
    heads.write_text("[]")
    run("verify", "--heads", str(heads), status=1)


def test_an_end_cut_off_together_with_the_head_is_noticed_by_heads_kept_elsewhere(
    alone: factories.TenantRow, tmp_path: Path
) -> None:
    heads = tmp_path / "heads.json"
    run("verify", "--heads", str(heads))
    tamper("DELETE FROM iiot.audit WHERE tenant_id = %s AND seq > 3", alone.tenant_id)
    tamper("UPDATE iiot.audit_head SET seq = 3, hash = (SELECT hash FROM iiot.audit WHERE seq = 3)")
    run("verify")
    named = json.loads(run("verify", "--heads", str(heads), "--json", status=1))["faults"]
    assert [(each["seq"], each["fault"]) for each in named] == [(4, "end")]
    tamper("DELETE FROM iiot.audit")
    tamper("DELETE FROM iiot.audit_head")
    named = json.loads(run("verify", "--heads", str(heads), "--json", status=1))["faults"]
    assert [(each["seq"], each["fault"]) for each in named] == [(1, "end")]


def _make_anew(tenant: factories.TenantRow) -> None:
    """What a superuser can do: another entry 1, and every hash after it computed again, the head's too."""
    tamper("UPDATE iiot.audit SET action = 'test.other' WHERE tenant_id = %s AND seq = 1", tenant.tenant_id)
    ((count,),) = factories.rows("SELECT count(*) FROM iiot.audit WHERE tenant_id = %s", tenant.tenant_id)
    for seq in range(1, count + 1):
        if seq > 1:
            tamper(
                "UPDATE iiot.audit a SET previous_hash = b.hash FROM iiot.audit b WHERE a.tenant_id = %s AND b.tenant_id = a.tenant_id "
                "AND a.seq = %s AND b.seq = %s",
                tenant.tenant_id, seq, seq - 1,
            )  # fmt: skip
        tamper(
            "UPDATE iiot.audit a SET hash = iiot.audit_digest(a) WHERE tenant_id = %s AND seq = %s",
            tenant.tenant_id,
            seq,
        )
    tamper(
        "UPDATE iiot.audit_head h SET hash = a.hash FROM iiot.audit a WHERE a.tenant_id = h.tenant_id AND a.seq = h.seq AND h.tenant_id = %s",
        tenant.tenant_id,
    )


def test_the_command_lists_and_exports(alone: factories.TenantRow) -> None:
    assert [entry["seq"] for entry in json.loads(run("list", "--tenant", alone.name, "--json"))] == [5, 4, 3, 2, 1]
    assert "test.write" in run("list", "--tenant", alone.name, "--limit", "1")
    lines = run("export", "--tenant", alone.name, "--format", "jsonl").splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["audit.export", *["test.write"] * 5]
    assert run("export", "--tenant", alone.name).startswith("seq,at,actor_kind")
    assert run("list") == "No entry yet.\n"


def test_the_connection_of_a_stranger_reads_nothing(tenant: factories.TenantRow) -> None:
    connection = factories.connect("app")
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM iiot.audit")
            assert cursor.fetchone() == (0,)
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute("SELECT count(*) FROM iiot.audit_head")
    finally:
        connection.close()
