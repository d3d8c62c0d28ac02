"""What a person sees when the API says no, and how the page goes on from there."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import expect

from deepseek_serve.auth import ApiKey
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import Server, chat_body, running_server
from tests.serve.playground.conftest import Open

KEY = "sk-playground"


@contextlib.contextmanager
def full(server: Server, key: str = "none") -> Iterator[httpx.Client]:
    """Take the only place of a server or a key; closing the client gives it back."""
    with (
        server.client(headers={"authorization": f"Bearer {key}"}) as http,
        http.stream("POST", "/v1/chat/completions", json=chat_body("[slow][long]", stream=True)) as response,
    ):
        lines = response.iter_lines()  # dropping it would close the response
        next(lines)
        yield http


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    with running_server(max_sequences=1) as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    with running_server(api_keys=(KEY,)) as running:
        yield running


def test_a_full_server_is_asked_again_when_it_said(tabs: Open, small: Server) -> None:
    tab = tabs(small).open()
    with full(small):
        tab.ask("patient", wait=False)
        expect(tab.page.locator(".problem")).to_contain_text("The server is busy")
        assert re.search(r"Next try in \d+ s", tab.text(".countdown"))
        expect(tab.page.locator(".assistant .pending")).to_be_hidden()
        while len(tab.bodies()) < 2:  # it asks again by itself
            tab.page.wait_for_timeout(50)
    tab.idle()
    assert tab.last_answer() == ANSWER
    assert tab.page.locator(".problem").count() == 0
    assert len({json.dumps(body) for body in tab.bodies()}) == 1


def test_waiting_can_be_ended_and_taken_up_by_hand(tabs: Open, small: Server) -> None:
    tab = tabs(small).open()
    with full(small):
        tab.ask("impatient", wait=False)
        tab.page.click("text=Do not retry")
        tab.idle()
        assert "The server is full" in tab.text(".problem")
        sent = len(tab.bodies())
    small.wait_metric("deepseek_admitted_answers", 0)
    assert len(tab.bodies()) == sent
    tab.page.click("button:has-text('Try again')")
    tab.idle()
    assert tab.last_answer() == ANSWER and tab.page.locator(".message").count() == 2


def test_a_key_with_its_answers_in_work_is_asked_again(tabs: Open) -> None:
    with running_server(api_keys=(ApiKey.of(KEY, concurrency=1),)) as server:
        tab = tabs(server)
        tab.page.add_init_script(f"sessionStorage.setItem('deepseek.key', '{KEY}')")
        tab.open()
        with full(server, KEY):
            tab.ask("limited", wait=False)
            expect(tab.page.locator(".problem")).to_contain_text("Too many requests")
            expect(tab.page.locator(".countdown")).to_contain_text("Next try in")
            tab.page.click("text=Do not retry")
        server.wait_metric("deepseek_admitted_answers", 0)
        tab.page.click("button:has-text('Try again')")
        tab.idle()
        assert tab.last_answer() == ANSWER


def test_a_quota_that_is_used_up(tabs: Open) -> None:
    with running_server(api_keys=(ApiKey.of(KEY, monthly_tokens=1),)) as server:
        tab = tabs(server)
        tab.page.add_init_script(f"sessionStorage.setItem('deepseek.key', '{KEY}')")
        tab.open()
        tab.ask("first")
        tab.ask("second")
        assert "The quota of this key is used up" in tab.text(".problem")
        assert tab.page.locator(".problem button").count() == 0, "trying again would not help"


def test_a_long_wait_counts_down_to_the_time_the_server_named(tabs: Open, server: Server) -> None:
    """A real limit would make the test as long, so the 429 is written by hand; the next request is real."""
    tab = tabs(server).open()
    error = {"message": "Rate limit reached.", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
    tab.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=429, headers={"retry-after": "20"}, json={"error": error}),
        times=1,
    )
    tab.ask("fast", wait=False)
    expect(tab.page.locator(".problem")).to_contain_text("Too many requests")
    first = re.search(r"Next try in (\d+) s", tab.text(".countdown"))
    assert first is not None and 15 <= int(first[1]) <= 20
    expect(tab.page.locator(".countdown")).not_to_have_text(first[0])
    tab.page.click("text=Try now")
    tab.idle()
    assert tab.last_answer() == ANSWER


def test_a_key_is_asked_for_and_kept_in_this_tab_only(tabs: Open, locked: Server) -> None:
    tab = tabs(locked)
    tab.open(ready=False)
    page = tab.page
    page.wait_for_selector("#key-dialog[open]")
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type("sk-wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-problem")).to_contain_text("Incorrect API key")
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#model:not([disabled])")
    tab.ask("hello")
    assert tab.last_answer() == ANSWER
    page.reload()
    page.wait_for_selector("#model:not([disabled])")
    assert page.locator("#key-dialog[open]").count() == 0
    stored = page.evaluate("JSON.stringify([Object.entries(localStorage), document.cookie, location.href])")
    assert KEY not in stored
    assert page.evaluate("Object.values(sessionStorage)") == [KEY]
    assert all(KEY not in request.url for request in tab.requests)
    page.click("#code-open")
    assert KEY not in tab.text("#code-dialog")


def test_a_key_that_stops_working_is_asked_for_again(tabs: Open, locked: Server) -> None:
    tab = tabs(locked)
    tab.page.add_init_script(
        f"sessionStorage.getItem('deepseek.key') || sessionStorage.setItem('deepseek.key', '{KEY}')"
    )
    tab.open()
    tab.page.evaluate("sessionStorage.setItem('deepseek.key', 'sk-old')")
    tab.ask("hello", wait=False)
    tab.page.wait_for_selector("#key-dialog[open]")
    tab.page.click("#key-dialog >> text=Cancel")
    tab.idle()
    assert "A key is needed" in tab.text(".problem")
    tab.page.click("button:has-text('Try again')")
    tab.page.fill("#key", KEY)
    tab.page.keyboard.press("Enter")
    tab.idle()
    assert tab.last_answer() == ANSWER


def test_the_node_is_seen_without_a_key(tabs: Open, locked: Server) -> None:
    tab = tabs(locked)
    tab.open(ready=False)
    expect(tab.page.locator("#status-text")).to_have_text("ready")


def test_an_engine_that_dies_leaves_the_text_it_gave(tabs: Open, server: Server) -> None:
    tab = tabs(server).open()
    tab.ask("[die]")
    assert "The answer broke off" in tab.text(".problem") and "engine" in tab.text(".problem")
    assert ANSWER.startswith(tab.last_answer()) and tab.last_answer()
    server.wait_status("/health/ready", 200)
    tab.page.locator(".message.user").locator("[aria-label='Edit and send again']").click()
    tab.page.fill(".edit textarea", "[echo]alive")
    tab.page.press(".edit textarea", "Enter")
    tab.idle()
    assert tab.last_answer() == "alive"


def test_one_failed_request(tabs: Open, server: Server) -> None:
    tab = tabs(server).open()
    tab.ask("[nan]")
    assert "not finite" in tab.text(".problem")
    tab.page.click(".problem >> text=Ask again")
    tab.idle()
    assert tab.text(".assistant .branches") == "2/2"


def test_a_lost_connection_keeps_the_text_and_the_page_comes_back_with_the_server(tabs: Open) -> None:
    with running_server() as server:
        tab = tabs(server).open()
        tab.ask("[slow][long]", wait=False)
        tab.begun()
        server.stop()
        tab.idle()
        assert "The answer broke off" in tab.text(".problem")
        kept = tab.last_answer()
        assert kept
        expect(tab.page.locator("#status-text")).to_have_text("not reachable")
        tab.page.keyboard.press("Control+k")
        tab.ask("[echo]nobody", wait=False)
        expect(tab.page.locator(".problem").last).to_contain_text("No connection")
        port = server.port
    with running_server(port=port):
        tab.page.locator(".problem button:has-text('Try again')").click()
        tab.idle()
        assert tab.last_answer() == "nobody"
        tab.page.go_back()
        assert tab.last_answer() == kept
        assert tab.page.locator(".problem >> text=Continue").is_visible()


def test_a_server_that_is_starting(tabs: Open) -> None:
    with running_server(environment={"DEEPSEEK_FAKE_LOAD": "sleep1.5"}, wait=False) as server:
        server.wait_status("/health/live", 200)
        tab = tabs(server).open()
        expect(tab.page.locator("#status-text")).to_have_text("starting")
        tab.ask("early", wait=False)
        expect(tab.page.locator(".problem")).to_contain_text("engine is starting")
        tab.idle()
        assert tab.last_answer() == ANSWER
        expect(tab.page.locator("#context")).to_contain_text("/ 2,048")


def test_a_request_that_waits_says_so(tabs: Open) -> None:
    with running_server(keep_alive_interval=0.2) as server:
        tab = tabs(server).open()
        tab.ask("[hang]", wait=False)
        expect(tab.page.locator(".assistant .pending")).to_have_text("Waiting for the first token")
        expect(tab.page.locator(".assistant .pending")).to_have_text("In the queue of the server")


def test_what_is_too_large(tabs: Open) -> None:
    with running_server(max_body_bytes=3000) as server:
        tab = tabs(server).open()
        tab.ask("x" * 4000)
        assert "The conversation is too large" in tab.text(".problem")


def test_full_storage_is_said_and_the_chat_goes_on(tabs: Open, server: Server) -> None:
    tab = tabs(server).open()
    tab.page.evaluate(
        """() => {
          const size = (n) => {
            try { localStorage.setItem('filler', 'x'.repeat(n)); return true } catch { return false }
          };
          let [low, high] = [0, 6e6];
          while (high - low > 1) { const mid = (low + high) >> 1; if (size(mid)) low = mid; else high = mid; }
          size(low);
        }"""
    )
    tab.ask("[echo]no room")
    expect(tab.page.locator(".toast").first).to_contain_text("storage is full")
    assert tab.last_answer() == "no room"
