"""The page in front of a real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.conftest import KEY, RealServer
from tests.serve.playground.conftest import Open


@pytest.fixture(scope="module")
def real(browser: Browser, test_model: Path) -> Iterator[RealServer]:
    running = RealServer(str(test_model), "--api-key", KEY, "--kv-cache-bytes", "256MiB")
    try:
        yield running
    finally:
        running.stop()


def test_ask_stop_and_go_on(tabs: Open, real: RealServer) -> None:
    tab = tabs(real.url)
    tab.page.add_init_script(f"sessionStorage.setItem('deepseek.key', '{KEY}')")
    tab.open()
    page = tab.page
    assert "smollm2" in tab.text(".welcome").lower()
    page.fill("#field-temperature", "0")
    page.fill("#field-max_tokens", "30")
    tab.ask("What is the capital of France?")
    assert "Paris" in tab.last_answer()
    assert "tok/s" in tab.text(".assistant .figures") and "prompt" in tab.text(".assistant .figures")
    page.fill("#field-max_tokens", "2000")
    tab.ask("Write a very long story about a sailor. Use many paragraphs.", wait=False)
    tab.begun()
    expect(page.locator("#status-text")).to_contain_text("tok/s")
    page.keyboard.press("Escape")
    tab.idle()
    kept = tab.last_answer()
    page.fill("#field-max_tokens", "12")
    page.click(".notice >> text=Continue")
    page.wait_for_selector(".notice >> text=Cut off")
    assert tab.last_answer().startswith(kept) and len(tab.last_answer()) > len(kept)
    assert page.locator(".message").count() == 4
