"""For everybody: contrast, keyboard, screen readers, small windows, reduced motion, both themes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import Server
from tests.serve.playground.conftest import Open, Tab, audit

RICH = """[echo]# Title

Text with `code`, **bold**, [a link](https://a.b/c),
https://example.com/a-very-long-address/that/goes/on/and/on/and/on/without/a/break $x^2$
> quote

```python
def function(argument: int) -> str:  # a comment that makes this line longer than any phone is wide, by far
    return "text" + str(0x10)
```

| a column | another column | a third column | a fourth column | a fifth column |
|---|---|---|---|---:|
| some words | some words | some words | some words | 12345 |

1. one
   - two

[x](javascript:1)

```diff
- old
+ new
```
"""

CONTRAST = audit("contrast")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(tabs: Open, server: Server, scheme: str) -> None:
    tab = tabs(server, color_scheme=scheme, reduced_motion="reduce").open()
    _all_good(tab)  # the welcome
    tab.page.click("text=More sampling")
    tab.page.fill("#field-top_k", "wrong")
    tab.page.fill("#system", "x")
    tab.page.click("label:has-text('Answer in JSON')")
    tab.page.click("label:has-text('Answer in JSON')")
    tab.ask(RICH)
    tab.ask("[slow][long]", wait=False)
    tab.begun()
    paper = _all_good(tab)
    assert (sum(paper) > 600) == (scheme == "light")
    tab.page.keyboard.press("Escape")
    tab.idle()
    tab.ask("[nan]")
    tab.page.locator(".user [aria-label='Edit and send again']").last.click()
    _all_good(tab)
    tab.page.keyboard.press("Escape")
    tab.page.locator("#attach-image").dispatch_event("click")
    tab.page.click("#code-open")
    _all_good(tab)


def _all_good(tab: Tab) -> list[float]:
    found = tab.page.evaluate(CONTRAST)
    assert found["seen"] > 25
    assert found["poor"] == []
    paper: list[float] = found["paper"]
    return paper


def test_the_theme_can_be_chosen_and_is_kept(tabs: Open, server: Server) -> None:
    tab = tabs(server, color_scheme="dark").open()

    def paper() -> str:
        return str(tab.page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))

    dark = paper()
    expect(tab.page.locator("#theme")).to_have_attribute("aria-label", "Theme: as the system")
    tab.page.click("#theme")
    light = paper()
    assert light != dark
    tab.page.reload()
    assert paper() == light
    tab.page.click("#theme")
    assert paper() == dark
    tab.page.click("#theme")
    tab.page.emulate_media(color_scheme="light")
    assert paper() == light


@pytest.mark.parametrize("width", [360, 320])
def test_a_phone_never_scrolls_sideways(tabs: Open, server: Server, width: int) -> None:
    tab = tabs(server, viewport={"width": width, "height": 640}).open()
    _fits(tab, width)
    tab.ask(RICH)
    tab.ask("[nan]" + "x" * 300)
    _fits(tab, width)
    tab.page.locator(".user [aria-label='Edit and send again']").last.click()
    _fits(tab, width)
    tab.page.keyboard.press("Escape")
    for side in ("rail", "panel"):
        tab.page.click(f"#{side}-toggle")
        expect(tab.page.locator(f"#{side}")).to_be_visible()
        assert tab.page.get_attribute(f"#{side}-toggle", "aria-expanded") == "true"
        _fits(tab, width)
        tab.page.keyboard.press("Escape")
        expect(tab.page.locator(f"#{side}")).to_be_hidden()
        expect(tab.page.locator(f"#{side}-toggle")).to_be_focused()
    tab.page.click("#code-open")
    _fits(tab, width)


def _fits(tab: Tab, width: int) -> None:
    assert tab.page.evaluate(audit("overflow")) == []
    hidden = tab.page.evaluate("scroller.scrollWidth - scroller.clientWidth")
    assert [tab.page.evaluate("document.documentElement.scrollWidth"), hidden] == [width, 0]


def test_drawers_are_used_by_touch(tabs: Open, server: Server) -> None:
    tab = tabs(server, viewport={"width": 360, "height": 640}, has_touch=True).open()
    tab.page.fill("#prompt", "[echo]one")
    tab.page.press("#prompt", "Enter")  # a new line on touch screens
    tab.page.tap("#send")
    tab.page.wait_for_selector(".message.assistant")
    tab.idle()
    tab.page.tap("#rail-toggle")
    tab.page.tap(".new-chat")
    expect(tab.page.locator("#rail")).to_be_hidden()
    expect(tab.page.locator(".welcome")).to_be_visible()
    tab.page.tap("#panel-toggle")
    tab.page.locator("#scrim").tap(position={"x": 5, "y": 300})
    expect(tab.page.locator("#panel")).to_be_hidden()


FOCUSED = audit("focused")


def test_the_whole_page_is_reached_by_keyboard(tab: Tab) -> None:
    page = tab.page
    tab.ask(RICH)
    page.locator(".skip").focus()
    seen: list[dict[str, Any]] = []
    while (found := page.evaluate(FOCUSED)) is not None and len(seen) < 80:
        seen.append(found)
        page.keyboard.press("Tab")
    assert len(seen) < 80, "a trap"
    for found in seen:
        assert found["label"], f"no name: {found}"
        assert found["ring"], f"no visible focus: {found}"
        assert found["inside"], f"out of sight: {found}"
    ids = {found["id"] for found in seen}
    wanted = {
        "rail-toggle",
        "model",
        "status",
        "code-open",
        "theme",
        "panel-toggle",
        "new-chat",
        "export",
        "import",
        "prompt",
    }
    assert (
        wanted | {"attach-image", "attach-audio", "send", "reset", "system", "field-temperature", "field-json"} <= ids
    )
    assert seen[0]["label"] == "Skip to the message box"
    assert {"Copy", "Edit and send again", "Another answer", "Delete from here", "Table"} <= {f["label"] for f in seen}


def test_a_conversation_by_keyboard_alone(tab: Tab) -> None:
    page = tab.page
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("[slow][long] one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    tab.begun()
    assert tab.bodies()[0]["messages"][0]["content"] == "[slow][long] one\ntwo"
    page.keyboard.press("Escape")
    tab.idle()
    page.keyboard.press("Control+k")
    expect(page.locator(".welcome")).to_be_visible()
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    tab.page.wait_for_selector(".message.assistant")
    tab.idle()
    assert tab.last_answer() == ANSWER
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Control+A")
    page.keyboard.type("[echo]edited")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_text("edited")
    for key, side in (("Control+b", "rail"), ("Control+.", "panel")):
        page.keyboard.press(key)
        expect(page.locator(f"#{side}")).to_be_hidden()
        page.keyboard.press(key)
        expect(page.locator(f"#{side}")).to_be_visible()
    page.locator(".chat .open").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".user .plain")).to_contain_text("one")
    page.locator(".chat .open").last.focus()
    page.keyboard.press("?")
    expect(page.locator("#keys-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys-dialog")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator("#prompt")).to_be_focused()


def test_an_input_method_keeps_its_enter(tab: Tab) -> None:
    tab.page.fill("#prompt", "你好")
    tab.page.locator("#prompt").dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    assert tab.page.locator(".message").count() == 0
    tab.page.keyboard.press("Enter")
    tab.idle()
    assert tab.bodies()[0]["messages"][0]["content"] == "你好"


def test_screen_readers_hear_an_answer_block_by_block(tab: Tab) -> None:
    page = tab.page
    page.evaluate(
        """() => {
          window.said = [];
          const announcer = document.getElementById("announcer");
          const hear = () => window.said.push(...announcer.innerText.split("\\n").filter(Boolean));
          new MutationObserver(hear).observe(announcer, { childList: true });
        }"""
    )
    assert page.get_attribute("#thread", "role") == "log" and page.get_attribute("#thread", "aria-live") == "off"
    assert page.get_attribute("#announcer", "aria-live") == "polite"
    tab.ask("[slow][echo]First words.\n\nSecond words.\n\nThird.")
    page.wait_for_timeout(600)
    said = page.evaluate("window.said")
    assert [line for line in said if line != "Sent."][:3] == ["First words.", "Second words.", "Third."]
    assert said[-1].startswith("Answer complete, ")
    assert len(said) == 5, "every block once, no single words"


def test_markup_that_tools_rely_on(tab: Tab) -> None:
    tab.ask(RICH)
    found = tab.page.evaluate(audit("markup"))
    assert found == {"twice": [], "nameless": [], "missing": [], "landmarks": [1, 1, 1, 1], "headings": 1}
    assert tab.page.get_attribute("html", "lang") == "en"


def test_reduced_motion(tabs: Open, server: Server) -> None:
    moving = "getComputedStyle(document.querySelector('.pulse')).animationName"
    for motion, name in (("reduce", "none"), ("no-preference", "pulse")):
        tab = tabs(server, reduced_motion=motion).open()
        tab.ask("[echo]x")
        assert tab.page.evaluate(moving) == name


def test_reading_is_not_disturbed_by_new_text(tab: Tab) -> None:
    page = tab.page
    tab.ask("[echo]" + "line\n\n" * 60)
    assert page.evaluate("scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight") < 2
    tab.ask("[slow][long]", wait=False)
    tab.begun()
    page.evaluate("scroller.scrollTop = 50")
    expect(page.locator("#to-end")).to_be_visible()
    length = len(tab.last_answer())
    expect(page.locator(".answer").last).to_have_text(re.compile(f".{{{length + 5},}}"))
    assert page.evaluate("scroller.scrollTop") == 50
    page.click("#to-end")
    expect(page.locator("#to-end")).to_be_hidden()
    page.keyboard.press("Escape")
    tab.idle()
