"""Makes the pictures of the README: starts the portal in an empty folder, fills it, walks through the pages in Chromium.

    .venv/bin/python scripts/screenshots.py            pictures into docs/screenshots
    .venv/bin/python scripts/screenshots.py --all      every page, light and dark, wide and narrow, into the folder --to

With --url, --email and --password a running portal is used instead; its password must have been changed already.
"""

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
PASSWORD = "a quiet morning in the plant"
DEVICES = [
    ("Pump 3, hall B", "pump", ["hall-b", "cooling"]),
    ("Pump 4, hall B", "pump", ["hall-b", "cooling"]),
    ("Compressor north", "compressor", ["hall-a"]),
    ("Compressor south", "compressor", ["hall-a"]),
    ("Boiler 1", "boiler", ["energy"]),
    ("Chiller roof", "chiller", ["energy", "cooling"]),
    ("Line 1 conveyor", "conveyor", ["line-1"]),
    ("Line 2 conveyor", "conveyor", ["line-2"]),
    ("Line 2 press", "press", ["line-2"]),
    ("Tank farm gateway", "gateway", ["yard"]),
    ("Weather mast", "weather", ["yard"]),
    ("Test bench", "default", []),
]
HISTORY_SECONDS = 6 * 3600
STEP_SECONDS = 10


class Client:
    """The REST API as a person."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.token = ""

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send JSON; returns the answer's JSON. Raises HTTPError."""
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            content = response.read()
        return json.loads(content) if content else None

    def sign_in(self, email: str, password: str) -> None:
        """Use this account from now on."""
        self.token = self.call("POST", "/auth/login", {"email": email, "password": password})["access_token"]


