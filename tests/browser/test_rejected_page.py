"""Rejected messages: found, mended and sent again, many at once with progress, thrown away; and what somebody sees who may only look."""

import contextlib
from typing import Any
from urllib.error import HTTPError

import pytest
from playwright.sync_api import Page, expect

from iiot import payloads
from tests.browser.conftest import Account, Watch


def refuse(account: Account, device: dict[str, Any], payload: bytes) -> None:
    with pytest.raises(HTTPError):
        account.send(device, payload)


def test_a_message_is_mended_and_sent_again(page: Page, account: Account, watch: Watch) -> None:
    watch.expected_status.add(422)
    device = account.add_device("Misspelt")
    refuse(account, device, b'{"temperature": 21.5')
    page.goto("/")
    page.get_by_role("link", name="Rejected", exact=True).click()
    row = page.locator(".danger-row").filter(has_text="Misspelt")
    expect(row).to_contain_text("not-json")
    row.get_by_role("link", name="Open").click()
    field = page.get_by_label("Mend it")
    expect(field).to_have_value('{"temperature": 21.5')
    field.fill('{"temper ature": 21.5}')
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was stored")
    expect(page.get_by_role("alert")).to_contain_text("is not a key")
    expect(page.get_by_role("alert")).to_contain_text("1 to 128 characters")
    expect(field).to_have_value('{"temper ature": 21.5}')
    field.fill('{"temperature": 21.5}')
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_text("1 reading is stored")).to_be_visible()
    expect(page.get_by_text("mended")).to_be_visible()
    assert account.call("GET", f"/devices/{device['id']}/latest")["temperature"]["value"] == 21.5
    page.goto(f"/rejected?device={device['id']}")
    expect(page.get_by_text("Sent again", exact=True).last).to_be_visible()


def test_markup_in_a_payload_is_text(page: Page, account: Account) -> None:
    device = account.add_device("<b>Bold</b>")
    refuse(account, device, b"</textarea><script>alert(1)</script>{{ 7*7 }}")
    page.goto(f"/devices/{device['id']}/rejected")
    page.get_by_role("link", name="Open").click()
    expect(page.get_by_label("Mend it")).to_have_value("</textarea><script>alert(1)</script>{{ 7*7 }}")


def test_bytes_are_shown_and_mended_in_hexadecimal(page: Page, account: Account, watch: Watch) -> None:
    watch.expected_status.add(422)
    device = account.add_device("Binary")
    refuse(account, device, b"\xa1\x61t\xfb")
    page.goto(f"/devices/{device['id']}/rejected")
    page.get_by_role("link", name="Open").click()
    expect(page.get_by_label("Payload").first).to_contain_text("000000  a1 61 74 fb")
    field = page.get_by_label("Mend it, in hexadecimal")
    field.fill("a1 61 7")
    page.get_by_role("button", name="Send again").click()
    expect(page.locator("#payload-note")).to_contain_text("pairs of hexadecimal digits")
    field.fill("a1617407")
    page.get_by_label("Content type").select_option("application/cbor")
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_text("1 reading is stored")).to_be_visible()
    assert account.call("GET", f"/devices/{device['id']}/latest")["t"]["value"] == 7


def test_a_message_of_which_the_beginning_was_kept_is_not_offered_again(page: Page, account: Account) -> None:
    device = account.add_device("Talkative")
    refuse(account, device, b'{"note": "' + b"x" * payloads.MAX_BYTES + b'"}')
    page.goto(f"/devices/{device['id']}/rejected")
    page.get_by_role("link", name="Open").click()
    expect(page.get_by_text("Only the beginning was kept")).to_be_visible()
    expect(page.locator("pre")).to_contain_text('{"note": "xxx')
    expect(page.get_by_role("button", name="Send again")).to_have_count(0)


def test_many_are_sent_again_with_progress(page: Page, account: Account) -> None:
    device = account.add_device("Shut out for a while")
    for _ in range(130):
        with contextlib.suppress(HTTPError):
            account.send(device, b'{"bad key": 1, "n": null}')
    page.goto(f"/rejected?device={device['id']}")
    page.get_by_role("button", name="Send again").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Send again").click()
    expect(dialog.get_by_text("0 of 130 stored")).to_be_visible()
    expect(dialog).to_contain_text("130 were refused again, in whole or in part, and stay open")
    dialog.get_by_role("link", name="Show the list").click()
    expect(page.get_by_text("Refused again").first).to_be_visible()
    expect(page.locator(".pager")).to_contain_text("130 messages")
    page.get_by_role("link", name="Older").click()
    expect(page.locator(".danger-row")).to_have_count(25)


def test_filters_and_the_empty_list(page: Page, account: Account) -> None:
    device = account.add_device("Filtered")
    refuse(account, device, b"nonsense")
    page.goto(f"/rejected?device={device['id']}")
    page.get_by_label("Reason").select_option("not-json")
    page.get_by_label("Protocol").select_option("http")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".danger-row")).to_have_count(1)
    page.get_by_label("State").select_option("Sent again")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("No message matches")).to_be_visible()


def test_a_message_is_discarded(page: Page, account: Account) -> None:
    device = account.add_device("Discarded")
    refuse(account, device, b"nonsense")
    page.goto(f"/devices/{device['id']}/rejected")
    page.get_by_role("link", name="Open").click()
    page.get_by_role("button", name="Discard").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Discard").click()
    expect(page.get_by_role("heading", name="Rejected messages")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="The message was discarded.")).to_be_visible()
    page.goto(f"/devices/{device['id']}/rejected")
    expect(page.get_by_text("No message was refused")).to_be_visible()
