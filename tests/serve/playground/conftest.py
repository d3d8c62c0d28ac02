"""A headless Chromium in front of a real server. Everything a page does is recorded and checked when its test ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect

from tests.browser import launched
from tests.serve.conftest import Server

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"}
TIMEOUT = 10_000  # ms; what every wait is bounded by


@pytest.fixture(scope="package")  # an event loop runs while it lives, and would be in the way of other tests
def browser() -> Iterator[Browser]:
    with launched() as running:
        yield running


class Tab:
    """One page at the playground, and all that it did.

    Attributes:
        requests: every request that left the page.
        complaints: console errors and warnings, uncaught exceptions, violations of the content security policy.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def _on_console(self, message: ConsoleMessage) -> None:
        # The browser reports every failed request; what the page made of it is what the tests look at.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(f"{message.type}: {message.text}")

    def open(self, path: str = "/", *, ready: bool = True) -> Tab:
        self.page.goto(self.url + path)
        if ready:
            self.page.wait_for_selector("#model:not([disabled])")
        return self

    def ask(self, text: str, *, wait: bool = True) -> None:
        """Write and press Enter; wait for the answer's end."""
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        self.page.wait_for_selector(".message.assistant")
        if wait:
            self.idle()

    def begun(self) -> None:
        """Wait for the first words of the newest answer."""
        expect(self.page.locator(".message.assistant .answer").last).to_have_text(re.compile(r".{4,}", re.DOTALL))

    def idle(self) -> None:
        self.page.wait_for_selector("#send:not(.stop)")

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def last_answer(self) -> str:
        return self.page.locator(".message.assistant .answer").last.inner_text()

    def bodies(self) -> list[dict[str, Any]]:
        """The bodies of the chat requests so far."""
        sent = (request for request in self.requests if request.url.endswith("/v1/chat/completions"))
        return [json.loads(request.post_data or "{}") for request in sent]

    def check(self) -> None:
        """Nothing left the origin, and nothing was complained about."""
        outside = [r.url for r in self.requests if not r.url.startswith((self.url + "/", "blob:" + self.url))]
        assert not outside, f"requests to other places: {outside}"
        assert not self.complaints, self.complaints


def audit(name: str) -> str:
    """A script of ``audits/``, to be evaluated in a page."""
    return (Path(__file__).parent / "audits" / f"{name}.js").read_text(encoding="utf-8")


Open = Callable[..., Tab]


@pytest.fixture
def tabs(browser: Browser) -> Iterator[Open]:
    """``tabs(server, **context options)``: a tab in a browser profile of its own. All are checked at the end."""
    with ExitStack() as stack:
        opened: list[Tab] = []

        def make(server: Server | str, **options: Any) -> Tab:
            context = browser.new_context(**DESKTOP | options)
            stack.callback(context.close)
            tab = Tab(context, server if isinstance(server, str) else server.url)
            opened.append(tab)
            return tab

        yield make
        for tab in opened:
            tab.check()


@pytest.fixture(scope="package")
def profile(browser: Browser) -> Iterator[BrowserContext]:
    """One profile for all tests that need nothing special: it keeps the page's files, which is faster."""
    context = browser.new_context(**DESKTOP)
    yield context
    context.close()


@pytest.fixture
def tab(profile: BrowserContext, server: Server) -> Iterator[Tab]:
    """A tab at the module's server with nothing stored, ready to use."""
    made = Tab(profile, server.url).open("/health/live", ready=False)
    made.page.evaluate("localStorage.clear()")
    yield made.open()
    made.check()
    made.page.close()
