"""The inbox as a person uses it: what a gateway brought is approved under another name, merged, ignored, restored; many at once."""

import secrets
import shutil
import subprocess
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests import services
from tests.browser.conftest import Account


@pytest.fixture
def gateway(account: Account) -> dict[str, Any]:
    """A gateway of the account."""
    return account.add_device(f"Gateway {secrets.token_hex(3)}", is_gateway=True)


def bring(stack: services.Stack, gateway: dict[str, Any], payload: str) -> None:
    """Send as the gateway, with a program from elsewhere."""
    program = shutil.which("mosquitto_pub")
    if program is None:
        services.missing("mosquitto_pub (apt-get install mosquitto-clients)")
    uid, address = gateway["id"], stack.run["mqtt"]
    login = ["-h", address["host"], "-p", str(address["port"]), "-i", uid, "-u", uid, "-P", gateway["token"]]
    topic = f"iiot/{uid}/up/gateway/telemetry"
    subprocess.run([program, *login, "-q", "1", "-t", topic, "-m", payload], check=True, timeout=30)


def waiting(account: Account, gateway: dict[str, Any], count: int) -> None:
    query = f"/discoveries?state=waiting&gateway={gateway['id']}"
    services.eventually(lambda: len(account.call("GET", query)["items"]) == count, 30)


def bring_one(page: Page, account: Account, stack: services.Stack, gateway: dict[str, Any]) -> str:
    """One discovered thing, with the inbox open; returns its name."""
    name = f"x-{secrets.token_hex(3)}"
    bring(stack, gateway, f'{{"{name}": {{"t": 1}}}}')
    waiting(account, gateway, 1)
    page.goto("/devices/inbox")
    return name


def merge(page: Page, name: str, device_id: str) -> None:
    """Ask for it in the dialog."""
    page.get_by_role("button", name=f"Merge {name} with a device").click()
    page.get_by_role("dialog").get_by_label("ID of the device").fill(device_id)
    page.get_by_role("dialog").get_by_role("button", name="Merge", exact=True).click()


def test_what_a_gateway_brings_is_approved_merged_ignored_and_restored(
    page: Page, account: Account, stack: services.Stack, gateway: dict[str, Any]
) -> None:
    old = account.add_device(f"Old pump {secrets.token_hex(3)}")
    names = [f"{word}-{secrets.token_hex(3)}" for word in ("valve", "pump", "noise")]
    valve, pump, noise = names
    bring(stack, gateway, f'{{"{valve}": {{"open": true}}, "{pump}": {{"flow": 1.5}}, "{noise}": {{"x": 1}}}}')
    waiting(account, gateway, 3)
    page.goto("/devices")
    expect(page.get_by_label("Devices").get_by_role("link", name="Inbox").locator(".count")).to_be_visible()
    page.get_by_label("Devices").get_by_role("link", name="Inbox").click()
    rows = page.locator("[data-discovery]")
    expect(rows.filter(has_text=gateway["name"])).to_have_count(3)

    page.get_by_role("button", name=f"Approve {valve}").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("Main valve")
    dialog.get_by_label("Type").fill("valve")
    dialog.get_by_role("button", name="Approve", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="Approved")).to_be_visible()
    [made] = account.call("GET", f"/devices?gateway={gateway['id']}")["items"]
    assert (made["name"], made["type"], made["child_name"]) == ("Main valve", "valve", valve)

    merge(page, pump, old["id"])
    expect(page.get_by_role("status").filter(has_text="Merged")).to_be_visible()
    assert account.call("GET", f"/devices/{old['id']}")["child_name"] == pump

    page.get_by_role("button", name=f"Ignore {noise}").click()
    expect(page.get_by_role("status").filter(has_text="Ignored")).to_be_visible()
    expect(rows.filter(has_text=gateway["name"])).to_have_count(0)
    page.get_by_role("link", name="Ignored", exact=True).click()
    page.get_by_role("button", name=f"Restore {noise}").click()
    expect(page.get_by_role("status").filter(has_text="It waits again")).to_be_visible()
    page.get_by_role("link", name="Waiting", exact=True).click()
    page.get_by_label(f"Choose {noise}").check()
    page.get_by_role("button", name="Approve chosen").click()
    expect(page.get_by_role("status").filter(has_text="Approved")).to_be_visible()
    expect(rows.filter(has_text=gateway["name"])).to_have_count(0)
    latest = account.call("GET", f"/devices?gateway={gateway['id']}")["items"]
    assert noise in {each["child_name"] for each in latest}


def test_a_device_that_cannot_be_merged_is_said_and_nothing_is_lost(
    page: Page, account: Account, stack: services.Stack, gateway: dict[str, Any], watch: Any
) -> None:
    watch.expected_status.add(409)
    name = bring_one(page, account, stack, gateway)
    merge(page, name, gateway["id"])
    expect(page.get_by_text("A gateway cannot be below another one.")).to_be_visible()
    expect(page.get_by_role("button", name=f"Ignore {name}")).to_be_visible()
    page.get_by_role("button", name=f"Ignore {name}").click()


def test_a_mistyped_device_is_said_at_its_field(
    page: Page, account: Account, stack: services.Stack, gateway: dict[str, Any], watch: Any
) -> None:
    watch.expected_status.add(422)
    name = bring_one(page, account, stack, gateway)
    merge(page, name, "mistyped")
    expect(page.get_by_role("dialog")).to_contain_text("There is no such device, or it is not yours.")
    expect(page.get_by_role("dialog").get_by_label("ID of the device")).to_have_value("mistyped")
    expect(page).to_have_url(f"{account.url}/devices/inbox")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Approve chosen").click()
    expect(page.get_by_role("alert")).to_contain_text("Choose at least one")
    page.get_by_role("button", name=f"Ignore {name}").click()


