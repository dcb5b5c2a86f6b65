"""`python -m iiot up`: the whole product in an empty data dir, killed and stopped in every way."""

import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from iiot import config
from iiot.embedded import ports
from iiot.embedded.process import start_ticks
from tests.services import ROOT, Stack, eventually, http_status, missing, run_iiot

pytestmark = pytest.mark.timeout(300)
CHILDREN = {"postgres", "valkey", "broker", "web", "mqtt", "stream", "coap", "opcua"}


@pytest.fixture
def fresh(folder: Path) -> Iterator[Stack]:
    """A stack of the test's own, not started."""
    stack = Stack(folder / "data with space")
    yield stack
    stack.stop()


def everything_of(data_dir: Path) -> list[str]:
    """Command lines of the processes that still work for a data dir: by their arguments or their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            hints = [*process.cmdline(), process.environ().get("IIOT_DATA_DIR", "")]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(data_dir) in hint for hint in hints):
            found.append(f"{process.pid} {' '.join(hints)[:120]}")
    return found


def query(stack: Stack, statement: str) -> Any:
    """Run a statement as the owner and return the first column of the first row, if there is one."""
    embedded = json.loads((stack.data_dir / "embedded.json").read_text())
    connection = psycopg2.connect(embedded["database_url"])
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None
    finally:
        connection.close()


def test_it_gets_ready_and_says_where_everything_is(stack: Stack) -> None:
    run = stack.run
    assert http_status(f"{run['http']}/ready") == 200
    assert set(run) >= {"http", "mqtt", "coap", "amqp", "opcua", "admin", "pid"}
    assert run["pid"] == stack.pid
    assert run["admin"]["email"]
    assert len(run["admin"]["password"]) >= 20
    assert run["http"] in stack.console()
    assert run["admin"]["password"] in stack.console()
    with socket.create_connection((run["mqtt"]["host"], run["mqtt"]["port"]), timeout=5):
        pass
    assert set(stack.children()) == CHILDREN


def serves_strangers(mqtt: dict[str, Any], name: str) -> bool:
    """Whether a client without a certificate gets an answer there over TLS, from a broker that proves itself."""
    trusting = ssl.create_default_context(cafile=mqtt["ca_file"])
    with socket.create_connection((mqtt["host"], mqtt[name]), timeout=10) as plain:
        try:
            with trusting.wrap_socket(plain, server_hostname="localhost") as secured:
                secured.sendall(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x0a\x00\x04test")
                return bool(secured.recv(4))
        except OSError:
            return False


def test_the_broker_listens_over_tls_and_for_browsers(stack: Stack) -> None:
    mqtt = stack.run["mqtt"]
    assert serves_strangers(mqtt, "tls_port")
    assert not serves_strangers(mqtt, "cert_port")
    with socket.create_connection((mqtt["host"], mqtt["ws_port"]), timeout=10) as browser:
        browser.sendall(
            b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        )
        assert b" 101 " in browser.recv(4096)


def test_the_coap_adapter_answers(stack: Stack) -> None:
    coap = stack.run["coap"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(bytes([0x40, 0, 0, 1]), (coap["host"], coap["port"]))  # a ping: RFC 7252 section 4.3
        assert client.recv(16) == bytes([0x70, 0, 0, 1])


def test_the_opcua_server_answers(stack: Stack) -> None:
    assert stack.run["opcua"]["url"].endswith("/iiot")

    def said() -> str:
        with urllib.request.urlopen(f"{stack.run['http']}/ready", timeout=5) as answer:
            return str(json.load(answer)["optional"]["opcua"])

    # It is asked by a Hello, and answers with an Acknowledge.
    eventually(lambda: said() == "ok")


def test_amqp_is_off_where_it_is_told_to_be(stack: Stack) -> None:
    assert stack.run["amqp"] is None
    assert "amqp        off" in stack.console()


def test_files_with_secrets_are_private(stack: Stack) -> None:
    for name in (
        "run.json",
        "embedded.json",
        "secrets/secret_key",
        "secrets/postgres_password",
        "secrets/valkey_password",
    ):
        assert stat.S_IMODE((stack.data_dir / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE((stack.data_dir / "secrets").stat().st_mode) == 0o700


def test_the_one_time_password_is_nowhere_but_in_its_file(stack: Stack) -> None:
    password = stack.run["admin"]["password"]
    assert password not in str(query(stack, "SELECT string_agg(u::text, '') FROM iiot.user_account u"))
    assert all(password not in path.read_text(errors="replace") for path in (stack.data_dir / "logs").iterdir())


def test_no_server_runs_as_root(stack: Stack) -> None:
    for name in ("postgres", "valkey", "broker"):
        assert psutil.Process(stack.children()[name]).uids().real != 0 or os.geteuid() != 0, name


def test_the_metrics_of_all_processes_are_on_a_port_of_their_own(stack: Stack) -> None:
    with urllib.request.urlopen(stack.run["metrics"], timeout=10) as answer:
        text = answer.read().decode()
    assert "iiot_http_requests_total" in text
    assert http_status(f"{stack.run['http']}/metrics") == 404


def test_a_second_up_on_the_same_data_dir_names_the_holder(stack: Stack) -> None:
    second = run_iiot(["up", "--data-dir", str(stack.data_dir), "--no-color"], stack.environment)
    assert second.returncode == 1
    assert str(stack.pid) in second.stdout
    assert stack.ready()


def test_the_operators_tool_works_beside_it(stack: Stack) -> None:
    doctor = stack.command("doctor", "--json")
    assert doctor.returncode == 0, doctor.stdout
    assert all(row["ok"] for row in json.loads(doctor.stdout))
    tenants = json.loads(stack.command("tenant", "list", "--json").stdout)
    device = json.loads(stack.command("device", "create", "pump", "--tenant", tenants[0]["id"], "--json").stdout)
    assert set(device) == {"id", "name", "token"}
    listed = json.loads(stack.command("device", "list", "--tenant", tenants[0]["id"], "--json").stdout)
    assert device["id"] in [row["id"] for row in listed]
    assert stack.command("device", "disable", device["id"], "--tenant", tenants[0]["id"]).returncode == 0
    user = json.loads(stack.command("user", "create", "ann@example.com", "--tenant", tenants[0]["id"], "--json").stdout)
    reset = json.loads(stack.command("user", "reset-password", "ann@example.com", "--json").stdout)
    assert user["password"] != reset["password"]
    assert stack.command("db", "current").returncode == 0
    assert stack.command("db", "check").returncode == 0
    assert stack.command("config", "check").returncode == 0
    shown = stack.command("config", "show").stdout
    embedded = json.loads((stack.data_dir / "embedded.json").read_text())
    assert embedded["secret_key"] not in shown
    assert embedded["redis_url"] not in shown


def test_wrong_use_is_exit_status_2_and_failure_1(stack: Stack) -> None:
    assert stack.command("device", "list").returncode == 2
    assert stack.command("nonsense").returncode == 2
    failed = stack.command("device", "list", "--tenant", "nobody")
    assert (failed.returncode, "Traceback" in failed.stderr) == (1, False)


@pytest.mark.parametrize("name", sorted(CHILDREN))
def test_a_killed_process_comes_back_on_its_port(stack: Stack, name: str) -> None:
    before = stack.children()[name]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: stack.children().get(name, before) != before, 30)
    eventually(stack.ready, 30)
    eventually(lambda: "is back" in stack.console() or name in ("mqtt", "stream"), 30)


def test_restarts_are_counted(stack: Stack) -> None:
    before = stack.children()["stream"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: stack.children().get("stream", before) != before, 30)
    with urllib.request.urlopen(stack.run["metrics"], timeout=10) as answer:
        assert 'iiot_process_restarts_total{process="stream"}' in answer.read().decode()


def test_a_changed_first_password_leaves_the_files(stack: Stack) -> None:
    assert stack.run["admin"]["password"]
    query(stack, "UPDATE iiot.user_account SET must_change_password = false WHERE is_platform_admin")
    eventually(lambda: stack.run["admin"]["password"] is None, 20)
    assert not (stack.data_dir / "secrets" / "first_admin").exists()
    assert stack.run["admin"]["email"]


def test_the_reconciler_may_ask_for_a_fresh_broker(stack: Stack) -> None:
    before = stack.children()["broker"]
    (stack.data_dir / "mosquitto").mkdir(exist_ok=True)
    (stack.data_dir / "mosquitto" / "rebuild").touch()
    eventually(lambda: stack.children().get("broker", before) != before, 30)
    assert not (stack.data_dir / "mosquitto" / "rebuild").exists()
    eventually(stack.ready, 30)


def test_a_port_that_is_taken_during_the_start_is_named(fresh: Stack) -> None:
    address = "127.0.0.1", ports.free_port()
    fresh.environment["IIOT_HTTP_BIND"] = f"{address[0]}:{address[1]}"
    with socket.socket() as stranger, ThreadPoolExecutor(1) as beside:

        def take() -> None:
            eventually(lambda: "postgres    PostgreSQL" in fresh.console(), 60)
            stranger.bind(address)
            stranger.listen()

        taken = beside.submit(take)
        with pytest.raises(pytest.fail.Exception, match="IIOT_HTTP_BIND was taken by another program"):
            fresh.start()
        taken.result()
    assert not (fresh.data_dir / "run.json").exists()


def test_with_amqtt_a_reading_is_stored(fresh: Stack) -> None:
    """On this machine because it is asked for; elsewhere because Mosquitto is missing."""
    program = shutil.which("mosquitto_pub") or missing("mosquitto_pub (apt-get install mosquitto-clients)")
    fresh.environment["IIOT_MQTT_BROKER"] = "amqtt"
    mqtt = fresh.start()["mqtt"]
    assert "amqtt on" in fresh.console()
    tenants = json.loads(fresh.command("tenant", "list", "--json").stdout)
    device = json.loads(fresh.command("device", "create", "pump", "--tenant", tenants[0]["id"], "--json").stdout)
    login = ["-V", "mqttv311", "-i", device["id"], "-u", device["id"], "-P", device["token"]]
    topic = ["-q", "1", "-t", f"iiot/{device['id']}/up/telemetry", "-m", '{"a": 1}']
    where = ["-h", mqtt["host"], "-p", str(mqtt["port"])]
    subprocess.run([program, *where, *login, *topic], check=True, timeout=30)
    eventually(lambda: query(fresh, "SELECT count(*) FROM iiot.telemetry") == 1, 30)


def test_killed_and_stopped_in_every_way_it_leaves_nothing_and_finds_everything(fresh: Stack) -> None:
    default = config.split_bind(config.Settings.model_fields["http_bind"].default)[1]
    with socket.socket() as holder:
        if ports.is_free("127.0.0.1", default):
            holder.bind(("127.0.0.1", default))
            holder.listen()
        del fresh.environment["IIOT_HTTP_BIND"]
        run = fresh.start()
        # The address of a default that is taken is replaced, and said.
        assert not run["http"].endswith(f":{default}")
        assert f"port {default} is taken" in fresh.console()
    password = run["admin"]["password"]
    query(fresh, "CREATE TABLE kept (n int)")
    query(fresh, "INSERT INTO kept VALUES (1)")

    fresh.kill()
    eventually(lambda: everything_of(fresh.data_dir) == [], 15)
    fresh.start()
    assert query(fresh, "SELECT n FROM kept") == 1

    query(fresh, "UPDATE kept SET n = 2")
    children = fresh.children()
    fresh.kill()
    for pid in children.values():
        if start_ticks(pid) is not None:
            os.kill(pid, signal.SIGKILL)
    fresh.start()
    assert query(fresh, "SELECT n FROM kept") == 2

    query(fresh, "UPDATE kept SET n = 3")
    assert fresh.stop(10) == 0
    assert everything_of(fresh.data_dir) == []
    assert not (fresh.data_dir / "run.json").exists()
    fresh.start()
    assert query(fresh, "SELECT n FROM kept") == 3
    assert fresh.run["admin"]["password"] == password


def test_ctrl_c_while_it_starts_stops_it(fresh: Stack) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "iiot", "up", "--data-dir", str(fresh.data_dir), "--no-color"],
        cwd=ROOT,
        env=fresh.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert any("postgres" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        process.wait(10)
    assert everything_of(fresh.data_dir) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root meets folders that the servers' user cannot enter")
def test_root_with_a_closed_data_dir_opens_nobodys_folders(folder: Path) -> None:
    closed = folder / "home of root"
    closed.mkdir(mode=0o700)
    stack = Stack(closed / "data")
    try:
        stack.start()
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        elsewhere = Path((stack.data_dir / "service_dir").read_text().strip())
        assert (elsewhere / "postgres" / "PG_VERSION").exists()
        assert str(elsewhere) in stack.console()
        assert stack.stop() == 0
        stack.start()
    finally:
        stack.stop()
        note = stack.data_dir / "service_dir"
        if note.exists():
            subprocess.run(["rm", "-rf", "--", note.read_text().strip()], check=True)
