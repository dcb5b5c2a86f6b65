"""The data dir: held by one, private, and its choice of ports and folders."""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from iiot import config
from iiot.embedded import EmbeddedError, mqtt, plan, ports
from iiot.embedded.account import Account, service_dir
from iiot.embedded.console import Console
from iiot.embedded.datadir import DataDir
from iiot.embedded.process import start_ticks


def test_a_second_holder_is_told_the_first_ones_pid(tmp_path: Path) -> None:
    first = DataDir(tmp_path / "data")
    first.open()
    with pytest.raises(EmbeddedError, match=str(os.getpid())):
        DataDir(tmp_path / "data").open()
    first.close()
    again = DataDir(tmp_path / "data")
    again.open()
    again.close()


def test_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.open()
    key = data.secret_key()
    assert len(key) >= config.MIN_SECRET
    assert data.secret_key() == key
    assert stat.S_IMODE((tmp_path / "data" / "secrets").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "data" / "secrets" / "secret_key").stat().st_mode) == 0o600
    data.close()


def test_leftovers_are_ended_and_strangers_are_not(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.open()
    with (
        subprocess.Popen(["sleep", "60"], start_new_session=True) as ours,
        subprocess.Popen(["sleep", "60"]) as reused,
    ):
        data.record({"ours": (ours.pid, start_ticks(ours.pid)), "reused": (reused.pid, 1)})
        assert data.end_leftovers(seconds=1) == ["ours"]
        assert ours.wait(5) == -9
        assert reused.poll() is None
        reused.kill()
    data.close()


def test_processes_of_another_boot_are_not_touched(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.open()
    mine = {"mine": {"pid": os.getpid(), "start": start_ticks(os.getpid())}}
    (tmp_path / "data" / "processes.json").write_text(json.dumps({"boot": "another", "processes": mine}))
    assert data.end_leftovers() == []
    data.close()


def test_a_taken_default_port_is_replaced_and_a_chosen_one_is_not() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert not ports.is_free("127.0.0.1", taken)
        assert ports.choose("127.0.0.1", taken) != taken
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    assert ports.choose("127.0.0.1", free, {free}) != free
    assert ports.choose("127.0.0.1", free) == free
    # Its server does not listen yet: whoever asks now, here or in another process, gets another one.
    assert ports.choose("127.0.0.1", free) != free
    code = f"from iiot.embedded import ports; print(ports.choose('127.0.0.1', {free}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(other.stdout) != free


def test_no_port_is_chosen_twice_before_its_server_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "LOWEST", 31_900)
    monkeypatch.setattr(ports, "HIGHEST", 31_999)
    mine = [ports.free_port() for _ in range(30)]
    code = "from iiot.embedded import ports; ports.LOWEST, ports.HIGHEST = 31_900, 31_999\n"
    code += "print(*(ports.free_port() for _ in range(30)))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    chosen = mine + [int(port) for port in other.stdout.split()]
    assert len(set(chosen)) == 60
    for _ in range(2 * ports.HELD):
        ports.free_port()
    assert len(ports._held) == ports.HELD


def test_a_port_that_was_asked_for_and_is_taken_stops_the_start(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        settings = config.read(
            _env_file=None, data_dir=tmp_path, http_bind=f"127.0.0.1:{holder.getsockname()[1]}", mqtt_bind="127.0.0.1:0"
        )
        with pytest.raises(EmbeddedError, match="IIOT_HTTP_BIND"):
            plan.make(settings, DataDir(tmp_path), Console(color=False), dict, {})


def test_outside_services_are_used_and_not_started(tmp_path: Path) -> None:
    settings = config.read(
        _env_file=None,
        data_dir=tmp_path,
        http_bind="127.0.0.1:0",
        coap_bind="127.0.0.1:0",
        opcua_bind="127.0.0.1:0",
        metrics_bind="127.0.0.1:0",
        secret_key="k" * 40,
        database_url="postgresql://someone@db.example/iiot",
        redis_url="redis://cache.example",
        mqtt_url="mqtt://adapter:secret@broker.example",
        amqp_url="amqp://adapter:secret@queue.example",
    )
    made = plan.make(settings, DataDir(tmp_path), Console(color=False), dict, {})
    assert (made.postgres, made.valkey, made.broker) == (None, None, None)
    assert set(made.values) == {"http_bind", "coap_bind", "opcua_bind", "metrics_bind"}
    assert made.has_amqp
    assert not plan.make(
        settings.model_copy(update={"amqp_url": "off"}), DataDir(tmp_path), Console(False), dict, {}
    ).has_amqp


def test_the_databases_stay_in_a_data_dir_that_their_user_reaches(tmp_path: Path) -> None:
    assert service_dir(tmp_path, Account()) == tmp_path
    assert not (tmp_path / "service_dir").exists()


def test_a_remembered_folder_that_is_gone_is_an_error_not_an_empty_database(tmp_path: Path) -> None:
    (tmp_path / "service_dir").write_text(str(tmp_path / "gone"))
    with pytest.raises(EmbeddedError, match="Restore that folder"):
        service_dir(tmp_path, Account())


def test_a_server_on_all_interfaces_is_reached_on_loopback() -> None:
    assert mqtt.reachable("0.0.0.0") == "127.0.0.1"
    assert mqtt.reachable("192.0.2.7") == "192.0.2.7"


def test_nobody_answers_as_a_broker_on_a_closed_port() -> None:
    assert not mqtt.answers("127.0.0.1", ports.free_port())


def test_service_passwords_are_random_and_kept(tmp_path: Path) -> None:
    users = mqtt.ServiceUsers(tmp_path)
    passwords = users.passwords()
    assert set(passwords) == {mqtt.ADAPTER, mqtt.ADMIN}
    assert len(set(passwords.values())) == 2
    assert mqtt.ServiceUsers(tmp_path).passwords() == passwords