def test_what_somebody_else_has_decided_is_said_in_the_inbox(
    page: Page, account: Account, stack: services.Stack, gateway: dict[str, Any], watch: Any
) -> None:
    watch.expected_status.add(404)
    name = f"x-{secrets.token_hex(3)}"
    bring(stack, gateway, f'{{"{name}": {{"t": 1}}}}')
    waiting(account, gateway, 1)
    page.goto("/devices/inbox")
    [found] = account.call("GET", f"/discoveries?state=waiting&gateway={gateway['id']}")["items"]
    account.call("POST", f"/discoveries/{found['id']}/approve", {})
    page.get_by_role("button", name=f"Ignore {name}").click()
    expect(page.get_by_role("alert")).to_contain_text("Somebody has decided about it already.")
    expect(page.get_by_role("heading", name="Inbox")).to_be_visible()
    expect(page).to_have_url(f"{account.url}/devices/inbox")


def test_the_pages_of_a_child_name_its_gateway(
    page: Page, account: Account, stack: services.Stack, gateway: dict[str, Any]
) -> None:
    bring(stack, gateway, '{"pump": {"t": 1}}')
    waiting(account, gateway, 1)
    [found] = account.call("GET", f"/discoveries?state=waiting&gateway={gateway['id']}")["items"]
    account.call("POST", f"/discoveries/{found['id']}/approve", {})
    [child] = account.call("GET", f"/devices?gateway={gateway['id']}")["items"]
    page.goto(f"/devices/{child['id']}/connect")
    expect(page.get_by_text("It needs no token")).to_be_visible()
    expect(page.get_by_text("The token is not shown again")).to_have_count(0)
    link = page.get_by_role("link", name=gateway["name"]).first
    expect(link).to_have_attribute("href", f"/devices/{gateway['id']}")
    page.get_by_label("Device", exact=True).get_by_role("link", name="Commands").click()
    expect(page.get_by_role("region", name="Commands")).to_contain_text(f"They go to {gateway['name']}")
    expect(page.get_by_text("/down/command")).to_have_count(0)


def test_a_home_is_claimed_and_given_up_and_the_switch_is_in_the_settings(
    page: Page, account: Account, gateway: dict[str, Any], watch: Any
) -> None:
    name = f"home-{secrets.token_hex(4)}"
    page.goto(f"/devices/{gateway['id']}/settings")
    page.get_by_label("Name of a home").fill(name)
    page.get_by_role("button", name="Claim home").click()
    expect(page.get_by_text("The home is claimed.")).to_be_visible()
    watch.expected_status.add(409)
    page.get_by_label("Name of a home").fill(name)
    page.get_by_role("button", name="Claim home").click()
    expect(page.get_by_text("This name cannot be had")).to_be_visible()
    page.get_by_role("button", name=f"Give up {name}").click()
    expect(page.get_by_text("The home is given up.")).to_be_visible()
    assert name not in {each["name"] for each in account.call("GET", "/homes")["items"]}
    page.goto("/settings")
    box = page.get_by_label("Take what gateways bring at once")
    expect(box).not_to_be_checked()
    box.check()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(box).to_be_checked()
    tenant = account.call("GET", "/auth/me")["tenant"]["id"]
    assert account.call("GET", f"/tenants/{tenant}")["discovery"] == "auto"
    account.call("PATCH", f"/tenants/{tenant}", {"discovery": "inbox"})


def test_a_lamp_is_switched_and_dimmed(page: Page, account: Account, watch: Any) -> None:
    device, name = account.add_device("Desk"), f"lamp-{secrets.token_hex(3)}"
    account.call("POST", "/entities", {"device_id": device["id"], "kind": "light", "name": name})
    own = (device["id"], device["token"])
    account.send(device, {f"light/{name}/state": "OFF", f"light/{name}/brightness": 7})
    page.goto("/devices/entities")
    row = page.locator("[data-entity]").filter(has_text=name)
    expect(row).to_contain_text("OFF")
    page.get_by_role("button", name=f"Switch {name} of Desk ON").click()
    expect(page.get_by_text("The order is on its way.")).to_be_visible()
    [given] = account.call("GET", "/commands?wait=5", basic=own)["items"]
    assert given["params"] == {"entity": f"light/{name}", "state": "ON"}
    account.send(device, {f"light/{name}/state": "ON"})
    account.call("POST", f"/commands/{given['id']}/result", {"status": "done"}, own)
    # Without a reload.
    expect(row).to_contain_text("ON")
    # One that appeared while the page was open is dimmed as well, and a list that is swapped below leaves the dialog open.
    account.call("POST", "/entities", {"device_id": device["id"], "kind": "light", "name": f"new-{name}"})
    expect(page.locator("[data-entity]").filter(has_text=f"new-{name}")).to_contain_text("Desk")
    page.get_by_role("button", name=f"Dim new-{name} of Desk").click()
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text(f"Dim new-{name} of Desk")
    expect(page.get_by_role("dialog").get_by_label("Brightness")).to_have_value("")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name=f"Dim {name} of Desk").click()
    expect(page.get_by_role("dialog").get_by_label("Brightness")).to_have_value("7")
    with page.expect_response("**/devices/entities"):
        page.get_by_role("dialog").get_by_label("Brightness").focus()
    page.get_by_role("dialog").get_by_label("Brightness").fill("55")
    page.get_by_role("dialog").get_by_role("button", name="Set").click()
    expect(page.get_by_text("The order is on its way.")).to_be_visible()
    [given] = account.call("GET", "/commands?wait=5", basic=own)["items"]
    assert given["params"] == {"entity": f"light/{name}", "brightness": 55}
