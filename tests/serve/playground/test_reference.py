"""The page at /docs in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, expect

from tests.serve.conftest import Server, running_server
from tests.serve.playground.conftest import DESKTOP, Tab

KEY = "sk-reference"


@pytest.fixture(scope="module")
def locked() -> Server:  # type: ignore[misc]
    with running_server(api_keys=(KEY,)) as running:
        yield running


@pytest.mark.parametrize("width", [1280, 390])
def test_a_request_is_tried_on_the_page(browser: Browser, locked: Server, width: int) -> None:
    with browser.new_context(**{**DESKTOP, "viewport": {"width": width, "height": 800}}) as context:
        tab = Tab(context, locked.url).open("/docs", ready=False)
        page = tab.page
        expect(page.get_by_role("heading", name=re.compile("DeepSeek V2.1"))).to_be_visible()
        assert page.locator(".opblock").count() > 20
        page.get_by_role("button", name="Authorize").first.click()
        page.locator("input#auth-bearer-value").fill(KEY)
        page.locator(".auth-container").first.get_by_role("button", name="Apply").click()
        page.locator(".modal-ux").get_by_role("button", name="Close").last.click()
        block = page.locator("#operations-Models-list_models")
        block.locator(".opblock-summary-control").click()
        block.get_by_role("button", name="Execute").click()
        expect(block.locator(".live-responses-table")).to_contain_text('"id": "deepseek-v2.1"')
        page.locator("input.operation-filter-input").fill("Batches")
        expect(page.locator("#operations-Models-list_models")).to_have_count(0)
        expect(page.locator("#operations-Batches-create_batch")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
        assert {request.url.startswith((locked.url, "data:")) for request in tab.requests} == {True}
        assert tab.complaints == []
