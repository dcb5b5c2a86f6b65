"""What a person does in the portal, from the first sign-in to a chart that moves."""

import json
import re
import secrets
import time
from typing import Any
from urllib.error import HTTPError

import pytest
from playwright.sync_api import Browser, Page, Route, WebSocketRoute, expect

from tests import services
from tests.browser.conftest import PASSWORD, Account, Watch, sign_in
from tests.services import eventually

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "'; DROP TABLE device; --",
    '"><script>alert(1)</script>',
    "{{ 7*7 }} ${7*7} %(x)s",
    "مضخة \u202eevil\u202c \U0001f321",
]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def live(page: Page) -> None:
    """Wait until the page hears the live channel."""
    page.locator("iiot-live[data-state=live]").wait_for(state="attached")


def test_the_first_sign_in_forces_a_password_of_ones_own(stack: services.Stack, watch: Watch, account: Account) -> None:
    email = f"new-{secrets.token_hex(4)}@example.com"
    made = stack.command("user", "create", email, "--tenant", "Browser tests", "--role", "viewer", "--json")
    assert made.returncode == 0, made.stderr
    one_time = json.loads(made.stdout)["password"]
    page = watch.open(anonymous=True)
    watch.expected_status |= {401, 422}

    page.goto("/devices?status=online")
    expect(page).to_have_url(re.compile(r"/login\?next="))
    sign_in(page, account.url, email, "not the password")
    expect(page.get_by_role("alert")).to_contain_text("wrong")
    expect(page.get_by_label("E-mail")).to_have_value(email)
    page.get_by_label("Password").fill(one_time)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{account.url}/password")
    page.goto("/devices")
    expect(page).to_have_url(f"{account.url}/password")

    page.get_by_label("One-time password").fill(one_time)
    page.get_by_label("New password", exact=True).fill(PASSWORD)
    page.get_by_label("New password again").fill("something different")
    page.get_by_role("button", name="Save password").click()
    expect(page.locator("#repeat_password-note")).to_contain_text("differ")
    page.get_by_label("One-time password").fill(one_time)
    page.get_by_label("New password", exact=True).fill(PASSWORD)
    page.get_by_label("New password again").fill(PASSWORD)
    page.get_by_role("button", name="Save password").click()
    expect(page.get_by_role("heading", name="Home")).to_be_visible()
    # A viewer may look, and is not offered what would be refused.
    page.goto("/devices")
    expect(page.get_by_role("button", name="Add device")).to_have_count(0)
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{account.url}/login")
    page.goto("/")
    expect(page).to_have_url(re.compile("/login"))


def test_a_sign_in_never_leads_to_another_site(watch: Watch, account: Account) -> None:
    for target in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"):
        page = watch.open()
        page.goto(f"/login?next={target}")
        expect(page).to_have_url(f"{account.url}/")


def test_a_device_is_added_connected_and_drawn_live(page: Page, account: Account) -> None:
    page.goto("/devices")
    page.get_by_role("button", name="Add device").first.click()
    expect(page.get_by_label("Name")).to_be_focused()
    page.get_by_label("Name").fill("Walk-through pump")
    page.get_by_label("Tags").fill("hall-b, walk")
    page.get_by_role("dialog").get_by_role("button", name="Add device").click()
    expect(page.get_by_text("Waiting for the first message")).to_be_visible()
    expect(page).to_have_url(re.compile("/devices/[a-z2-7]{26}/connect$"))
    uid = page.url.split("/")[-2]
    token = page.locator("iiot-copy.secret code").inner_text()
    device = {"id": uid, "token": token}
    for name in ("MQTT", "HTTP", "Python"):
        expect(page.get_by_label(name, exact=True).first).to_contain_text(token)

    live(page)
    account.send(device, {"temperature": 20.5, "running": True})
    expect(page.get_by_text("Connected", exact=True)).to_be_visible()
    expect(page.locator("[data-detail]")).to_contain_text("temperature = 20.5")
    expect(page.locator("iiot-state")).to_have_text("Online")
    page.reload()
    assert token not in page.content(), "a token is shown once"
    expect(page.get_by_label("HTTP", exact=True).first).to_contain_text("YOUR_TOKEN")

    page.get_by_role("link", name="Chart").last.click()
    expect(page.locator(".uplot canvas")).to_be_visible()
    summary = page.locator("[data-summary]")
    expect(summary).to_contain_text("1 points shown")
    live(page)
    account.send(device, {"temperature": 21.5})
    expect(summary).to_contain_text("2 points shown")


