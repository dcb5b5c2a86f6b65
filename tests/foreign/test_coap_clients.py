"""CoAP with clients that nobody here wrote: libcoap's program, aiocoap's program with OSCORE, the npm package coap."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iiot.config import Settings
from iiot.portal import oscore as page
from tests import factories, services
from tests.foreign.coap_programs import program
from tests.integration.coap_devices import Device, Server, order, serving, states
from tests.integration.oscore_devices import issue
from tests.services import eventually, foreign_program

WAIT = 30
NPM = Path(__file__).parent / "npm_coap"


@pytest.fixture(scope="module")
def server(module_settings: Settings) -> Iterator[Server]:
    """One adapter for all clients."""
    with serving(module_settings) as (process, changed):
        yield Server(process, changed.coap_bind, factories.make_tenant())


@pytest.fixture
def pump(server: Server) -> Device:
    return server.device()


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of JSON that a program has printed."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


@pytest.mark.foreign("coap-client-notls")
def test_libcoap_observes_its_commands_and_answers(server: Server, pump: Device, folder: Path) -> None:
    client = shutil.which("coap-client-notls")
    if client is None:
        services.missing("coap-client-notls (apt-get install libcoap3-bin)")
    server.program("-m", "post", "-t", "json", "-e", '{"temperature": 19.25}', server.uri("telemetry", pump))
    assert pump.values == {19.25}
    assert pump.uid in server.program("-m", "get", server.uri("devices", pump))
    output = folder / "observed"
    with program([client, "-s", "60", "-B", "60", "-w", "-m", "get", server.uri("commands", pump)], output):
        eventually(lambda: "{}" in output.read_text(), WAIT)
        uid = order(pump, "set-speed", rpm=1500)
        eventually(lambda: uid in output.read_text(), WAIT)
        eventually(lambda: states(uid) == ["queued", "sent"], WAIT)
    server.program("-m", "post", "-t", "json", "-e", '{"status": "done"}', server.uri(f"commands/{uid}", pump))
    assert states(uid) == ["queued", "sent", "delivered", "done"]
    wrong = server.uri("telemetry", pump, token="wrong")
    assert "4.01" in server.program("-m", "post", "-t", "json", "-e", "{}", wrong)


@pytest.mark.foreign("aiocoap-client")
def test_aiocoaps_program_with_the_files_that_the_page_shows(server: Server, pump: Device, folder: Path) -> None:
    # Word for word what the page tells people to run.
    program_ = shlex.join(foreign_program("aiocoap_client", "aiocoap-client"))
    example = page.examples(issue(pump), server.bind)[0]
    text = example.text.replace("aiocoap-client --cred", f"{program_} --cred")
    done = subprocess.run(["sh", "-ec", text], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pump.values == {21.5}


@pytest.mark.foreign("aiocoap-client")
def test_aiocoaps_program_observes_under_oscore(server: Server, pump: Device, folder: Path) -> None:
    issued = issue(pump)
    (folder / "key").mkdir()
    (folder / "key" / "secret.json").write_text(json.dumps(issued.settings()))
    map_ = {f"coap://{server.bind}/*": {"oscore": {"basedir": f"{folder}/key/"}}}
    (folder / "credentials.json").write_text(json.dumps(map_))
    python, client = foreign_program("aiocoap_client", "aiocoap-client")
    argv = [
        python,
        "-u",
        client,
        "--credentials",
        str(folder / "credentials.json"),
        "--observe",
        server.uri("commands"),
    ]
    output = folder / "observed"
    with program(argv, output):
        eventually(lambda: "{}" in output.read_text(), WAIT)
        uid = order(pump)
        # Sent means that the program has acknowledged the notification; it prints the first answer alone under OSCORE.
        eventually(lambda: states(uid) == ["queued", "sent"], WAIT)


@pytest.mark.foreign("npm coap")
def test_the_npm_package_is_a_device(server: Server, pump: Device, folder: Path) -> None:
    node = shutil.which("node")
    if node is None:
        services.missing("node")
    if not (NPM / "node_modules" / "coap").exists():
        services.missing("the npm package coap (sh scripts/setup.sh --tests)")
    host, port = server.bind.rsplit(":", 1)
    output = folder / "said"
    with program([node, str(NPM / "device.js"), host, port, pump.uid, pump.token], output) as process:
        eventually(lambda: any(each["step"] == "device" for each in lines(output)), WAIT)
        uid = order(pump)
        eventually(lambda: process.poll() == 0, WAIT)
    said = {each["step"]: each for each in lines(output)}
    assert {step: each["code"] for step, each in said.items()} == {
        "telemetry": "2.04",
        "not confirmable": "2.04",
        "blocks": "2.04",
        "refused": "4.00",
        "device": "2.05",
        "command": "2.05",
        "answered": "2.04",
    }
    assert json.loads(said["device"]["payload"])["device"]["id"] == pump.uid
    assert states(uid) == ["queued", "sent", "delivered", "done"]
    assert {17.5, 2.5} <= pump.values
    assert pump.readings == 122
