"""Keys, service accounts and device tokens, as a person makes and ends them in the portal."""

import re
import urllib.request
from urllib.error import HTTPError

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Account, Watch


def status_with(account: Account, key: str, path: str = "/devices") -> int:
    """What the API answers to a key."""
    request = urllib.request.Request(f"{account.url}/api/v1{path}", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except HTTPError as error:
        error.close()
        return error.code


def secret_of(page: Page) -> str:
    return page.locator("iiot-copy.secret code").inner_text()


def test_a_key_is_made_shown_once_used_and_revoked(page: Page, account: Account) -> None:
    page.goto("/account")
    page.get_by_role("link", name="API keys").click()
    page.get_by_role("button", name="New key").first.click()
    dialog = page.get_by_role("dialog", name="New API key")
    dialog.get_by_label("Name").fill("Nightly export")
    dialog.get_by_label("Only this:").check()
    dialog.get_by_label("device:read").check()
    dialog.get_by_role("button", name="Make key").click()
    expect(page.get_by_text("It is shown this once")).to_be_visible()
    key = secret_of(page)
    assert key in page.locator("iiot-copy.snippet code").inner_text()
    # A reload asks for the list: no form is sent again, and the key is gone.
    expect(page).to_have_url(f"{account.url}/account/keys")
    assert status_with(account, key) == 200
    assert status_with(account, key, "/service-accounts") == 403
    page.goto("/account/keys")
    expect(page.get_by_text(key)).to_have_count(0)
    row = page.get_by_role("row", name=re.compile("Nightly export"))
    expect(row).to_contain_text("device:read")
    expect(row).to_contain_text("127.0.0.1")
    row.get_by_role("button", name="Revoke Nightly export").click()
    page.get_by_role("button", name="Revoke key").click()
    expect(page.get_by_role("status").filter(has_text="was revoked")).to_be_visible()
    assert status_with(account, key) == 401


def test_what_was_wrong_is_said_in_the_dialog_and_nothing_is_lost(watch: Watch) -> None:
    watch.expected_status.add(422)
    page = watch.open()
    page.goto("/account/keys?new=1")
    dialog = page.get_by_role("dialog", name="New API key")
    dialog.get_by_label("Name").fill("Nothing chosen")
    dialog.get_by_label("It works").select_option("30")
    dialog.get_by_label("Only this:").check()
    dialog.get_by_role("button", name="Make key").click()
    expect(dialog.get_by_role("alert")).to_contain_text("choose at least one", ignore_case=True)
    expect(dialog.get_by_label("Name")).to_have_value("Nothing chosen")
    expect(dialog.get_by_label("It works")).to_have_value("30")
    expect(dialog.get_by_label("Only this:")).to_be_checked()


def test_a_service_account_lives_and_is_deleted_after_its_name_was_typed(watch: Watch, account: Account) -> None:
    watch.expected_status.add(422)
    page = watch.open()
    page.goto("/team/keys")
    page.get_by_role("button", name="New service account").first.click()
    page.locator("#account-name-new").fill("Warehouse")
    page.locator("#account-role-new").select_option("viewer")
    page.get_by_role("button", name="Make service account").click()
    page.get_by_role("button", name="New key").click()
    dialog = page.get_by_role("dialog", name="New API key")
    dialog.get_by_label("Name").fill("Loader")
    dialog.get_by_label("It acts for").select_option(label="Service account Warehouse (viewer)")
    dialog.get_by_role("button", name="Make key").click()
    key = secret_of(page)
    assert status_with(account, key) == 200
    page.get_by_role("link", name="Done").click()
    expect(page.get_by_role("row", name=re.compile("Loader"))).to_contain_text("service account")

    page.get_by_role("button", name="Change Warehouse").click()
    change = page.get_by_role("dialog", name="Warehouse", exact=True)
    change.get_by_label("Enabled: its keys work").uncheck()
    change.get_by_role("button", name="Save").click()
    expect(page.get_by_role("row", name=re.compile("^Warehouse disabled"))).to_contain_text("Disabled")
    assert status_with(account, key) == 401

    page.get_by_role("button", name="Change Warehouse").click()
    change.get_by_role("button", name="Delete").click()
    delete = page.get_by_role("dialog", name="Delete this service account?")
    delete.get_by_label("Type its name to confirm").fill("something else")
    delete.get_by_role("button", name="Delete service account").click()
    expect(delete).to_contain_text("not the service account's name")
    delete.get_by_label("Type its name to confirm").fill("Warehouse")
    delete.get_by_role("button", name="Delete service account").click()
    expect(page.get_by_role("status").filter(has_text="were deleted")).to_be_visible()
    expect(page.get_by_text("Warehouse")).to_have_count(0)


def test_a_device_token_is_rotated_without_a_gap(page: Page, account: Account) -> None:
    device = account.add_device("Rotated beside")
    page.goto(f"/devices/{device['id']}/connect")
    page.get_by_role("button", name="New token").click()
    dialog = page.get_by_role("dialog", name="New token")
    dialog.get_by_label("Token name").fill("New firmware")
    dialog.get_by_role("button", name="Make token").click()
    token = secret_of(page)
    expect(page.locator("main")).to_contain_text(f"-u {device['id']}.2")
    for each in (device["token"], token):
        assert account.send({**device, "token": each}, {"a": 1}) is not None
    page.get_by_role("link", name="revoke them").click()
    row = page.get_by_role("row", name=re.compile("Token 1"))
    expect(row).to_contain_text(device["id"])
    row.get_by_role("button", name="Revoke token 1").click()
    page.get_by_role("button", name="Revoke token", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="The token was revoked")).to_be_visible()
    with pytest.raises(HTTPError):
        account.send(device, {"a": 2})
    assert account.send({**device, "token": token}, {"a": 3})["stored"] == 1
    expect(page.get_by_text(token)).to_have_count(0)


def test_a_sixth_token_is_refused_in_the_dialog(watch: Watch, account: Account) -> None:
    watch.expected_status.add(409)
    device = account.add_device("Five tokens")
    for _ in range(4):
        account.call("POST", f"/devices/{device['id']}/credentials", {"keep_others": True})
    page = watch.open()
    page.goto(f"/devices/{device['id']}/settings")
    page.get_by_role("button", name="New token").click()
    page.get_by_role("button", name="Make token").click()
    expect(page.get_by_role("alert")).to_contain_text("at most 5 credentials")
    expect(page.get_by_role("row")).to_have_count(6)