def test_the_quality_of_a_value_is_shown_where_it_is_not_good(page: Page, account: Account) -> None:
    device = account.add_device("Doubtful")
    account.send(device, {"values": {"level": 3, "flow": 1.5}, "quality": {"level": "bad"}})
    page.goto(f"/devices/{device['id']}")
    level, flow = (page.locator(f"tr[data-key={key}]") for key in ("level", "flow"))
    expect(level.locator("[data-quality]")).to_have_text("bad")
    expect(flow.locator("[data-quality]")).to_be_hidden()
    live(page)
    account.send(device, {"values": {"level": 4, "depth": 7}, "quality": "uncertain"})
    expect(level.locator("[data-value]")).to_have_text("4")
    expect(level.locator("[data-quality]")).to_have_text("uncertain")
    expect(page.locator("tr[data-key=depth] [data-quality]")).to_have_text("uncertain")
    account.send(device, {"level": 5})
    expect(level.locator("[data-value]")).to_have_text("5")
    expect(level.locator("[data-quality]")).to_be_hidden()


def test_the_command_shown_for_http_works_as_it_is(page: Page, account: Account, tmp_path: Any) -> None:
    import shutil
    import subprocess

    if shutil.which("curl") is None:
        services.missing("curl")
    page.goto("/devices?add=1")
    page.get_by_label("Name").fill("Pasted")
    page.get_by_role("dialog").get_by_role("button", name="Add device").click()
    live(page)
    command = page.get_by_label("HTTP", exact=True).first.locator("code").inner_text()
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout)["stored"] == 2
    expect(page.get_by_text("Connected", exact=True)).to_be_visible()


def test_what_came_while_the_socket_was_lost_is_in_the_chart(page: Page, account: Account) -> None:
    device = account.add_device("Gap")
    account.send(device, {"level": 1})
    sockets: list[WebSocketRoute] = []
    closed = False

    def pass_on(socket: WebSocketRoute) -> None:
        if closed:
            socket.close()
            return
        socket.connect_to_server()
        sockets.append(socket)

    page.route_web_socket(re.compile("/socket.io/"), pass_on)
    page.goto(f"/devices/{device['id']}/chart")
    live(page)
    account.send(device, {"level": 2})
    expect(page.locator("[data-summary]")).to_contain_text("2 points shown")
    closed = True
    sockets[-1].close()
    expect(page.locator("iiot-live")).not_to_have_attribute("data-state", "live")
    account.send(device, {"level": 3})
    closed = False
    live(page)
    expect(page.locator("[data-summary]")).to_contain_text("3 points shown")


def test_the_chart_keeps_range_and_signals_in_its_address(page: Page, account: Account) -> None:
    device = account.add_device("Ranges")
    now = now_ms()
    account.send(
        device,
        [{"ts": now - minutes * 60_000, "values": {"a": minutes, "b": minutes * 2}} for minutes in range(0, 5000, 50)],
    )
    page.goto(f"/devices/{device['id']}/chart?keys=b&range=15m")
    expect(page.locator("[data-summary]")).to_contain_text("1 points shown")
    expect(page.get_by_role("checkbox", name="b")).to_be_checked()
    expect(page.get_by_role("checkbox", name="a")).not_to_be_checked()
    page.get_by_role("button", name="24 h").click()
    expect(page.locator("[data-summary]")).to_contain_text("29 points shown")
    page.get_by_text("a", exact=True).click()
    expect(page.locator("[data-summary]")).to_contain_text("58 points shown")
    expect(page).to_have_url(re.compile(r"range=24h&keys=a%2Cb"))
    for name in ("7 d", "30 d"):
        page.get_by_role("button", name=name).click()
        expect(page.locator("[data-summary]")).not_to_contain_text("58 points")
    page.get_by_role("button", name="Custom").click()
    expect(page.locator("[data-follow]")).to_have_text("Fixed range")
    page.get_by_label("From").fill("2020-01-01T00:00")
    page.get_by_label("To", exact=True).fill("2020-01-02T00:00")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".chart-note")).to_contain_text("No readings in this range")
    page.reload()
    expect(page.get_by_label("From")).to_have_value("2020-01-01T00:00")


