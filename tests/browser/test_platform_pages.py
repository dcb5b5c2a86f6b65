"""Settings, usage and the platform's pages in a real browser: what they say, and that they can be used on any screen."""

import io
import json
import re
import secrets
from collections.abc import Iterator

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, StorageState, expect

from tests import services
from tests.browser.conftest import PASSWORD, Account, Watch, sign_in
from tests.browser.test_every_page import check


@pytest.fixture(scope="module")
def chief(stack: services.Stack, browser: Browser) -> StorageState:
    """The cookies of a platform administrator of the tests' own."""
    email = f"chief-{secrets.token_hex(4)}@example.com"
    made = stack.command("user", "create", email, "--tenant", "Main", "--role", "admin", "--json")
    assert made.returncode == 0, made.stderr
    _make_platform_admin(stack, email)
    context = browser.new_context(base_url=stack.run["http"])
    page = context.new_page()
    one_time = json.loads(made.stdout)["password"]
    sign_in(page, stack.run["http"], email, one_time)
    page.get_by_label("One-time password").fill(one_time)
    page.get_by_label("New password", exact=True).fill(PASSWORD)
    page.get_by_label("New password again").fill(PASSWORD)
    page.get_by_role("button", name="Save password").click()
    expect(page).to_have_url(re.compile(r"/$"))
    state = context.storage_state()
    context.close()
    return state


def _make_platform_admin(stack: services.Stack, email: str) -> None:
    import psycopg2

    settings = json.loads((stack.data_dir / "embedded.json").read_text())
    url = settings["database_url"].replace("postgresql+psycopg2", "postgresql")
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("UPDATE iiot.user_account SET is_platform_admin = true WHERE email = %s", (email,))
            assert cursor.rowcount == 1
    finally:
        connection.close()


@pytest.fixture
def platform(browser: Browser, account: Account, chief: StorageState) -> Iterator[Watch]:
    """Pages of the platform administrator whose complaints fail the test."""
    watching = Watch(browser, account.url, chief)
    yield watching
    watching.close()
    assert watching.complaints == []


def make_tenant(page: Page, name: str) -> str:
    page.goto("/platform/tenants")
    page.get_by_role("button", name="Create tenant").first.click()
    page.locator("#tenant-name").fill(name)
    page.locator("dialog").get_by_role("button", name="Create tenant").click()
    expect(page.get_by_text("The tenant is created.")).to_be_visible()
    return page.url.partition("?")[0]


def picture() -> bytes:
    image = Image.new("RGB", (600, 600), (220, 90, 20))
    ImageDraw.Draw(image).ellipse((100, 100, 500, 500), fill=(255, 255, 255))
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


def test_the_platforms_pages_fit_are_quiet_and_readable(platform: Watch) -> None:
    page = platform.open()
    address = make_tenant(page, "A tenant with a long name, as they have it in plants " + "x" * 40)
    for path in ("/platform/tenants", address, "/platform/plans", "/platform/audit", "/usage", "/settings"):
        check(page, path)
    page.goto("/platform/tenants?q=nobody-is-called-this")
    expect(page.get_by_text("No tenant matches")).to_be_visible()


def test_a_tenant_is_created_invited_limited_suspended_and_let_in_again(platform: Watch) -> None:
    platform.expected_status.add(422)
    page = platform.open()
    plan = f"Plan {secrets.token_hex(3)}"
    page.goto("/platform/plans")
    page.get_by_label("Name", exact=True).fill(plan)
    page.get_by_label("Devices", exact=True).fill("3 pumps")
    page.get_by_role("button", name="Create plan").click()
    expect(page.locator("#limit-devices-note")).to_contain_text("whole number")
    page.get_by_label("Devices", exact=True).fill("3")
    page.get_by_role("button", name="Create plan").click()
    expect(page.get_by_role("link", name=plan)).to_be_visible()

    make_tenant(page, f"Works {plan}")
    page.get_by_label("E-mail").fill("first@example.com")
    page.get_by_role("button", name="Invite").click()
    expect(page.locator("iiot-copy.secret code")).to_contain_text("/invitations/accept?token=")
    page.get_by_label("Plan", exact=True).select_option(label=plan)
    page.get_by_role("button", name="Give this plan").click()
    expect(page.get_by_role("row", name=re.compile("^Devices"))).to_contain_text("of 3")

    page.get_by_role("button", name="Suspend").click()
    page.get_by_label("Reason").fill("The bill of May is open")
    page.get_by_role("button", name="Suspend tenant").click()
    expect(page.locator(".page-head .state")).to_have_text("Suspended")
    expect(page.get_by_text("The bill of May is open")).to_be_visible()
    page.get_by_role("button", name="Lift suspension").click()
    expect(page.locator(".page-head .state")).to_have_text("Active")

    page.get_by_role("button", name="Delete").click()
    page.get_by_label("Type its name to confirm").fill("not its name")
    page.get_by_role("button", name="Delete tenant").click()
    expect(page.locator("#confirm-name-note")).to_contain_text("not the tenant's name")
    page.get_by_label("Type its name to confirm").fill(f"Works {plan}")
    page.get_by_role("button", name="Delete tenant").click()
    expect(page.locator(".page-head .state")).to_have_text("Being deleted")
    page.get_by_role("button", name="Restore").click()
    expect(page.locator(".page-head .state")).to_have_text("Active")


def test_an_admin_brands_deletes_and_restores_his_tenant(watch: Watch) -> None:
    page = watch.open()
    page.goto("/settings")
    before = page.evaluate("getComputedStyle(document.querySelector('.btn-primary')).backgroundColor")
    page.locator("input[type=file]").set_input_files({"name": "logo.png", "mimeType": "image/png", "buffer": picture()})
    page.get_by_role("button", name="Save logo").click()
    expect(page.get_by_text("The logo is saved.")).to_be_visible()
    page.wait_for_function("document.querySelector('.sidebar .brand img').naturalWidth === 256")
    page.get_by_label("Use our own colour").check()
    page.locator("input[type=color]").fill("#dc5a14")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.btn-primary')).backgroundColor") != before
    branded = watch.open()
    for path in ("/settings", "/usage", "/"):
        check(branded, path)

    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_label("Type its name to confirm").fill("Browser tests")
    page.get_by_role("button", name="Delete tenant").click()
    expect(page.get_by_text("This tenant is being deleted")).to_be_visible()
    check(watch.open(), "/settings")
    page.goto("/")
    page.get_by_role("link", name="Restore it in the settings.").click()
    page.get_by_role("button", name="Restore").click()
    expect(page.get_by_text("The tenant is restored")).to_be_visible()
    expect(page.get_by_text("This tenant is being deleted")).to_have_count(0)
    page.get_by_role("button", name="Remove logo").click()
    expect(page.get_by_text("The logo is removed.")).to_be_visible()
    page.get_by_label("Use our own colour").uncheck()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Saved.")).to_be_visible()


def test_usage_shows_what_is_used(watch: Watch, account: Account) -> None:
    account.add_device("Counted")
    page = watch.open()
    page.goto("/usage")
    row = page.get_by_role("row", name=re.compile("^Devices"))
    expect(row).to_contain_text("of 1,000")
    assert float(page.locator("progress.use").first.get_attribute("max") or 0) == 100
    expect(page.get_by_role("heading", name="Readings per day")).to_be_visible()
