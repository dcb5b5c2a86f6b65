"""`python -m iiot up`: the whole portal on one machine, started in the order in which its parts need each other."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2

from iiot import config
from iiot.embedded import EmbeddedError, plan
from iiot.embedded.console import Console
from iiot.embedded.datadir import DataDir
from iiot.embedded.mqtt import ROOT, Mosquitto, reachable
from iiot.embedded.ports import is_free
from iiot.embedded.supervisor import Interrupted, Slot, Supervisor

REBUILD_SECONDS = 60.0
READY_SECONDS = 60.0
ADMIN_SECONDS = 3.0
STAGE_DATABASE, STAGE_VALKEY, STAGE_BROKER, STAGE_PORTAL = range(4)


class Up:
    """One run of the stack."""

    def __init__(self, data_dir: Path, color: bool = True) -> None:
        self.console = Console(color)
        self.data = DataDir(data_dir.absolute())
        self.supervisor = Supervisor(self.console, self._record, self._count)
        self.plan: plan.Plan
        self._files: Mapping[str, str] | None = None
        self._broker: Slot | None = None
        self._rabbitmq: Slot | None = None
        self._rebuilt = 0.0
        self._asked_admin = 0.0
        self._admin: dict[str, str | None] = {}

    def run(self) -> int:
        """Run until a signal comes; the exit status."""
        os.umask(0o022)
        os.environ["IIOT_DATA_DIR"] = str(self.data.path)
        try:
            self.data.open()
        except (EmbeddedError, OSError) as error:
            self.console.fail("data", str(error))
            return 1
        status = 0
        self.supervisor.listen()
        try:
            self._start()
            self.supervisor.run(self._every_second)
        except Interrupted:
            pass
        except (EmbeddedError, config.SettingsError, OSError) as error:
            self.console.fail("up", str(error))
            status = 1
        finally:
            self._stop()
        return status

    def _start(self) -> None:
        for name in self.data.end_leftovers():
            self.console.warn(name, "was left by a run that was killed; it is gone now")
        self.data.remove("run.json")
        before = self.data.read_json("embedded.json")
        self.data.remove("embedded.json")
        self.plan = plan.make(config.read(), self.data, self.console, self._broker_files, before)
        self._serve_metrics()
        self._launch_rabbitmq()
        self._databases()
        self._prepare()
        self._start_broker()
        self._wait_for_rabbitmq()
        self._start_portal()
        self._announce()

    def _serve_metrics(self) -> None:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.data.metrics)
        from iiot import metrics

        metrics.serve(self.plan.values["metrics_bind"])

    def _databases(self) -> None:
        if postgres := self.plan.postgres:
            fresh = postgres.initialise()
            self.plan.values["database_url"] = postgres.url()
            self._save_values()
            slot = self.supervisor.launch("postgres", postgres.program, STAGE_DATABASE)
            self.supervisor.wait(slot)
            postgres.create_database()
            made = ", made for the first time" if fresh else ""
            self.console.step("postgres", f"PostgreSQL {postgres.major} on 127.0.0.1:{postgres.port}{made}")
        else:
            self._save_values()
        if valkey := self.plan.valkey:
            self.supervisor.wait(self.supervisor.launch("valkey", valkey.program, STAGE_VALKEY))
            self.console.step("valkey", f"on 127.0.0.1:{valkey.port}")

    def _save_values(self) -> None:
        """Before the children start: they, and the command line beside them, read their settings there."""
        values = {name: value for name, value in self.plan.values.items() if name != "service_port"}
        self.data.write_json("embedded.json", {name: value for name, value in values.items() if value is not None})

    def _prepare(self) -> None:
        result = self._task("prepare")
        self._files = result.get("broker")
        self._admin = self.data.first_admin() or {"email": result.get("admin"), "password": None}
        self.console.step("database", f"schema {result.get('revision')}, roles, first administrator")

    def _start_broker(self) -> None:
        broker = self.plan.broker
        if broker is None:
            return
        self._broker = self.supervisor.launch("broker", broker.program, STAGE_BROKER)
        self.supervisor.wait(self._broker)
        kind = "Mosquitto" if isinstance(broker, Mosquitto) else "amqtt"
        self.console.step("broker", f"{kind} on {broker.host}:{broker.port}")

    def _launch_rabbitmq(self) -> None:
        """First of all and without waiting, as it takes the longest."""
        if rabbitmq := self.plan.rabbitmq:
            self._rabbitmq = self.supervisor.launch("rabbitmq", rabbitmq.program, STAGE_BROKER)

    def _wait_for_rabbitmq(self) -> None:
        """Without it the portal runs all the same, and says so."""
        slot, rabbitmq = self._rabbitmq, self.plan.rabbitmq
        if slot is None or rabbitmq is None:
            return
        try:
            self.supervisor.wait(slot, attempts=2)
        except EmbeddedError as error:
            self.console.fail("rabbitmq", f"AMQP is off: {error}")
            self.supervisor.drop(slot)
            self.plan.without_amqp()
            self._save_values()
        else:
            self.console.step("rabbitmq", f"on {rabbitmq.host}:{rabbitmq.port}")

    def _start_portal(self) -> None:
        self._check_ports()
        configuration = str(ROOT / "config" / "gunicorn.conf.py")
        make, python = self.supervisor.launch, self.plan.python
        serves = partial(answers_ok, f"{self.plan.http}/health")
        web = partial(python, "web", ["gunicorn", "-c", configuration, "app_advanced:app"], serves)
        slots = [
            make("web", web, STAGE_PORTAL),
            make("mqtt", partial(python, "mqtt", ["protocols", "run", "mqtt"]), STAGE_PORTAL),
            make("stream", partial(python, "stream", ["iiot", "stream"]), STAGE_PORTAL),
        ]
        if "coap_bind" in self.plan.values:
            slots.append(make("coap", partial(python, "coap", ["protocols", "run", "coap"]), STAGE_PORTAL))
        if self.plan.has_amqp:
            slots.append(make("amqp", partial(python, "amqp", ["protocols", "run", "amqp"]), STAGE_PORTAL))
        listens = partial(is_open, *self.plan.bind("opcua_bind"))
        opcua = partial(python, "opcua", ["protocols", "run", "opcua"], listens)
        slots.append(make("opcua", opcua, STAGE_PORTAL))
        for slot in slots:
            self.supervisor.wait(slot)
            self.console.step(slot.name, self.plan.http if slot.name == "web" else "runs")
        self._wait_until_ready()

    def _check_ports(self) -> None:
        """Nobody has taken the portal's ports since they were chosen: else another server's answers would pass for ours."""
        for name in ("http_bind", "coap_bind", "opcua_bind"):
            if name in self.plan.values:
                host, port = self.plan.bind(name)
                if not is_free(host, port, socket.SOCK_DGRAM if name in plan.UDP else socket.SOCK_STREAM):
                    raise EmbeddedError(
                        f"Port {port} of {config.PREFIX}{name.upper()} was taken by another program. Start again."
                    )

    def _wait_until_ready(self) -> None:
        """/ready answers 200 when database, Redis and MQTT serve. Processes that die meanwhile are started again."""
        deadline = time.monotonic() + READY_SECONDS
        while not answers_ok(f"{self.plan.http}/ready"):
            if self.supervisor.stopping:
                raise Interrupted
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self.plan.http}/ready does not answer 200:\n{body(f'{self.plan.http}/ready')}")
            self.supervisor.watch()
            time.sleep(0.05)

    def _announce(self) -> None:
        self._write_run()
        say, strong = self.console.say, self.console.strong
        say()
        say(f"  The portal is ready after {self.console.elapsed:.1f} s:  {strong(self.plan.http)}")
        for scheme, name in (("mqtt", "mqtt_bind"), ("coap", "coap_bind"), ("amqp", "amqp_bind")):
            if address := self._address(name):
                say(f"  Devices send to {scheme}://{address['host']}:{address['port']}")
        say(f"  OPC UA clients connect to {self._opcua_url()}")
        if self._admin.get("password"):
            say(
                f"  Sign in as {strong(str(self._admin['email']))} with the one-time password {strong(str(self._admin['password']))}"
            )
        say("  Ctrl-C stops everything; nothing is lost.")
        say()

    def _write_run(self) -> None:
        content = {
            "http": self.plan.http,
            "mqtt": self._mqtt(),
            "coap": self._address("coap_bind"),
            "amqp": {"url": self.plan.rabbitmq.address} if self.plan.rabbitmq else None,
            "opcua": {"url": self._opcua_url()},
            "metrics": f"http://{self.plan.values['metrics_bind']}/metrics",
            "admin": {"email": self._admin.get("email"), "password": self._admin.get("password")},
            "pid": os.getpid(),
        }
        self.data.write_json("run.json", content)

    def _address(self, name: str) -> dict[str, Any] | None:
        """Where devices connect, None when the service is not ours."""
        if name not in self.plan.values:
            return None
        host, port = self.plan.bind(name)
        return {"host": reachable(host), "port": port}

    def _mqtt(self) -> dict[str, Any] | None:
        """Where devices reach the broker, and by which authority's certificate they know it over TLS."""
        address = self._address("mqtt_bind")
        if address is None:
            return None
        for name in ("tls", "cert", "ws"):
            other = self._address(f"mqtt_{name}_bind")
            address[f"{name}_port"] = other and other["port"]
        return address | {"ca_file": str(config.read().pki_folder.absolute() / "server-ca.crt")}

    def _opcua_url(self) -> str:
        address = self._address("opcua_bind") or {}
        host = str(address.get("host"))
        return (
            f"opc.tcp://[{host}]:{address.get('port')}/iiot"
            if ":" in host
            else f"opc.tcp://{host}:{address.get('port')}/iiot"
        )

    def _every_second(self) -> None:
        now = time.monotonic()
        if self._admin.get("password") and now - self._asked_admin > ADMIN_SECONDS:
            self._asked_admin = now
            if self._admin_changed():
                self.data.forget_first_admin()
                self._admin["password"] = None
                self._write_run()
        if self._broker and now - self._rebuilt > REBUILD_SECONDS and self.data.rebuild.exists():
            self._rebuilt = now
            self.data.rebuild.unlink(missing_ok=True)
            self.console.warn("broker", "is started anew with the devices of the database")
            self.supervisor.renew(self._broker)

    def _admin_changed(self) -> bool:
        """Whether the one-time password was replaced; False while the database does not answer."""
        try:
            connection = psycopg2.connect(
                config.read().database_url_for("owner").replace("+psycopg2", "", 1), connect_timeout=2
            )
        except (psycopg2.OperationalError, config.SettingsError):
            return False
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT must_change_password FROM iiot.user_account WHERE email = %s", (self._admin["email"],)
                )
                row = cursor.fetchone()
                return row is None or not row[0]
        except psycopg2.Error:
            return False
        finally:
            connection.close()

    def _broker_files(self) -> Mapping[str, str]:
        """What `prepare` has just made, else anew from the database."""
        files, self._files = self._files, None
        return files if files is not None else self._task("broker-files")

    def _task(self, name: str) -> dict[str, Any]:
        """Run a task of bootstrap.py in a process of its own; raises EmbeddedError with the end of what it said."""
        result = subprocess.run(
            [sys.executable, "-m", "iiot.embedded.bootstrap", name],
            cwd=ROOT,
            env=self.plan.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            start_new_session=True,
        )
        if result.returncode:
            raise EmbeddedError(f"{name} failed:\n" + "\n".join(result.stderr.splitlines()[-12:]))
        return dict(json.loads(result.stdout.splitlines()[-1]))

    def _record(self, slots: Sequence[Slot]) -> None:
        running = {slot.name: (slot.child.pid, slot.child.start_ticks) for slot in slots if slot.child is not None}
        self.data.record(running)

    def _count(self, slot: Slot, pid: int) -> None:
        from iiot import metrics
        from iiot.embedded import measures

        measures.restarts.labels(slot.name).inc()
        metrics.forget(pid)

    def _stop(self) -> None:
        began = time.monotonic()
        if self.supervisor.slots:
            self.console.say()
            self.console.say("  Stopping …")
        self.data.remove("run.json")
        self.supervisor.stop()
        self.data.close()
        self.console.say(f"  Stopped in {time.monotonic() - began:.1f} s.")


def is_open(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((reachable(host), port), 2).close()
    except OSError:
        return False
    return True


def status(url: str) -> int:
    """The status of a GET; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def answers_ok(url: str) -> bool:
    """Whether a GET is answered by 200."""
    return status(url) == 200


def body(url: str) -> str:
    """What a failing readiness check says; empty when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return bytes(answer.read(4096)).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return bytes(error.read(4096)).decode(errors="replace")
    except OSError as error:
        return str(error)
