"""asyncua's command-line programs against the portal's server."""

import subprocess
from collections.abc import Iterator

import pytest

from iiot.config import Settings
from tests import factories
from tests.integration.opcua_clients import PASSWORD, Server, Side, pair, serving
from tests.services import eventually, foreign_program

pytestmark = pytest.mark.foreign("asyncua tools")


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[Server]:
    with serving(module_settings) as running:
        yield running


def _tool(server: Server, name: str, user: str, *arguments: str, password: str = PASSWORD) -> str:
    """What `uals` and the others print."""
    certificate, key = pair(server.folder)
    done = subprocess.run(
        [
            *foreign_program("asyncua_tools", name), "-u", server.url, "--user", user, "--password", password,
            "--security", f"Basic256Sha256,SignAndEncrypt,{certificate},{key}", "--timeout", "20", *arguments,
        ],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_the_tools_list_read_write_call_and_read_history(server: Server) -> None:
    side = Side(factories.make_tenant())
    device = side.device("boiler", temperature=21.5, setpoint=1.0)
    side.change(device, "setpoint", writable=True)
    user = side.user("engineer")
    assert "boiler" in _tool(server, "uals", user, "-n", "ns=2;s=Devices")
    signal = f"ns=2;s={device.uid}/temperature"
    eventually(lambda: "21.5" in _tool(server, "uaread", user, "-n", signal), 60)
    _tool(server, "uawrite", user, "-n", f"ns=2;s={device.uid}/setpoint", "-t", "double", "42.5")
    query = "SELECT params FROM iiot.command WHERE device_id = %s"
    assert factories.rows(query, device.device_id) == [({"setpoint": 42.5},)]
    called = _tool(server, "uacall", user, "-n", f"ns=2;s={device.uid}", "-m", "2:SetStatus", "-t", "string", "offline")
    assert factories.rows("SELECT status FROM iiot.device WHERE uid = %s", device.uid) == [("offline",)], called
    assert "21.5" in _tool(server, "uahistoryread", user, "-n", signal)


def test_a_wrong_password_reads_nothing(server: Server) -> None:
    side = Side(factories.make_tenant())
    device = side.device("boiler", temperature=21.5)
    said = _tool(server, "uaread", side.user("viewer"), "-n", f"ns=2;s={device.uid}/temperature", password="wrong")
    assert "BadUserAccessDenied" in said
    assert "21.5" not in said
