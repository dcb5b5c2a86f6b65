"""One's account in a real browser: sessions, the second factor, the tenant switcher, the pages of people who cannot sign in yet."""

import base64
import json
import secrets
import time
import urllib.request

import pytest
from playwright.sync_api import Page, expect

from iiot.services.mfa import totp
from tests.browser.conftest import PASSWORD, Account, Watch, sign_in


@pytest.fixture
def person(account: Account) -> str:
    """The address of somebody whom no other test knows."""
    email = f"account-{secrets.token_hex(4)}@example.com"
    body = {"email": email, "password": PASSWORD, "tenant": "Account tests"}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{account.url}/api/v1/auth/register", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 201
    return email


def code(secret: str, ahead: int) -> str:
    return totp(base64.b32decode(secret), int(time.time()) // 30 + ahead)


def test_a_second_factor_from_set_up_to_sign_in(watch: Watch, account: Account, person: str) -> None:
    page = watch.open(390, "dark", anonymous=True)
    sign_in(page, account.url, person, PASSWORD)
    expect(page).to_have_url(f"{account.url}/")
    page.goto("/account/mfa")
    page.get_by_role("button", name="Set up").click()
    expect(page.get_by_role("img", name="QR code of the secret below")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    secret = page.get_by_label("Secret", exact=True).inner_text().replace(" ", "").strip()
    watch.expected_status.add(422)
    page.get_by_label("Code that it shows").fill("000000")
    page.get_by_role("button", name="Switch on").click()
    expect(page.get_by_text("Not the code of this moment")).to_be_visible()
    page.get_by_label("Code that it shows").fill(code(secret, -1))
    page.get_by_role("button", name="Switch on").click()
    expect(page.get_by_text("These codes are shown once")).to_be_visible()
    codes = page.locator(".snippet code").inner_text().split()
    assert len(codes) == 10
    page.get_by_role("link", name="I have kept them").click()
    expect(page.get_by_text("10 of 10 recovery codes are left")).to_be_visible()
    other = watch.open(anonymous=True)
    sign_in(other, account.url, person, PASSWORD)
    other.get_by_label("Code").fill(codes[0])
    other.get_by_role("button", name="Sign in").click()
    expect(other).to_have_url(f"{account.url}/")
    end_the_other(page, other)


def end_the_other(page: Page, other: Page) -> None:
    """The first browser ends the second one's session, whose next page is the sign-in."""
    page.goto("/account")
    page.get_by_role("button", name="End all others").click()
    expect(page.get_by_text("All other sessions were ended.")).to_be_visible()
    expect(page.get_by_role("button", name="End the session of")).to_have_count(0)
    other.goto("/devices")
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()


def test_ones_name(page: Page) -> None:
    page.goto("/account")
    page.get_by_label("Name").fill("Test Person the Second")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Your name was saved.")).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value("Test Person the Second")
