"""What must hold on every page: nothing wider than the screen, no complaint of the browser, names for every control, readable contrast, nothing
inline and nothing from elsewhere."""

import json
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, expect

from tests import services
from tests.browser.conftest import Account, Watch
from tests.browser.test_inbox_page import bring, waiting

# Each control has a name that a screen reader can say.
NAMELESS = """() => [...document.querySelectorAll("input:not([type=hidden]), select, textarea, button, a[href]")]
  .filter((each) => !(each.labels?.length || each.getAttribute("aria-label") || each.getAttribute("aria-labelledby") || each.textContent.trim()))
  .map((each) => each.outerHTML)"""

LOOKS: tuple[tuple[int, Literal["light", "dark"]], ...] = (
    (1440, "light"),
    (1440, "dark"),
    (390, "dark"),
    (390, "light"),
)
STRANGERS = ("/login", "/forgot", "/reset?token=x", "/signup", "/signup/confirm", "/signup/confirm?token=x")
INLINE = "script:not([src]), style, [style]:not(iiot-chart *, iiot-rate *), [onclick]"

# WCAG 2.2, 1.4.3: 4.5 to 1, or 3 to 1 for large text. Colours are read through a canvas, which knows every notation.
FAINT = """() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((each, i) => (i === 3 ? each / 255 : each)); };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const ground = (each) => { const own = rgba(getComputedStyle(each).backgroundColor);
    return own[3] === 1 || !each.parentElement ? (own[3] === 1 ? own : over(own, [255, 255, 255, 1])) : over(own, ground(each.parentElement)); };
  const light = (c) => [0, 1, 2].map((i) => c[i] / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = new Map();
  for (const each of document.querySelectorAll("body *")) {
    const text = [...each.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (!text || each.closest(".visually-hidden, .skip-link, :disabled")) continue;
    if (!each.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const style = getComputedStyle(each);
    const below = ground(each);
    const [a, b] = [light(over(rgba(style.color), below)), light(below)].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.set(`${each.tagName}.${each.className}`, `${ratio.toFixed(2)} ${text.slice(0, 40)}`);
  }
  return [...found];
}"""


@pytest.fixture(scope="session")
def furnished(account: Account, stack: services.Stack) -> dict[str, Any]:
    """A device with readings, a long name, a refused message, and commands; a gateway with a home that has brought others."""
    device = account.add_device(
        "A device whose name is rather long, as people in plants like them " + "x" * 60,
        tags=["hall-b", "a-longer-tag-than-usual"],
    )
    gateway = account.add_device("A gateway", is_gateway=True)
    account.call("POST", "/homes", {"name": f"home-{gateway['id']}", "device_id": gateway["id"]})
    bring(stack, gateway, json.dumps({f"child {number} {'x' * 80}": {"key": "y" * 300} for number in range(3)}))
    waiting(account, gateway, 3)
    [first, *_] = account.call("GET", f"/discoveries?gateway={gateway['id']}")["items"]
    account.call("POST", f"/discoveries/{first['id']}/ignore")
    account.send(
        device,
        {
            "temperature": 21.5,
            "pressure": 1.2,
            "running": True,
            "state": "idle " * 30,
            "vibration/rms.x-axis:long-name-of-a-signal": 3,
        },
    )
    with pytest.raises(Exception, match="HTTP"):
        account.send(device, b"not json at all " * 20)
    device["rejected"] = account.call("GET", f"/rejected?device={device['id']}")["items"][0]["id"]
    account.call("POST", f"/devices/{device['id']}/oscore", {"name": "A key with a long name " + "x" * 60})
    for kind in ("light", "sensor"):
        account.call("POST", "/entities", {"device_id": device["id"], "kind": kind, "name": "a-long-name-" + "x" * 28})
    path, own = f"/devices/{device['id']}/commands", (device["id"], device["token"])
    for number in range(5):
        account.call(
            "POST", path, {"name": f"a-long-name-of-a-command-{number}" + "x" * 30, "params": {"x": "y" * 200}}
        )
    for status in ("done", "failed"):
        [given] = account.call("GET", "/commands", basic=own)["items"]
        account.call("POST", f"/commands/{given['id']}/result", {"status": status, "result": "z" * 300}, own)
    [given] = account.call("GET", "/commands", basic=own)["items"]
    account.call("POST", f"{path}/{given['id']}/cancel")
    account.call("GET", "/commands", basic=own)
    return device | {"gateway": gateway["id"]}


