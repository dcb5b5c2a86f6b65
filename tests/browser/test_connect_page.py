"""The Connect page: its commands work as they stand there, and the protocol that brought the first message turns green."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import PASSWORD, Account
from tests.services import eventually, foreign, foreign_program, missing, node

PROGRAMS = {"MQTT": "mosquitto_pub", "HTTP": "curl", "CoAP": "coap-client-notls", "AMQP": "amqp-publish"}
PACKAGES = {"MQTT": "mosquitto-clients", "HTTP": "curl", "CoAP": "libcoap3-bin", "AMQP": "amqp-tools"}


def card(page: Page, title: str) -> Locator:
    return page.get_by_role("region", name=title, exact=True)


def paste(text: str, folder: Path | None = None) -> str:
    """Run what was copied in a shell, as a person does; what it printed."""
    done = subprocess.run(["bash", "-c", text], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (text, done.stdout, done.stderr)
    return done.stdout


def shown(page: Page, title: str, label: str) -> str:
    """The text of a command on the page."""
    return card(page, title).get_by_label(label, exact=True).locator("code").inner_text()


def added(page: Page, name: str) -> str:
    """Add a device by hand; its uid. The address of its Connect page follows the page itself by a moment."""
    page.goto("/devices")
    page.get_by_role("button", name="Add device").first.click()
    page.get_by_label("Name").fill(name)
    page.get_by_role("dialog").get_by_role("button", name="Add device").click()
    expect(page.get_by_text("Waiting for the first message")).to_be_visible()
    page.wait_for_url("**/devices/*/connect")
    return page.url.split("/")[-2]


def test_the_commands_work_as_they_are_shown_and_turn_their_protocol_green(page: Page, account: Account) -> None:
    uid = added(page, "Pasted")
    page.locator("iiot-live[data-state=live]").wait_for(state="attached")
    for title, program in PROGRAMS.items():
        if title == "AMQP" and card(page, title).locator("pre").count() == 0:
            expect(card(page, title)).to_contain_text("protocols run amqp")
            continue
        if shutil.which(program) is None:
            missing(f"{program} (apt-get install {PACKAGES[title]})")
        arrived = card(page, title).locator("[data-protocol]")
        expect(arrived).to_be_hidden()
        paste(shown(page, title, title))
        expect(arrived).to_have_text(re.compile(r"Received \d\d:\d\d:\d\d"))
        expect(page.locator("[data-detail]")).to_contain_text(f"over {title} at")
    expect(page.get_by_text("Connected", exact=True)).to_be_visible()
    history = account.call("GET", f"/devices/{uid}/connections")["items"]
    assert (history[-1]["reason"], history[-1]["protocol"]) == ("telemetry", "mqtt")
    page.get_by_role("link", name="Connections").click()
    expect(page.locator(".feed li").last).to_contain_text("It sent readings")


def stored(account: Account, uid: str) -> int:
    """How many of the commands' readings the portal has."""
    try:
        return len(account.call("GET", f"/devices/{uid}/telemetry?keys=running")["running"])
    except HTTPError as error:
        if error.code != 404:
            raise
        # Before the first reading there is no such signal.
        return 0


def test_the_command_over_tls_brings_what_it_trusts(page: Page, account: Account, tmp_path: Path) -> None:
    uid = added(page, "Pasted over TLS")
    paste(shown(page, "MQTT", "MQTT over TLS"), tmp_path)
    eventually(lambda: stored(account, uid) == 1, 20, 0.5)


def test_the_command_over_websocket_works_as_it_is_shown(page: Page, account: Account, tmp_path: Path) -> None:
    uid = added(page, "Pasted over WebSocket")
    program = foreign("mqttjs") / "node_modules" / "mqtt" / "build" / "bin" / "mqtt.js"
    text = shown(page, "MQTT", "MQTT over WebSocket")
    paste(re.sub(r"^mqtt ", f"{shlex.quote(node())} {shlex.quote(str(program))} ", text), tmp_path)
    eventually(lambda: stored(account, uid) == 1, 20, 0.5)


