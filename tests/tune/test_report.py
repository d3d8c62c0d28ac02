"""The page of a run: what is on it, that it needs nothing else, and how it looks in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from deepseek.charts import SERIES, STYLE, Line, line_chart
from deepseek.errors import CheckpointError
from deepseek_tune import LoRATuner, PTuner
from deepseek_tune.adapters import REPORT
from deepseek_tune.report.page import smoothed, write_report
from tests.tune.conftest import questions, write_jsonl

SPOKEN = [
    {"question": "退款要多久？", "answer": "三天。"},
    {"question": "注文は届きますか？", "answer": "はい、明日です。"},
    {"question": "환불은 언제 되나요?", "answer": "3일 걸립니다."},
    {"question": "<script>alert('no')</script>", "answer": "<b>bold</b> & {{ 7 * 7 }}"},
]


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on data with rows that are bad, in five languages."""
    root = tmp_path_factory.mktemp("run")
    rows = [*questions(60), *SPOKEN * 10, {"question": "no answer", "answer": ""}, "{broken"]
    data = write_jsonl(root / "support & co.jsonl", rows)
    LoRATuner(
        base_model=str(tiny_model),
        train_data=data,
        cache_dir=root / "cache",
        epochs=2,
        lora_rank=2,
        batch_tokens=512,
        validation=0.2,
        evals_per_epoch=2,
        max_bad_rows=0.1,
        samples=20,
        dtype="fp32",
        progress=False,
    ).train()
    return root / "support & co-lora"


def test_what_is_on_it(run: Path) -> None:
    page = (run / REPORT).read_text(encoding="utf-8")
    figures = json.loads((run / "run.json").read_text())
    result = figures["result"]
    assert f"{result['validation_loss']:.3f}" in page and f"{result['trainable_share']:.3%}" in page
    assert "empty answer (1)" in page and "malformed row (1)" in page and "{broken" in page
    assert f"deepseek serve {figures['settings']['base_model']} --adapter" in page
    assert "deepseek tune merge &#39;" in page  # the path has a space, so the shell needs quotes
    assert figures["identity"]["data_sha256"] in page and figures["machine"]["processor"] in page
    assert page.count("<svg") == 4
    assert page.count("<tr><td>") == 20


def test_nothing_of_the_data_is_markup(run: Path) -> None:
    page = (run / REPORT).read_text(encoding="utf-8")
    assert "<script" not in page and "<b>bold" not in page and "{{ 7 * 7 }}" in page
    for reference in re.findall(r'(?:href|src)="([^"]*)"', page):
        assert reference.startswith("#"), reference  # parts of the same chart


def test_in_a_browser(run: Path) -> None:
    pytest.importorskip("playwright.sync_api")
    from tests.browser import launched

    asked: list[str] = []
    complaints: list[str] = []
    with launched() as browser:
        for scheme, width in (("light", 1280), ("dark", 1280), ("light", 360)):
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
            page = context.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto((run / REPORT).as_uri())
            assert page.locator("svg").count() == 4
            body = page.inner_text("body")
            assert any(row["answer"] in body for row in SPOKEN[:3])
            ink = page.evaluate("getComputedStyle(document.body).color")
            label = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
            assert ink == label
            assert (ink == "rgb(36, 41, 47)") == (scheme == "light")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            context.close()
    assert len(asked) == 3 and complaints == []


def test_a_prompt_has_a_page_too(tiny_model: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "support.jsonl", questions(40))
    settings: dict[str, Any] = {
        "base_model": str(tiny_model),
        "train_data": data,
        "cache_dir": tmp_path / "cache",
        "epochs": 1,
        "validation": 0.1,
        "progress": False,
    }
    for variant in ("p-tuning", "prefix"):
        output = tmp_path / variant
        PTuner(**settings, variant=variant, virtual_tokens=4, output_dir=output).train()
        page = (output / REPORT).read_text(encoding="utf-8")
        assert page.count("<tr><td>") == 4 and "tune merge" not in page


def test_without_answers(run: Path) -> None:
    before = (run / REPORT).read_text(encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    assert "Answers to held-out" not in page
    (run / REPORT).write_text(before, encoding="utf-8")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_run_that_is_none(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json"):
        write_report(tmp_path)
    assert not (tmp_path / REPORT).exists()


# Charts


def test_a_chart_is_one_element_in_the_pages_colours() -> None:
    lines = [Line(f"第{i} <&>", [1, 2, 3], [i, 2, 1], colour=i) for i in range(1, SERIES + 1)]
    svg = line_chart(lines, x_label="step", y_label="損失", label='a "label" & more')
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == 'a "label" & more'
    assert "第3 <&>" in "".join(root.itertext()) and "損失" in "".join(root.itertext())
    used = set(re.findall(r"var\((--[\w-]+)\)", svg))
    assert used == set(re.findall(r"(--[\w-]+):", STYLE)) - {"--paper"}
    colours = set(re.findall(r"#[0-9a-f]{6}\b", svg.replace("xlink", "")))
    assert colours <= {"#000000"}, colours
    assert svg == line_chart(lines, x_label="step", y_label="損失", label='a "label" & more')


def test_one_point_and_none() -> None:
    for values in ([], [1.0]):
        svg = line_chart([Line("", values, values)], x_label="x", y_label="y", label="few")
        ElementTree.fromstring(svg)


@pytest.mark.parametrize("reach", [0, 1, 2, 9])
def test_smoothed(reach: int) -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    for at, mean in enumerate(smoothed(values, reach)):
        window = values[max(0, at - reach) : at + reach + 1]
        assert mean == pytest.approx(sum(window) / len(window))
    assert smoothed([], reach) == []