@contextmanager
def started() -> Iterator[tuple[str, str, str]]:
    """A portal of its own: address, e-mail and the one-time password."""
    with tempfile.TemporaryDirectory(prefix="iiot-screenshots-") as folder:
        Path(folder).chmod(0o755)
        data = Path(folder) / "data"
        binds = {f"IIOT_{name}_BIND": "127.0.0.1:0" for name in ("HTTP", "MQTT", "COAP", "OPCUA", "METRICS")}
        process = subprocess.Popen(
            [sys.executable, "-m", "iiot", "up", "--data-dir", str(data)], cwd=ROOT, env={**os.environ, **binds}
        )
        try:
            deadline = time.monotonic() + 120
            while not (data / "run.json").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("The portal did not start.")
                time.sleep(0.2)
            run = json.loads((data / "run.json").read_text())
            yield run["http"], run["admin"]["email"], run["admin"]["password"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def values(number: int, ts: float) -> dict[str, float | bool]:
    """Readings of a device at a time: slow swings, an ageing bearing, some noise."""
    phase = ts / 1500 + number
    noise = random.Random(f"{number}/{ts}")
    return {
        "temperature": round(61 + 4 * math.sin(phase) + 1.5 * math.sin(phase * 5.3) + noise.gauss(0, 0.25), 2),
        "pressure": round(4.2 + 0.5 * math.sin(phase * 1.7 + 1) + noise.gauss(0, 0.03), 3),
        "vibration": round(abs(1.8 + 0.6 * math.sin(phase * 0.4) + noise.gauss(0, 0.12)), 3),
        "running": math.sin(phase / 3 + number) > -0.85,
    }


def fill(client: Client) -> list[dict[str, Any]]:
    """Devices with some hours of history, and one message that is refused."""
    devices = [
        client.call("POST", "/devices", {"name": name, "type": kind, "tags": tags}) for name, kind, tags in DEVICES
    ]
    now = int(time.time())
    for number, device in enumerate(devices[:-1]):
        times = range(now - HISTORY_SECONDS, now, STEP_SECONDS * (1 if number < 2 else 6))
        items = [{"ts": ts * 1000, "values": values(number, ts)} for ts in times]
        for start in range(0, len(items), 500):
            client.call("POST", "/telemetry", {"device_id": device["id"], "data": items[start : start + 500]})
    return devices


def send_on(client: Client, devices: list[dict[str, Any]], end: threading.Event) -> None:
    """A reading of each device every second until `end`."""
    while not end.wait(1):
        now = int(time.time())
        for number, device in enumerate(devices[:-2]):
            client.call(
                "POST",
                "/telemetry",
                {"device_id": device["id"], "data": {"ts": now * 1000, "values": values(number, now)}},
            )


def sign_in(page: Page, url: str, email: str, password: str) -> None:
    """Sign in as a person does."""
    page.goto(f"{url}/login")
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")


def shoot(page: Page, url: str, path: str, file: Path, *, whole: bool = False) -> None:
    """One picture, after the live channel is up and fonts and charts are drawn."""
    page.goto(url + path)
    if page.locator("iiot-live").count():
        page.locator("iiot-live[data-state=live]").wait_for(state="attached")
    page.locator("[aria-busy]").wait_for(state="detached")
    page.wait_for_timeout(2500 if "chart" in path or path == "/" else 400)
    page.screenshot(path=file, full_page=whole)


def pages_of(uid: str) -> dict[str, str]:
    """Name → path of the pages of a signed-in person."""
    tabs = {name: f"/devices/{uid}/{name}" for name in ("connect", "chart", "rejected", "settings")}
    return {
        "home": "/",
        "devices": "/devices",
        "add": "/devices?add=1",
        "overview": f"/devices/{uid}",
        "password": "/password",
        **tabs,
    }


def readme_pictures(browser: Browser, account: tuple[str, str, str], uid: str, to: Path) -> None:
    """What the README shows."""
    for theme, names in (("light", ("chart", "connect", "devices", "overview")), ("dark", ("chart",))):
        context = browser.new_context(
            viewport={"width": 1280, "height": 800}, color_scheme=theme, timezone_id="Europe/Berlin"
        )
        page = context.new_page()
        sign_in(page, *account)
        for name in names:
            shoot(page, account[0], pages_of(uid)[name], to / f"{name}-{theme}.png")
        context.close()


def all_pictures(browser: Browser, account: tuple[str, str, str], uid: str, to: Path) -> None:
    """Every page in both themes and two widths, to be looked at."""
    for theme in ("light", "dark"):
        for width in (1440, 390):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
            page = context.new_page()
            page.on(
                "console",
                lambda message: (
                    print(f"{message.type}: {message.text}") if message.type in ("error", "warning") else None
                ),
            )
            for name in ("login", "signup"):
                shoot(page, account[0], f"/{name}", to / f"{name}-{theme}-{width}.png", whole=True)
            sign_in(page, *account)
            for name, path in {**pages_of(uid), "missing": "/devices/nothing"}.items():
                shoot(page, account[0], path, to / f"{name}-{theme}-{width}.png", whole=True)
            context.close()


def take(account: tuple[str, str, str], to: Path, every: bool) -> None:
    """Fill the portal, keep it moving and take the pictures."""
    client = Client(account[0])
    client.sign_in(*account[1:])
    devices = fill(client)
    end = threading.Event()
    sender = threading.Thread(target=send_on, args=(client, devices, end))
    sender.start()
    to.mkdir(parents=True, exist_ok=True)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            (all_pictures if every else readme_pictures)(browser, account, devices[0]["id"], to)
            browser.close()
    finally:
        end.set()
        sender.join()


def main() -> None:
    """Read the arguments and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "screenshots")
    parser.add_argument("--all", action="store_true")
    for name in ("url", "email", "password"):
        parser.add_argument(f"--{name}")
    wanted = parser.parse_args()
    if wanted.url:
        take((wanted.url, wanted.email, wanted.password), wanted.to, wanted.all)
        return
    with started() as (url, email, one_time):
        client = Client(url)
        client.sign_in(email, one_time)
        client.call("POST", "/auth/password/change", {"current_password": one_time, "new_password": PASSWORD})
        take((url, email, PASSWORD), wanted.to, wanted.all)


if __name__ == "__main__":
    main()
