"""Asking, stopping, asking again, changing, keeping: against the scripted engine in a server process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import Server
from tests.serve.playground.conftest import Open, Tab


def test_send_and_stream(tab: Tab) -> None:
    tab.ask("[slow] hello", wait=False)
    page = tab.page
    tab.begun()
    assert tab.text(".assistant .answer") != ANSWER, "the whole answer came at once"
    assert page.get_attribute(".message.assistant", "aria-busy") == "true"
    tab.idle()
    assert tab.text(".user .body") == "[slow] hello"
    assert tab.last_answer() == ANSWER
    assert page.get_attribute(".message.assistant", "aria-busy") == "false"
    assert tab.bodies() == [
        {
            "model": "deepseek-v2.1",
            "messages": [{"role": "user", "content": "[slow] hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_figures_of_an_answer(tab: Tab) -> None:
    tab.ask("[slow] " + "figures " * 20)
    figures = tab.text(".assistant .figures")
    assert re.search(r"first token \d+ ms", figures)
    speed = re.search(r"speed ([\d.]+) tok/s", figures)
    assert speed is not None and 0 < float(speed[1]) < 1000
    assert f"answer {len(ANSWER.encode()) + 1} tok" in figures
    assert re.search(r"prompt \d+ tok", figures) and "cached" not in figures
    assert re.fullmatch(r"\d+ / 2,048", tab.text("#context"))
    tab.page.click(".assistant [aria-label='Another answer']")
    tab.idle()
    assert "cached" in tab.text(".assistant .figures")


def test_stop_cancels_in_the_engine(tab: Tab, server: Server) -> None:
    cancelled = server.metric("deepseek_engine_cancelled_total")
    tab.ask("[slow][long]", wait=False)
    tab.begun()
    tab.page.keyboard.press("Escape")
    tab.idle()
    server.wait_metric("deepseek_engine_cancelled_total", cancelled + 1)
    server.wait_metric("deepseek_engine_running", 0)
    assert "Stopped." in tab.text(".assistant .notice")
    kept = tab.last_answer()
    assert kept and ANSWER.startswith(kept[:5])
    tab.page.reload()
    assert tab.last_answer() == kept


def test_a_stopped_answer_can_be_continued(tab: Tab) -> None:
    tab.ask("[slow][long]", wait=False)
    tab.begun()
    tab.page.click("#send")
    tab.idle()
    kept = tab.last_answer()
    tab.page.click("text=More sampling")
    tab.page.fill("#field-max_tokens", "5")
    tab.page.click(".notice >> text=Continue")
    tab.page.wait_for_selector(".notice >> text=Cut off")
    last = tab.bodies()[-1]["messages"][-1]
    assert (
        last == {"role": "assistant", "content": last["content"], "prefix": True} and last["content"].rstrip() == kept
    )
    assert tab.last_answer().startswith(kept) and len(tab.last_answer()) > len(kept)
    assert tab.page.locator(".message").count() == 2


def test_another_answer_stands_beside_the_first(tab: Tab) -> None:
    tab.ask("[echo]one")
    tab.page.click(".assistant [aria-label='Another answer']")
    tab.idle()
    assert tab.text(".assistant .branches") == "2/2"
    tab.page.click("[data-step=left]")
    assert tab.text(".assistant .branches") == "1/2"
    assert tab.last_answer() == "one"
    assert len(tab.bodies()) == 2 and tab.bodies()[0] == tab.bodies()[1]


def test_edit_and_send_again(tab: Tab) -> None:
    tab.ask("[echo]first")
    tab.ask("[echo]second")
    page = tab.page
    page.locator(".message.user").first.locator("[aria-label='Edit and send again']").click()
    area = page.locator(".edit textarea")
    assert area.input_value() == "[echo]first"
    area.press("Escape")
    assert page.locator(".message").count() == 4
    page.locator(".message.user").first.locator("[aria-label='Edit and send again']").click()
    area.fill("[echo]changed")
    area.press("Enter")
    tab.idle()
    assert tab.last_answer() == "changed"
    assert page.locator(".message").count() == 2
    assert tab.bodies()[-1]["messages"] == [{"role": "user", "content": "[echo]changed"}]
    page.click(".user [data-step=left]")
    assert page.locator(".message").count() == 4 and tab.last_answer() == "second"


def test_arrow_up_edits_the_last_message(tab: Tab) -> None:
    tab.ask("[echo]typo")
    tab.page.press("#prompt", "ArrowUp")
    expect(tab.page.locator(".edit textarea")).to_be_focused()


def test_delete_and_undo(tab: Tab) -> None:
    tab.ask("[echo]one")
    tab.ask("[echo]two")
    tab.page.locator(".message.user").last.locator("[aria-label='Delete from here']").click()
    assert tab.page.locator(".message").count() == 2
    tab.page.click(".toast >> text=Undo")
    assert tab.page.locator(".message").count() == 4
    tab.page.reload()
    assert tab.last_answer() == "two"


def test_settings_reach_the_request(tab: Tab) -> None:
    page = tab.page
    page.fill("#system", "Be brief.")
    page.fill("#field-temperature", "0.2")
    page.fill("#field-top_p", "0.9")
    page.fill("#field-max_tokens", "7")
    page.fill("#field-seed", "42")
    page.fill("#field-stop", "END\n###")
    page.click("text=More sampling")
    page.fill("#field-top_k", "40")
    tab.ask("[seed]")
    (body,) = tab.bodies()
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "[seed]"}]
    wanted = {"temperature": 0.2, "top_p": 0.9, "max_tokens": 7, "seed": 42, "stop": ["END", "###"], "top_k": 40}
    assert {name: body[name] for name in wanted} == wanted
    assert tab.last_answer() == "42"
    assert tab.text("#composer-tags").split("\n") == ["system", "6 settings"]
    page.reload()
    assert page.input_value("#field-seed") == "42" and page.input_value("#system") == "Be brief."
    page.click("#reset")
    tab.ask("[echo]reset")
    assert set(tab.bodies()[-1]) == {"model", "messages", "stream", "stream_options"}
    assert tab.bodies()[-1]["messages"][0]["role"] == "user"


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", "3"), ("max_tokens", "0"), ("seed", "1.5"), ("top_p", "x")]
)
def test_a_setting_that_cannot_be_is_marked_and_not_sent(tab: Tab, field: str, value: str) -> None:
    tab.page.fill(f"#field-{field}", value)
    assert tab.page.get_attribute(f"#field-{field}", "aria-invalid") == "true"
    assert "number" in tab.text(f"#field-{field}-help")
    tab.ask("[echo]fine")
    assert field not in tab.bodies()[0] and tab.last_answer() == "fine"


def test_json_mode(tab: Tab) -> None:
    tab.page.click("label:has-text('Answer in JSON')")
    assert "JSON" in tab.text("#composer-tags")
    tab.ask('[echo]{"a": 1}')
    assert tab.bodies()[0]["response_format"] == {"type": "json_object"}


def test_a_refused_request_says_why_and_marks_the_field(tab: Tab) -> None:
    tab.page.fill("#field-max_tokens", "5000")
    tab.ask("too much")
    assert "maximum context length is 2048" in tab.text(".problem")
    tab.ask("[template]")
    assert "refuses this conversation" in tab.page.locator(".problem").last.inner_text()


def test_a_conversation_survives_a_reload(tab: Tab) -> None:
    tab.ask("[echo]# Kept\n\n- a\n- b")
    tab.ask("[echo]more")
    page = tab.page
    before = page.inner_text("#thread")
    page.reload()
    page.wait_for_selector(".message")
    assert tab.text(".md h3") == "Kept" and tab.last_answer() == "more"
    assert page.inner_text("#thread") == before


def test_list_rename_delete_undo(tab: Tab) -> None:
    page = tab.page
    tab.ask("[echo]alpha")
    page.keyboard.press("Control+k")
    assert page.locator(".message").count() == 0
    tab.ask("[echo]beta")
    assert page.locator(".chat .open").all_inner_texts() == ["[echo]beta", "[echo]alpha"]
    page.locator(".chat .open").last.click()
    assert tab.last_answer() == "alpha"
    page.click(".chat.current .rename")
    page.fill(".chat input", "The first")
    page.press(".chat input", "Enter")
    assert "The first" in page.locator(".chat .open").all_inner_texts()
    assert page.title().startswith("The first")
    page.click(".chat.current .delete")
    assert page.locator(".chat .open").all_inner_texts() == ["[echo]beta"]
    assert page.locator(".message").count() == 0
    page.click(".toast >> text=Undo")
    assert tab.last_answer() == "alpha"
    page.go_back()
    page.reload()
    assert sorted(page.locator(".chat .open").all_inner_texts()) == ["The first", "[echo]beta"]


def test_an_answer_goes_on_while_another_conversation_is_open(tab: Tab) -> None:
    page = tab.page
    tab.ask("[slow] one", wait=False)
    page.keyboard.press("Control+k")
    tab.ask("[echo]two")
    assert tab.last_answer() == "two"
    page.wait_for_selector(".live-dot", state="detached")
    page.locator(".chat .open", has_text="one").click()
    assert tab.last_answer() == ANSWER


def test_deleting_a_conversation_ends_its_answer_for_good(tab: Tab, server: Server) -> None:
    tab.ask("[slow][long]", wait=False)
    tab.begun()
    cancelled = server.metric("deepseek_engine_cancelled_total")
    tab.page.click(".chat.current .delete")
    server.wait_metric("deepseek_engine_cancelled_total", cancelled + 1)
    assert tab.page.locator(".chat").count() == 0
    tab.page.reload()
    tab.page.wait_for_selector(".chats .none")


def test_an_answer_that_the_page_was_closed_on_can_be_continued(tab: Tab) -> None:
    tab.ask("[slow][long]", wait=False)
    tab.begun()
    tab.page.reload()
    tab.page.wait_for_selector("#model:not([disabled])")
    assert "Not finished" in tab.text(".notice") and ANSWER.startswith(tab.last_answer()[:4])
    tab.page.fill("#field-max_tokens", "3")
    tab.page.click(".notice >> text=Continue")
    tab.page.wait_for_selector(".notice >> text=Cut off")


def test_failed_answers_are_not_part_of_the_next_request(tab: Tab) -> None:
    tab.ask("[template]")
    assert tab.page.locator(".problem").count() == 1
    tab.page.locator(".user [aria-label='Edit and send again']").click()
    tab.page.fill(".edit textarea", "[echo]fine")
    tab.page.fill("#field-max_tokens", "5000")
    tab.page.press(".edit textarea", "Enter")
    tab.page.wait_for_selector(".problem >> text=maximum context")
    tab.page.fill("#field-max_tokens", "")
    tab.ask("[echo]next")
    assert [message["role"] for message in tab.bodies()[-1]["messages"]] == ["user", "user"]
    assert tab.last_answer() == "next"


def test_export_and_import(tab: Tab, tabs: Open, server: Server, tmp_path: Path) -> None:
    tab.ask("[echo]travels")
    with tab.page.expect_download() as download:
        tab.page.click("#export")
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    content = json.loads(file.read_text())
    assert content["format"] == "deepseek-playground" and len(content["chats"]) == 1
    other = tabs(server).open()
    for _ in range(2):
        other.page.set_input_files("#import-file", file)
        other.page.wait_for_selector(".toast:has-text('One conversation was added.')")
    assert other.page.locator(".chat").count() == 2, "a second import overwrites nothing"
    other.page.locator(".chat .open").first.click()
    assert other.last_answer() == "travels"


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        '{"format": "deepseek-playground", "chats": [{"id": "../x", "messages": {}}]}',
        '{"format": "deepseek-playground", "chats": [null, 3, {"id": "a"}]}',
    ],
)
def test_a_file_that_is_none_of_ours(tab: Tab, tmp_path: Path, content: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    tab.page.set_input_files("#import-file", file)
    tab.page.wait_for_selector(".toast:has-text('This file holds no')")
    assert tab.page.locator(".chat").count() == 0


def test_a_hostile_file_is_read_field_by_field(tab: Tab, tmp_path: Path) -> None:
    messages = {
        "a": {"id": "a", "parent": "b", "role": "user", "content": "<img src=x onerror=alert(1)>"},
        "b": {"id": "b", "parent": "a", "role": "assistant", "content": ["not", "text"], "figures": {"prompt": "x"}},
        "__proto__": {"id": "c", "parent": "constructor", "role": "root", "content": 3},
    }
    chat = {"id": "evil", "title": {"x": 1}, "messages": messages, "head": "b", "params": {"seed": {"a": 1}}}
    file = tmp_path / "evil.json"
    file.write_text(json.dumps({"format": "deepseek-playground", "version": 1, "chats": [chat]}))
    tab.page.set_input_files("#import-file", file)
    tab.page.wait_for_selector(".toast:has-text('One conversation')")
    tab.page.click(".chat .open")
    assert tab.page.locator(".message").count() == 2
    assert tab.page.locator("#thread img").count() == 0


def test_two_tabs_see_the_same_conversations(tab: Tab) -> None:
    other = Tab(tab.page.context, tab.url).open()
    tab.ask("[echo]shared")
    other.page.wait_for_selector(".chat >> text=shared")
    other.page.click(".chat .open")
    assert other.last_answer() == "shared"
    tab.ask("[echo]again")
    expect(other.page.locator(".message")).to_have_count(4)
    other.check()
    other.page.close()


def test_copy(tabs: Open, server: Server) -> None:
    tab = tabs(server, permissions=["clipboard-read", "clipboard-write"]).open()
    tab.ask("[echo]```py\nx = 1\ny = 2\n```")
    tab.page.click(".copy-code")
    tab.page.wait_for_selector(".copy-code:has-text('Copied')")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "x = 1\ny = 2"
    tab.page.click(".assistant [aria-label=Copy]")
    tab.page.wait_for_selector(".toast:has-text('Copied.')")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "```py\nx = 1\ny = 2\n```"


def test_attach_points_say_why_they_are_off(tab: Tab) -> None:
    for kind in ("image", "audio"):
        button = tab.page.locator(f"#attach-{kind}")
        assert button.get_attribute("aria-disabled") == "true"
        button.focus()
        tab.page.keyboard.press("Enter")
        expect(tab.page.locator(".toast").last).to_contain_text("This model takes no")