def test_a_failed_load_of_the_history_can_be_repeated(page: Page, account: Account, watch: Watch) -> None:
    device = account.add_device("Failing history")
    account.send(device, {"a": 1})
    watch.expected_status.add(503)
    refusal = {"title": "Unavailable", "detail": "The database does not answer."}

    def refuse(route: Route) -> None:
        route.fulfill(status=503, content_type="application/problem+json", body=json.dumps(refusal))

    page.clock.install()
    page.route("**/telemetry?*", refuse)
    page.goto(f"/devices/{device['id']}/chart")
    expect(page.locator(".chart-note")).to_contain_text("The database does not answer")
    # The chart moves every second; the reason stays.
    page.clock.run_for(3_000)
    expect(page.locator(".chart-note")).to_contain_text("The database does not answer")
    page.unroute("**/telemetry?*", refuse)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".uplot canvas")).to_be_visible()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_only_text(page: Page, account: Account, name: str) -> None:
    device = account.add_device(name, type=name[:60], tags=[name[:60]])
    account.send(device, {"a": name})
    for path in (f"/devices/{device['id']}", f"/devices/{device['id']}/connect", f"/devices/{device['id']}/settings"):
        page.goto(path)
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        assert page.title() == f"{name} · IIoT Portal"
    page.goto("/devices")
    expect(page.get_by_role("link", name=name).first).to_be_visible()
    page.goto("/")
    expect(page.locator(".feed")).to_contain_text(name)
    assert page.locator("img[src=x]").count() == 0


def test_devices_are_searched_sorted_and_paged_with_the_state_in_the_address(page: Page, account: Account) -> None:
    word = secrets.token_hex(3)
    for number in range(27):
        account.add_device(f"Paged {word} {number:02}", tags=[word])
    page.goto("/devices")
    page.get_by_role("searchbox").press_sequentially(word)
    expect(page.get_by_text("27 devices")).to_be_visible()
    expect(page).to_have_url(f"{account.url}/devices?q={word}")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(25)
    page.get_by_role("link", name="Name").click()
    expect(rows.first).to_contain_text("00")
    page.get_by_role("link", name="Next page").click()
    expect(rows).to_have_count(2)
    expect(rows.last).to_contain_text("26")
    page.reload()
    expect(rows).to_have_count(2)
    page.get_by_role("searchbox").fill(word[:-1])
    expect(page).to_have_url(f"{account.url}/devices?q={word[:-1]}&sort=name")
    page.get_by_role("searchbox").fill(word)
    expect(page).to_have_url(f"{account.url}/devices?q={word}&sort=name")
    page.get_by_role("link", name="Next page").click()
    expect(rows).to_have_count(2)
    page.get_by_role("link", name="First page").click()
    expect(rows).to_have_count(25)
    page.go_back()
    expect(rows).to_have_count(2)
    page.get_by_label("State").select_option("online")
    expect(page.get_by_text("No device matches")).to_be_visible()
    page.goto(f"/devices?tag={word}")
    expect(page.get_by_text("27 devices")).to_be_visible()
    page.goto("/devices?cursor=nonsense&sort=nonsense&status=nonsense")
    expect(rows.first).to_be_visible()


def test_a_device_is_renamed_disabled_and_deleted_after_its_name_was_typed(
    page: Page, account: Account, watch: Watch
) -> None:
    watch.expected_status.add(422)
    device = account.add_device("Short life")
    page.goto(f"/devices/{device['id']}/settings")
    page.get_by_label("Name", exact=True).fill("")
    page.get_by_label("Name", exact=True).evaluate("input => input.removeAttribute('required')")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#name-note")).to_contain_text("empty")
    page.get_by_label("Name", exact=True).fill("Renamed")
    page.get_by_label("Tags").fill("one, two")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text("Renamed")

    page.get_by_role("button", name="Disable").click()
    expect(page.locator("iiot-state")).to_have_text("Disabled")
    with pytest.raises(HTTPError) as refused:
        account.send(device, {"a": 1})
    assert refused.value.code == 403
    page.get_by_role("button", name="Enable").click()
    expect(page.get_by_text("The device is enabled.")).to_be_visible()

    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_label("Type its name to confirm").fill("Short life")
    page.get_by_role("button", name="Delete device").click()
    expect(page.locator("#confirm-name-note")).to_contain_text("not the device's name")
    page.get_by_label("Type its name to confirm").fill("Renamed")
    page.get_by_role("button", name="Delete device").click()
    expect(page).to_have_url(f"{account.url}/devices")
    watch.expected_status.add(404)
    page.goto(f"/devices/{device['id']}")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()


def test_a_new_token_replaces_the_old_one(page: Page, account: Account) -> None:
    device = account.add_device("Rotated")
    page.goto(f"/devices/{device['id']}/connect")
    page.get_by_role("button", name="New token").click()
    page.get_by_label("Stop working at once").check()
    page.get_by_role("button", name="Make token").click()
    token = page.locator("iiot-copy.secret code").inner_text()
    assert token != device["token"]
    expect(page).to_have_url(f"{account.url}/devices/{device['id']}/connect")
    with pytest.raises(HTTPError):
        account.send(device, {"a": 1})
    assert account.send({**device, "token": token}, {"a": 1})["stored"] == 1


