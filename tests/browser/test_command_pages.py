"""The tab Commands: asked for, followed live, called back; and what somebody sees who may only look."""

from playwright.sync_api import Page, expect

from tests.browser.conftest import PASSWORD, Account, Watch, sign_in
from tests.browser.test_team_pages import come


def test_a_command_is_sent_and_moves_live_until_the_device_has_answered(page: Page, account: Account) -> None:
    device = account.add_device("Commanded")
    own = (device["id"], device["token"])
    page.goto(f"/devices/{device['id']}/commands")
    page.locator("iiot-live[data-state=live]").wait_for(state="attached")
    expect(page.get_by_text("No commands yet")).to_be_visible()
    page.get_by_label("Name").fill("set-speed")
    page.get_by_label("Parameters").fill('{"rpm": 1500}')
    page.get_by_role("button", name="Send").click()
    row = page.locator("[data-command]")
    expect(row).to_have_count(1)
    expect(row.locator(".state").first).to_have_text("Queued")
    page.locator("iiot-live[data-state=live]").wait_for(state="attached")
    [given] = account.call("GET", "/commands?wait=5", basic=own)["items"]
    assert (given["name"], given["params"]) == ("set-speed", {"rpm": 1500})
    expect(row.locator(".state").first).to_have_text("Sent")
    row.get_by_text("Details").click()
    expect(row.locator(".timeline .state")).to_have_count(2)
    account.call("POST", f"/commands/{given['id']}/result", {"status": "done", "result": {"rpm": 1498}}, own)
    expect(row.locator(".state").first).to_have_text("Done")
    expect(row.locator(".timeline .state")).to_have_count(4)
    expect(row.locator("details")).to_have_attribute("open", "")
    expect(row.get_by_label("Answer")).to_contain_text("1498")
    expect(row.get_by_role("button", name="Cancel")).to_have_count(0)


def test_a_command_is_cancelled(page: Page, account: Account) -> None:
    device = account.add_device("Called back")
    account.call("POST", f"/devices/{device['id']}/commands", {"name": "restart"})
    page.goto(f"/devices/{device['id']}/commands")
    page.get_by_role("button", name="Cancel restart").click()
    expect(page.locator("[data-command] .state").first).to_have_text("Cancelled")


def test_older_commands_are_on_the_next_page(page: Page, account: Account) -> None:
    device = account.add_device("Busy")
    path = f"/devices/{device['id']}/commands"
    for number in range(26):
        account.call("POST", path, {"name": f"step-{number}"})
    page.goto(path)
    page.get_by_role("link", name="Older").click()
    expect(page.locator("[data-command]")).to_have_count(1)
    page.get_by_role("link", name="Newest").click()
    expect(page.locator("[data-command]")).to_have_count(25)


def test_wrong_parameters_are_said_at_the_field_and_nothing_is_lost(page: Page, account: Account, watch: Watch) -> None:
    watch.expected_status.add(422)
    device = account.add_device("Mistyped")
    page.goto(f"/devices/{device['id']}/commands")
    page.get_by_label("Name").fill("set-speed")
    page.get_by_label("Parameters").fill("rpm: 1500")
    page.get_by_label("Give up after").select_option("1 minute")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#params-note")).to_contain_text("Write a JSON object")
    expect(page.get_by_label("Name")).to_have_value("set-speed")
    expect(page.get_by_label("Parameters")).to_have_value("rpm: 1500")
    expect(page.get_by_label("Give up after")).to_have_value("60")
    expect(page.locator("[data-command]")).to_have_count(0)


def test_a_second_person_approves_a_command(page: Page, account: Account, watch: Watch) -> None:
    watch.expected_status.add(403)
    device = account.add_device("Press")
    own = (device["id"], device["token"])
    page.goto(f"/devices/{device['id']}/settings")
    page.get_by_role("button", name="Ask for approval").click()
    expect(page.get_by_text("Commands of this device now need a second person.")).to_be_visible()
    page.goto(f"/devices/{device['id']}/commands")
    page.get_by_label("Name").fill("close")
    page.get_by_role("button", name="Send").click()
    row = page.locator("[data-command]")
    expect(row).to_contain_text("waits for a second person")
    expect(row.get_by_role("button", name="Approve")).to_have_count(0)
    assert account.call("GET", "/commands", basic=own)["items"] == []
    colleague = come(account, f"/tenants/{account.call('GET', '/auth/me')['tenant']['id']}", "operator")
    other = watch.open(390, "dark", anonymous=True)
    sign_in(other, account.url, colleague.email, PASSWORD)
    expect(other).to_have_url(f"{account.url}/")
    other.goto(f"/devices/{device['id']}/rejected")
    expect(other.get_by_label("Device", exact=True).get_by_role("link", name="Rejected")).to_be_in_viewport(ratio=0.9)
    other.goto(f"/devices/{device['id']}/commands")
    other.get_by_role("button", name="Approve close").click()
    other.get_by_text("Details").click()
    expect(other.locator(".timeline")).to_contain_text(f"Asked by {account.email}")
    expect(other.locator(".timeline li").nth(1)).to_contain_text("Queued")
    expect(other.locator(".timeline li").nth(2)).to_contain_text(f"Approved by {colleague.email}")
    expect(other.locator("[data-command]")).not_to_contain_text("waits for")
    [given] = account.call("GET", "/commands", basic=own)["items"]
    assert given["name"] == "close"
