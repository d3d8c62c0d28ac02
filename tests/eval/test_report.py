"""The report: what is in it, and that nothing a model wrote can act."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.eval.scripted import Scripted, addition, right

from deepseek.errors import ConfigurationError, DataError
from deepseek_eval import evaluate
from deepseek_eval.models.stored import StoredModel
from deepseek_eval.registry import all_tasks
from deepseek_eval.report import write_difference, write_report
from deepseek_eval.report.charts import Polygon, Spoke, radar, scale_for
from deepseek_eval.report.items import Asked, Given, expected_text, labels_of_targets, pack, read_items
from deepseek_eval.report.published import read_published, shipped
from deepseek_eval.report.sources import read_entries, shown_tasks
from deepseek_eval.report.summary import kind_means
from deepseek_eval.report.text import shortened, visible
from deepseek_eval.results import ScoreLine
from deepseek_eval.scorers.bias import counterfactual, counterfactual_metrics
from deepseek_eval.scorers.labels import label, label_metrics
from deepseek_eval.task import Ask, Choose, Generate, Item, Measure, Output, Rows, Sample, Score, Task

HOSTILE = "</script><script>document.title='owned'</script>\x00\u202eevil<img src=x onerror=alert(1)>"
LABELS = ("red", "green", "blue")
AXES = {"age": ("25", "70")}


def _colours(files: Mapping[str, Rows], shots: int) -> Iterator[Item]:
    for number in range(60):
        prompt = (
            f"What is the colour of thing {number}? {('apple', 'grass', 'sky')[number % 3]} 日本語 한국어 {HOSTILE}"
        )
        yield Item(id=f"c/{number}", prompt=prompt, ask=Generate(), target=number % 3, groups={"half": str(number % 2)})


def _people(files: Mapping[str, Rows], shots: int) -> Iterator[Item]:
    for scene in range(6):
        for group in AXES["age"]:
            yield Item(
                id=f"{scene}/{group}",
                prompt=f"A person of {group} asks for thing {scene}. Grant it?",
                ask=Choose(continuations=(" Yes", " No"), labels=("Yes", "No")),
                target={"right": scene % 2, "axis": "age", "group": group},
                cluster=str(scene),
            )


TASKS = {
    "colours": Task(
        "colours", "Colours", "classification", ("en",), (), _colours, label(LABELS), label_metrics(3, chance=1 / 3)
    ),
    "people": Task(
        "people", "People", "bias", ("en",), (), _people, counterfactual(AXES), counterfactual_metrics(AXES)
    ),
}


def make_run(folder: Path, name: str, right: int) -> Path:
    """A run of stored answers, of which ``right`` of 60 colours are right, one is missing, and one is a refusal."""
    lines: list[dict[str, Any]] = [{"model": {"name": name}}]
    for number in range(59):
        said = LABELS[number % 3] if number < right else LABELS[(number + 1) % 3]
        text = "I'm sorry, but I can't help with that." if number == 58 else f"It is {said}. {HOSTILE}"
        lines.append({"task": "colours", "id": f"c/{number}", "text": text})
    for scene in range(6):
        for group in AXES["age"]:
            yes = -0.1 if group == "25" else -3.0
            likelihoods = [{"logprob": yes, "tokens": 1}, {"logprob": -1.0, "tokens": 1}]
            lines.append({"task": "people", "id": f"{scene}/{group}", "output": {"likelihoods": likelihoods}})
    folder.mkdir()
    path = folder.with_suffix(".jsonl")
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    evaluate(StoredModel(path), tasks=list(TASKS.values()), output_dir=folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("report")
    return make_run(root / "a", "first", 20), make_run(root / "b", "second </title>", 50)


@pytest.fixture(scope="module")
def page(runs: tuple[Path, Path]) -> str:
    output = runs[0].parent / "report.html"
    write_report(runs, output, tasks=TASKS)
    return output.read_text(encoding="utf-8")


def items_in(page: str, place: int) -> list[dict[str, Any]]:
    packed = re.search(rf'id="data-{place}">([^<]*)<', page)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_what_models_wrote_stays_text(page: str) -> None:
    assert "<script>document" not in page and "<img" not in page and "second </title>" not in page
    assert "\x00" not in page and "\u202e" not in page
    assert len(re.findall("<script", page)) == 2 + len(TASKS)  # index, code, data of each task
    assert "default-src &#39;none&#39;" in page and not re.search(r'\b(?:src|href)="(?!#)', page)


def test_items_hold_what_was_asked_and_given(page: str) -> None:
    items = {one["id"]: one for one in items_in(page, 0)}
    assert len(items) == 60
    wrong = items["c/20"]
    assert [one["s"] for one in wrong["models"]] == ["wrong", "right"]
    assert wrong["expected"] == "blue" and "⟨U+202E⟩" in wrong["prompt"] and "␀" in wrong["models"][0]["o"][0]
    assert items["c/59"]["models"][0]["s"] == "unanswered" and items["c/59"]["models"][0]["e"]
    assert items["c/58"]["models"][0]["r"] == 1


def test_sections(page: str) -> None:
    for words in ("re-scored", "Holm", "taken for each other", "Without bias", "1 unanswered", "Counterfactual cases"):
        assert words in page, words
    assert re.search(r'class="good">better', page)
    assert "30 won" in page


def test_near_chance_is_not_called_fair(page: str) -> None:
    assert "blind, not fair" in page and "Near chance." in page


def test_difference_needs_two_models(runs: tuple[Path, Path], tmp_path: Path) -> None:
    write_difference(*runs, tmp_path / "d.html", tasks=TASKS)
    assert '"difference": true' in (tmp_path / "d.html").read_text(encoding="utf-8")
    with pytest.raises(ConfigurationError, match="no model 'x'"):
        write_difference(f"{runs[0]}#x", runs[1], tmp_path / "d.html", tasks=TASKS)


def test_the_same_model_twice_gets_two_names(runs: tuple[Path, Path]) -> None:
    labels = [entry.label for entry in read_entries([runs[0], runs[0], runs[1]])]
    assert len(set(labels)) == 3
    with pytest.raises(ConfigurationError, match="too many"):
        read_entries([runs[0]] * 9)


def test_means_are_of_the_same_tasks(runs: tuple[Path, Path]) -> None:
    entries = read_entries(runs)
    means = kind_means(entries, shown_tasks(entries))
    assert means.tasks == {"classification": ["colours"], "bias": ["people"]}
    assert means.polygons[0].spokes[0].value == pytest.approx(20 / 59)
    assert means.chance == (pytest.approx(1 / 3), 0.5)


def test_a_difference_has_means_of_both(tmp_path: Path) -> None:
    tasks = [addition(name=name) for name in ("one", "two", "three")]
    evaluate(Scripted(right, name="all"), tasks=tasks, output_dir=tmp_path / "a")
    evaluate(Scripted(right, name="few"), tasks=tasks[:1], output_dir=tmp_path / "b")
    entries = read_entries([tmp_path / "a", tmp_path / "b"])
    alone, both = (kind_means(entries, shown_tasks(entries), all_models=flag) for flag in (False, True))
    assert (alone.left_out, both.left_out) == (("few",), ())
    assert (alone.tasks, both.tasks) == ({"mathematics": ["one", "two", "three"]}, {"mathematics": ["one"]})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"source": " "}, "source is empty"),
        ({"date": "soon"}, "date must begin with a year"),
        ({"low": 0.1}, "low and high belong together"),
        ({"low": 0.9, "high": 0.95}, "not between"),
        ({"valeu": 1}, "valeu"),
        ({"metric": "bleu"}, "no metric 'bleu'"),
        ({"value": 88.7}, "a share from 0 to 1"),
    ],
)
def test_bad_figures_are_named(change: dict[str, Any], problem: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    figure = {"task": "colours", "metric": "accuracy", "value": 0.8, "source": "a paper", "date": "2024-08", **change}
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"format": 1, "model": "gpt", "figures": [figure]}))
    with pytest.raises(DataError, match=problem):
        write_report([runs[0]], tmp_path / "r.html", published=[path], tasks=TASKS)


def test_figures_stand_apart(runs: tuple[Path, Path], tmp_path: Path) -> None:
    figures = [
        {"task": name, "metric": "accuracy", "value": 0.887, "source": "a paper", "date": "2024-08"}
        for name in ("colours", "elsewhere")
    ]
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"format": 1, "model": "gpt", "figures": figures}))
    assert len(read_published(path).figures) == 2
    write_report([runs[0]], tmp_path / "r.html", published=[path], tasks=TASKS)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'class="row published"' in page and "88.7%" in page and "tasks that were not run" in page


def test_figures_of_the_package_have_a_source() -> None:
    assert shipped() == ["gpt-4o"]
    published = read_published("gpt-4o")
    assert published.model == "gpt-4o-2024-08-06"
    known = {name: {metric.name: metric.unit for metric in task.metrics} for name, task in all_tasks().items()}
    for figure in published.figures:
        assert figure.source.startswith("https://") and 0.88 < figure.value < 0.91
        assert figure.task == "mmlu" or known[figure.task][figure.metric] == "share"
    with pytest.raises(DataError, match="Name a file, or gpt-4o"):
        read_published("gpt-5")


@pytest.mark.parametrize(
    ("target", "ask", "scored", "expected"),
    [
        ("blue", Generate(), "", "blue"),
        (["a", "b", "a"], Generate(), "", "a / b"),
        (1, Choose(continuations=(" x", " y")), "", "y"),
        ({"right": 0}, Choose(continuations=(" x", " y")), "", "x"),
        (1, Generate(), "politics", "politics"),
        ({"axis": "race"}, Generate(), "", ""),
        (None, Measure(), "", ""),
    ],
)
def test_what_is_expected(target: Any, ask: Ask, scored: str, expected: str) -> None:
    line = ScoreLine("1", "d", "", Score(statistics={}, expected=scored))
    asked = Asked(Item(id="1", prompt="", ask=ask, target=target), "", {0: Given("wrong", None, line, None)})
    assert expected_text(asked, {}) == expected


def test_a_label_that_nobody_was_scored_on_is_known_from_other_items() -> None:
    def asked(name: str, score: Score | None) -> Asked:
        given = Given("wrong", None, ScoreLine(name, "d", "", score), None)
        return Asked(Item(id=name, prompt="", ask=Generate(), target=3), "", {0: given})

    scored, unanswered = asked("1", Score(statistics={}, expected="sports")), asked("2", None)
    assert expected_text(unanswered, labels_of_targets([scored, unanswered])) == "sports"
    assert expected_text(unanswered, {}) == "3"


@pytest.mark.parametrize("count", [0, 1, 300])
def test_packing_keeps_to_its_limit_and_says_so(count: int) -> None:
    every = [Asked(Item(id=str(n), prompt=f"{n * 7919 % 1009}" * 50, ask=Generate()), "") for n in range(count)]
    whole = pack(every, [0], 10**6)
    assert (whole.kept, whole.total) == (count, count)
    for limit in (len(whole.data) - 1, len(whole.data)):
        packed = pack(every, [0], limit)
        assert (len(packed.data) <= limit) or packed.kept == 0
        assert (packed.kept == count) == (limit == len(whole.data) or count == 0)


@pytest.mark.parametrize(("kind", "shown"), [("endpoint", True), ("engine", False)])
def test_seconds_are_shown_where_they_are_the_items_own(kind: str, shown: bool, tmp_path: Path) -> None:
    model = Scripted(lambda one: Output(samples=(Sample(text=right(one)),), seconds=2.5))
    model.card = replace(model.card, kind=kind)
    evaluate(model, tasks=[addition()], output_dir=tmp_path)
    (task,) = shown_tasks(read_entries([tmp_path]))
    packed = pack(read_items(task, {"addition": addition()}), [0], 10**6)
    rows = json.loads(gzip.decompress(base64.b64decode(packed.data)))
    assert [row["models"][0].get("t") for row in rows] == [2.5 if shown else None] * 40


def test_text() -> None:
    assert visible("a\x00\u202e\ud800\r\nb\t") == "a␀⟨U+202E⟩\ufffd\nb\t"
    assert [len(shortened("x" * n, 9)) == n for n in (8, 9, 10)] == [True, True, False]
    assert "999,991 characters" in shortened("x" * 1_000_000, 9)


def test_charts_say_what_they_show() -> None:
    drawn = radar(["a<b", "b", "c"], [Polygon("<m>", "m0", [Spoke(0.5, 0.4, 0.6)] * 3)], [0.0] * 3)
    assert "&lt;m&gt;: a&lt;b 50%" in drawn and "<m>" not in drawn
    assert scale_for("share", [-0.2], None).percent(0.0) == 50
    assert scale_for("number", [], None).percent(5.0) == 100
