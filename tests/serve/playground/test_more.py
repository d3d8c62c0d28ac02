"""The live node, the request as code, reasoning and tool calls."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from playwright.sync_api import expect

from deepseek_serve.playground.assets import page as assets
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import Server
from tests.serve.playground.conftest import Open, Tab


def test_the_node_is_watched(tab: Tab, server: Server) -> None:
    page = tab.page
    expect(page.locator("#status-text")).to_have_text("ready")
    tab.ask("[slow][long]", wait=False)
    expect(page.locator("[data-chart=running] .chart-value")).to_have_text("1")
    expect(page.locator("#status-text")).to_have_text(re.compile(r"\d+ tok/s"))
    expect(page.locator("[data-chart=speed] .chart-value")).to_have_text(re.compile(r"^[1-9][\d.]+$"))
    assert float(tab.text("[data-chart=speed] .chart-value")) < 100
    assert len((page.get_attribute("[data-chart=speed] polyline", "points") or "").split()) >= 2
    page.keyboard.press("Escape")
    tab.idle()
    expect(page.locator("#status-text")).to_have_text("ready")
    expect(page.locator("[data-chart=running] .chart-value")).to_have_text("0")
    assert "Tokens generated" in tab.text(".node-facts")


def test_metrics_of_several_engines_are_added(tab: Tab) -> None:
    text = """# HELP deepseek_engine_running Requests.