def test_somebody_elses_change_is_not_overwritten(watch: Watch, account: Account) -> None:
    watch.expected_status.add(412)
    device = account.add_device("Contended")
    first, second = watch.open(), watch.open()
    for page in (first, second):
        page.goto(f"/devices/{device['id']}/settings")
    first.get_by_label("Name", exact=True).fill("First")
    first.get_by_role("button", name="Save").click()
    expect(first.get_by_text("Saved.")).to_be_visible()
    second.get_by_label("Name", exact=True).fill("Second")
    second.get_by_role("button", name="Save").click()
    expect(second.get_by_role("alert")).to_contain_text("changed since")
    expect(second.get_by_label("Name", exact=True)).to_have_value("Second")


def test_a_refused_message_is_listed_with_its_reason_and_payload(page: Page, account: Account) -> None:
    device = account.add_device("Refused")
    page.goto(f"/devices/{device['id']}/rejected")
    expect(page.get_by_text("No message was refused")).to_be_visible()
    with pytest.raises(HTTPError):
        account.send(device, b'{"temperature": <b>21</b>')
    page.reload()
    page.get_by_text("Payload", exact=True).click()
    expect(page.locator("details code")).to_have_text('{"temperature": <b>21</b>')
    expect(page.locator("section strong")).to_contain_text("JSON")


def test_values_move_in_the_overview_and_a_new_signal_gets_a_row(page: Page, account: Account) -> None:
    device = account.add_device("Values")
    page.goto(f"/devices/{device['id']}")
    expect(page.get_by_text("No readings yet")).to_be_visible()
    live(page)
    account.send(device, {"speed": 1234.5678, "state": "<b>idle</b>"})
    row = page.locator("tbody tr", has_text="speed")
    expect(row.locator("b")).to_have_text("1,234.57")
    expect(page.locator("tbody tr", has_text="state").locator("[data-value]")).to_have_text("<b>idle</b>")
    account.send(device, {"ts": now_ms() - 60_000, "values": {"speed": 1}})
    account.send(device, {"speed": 7})
    expect(row.locator("b")).to_have_text("7")
    expect(page.get_by_text("No readings yet")).to_have_count(0)


def test_home_moves_by_itself(page: Page, account: Account) -> None:
    device = account.add_device("Home mover")
    page.goto("/")
    expect(page.locator("iiot-rate canvas")).to_be_visible()
    readings = page.locator(".stat", has_text="Readings today").locator(".stat-value")

    def today() -> int:
        return int(readings.inner_text().replace(",", ""))

    before = today()
    mark = page.locator("iiot-rate canvas").evaluate_handle("canvas => canvas")
    account.send(device, [{"ts": now_ms() - number, "values": {"a": number}} for number in range(1000)])
    expect(page.locator(".feed")).to_contain_text("Home mover came online")
    # Those of the test before may be counted only now.
    eventually(lambda: today() >= before + 1000, 15)
    assert mark.evaluate("canvas => canvas.isConnected"), "the chart is moved on, not made again"
    assert max(map(int, str(page.locator("iiot-rate").get_attribute("values")).split(","))) >= 1000


def test_the_theme_follows_the_system_until_it_is_chosen(watch: Watch, browser: Browser) -> None:
    page = watch.open(theme="dark")
    page.goto("/devices")
    root = page.locator("html")
    expect(root).to_have_attribute("data-bs-theme", "dark")
    page.get_by_role("button", name="Use the light theme").click()
    expect(root).to_have_attribute("data-bs-theme", "light")
    page.goto("/")
    expect(root).to_have_attribute("data-bs-theme", "light")


def test_tabs_that_do_not_fit_begin_with_the_current_one_in_sight_and_leave_the_keyboard_at_the_top(
    watch: Watch, account: Account
) -> None:
    device = account.add_device("Many tabs")
    page = watch.open(width=390)
    page.goto(f"/devices/{device['id']}/settings")
    tabs = page.get_by_role("navigation", name="Device")
    expect(tabs.get_by_role("link", name="Settings")).to_be_in_viewport(ratio=0.9)
    assert tabs.evaluate("tabs => tabs.scrollLeft") > 0
    expect(tabs).to_have_attribute("data-before", "")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()


def test_the_dialog_and_the_menu_work_by_keyboard(watch: Watch) -> None:
    page = watch.open(width=390)
    page.goto("/devices")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    menu = page.get_by_role("button", name="Menu")
    menu.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("navigation", name="Main")).not_to_be_visible()
    expect(menu).to_be_focused()
    page.get_by_role("button", name="Add device").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).not_to_be_visible()