def paths(device: dict[str, Any]) -> list[str]:
    uid = device["id"]
    tabs = [
        f"/devices/{uid}{tab}"
        for tab in (
            "",
            "/connect",
            "/chart",
            "/commands",
            "/connections",
            "/rejected",
            "/settings",
            "/certificates",
            "/oscore",
        )
    ]
    return [
        "/",
        "/devices",
        "/devices?add=1",
        "/devices?q=nothing-has-this-name",
        "/devices/inbox",
        "/devices/inbox?state=ignored",
        "/devices/entities",
        f"/devices/{device['gateway']}/settings",
        "/password",
        "/audit",
        "/audit?q=nothing-has-this-text",
        "/rejected",
        "/rejected?code=nothing-has-this-code",
        f"/rejected/{device['rejected']}",
        "/devices/unknown",
        "/usage",
        "/settings",
        "/account",
        "/account/mfa",
        "/account/keys",
        "/account/keys?new=1",
        "/team/keys",
        "/team",
        "/team?q=nobody-has-this-name",
        "/team/invitations",
        "/team/invitations?new=1",
        "/team/roles",
        "/team/roles?new=1",
        "/team/sites",
        "/team/sites?new=1",
        "/invitations/accept?token=wrong",
        *tabs,
    ]


# After two frames: a chart takes its new size in the one that follows the screen's.
WIDTH = """async () => {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return document.documentElement.scrollWidth;
}"""


def check(page: Page, path: str) -> None:
    """Load the page once and look at it wide and narrow, light and dark."""
    answer = page.goto(path)
    assert answer is not None
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert page.locator(INLINE).count() == 0, path
    if page.locator("iiot-live").count():
        page.locator("iiot-live[data-state=live]").wait_for(state="attached")
    page.locator("[aria-busy]").wait_for(state="detached")
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for width, theme in LOOKS:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        look = f"{path} {width} {theme}"
        assert page.evaluate(WIDTH) <= width, f"{look} is wider than the screen"
        assert page.evaluate(NAMELESS) == [], look
        assert page.evaluate(FAINT) == [], look


def test_every_page_fits_is_quiet_and_readable(watch: Watch, account: Account, furnished: dict[str, Any]) -> None:
    watch.expected_status.add(404)
    page = watch.open()
    foreign: list[str] = []
    page.on(
        "request",
        lambda request: foreign.append(request.url) if not request.url.startswith((account.url, "data:")) else None,
    )
    for path in paths(furnished):
        check(page, path)
    assert foreign == []


def test_pages_for_strangers_fit_are_quiet_and_readable(watch: Watch) -> None:
    page = watch.open(anonymous=True)
    for path in STRANGERS:
        check(page, path)


def test_series_are_joined_appended_and_split_between_axes(watch: Watch) -> None:
    page = watch.open()
    page.goto("/")
    address = str(page.locator("script[type=module]").get_attribute("src")).replace("app.js", "series.js")
    found = page.evaluate(
        """async (address) => {
          const { append, join, question, sides } = await import(address);
          return {
            joined: join(["a", "b"], { a: [[1000, 1], [2000, null]], b: [[2000, true]] }).map((list) => list.map((each) => each ?? null)),
            merged: append([[1, 1], [3, 3]], [[2, 2], [3, 9]], 2),
            appended: append([[1, 1]], [[2, 2]], 0),
            short: question(0, 3600e3), long: question(0, 7 * 864e5), longest: question(0, 365 * 864e5),
            units: sides(["a", "b"], { a: "bar", b: "C" }, {}), sizes: sides(["a", "b"], { a: "", b: "" }, { a: [[1, 100]], b: [[1, 2]] }),
          };
        }""",
        address,
    )
    assert found["joined"] == [[1, 2], [1, None], [None, 1]]
    assert found["merged"] == [[2, 2], [3, 3]], "the first value of a timestamp stands"
    assert found["appended"] == [[1, 1], [2, 2]]
    assert found["short"] == {"agg": "lttb", "limit": 2000}
    assert found["long"]["interval"] == "10m"
    assert found["longest"]["interval"] == "1d"
    assert found["units"] == {"a": "y", "b": "right"}
    assert found["sizes"] == {"a": "y", "b": "right"}