deepseek_engine_running{model="a",replica="0"} 2.0
deepseek_engine_running{model="a",replica="1"} 3.0
deepseek_engine_state{state="ready"} 0.0
deepseek_engine_state{model="a, {b}",state="starting"} 1.0
deepseek_engine_kv_pages 1e2
deepseek_odd NaN
not a metric
"""
    sums = tab.page.evaluate(
        "async ([url, text]) => Object.fromEntries((await import(url)).readMetrics(text))",
        [f"/playground/{assets().version}/js/node.js", text],
    )
    assert sums["deepseek_engine_running"] == 5 and sums["deepseek_engine_kv_pages"] == 100
    assert sums["deepseek_engine_state:ready"] == 0 and sums["deepseek_engine_state:starting"] == 1
    assert "deepseek_odd" not in sums


def _code(tab: Tab, name: str) -> str:
    tab.page.click("#code-open")
    tab.page.click(f"#code-tabs >> text={name}")
    code = tab.page.evaluate("document.querySelector('#code-view code').textContent")
    tab.page.click("#code-dialog [data-close]")
    return str(code)


NASTY = '[echo]it\'s "quoted" $HOME `id` \\n é世界👋 {x} %s\nsecond ``` line'


def _configure(tab: Tab) -> None:
    tab.page.fill("#system", "You're 'brief'.")
    tab.page.click("text=More sampling")
    tab.page.fill("#field-top_k", "5")
    tab.page.fill("#field-stop", "it's over\n\"")
    tab.page.fill("#field-seed", "3")


def _run(command: list[str]) -> str:
    environment = {**os.environ, "DEEPSEEK_API_KEY": "sk-x", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_curl_command_sends_the_same_request(tab: Tab) -> None:
    _configure(tab)
    tab.page.fill("#prompt", NASTY)
    code = _code(tab, "curl")
    tab.page.press("#prompt", "Enter")
    tab.idle()
    sent = json.loads(re.search(r"-d '(.*)'$", code, re.DOTALL)[1].replace("'\\''", "'"))  # type: ignore[index]
    assert sent == tab.bodies()[0]
    output = _run(["bash", "-c", code.replace("curl -N", "curl -sN")])
    chunks = [json.loads(line[6:]) for line in output.splitlines() if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == NASTY.removeprefix("[echo]").split('"')[0], "cut at the stop string"


def test_the_openai_code_gives_the_same_answer(tab: Tab) -> None:
    _configure(tab)
    tab.page.fill("#field-stop", "never this")
    tab.page.fill("#prompt", NASTY)
    code = _code(tab, "Python, openai")
    assert _run([sys.executable, "-c", code]) == NASTY.removeprefix("[echo]")


def test_the_code_is_that_of_the_last_question_when_nothing_is_written(tab: Tab) -> None:
    tab.ask("[echo]a")
    tab.ask("[echo]b")
    code = _code(tab, "curl")
    sent = json.loads(re.search(r"-d '(.*)'$", code, re.DOTALL)[1])  # type: ignore[index]
    assert sent == tab.bodies()[-1]


def test_tabs_of_the_code_dialog_by_keyboard(tab: Tab) -> None:
    tab.page.click("#code-open")
    tab.page.locator("#tab-curl").focus()
    tab.page.keyboard.press("ArrowRight")
    expect(tab.page.locator("#tab-client")).to_be_focused()
    assert tab.page.get_attribute("#tab-client", "aria-selected") == "true"
    assert "from deepseek import Client" in tab.text("#code-view")


def _stream(*deltas: dict[str, Any], finish: str = "stop") -> str:
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    details = {"completion_tokens_details": {"reasoning_tokens": 2}, "prompt_tokens_details": {"cached_tokens": 64}}
    chunks.append(
        {"choices": [], "usage": {"prompt_tokens": 70, "completion_tokens": 9, "total_tokens": 79, **details}}
    )
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def _answer_with(tab: Tab, body: str) -> None:
    """The scripted engine neither reasons nor calls tools: such a stream is written by hand."""
    tab.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body), times=1
    )


def test_reasoning_is_folded_away(tab: Tab) -> None:
    _answer_with(
        tab,
        _stream(
            {"role": "assistant", "reasoning_content": "Let me *think*"},
            {"reasoning_content": " more."},
            {"content": "42"},
        ),
    )
    tab.ask("why")
    details = tab.page.locator(".reasoning")
    expect(details.locator("summary")).to_have_text("Reasoning")
    assert details.evaluate("e => e.open") is False
    assert tab.last_answer() == "42"
    details.locator("summary").click()
    assert details.locator(".md").inner_text() == "Let me think more."
    assert "2 thinking" in tab.text(".assistant .figures") and "64 cached" in tab.text(".assistant .figures")
    tab.ask("and now")
    assert "reasoning_content" not in json.dumps(tab.bodies()[-1]), "not part of the prompt"


def test_tool_calls_are_readable(tab: Tab) -> None:
    begin = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    parts = ['{"city": "Par', 'is", "days": 3}']
    deltas = [{"role": "assistant", "tool_calls": [begin]}]
    deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in parts]
    deltas += [
        {"tool_calls": [{"index": 1, "id": "call_2", "function": {"name": "<b>time</b>", "arguments": "{not json"}}]}
    ]
    _answer_with(tab, _stream(*deltas, finish="tool_calls"))
    tab.ask("weather?")
    calls = tab.page.locator(".call")
    assert calls.count() == 2
    assert calls.first.locator("figcaption code").inner_text() == "weather"
    assert calls.first.locator("pre").inner_text() == '{\n  "city": "Paris",\n  "days": 3\n}'
    assert calls.last.locator("figcaption code").inner_text() == "<b>time</b>"
    assert calls.last.locator("pre").inner_text() == "{not json"
    tab.page.reload()
    assert tab.page.locator(".call").count() == 2


def test_a_stream_that_is_not_ours(tab: Tab) -> None:
    for body in ("data: {broken\n\n", "<html>proxy</html>", ""):
        _answer_with(tab, body)
        tab.ask("hm")
        assert "The answer broke off" in tab.page.locator(".problem").last.inner_text()


def test_an_error_page_of_a_proxy(tab: Tab) -> None:
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(status=502, body="<html>Bad Gateway"), times=1)
    tab.ask("hm")
    assert "The server failed" in tab.text(".problem") and "502" in tab.text(".problem")
    tab.page.click("button:has-text('Try again')")
    tab.idle()
    assert tab.last_answer() == ANSWER


def test_models_can_be_chosen(tabs: Open, server: Server) -> None:
    """One server has one model as yet, so the list is written by hand."""
    tab = tabs(server)
    cards = [
        {"id": name, "root": name, "object": "model", "max_model_len": 2048}
        for name in ("deepseek-v2.1", "tiny-fake-1b")
    ]
    tab.page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": cards}))
    tab.open()
    tab.page.select_option("#model", "tiny-fake-1b")
    tab.ask("hello")
    assert tab.bodies()[0]["model"] == "tiny-fake-1b" and tab.last_answer() == ANSWER
    assert tab.text(".assistant .who") == "tiny-fake-1b"
    tab.page.keyboard.press("Control+k")
    assert tab.page.input_value("#model") == "tiny-fake-1b"
    tab.page.reload()
    tab.page.wait_for_selector("#model:not([disabled])")
    assert tab.page.input_value("#model") == "tiny-fake-1b"
