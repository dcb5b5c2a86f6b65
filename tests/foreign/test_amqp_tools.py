"""amqp-publish, amqp-get and amqp-consume of Debian's amqp-tools (librabbitmq) against the portal."""

import json
import shutil
import subprocess

import pytest

from iiot import tenancy
from iiot.services import commands
from tests import factories, services
from tests.rabbit import Site
from tests.services import eventually

pytestmark = pytest.mark.foreign("amqp-tools")


def run(site: Site, user: str, token: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One of the programs, logged in as a device."""
    path = shutil.which(program)
    if path is None:
        services.missing(f"{program} (apt-get install amqp-tools)")
    where = ["--server", site.rabbit.host, "--port", str(site.rabbit.port), "--vhost", site.rabbit.vhost]
    login = ["--username", user, "--password", token]
    return subprocess.run([path, *where, *login, *arguments], capture_output=True, text=True, timeout=60, check=False)


def state(uid: str) -> str:
    """The state of a command."""
    return str(factories.rows("SELECT state FROM iiot.command WHERE uid = %s", uid)[0][0])


def test_publish_get_consume_and_answer(amqp_site: Site) -> None:
    pump = amqp_site.device()
    sent = ["-e", "iiot", "-r", f"telemetry.{pump.uid}", "-p", "-C", "application/json"]
    for number in range(3):
        done = run(amqp_site, pump.uid, pump.token, "amqp-publish", *sent, "-b", f'{{"temperature": {number}}}')
        assert done.returncode == 0, done.stderr
    eventually(lambda: pump.values == {0.0, 1.0, 2.0}, 30)

    query = "SELECT command_protocol FROM iiot.device WHERE id = %s"
    eventually(lambda: factories.rows(query, pump.device_id) == [("amqp",)], 30)
    for program, arguments in (("amqp-get", ()), ("amqp-consume", ("-c", "1", "cat"))):
        with tenancy.work(tenancy.of(pump.tenant)) as db:
            uid = commands.create(db, pump.uid, commands.NewCommand("restart", {"by": program}, 60)).uid
        eventually(lambda: amqp_site.rabbit.waiting(f"command.{pump.uid}") == 1, 30)
        got = run(amqp_site, pump.uid, pump.token, program, "-q", f"command.{pump.uid}", *arguments)
        assert got.returncode == 0, got.stderr
        command = json.loads(got.stdout)
        assert (command["id"], command["params"]) == (uid, {"by": program})
        answer = ["-e", "iiot", "-r", f"result.{pump.uid}", "-H", f"command-id: {uid}", "-b", '{"status": "done"}']
        assert run(amqp_site, pump.uid, pump.token, "amqp-publish", *answer).returncode == 0
        eventually(lambda uid=uid: state(uid) == "done", 30)  # type: ignore[misc]


def test_a_wrong_token_and_a_foreign_queue_are_refused(amqp_site: Site) -> None:
    pump, other = amqp_site.device(), amqp_site.device()
    sent = ["-e", "iiot", "-r", f"telemetry.{pump.uid}", "-b", "{}"]
    assert run(amqp_site, pump.uid, "wrong", "amqp-publish", *sent).returncode != 0
    for queue in ("telemetry", f"command.{other.uid}"):
        got = run(amqp_site, pump.uid, pump.token, "amqp-get", "-q", queue)
        assert got.returncode != 0
        assert "ACCESS_REFUSED" in got.stderr or "NOT_FOUND" in got.stderr or "403" in got.stderr, got.stderr
