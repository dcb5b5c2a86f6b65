"""A real Chromium in front of the real product. Any console error, uncaught exception or CSP violation fails the test that saw it."""

import base64
import json
import os
import secrets
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, StorageState, expect, sync_playwright

from tests import services

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PASSWORD = "four calm words here"
expect.set_options(timeout=15_000)


@dataclass(frozen=True)
class Account:
    """The administrator of a tenant of the tests' own."""

    url: str
    email: str
    token: str

    def call(self, method: str, path: str, body: Any = None, basic: tuple[str, str] | None = None) -> Any:
        """The REST API as this person, or as a device by HTTP Basic; raises HTTPError."""
        words = f"Basic {base64.b64encode(':'.join(basic).encode()).decode()}" if basic else f"Bearer {self.token}"
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        headers = {"Authorization": words, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/v1{path}", content, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = response.read()
        return json.loads(answer) if answer else None

    def add_device(self, name: str, **more: Any) -> dict[str, Any]:
        """A device with its token."""
        return dict(self.call("POST", "/devices", {"name": name, **more}))

    def send(self, device: dict[str, Any], data: Any) -> Any:
        """Send readings as the device."""
        return self.call("POST", "/telemetry", data, (device["id"], device["token"]))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. Playwright keeps an event loop in this thread, where other files run loops of their own: it ends with the file."""
    if not CHROMIUM.exists():
        services.missing("Chromium (apt-get install chromium, or name it in CHROMIUM)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def account(stack: services.Stack) -> Account:
    """A tenant made by registration, so that the tests share nothing with others that use the same stack."""
    url, email = stack.run["http"], f"browser-{secrets.token_hex(4)}@example.com"
    body = {"email": email, "password": PASSWORD, "name": "Test Person", "tenant": "Browser tests"}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/v1/auth/register", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return Account(url, email, json.loads(response.read())["access_token"])


def sign_in(page: Page, url: str, email: str, password: str) -> None:
    """As a person does it."""
    page.goto(f"{url}/login")
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


@pytest.fixture(scope="session")
def states() -> list[StorageState]:
    """The cookies of the account, once they were fetched."""
    return []


@pytest.fixture(scope="module")
def signed_in(browser: Browser, account: Account, states: list[StorageState]) -> StorageState:
    """The cookies of the account, fetched once: sign-ins are limited."""
    if not states:
        context = browser.new_context()
        page = context.new_page()
        sign_in(page, account.url, account.email, PASSWORD)
        expect(page).to_have_url(f"{account.url}/")
        states.append(context.storage_state())
        context.close()
    return states[0]


class Watch:
    """Opens pages and remembers what they complained about."""

    def __init__(self, browser: Browser, base_url: str, state: StorageState | None) -> None:
        self._browser = browser
        self._base_url = base_url
        self._state = state
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []
        # Answers that a test provokes on purpose are logged by the browser as errors too.
        self.expected_status: set[int] = set()

    def open(self, width: int = 1280, theme: Any = "light", *, anonymous: bool = False) -> Page:
        """A page in a context of its own."""
        state = None if anonymous else self._state
        size: Any = {"width": width, "height": 900}
        context = self._browser.new_context(
            base_url=self._base_url, viewport=size, color_scheme=theme, storage_state=state
        )
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        return page

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        if any(f"status of {status}" in message.text for status in self.expected_status):
            return
        self.complaints.append(f"{message.type}: {message.text} ({message.location.get('url')})")

    def close(self) -> None:
        """Close every page."""
        for context in self._contexts:
            context.close()


@pytest.fixture
def watch(browser: Browser, account: Account, signed_in: StorageState) -> Iterator[Watch]:
    """Pages whose complaints fail the test at its end."""
    watching = Watch(browser, account.url, signed_in)
    yield watching
    watching.close()
    assert watching.complaints == []


@pytest.fixture
def page(watch: Watch) -> Page:
    """One page of the signed-in account, wide and light."""
    return watch.open()
