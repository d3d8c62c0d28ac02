"""The report in a real browser, opened as a file: nothing is fetched, nothing is complained about, everything can be
reached with mouse and keys, and nothing that a model wrote acts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.browser import launched
from tests.eval.scripted import addition, item
from tests.eval.test_report import HOSTILE, TASKS, make_run

from deepseek_eval import evaluate
from deepseek_eval.models.stored import StoredModel
from deepseek_eval.report import write_difference, write_report
from deepseek_eval.task import Generate, Item, Rows, Task

Open = Callable[..., Page]
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"}
PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 800}, "has_touch": True}
HUGE = "w" * 200_000
MANY = 10_000
WIDEST = """() => [...document.querySelectorAll("main *")]
    .filter((one) => !one.closest(".scroll") && one.getBoundingClientRect().right > innerWidth + 1)
    .map((one) => one.outerHTML.slice(0, 120))"""
CONTRAST = """(selector) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const light = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const behind = (one) => {
        for (; one; one = one.parentElement) {
            const colour = getComputedStyle(one).backgroundColor;
            if (colour !== "rgba(0, 0, 0, 0)") return colour;
        }
        return "white";
    };
    return [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility()).map((one) => {
        const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.outerHTML.slice(0, 80)];
    });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as running:
        yield running


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """``opened(file, hash, **context options)``. At the end: no console message, no error, no request but the file."""
    complaints: list[str] = []
    with ExitStack() as stack:

        def make(path: Path, part: str = "", **options: Any) -> Page:
            context = browser.new_context(**DESKTOP | options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(10_000)
            page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
            page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
            address = path.as_uri()
            page.on("request", lambda one: one.url.split("#")[0] == address or complaints.append(one.url))
            page.goto(address + part)
            expect(page.locator("#drill-count")).to_contain_text("items.")
            return page

        yield make
        assert not complaints


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("pages")
    return (
        make_run(root / "a", "first", 20),
        make_run(root / "b", "second </title>", 50),
        make_run(root / "c", "third-" + "name" * 30, 35),
    )


@pytest.fixture(scope="module")
def difference(runs: tuple[Path, Path, Path]) -> Path:
    output = runs[0].parent / "difference.html"
    write_difference(runs[1], runs[0], output, tasks=TASKS)
    return output


@pytest.fixture(scope="module")
def three(runs: tuple[Path, Path, Path]) -> Path:
    output = runs[0].parent / "three.html"
    write_report(runs, output, tasks=TASKS)
    return output


def count(page: Page) -> int:
    return int(page.locator("#drill-count").inner_text().split(" of ")[0].replace(",", ""))


def test_a_difference_opens_with_what_was_lost(difference: Path, opened: Open) -> None:
    page = opened(difference)
    expect(page.locator("#drill-state")).to_have_value("lost")
    assert count(page) == 30
    page.select_option("#drill-state", "all")
    assert count(page) == 60


def test_a_difference_opens_with_a_task_that_has_losses(tmp_path: Path, opened: Open) -> None:
    tasks = [addition(name=name) for name in ("same", "worse")]
    for run in ("a", "b"):
        lines = [{"task": one.name, "id": str(n), "text": str(n + 1)} for one in tasks for n in range(40)]
        if run == "b":
            lines[-1]["text"] = "wrong"
        (tmp_path / f"{run}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        evaluate(StoredModel(tmp_path / f"{run}.jsonl"), tasks=tasks, output_dir=tmp_path / run)
    write_difference(tmp_path / "a", tmp_path / "b", tmp_path / "d.html", tasks={one.name: one for one in tasks})
    page = opened(tmp_path / "d.html")
    expect(page.locator("#drill-task option:checked")).to_contain_text("worse")
    assert count(page) == 1


def test_mouse(difference: Path, opened: Open) -> None:
    page = opened(difference)
    first = page.locator("#drill-list > details").first
    first.locator("summary").click()
    expect(first.locator(".answer")).to_have_count(2)
    expect(first.locator(".answer .state")).to_have_text(["right", "wrong"])
    expect(first).to_contain_text("What is the colour of thing 20?")
    page.locator("#drill-next").click()
    expect(page.locator("#drill-page")).to_have_text("page 2 of 2")
    expect(page.locator("#drill-list > details")).to_have_count(5)
    expect(page.locator("#drill-next")).to_be_disabled()
    page.locator("#drill-previous").click()
    expect(page.locator("#drill-list > details")).to_have_count(25)


def test_keys(difference: Path, opened: Open) -> None:
    page = opened(difference)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.locator("#drill-search").focus()
    page.keyboard.press("Tab")
    first = page.locator("#drill-list > details").first
    expect(first.locator("summary")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    expect(first.locator(".body")).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "text", "long texts scroll, so keys must reach them"
    page.locator("#drill-next").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#drill-page")).to_have_text("page 2 of 2")


@pytest.mark.parametrize(
    ("part", "state", "expected"),
    [
        ("#items/colours/lost", "lost", 30),
        ("#items/colours/won", "won", 0),
        ("#items/colours", "all", 60),
        ("#items/people", "all", 12),
        ("#items/colours/nothing", "all", 60),
        ("#items/unknown", "lost", 30),
        ("#items/%", "lost", 30),
        ("#%E0%A4%A", "lost", 30),
    ],
)
def test_links(difference: Path, opened: Open, part: str, state: str, expected: int) -> None:
    page = opened(difference, part)
    expect(page.locator("#drill-state")).to_have_value(state)
    assert count(page) == expected


def test_a_link_inside_the_page(difference: Path, opened: Open) -> None:
    page = opened(difference)
    page.locator("#comparison a[href='#items/colours/won']").click()
    expect(page.locator("#drill-state")).to_have_value("won")
    expect(page.locator("#h-items")).to_be_focused()
    page.goto(difference.as_uri() + "#items/colours//c%2F31")
    expect(page.locator("#drill-list > details[open]")).to_contain_text("id c/31")


def test_filters(three: Path, opened: Open) -> None:
    page = opened(three)
    assert count(page) == 60
    shown = dict(option.inner_text().rsplit(" (", 1) for option in page.locator("#drill-state option").all())
    assert shown["where models disagree"] == "30)" and shown["unanswered"] == "1)"
    page.select_option("#drill-state", "unanswered")
    assert count(page) == 1
    page.locator("#drill-list summary").click()
    expect(page.locator("#drill-list .answer")).to_have_count(3)
    page.select_option("#drill-state", "wrong")
    page.select_option("#drill-model", "1")
    assert count(page) == 9
    page.select_option("#drill-state", "all")
    page.fill("#drill-search", "THING 4")
    expect(page.locator("#drill-count")).to_have_text("11 of 60 items.")
    page.fill("#drill-search", "no such words")
    expect(page.locator("#drill-count")).to_have_text("0 of 60 items.")
    page.select_option("#drill-task", label="people: People")
    expect(page.locator("#drill-count")).to_have_text("12 of 12 items.")
    expect(page.locator("#drill-search")).to_have_value("")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(three: Path, opened: Open, scheme: str) -> None:
    page = opened(three, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    ratios = page.evaluate(CONTRAST, "p, dt, dd, td, th, h1, h2, h3, h4, a, .badge, .state, .soft, .text, summary")
    assert len(ratios) > 100
    assert not [one for one in ratios if one[0] < 4.5], "WCAG 2.2 asks for 4.5"
    ink = page.evaluate("getComputedStyle(document.body).color.match(/[0-9.]+/g).map(Number)[0]")
    assert (ink > 128) == (scheme == "dark")


def test_phone(three: Path, difference: Path, opened: Open) -> None:
    for path in (three, difference):
        page = opened(path, **PHONE)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        expect(page.locator("#drill-list .body").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 375, page.evaluate(WIDEST)


def _hostile(files: Mapping[str, Rows], shots: int) -> Iterator[Item]:
    for number, text in enumerate((HOSTILE, "<!--<script>", "\u2028\u2066a\x00b", HUGE, "", "‮".join("abc"))):
        yield Item(
            id=f"{number}/<b>&'\"", prompt=text, ask=Generate(), target=text, groups={text[:50] or "none": "<i>"}
        )


def test_hostile_texts_stay_text(tmp_path: Path, opened: Open) -> None:
    plain = addition()
    task = Task("</script>", HOSTILE, "mathematics", ("en",), (), _hostile, plain.scorer, plain.metrics)
    lines: list[dict[str, Any]] = [{"model": {"name": HOSTILE}}]
    lines += [{"task": task.name, "id": one.id, "text": one.prompt} for one in _hostile({}, 0)]
    (tmp_path / "o.jsonl").write_text("\n".join(map(json.dumps, lines)))
    evaluate(StoredModel(tmp_path / "o.jsonl"), tasks=[task], output_dir=tmp_path / "run")
    write_report([tmp_path / "run"], tmp_path / "r.html", tasks={task.name: task})
    for options in (DESKTOP, PHONE):
        page = opened(tmp_path / "r.html", **options)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        expect(page.locator("#drill-list .answer")).to_have_count(6)
        assert page.title().startswith("Evaluation: </script><script>document.title=")
        assert page.locator("img, b > script, main script, main i").count() == 0
        body = page.locator("body").inner_text()
        assert "␀" in body and "⟨U+202E⟩" in body and "‮" not in body and "characters are left out" in body
        width = options["viewport"]["width"]
        assert page.evaluate("document.documentElement.scrollWidth") == width, page.evaluate(WIDEST)
        page.fill("#drill-search", "evil")
        page.locator("#results a[href^='#items/']").first.click()
        expect(page.locator("#drill-search")).to_have_value("")


def test_many_items(tmp_path: Path, opened: Open) -> None:
    task = addition(tuple(map(item, range(MANY))))
    lines: list[dict[str, Any]] = [{"model": {"name": "one"}}]
    lines += [{"task": "addition", "id": str(n), "text": str(n + 1 + (n % 10 == 0))} for n in range(MANY)]
    (tmp_path / "o.jsonl").write_text("\n".join(map(json.dumps, lines)))
    evaluate(StoredModel(tmp_path / "o.jsonl"), tasks=[task], output_dir=tmp_path / "run")
    write_report([tmp_path / "run"], tmp_path / "r.html", tasks={"addition": task})
    page = opened(tmp_path / "r.html")
    expect(page.locator("#drill-count")).to_have_text("10,000 of 10,000 items.")
    began = time.monotonic()
    page.fill("#drill-search", "9999 +")
    expect(page.locator("#drill-count")).to_have_text("1 of 10,000 items.")
    page.fill("#drill-search", "")
    expect(page.locator("#drill-page")).to_have_text("page 1 of 400")
    page.select_option("#drill-state", "wrong")
    expect(page.locator("#drill-count")).to_have_text("1,000 of 10,000 items.")
    assert time.monotonic() - began < 5
    assert page.locator("#drill-list > details").count() == 25