def test_the_python_program_works_as_it_is_shown(page: Page, account: Account, tmp_path: Path) -> None:
    uid = added(page, "Pasted in Python")
    text = shown(page, "MQTT", "Python").replace("while True", "for _ in range(2)")
    subprocess.run([sys.executable, "-c", text], cwd=tmp_path, timeout=60, check=True)
    eventually(lambda: stored(account, uid) == 2, 20, 0.5)


def test_the_opc_ua_commands_work_as_they_are_shown(page: Page, account: Account, tmp_path: Path) -> None:
    device = account.add_device("Listed")
    account.send(device, {"temperature": 21.5})
    page.goto(f"/devices/{device['id']}/connect")
    paste(shown(page, "OPC UA", "A certificate, once"), tmp_path)
    text = shown(page, "OPC UA", "OPC UA").replace("YOUR_EMAIL", account.email).replace("YOUR_PASSWORD", PASSWORD)
    uals = shlex.join(foreign_program("asyncua_tools", "uals"))
    assert f"ns=2;s={device['id']}/temperature" in paste(re.sub("^uals", uals, text), tmp_path)


def test_protocols_that_do_not_run_say_how_to_turn_them_on(page: Page, account: Account) -> None:
    device = account.add_device("Unplugged")
    page.goto(f"/devices/{device['id']}/connect")
    for title in ("MQTT", "HTTP", "CoAP", "AMQP", "OPC UA"):
        shown = card(page, title)
        expect(shown).to_have_count(1)
        assert shown.locator("pre").count() or "protocols run" in shown.inner_text(), title


def test_a_device_that_cannot_connect_is_not_called_connected(page: Page, account: Account) -> None:
    device = account.add_device("Shut out")
    account.send(device, {"t": 1})
    eventually(lambda: account.call("GET", f"/devices/{device['id']}")["last_seen_at"], 30)
    connect = f"/devices/{device['id']}/connect"
    page.goto(connect)
    expect(page.get_by_text("Connected", exact=True)).to_be_visible()
    account.call("PATCH", f"/devices/{device['id']}", {"enabled": False})
    page.reload()
    expect(page.get_by_text("The device is disabled")).to_be_visible()
    expect(page.get_by_text("Connected", exact=True)).to_have_count(0)
    account.call("PATCH", f"/devices/{device['id']}", {"enabled": True})
    page.goto(f"/devices/{device['id']}/settings")
    page.get_by_role("button", name="Revoke token").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke token").click()
    expect(page.get_by_text("The token was revoked.")).to_be_visible()
    page.goto(connect)
    expect(page.get_by_text("The device cannot connect", exact=True)).to_be_visible()
    expect(page.get_by_text("It has no token")).to_be_visible()
    expect(page.get_by_text("Connected", exact=True)).to_have_count(0)


def test_the_history_of_a_device_is_shown(page: Page, account: Account) -> None:
    device = account.add_device("Guarded")
    path = f"/devices/{device['id']}/connections"
    page.goto(path)
    expect(page.get_by_text("It was never connected")).to_be_visible()
    with pytest.raises(HTTPError):
        account.call("POST", "/telemetry", {"t": 1}, (device["id"], "wrong"))
    page.goto(f"/devices/{device['id']}/connect")
    paste(shown(page, "CoAP", "CoAP").replace("YOUR_TOKEN", "wrong"))
    eventually(lambda: len(account.call("GET", path)["items"]) == 2, 30)
    page.goto(path)
    expect(page.locator(".feed .what")).to_have_text(
        [f"A wrong token was offered from 127.0.0.1 {way}" for way in ("coap", "http")]
    )
    expect(page.locator(".feed .state")).to_have_text(["Refused", "Refused"])
