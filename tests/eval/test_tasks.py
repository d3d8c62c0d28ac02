"""Every built-in task makes its items from real data."""

from __future__ import annotations

from functools import cache, reduce
from pathlib import Path

import numpy as np
import pytest

from deepseek.errors import ConfigurationError
from deepseek_eval.datasets import open_all
from deepseek_eval.registry import FAMILIES, SUITES, all_tasks, members, select
from deepseek_eval.scorers.choice import LETTERS
from deepseek_eval.task import Choose, Generate, Item, Likelihood, Measure, Output, Sample, Task, ToolCall

KINDS = (
    *("classification", "nli", "paraphrase", "reading", "knowledge", "commonsense", "mathematics", "code", "reasoning"),
    *("translation", "summarization", "extraction", "dialogue", "instructions", "tools", "long-context", "safety"),
    *("bias", "perplexity"),
)
NAMES = sorted(all_tasks())


@cache
def items_of(name: str, folder: Path) -> tuple[Item, ...]:
    task = all_tasks()[name]
    return tuple(task.items(open_all(task.datasets, folder), task.shots))


def read(item: Item) -> str:
    return item.prompt if isinstance(item.prompt, str) else "\n".join(turn.content for turn in item.prompt)


def test_there_are_many_kinds() -> None:
    assert len(NAMES) >= 100
    assert {task.kind for task in all_tasks().values()} == set(KINDS)


@pytest.mark.parametrize("name", NAMES)
def test_descriptions(name: str) -> None:
    task = all_tasks()[name]
    assert task.title and task.note.endswith("."), name
    assert set(task.languages) <= {"en", "zh", "ja", "ko"}
    assert set(task.suites) <= set(SUITES)
    names = [metric.name for metric in task.metrics]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", NAMES)
def test_items(name: str, shared_data: Path) -> None:
    task, items = all_tasks()[name], items_of(name, shared_data)
    ids = [item.id for item in items]
    assert len(items) >= 12 and len(set(ids)) == len(ids)
    again = tuple(task.items(open_all(task.datasets, shared_data), task.shots))
    assert again == items
    for item in items:
        if isinstance(item.ask, Choose):
            assert len(item.ask.continuations) >= 2 and all(text.strip() for text in item.ask.continuations)
            assert not item.ask.labels or len(item.ask.labels) == len(item.ask.continuations)
            assert len(set(item.ask.continuations)) == len(item.ask.continuations), item.id
        if isinstance(item.prompt, str) and not isinstance(item.ask, Measure):
            assert item.prompt == item.prompt.rstrip(" ") or name.startswith("humaneval")


@pytest.mark.parametrize("name", [name for name in NAMES if all_tasks()[name].shots])
def test_examples_are_no_questions(name: str, shared_data: Path) -> None:
    """Examples are the same for all items, and none of them is asked.

    A prompt is description, examples, question; one without examples lacks the middle. The beginning that all those
    have is the description, or more, by which examples begin too.
    """
    task = all_tasks()[name]
    bare = {item.id: read(item) for item in task.items(open_all(task.datasets, shared_data), 0)}
    items = items_of(name, shared_data)
    assert [item.id for item in items] == list(bare)
    start = reduce(common_start, bare.values()).rfind("\n\n") + 1
    taken = len(read(items[0])) - len(bare[items[0].id])
    examples = read(items[0])[start : start + taken]
    assert taken > 0
    for item in items[:: max(1, len(items) // 200)]:
        question = bare[item.id][start:]
        assert read(item) == bare[item.id][:start] + examples + question
        assert len(question) < 24 or question.strip() not in examples, item.id


def common_start(first: str, second: str) -> str:
    different = (index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    return first[: next(different, min(len(first), len(second)))]


def outputs_for(task: Task, item: Item) -> list[Output]:
    """Answers of all sorts that a model may give."""
    if isinstance(item.ask, Measure):
        return [Output(likelihoods=(Likelihood(logprob=-20.0, tokens=9),))]
    if isinstance(item.ask, Choose):
        count = len(item.ask.continuations)
        by_likelihood = [
            Output(likelihoods=tuple(Likelihood(logprob=-1.0 - (index != best), tokens=2) for index in range(count)))
            for best in range(count)
        ]
        named = [Output(samples=(Sample(text=text),)) for text in (*item.ask.labels, *item.ask.continuations)]
        return [*by_likelihood, *named, Output(samples=(Sample(text="I can't help with that."),))]
    texts = ["", "???", "I'm sorry, but I can't help.", '{"a": [1, {"b": null}]}', "1\n2", "\u0000\ud83d\ude00 " * 9]
    count = item.ask.samples
    return [
        *(Output(samples=tuple(Sample(text=text) for _ in range(count))) for text in texts),
        Output(samples=tuple(Sample(text="", tool_calls=(ToolCall("x", "{"),)) for _ in range(count))),
    ]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("humaneval")])
def test_any_answer_has_a_score(name: str, shared_data: Path) -> None:
    task = all_tasks()[name]
    widths: dict[str, int] = {}
    for item in items_of(name, shared_data)[:3]:
        for output in outputs_for(task, item):
            score = task.scorer(item, output)
            assert set(score.statistics) <= {metric.name for metric in task.metrics}
            for metric, values in score.statistics.items():
                assert widths.setdefault(metric, len(values)) == len(values)
                assert np.isfinite(values).all()
    for metric in task.metrics:
        if metric.name in widths:
            assert metric.of_sums(np.ones((3, widths[metric.name]))).shape == (3,)


def right_answer(item: Item) -> Output | None:
    """What a perfect model says; None where only the scorer knows."""
    target = item.target
    if isinstance(item.ask, Choose):
        right = target["right"] if isinstance(target, dict) and "right" in target else target
        if not isinstance(right, int):
            return None
        logprobs = [-9.0 + 8.5 * (index == right) for index in range(len(item.ask.continuations))]
        return Output(likelihoods=tuple(Likelihood(logprob=one, tokens=1) for one in logprobs))
    if isinstance(target, str):
        return Output(samples=(Sample(text=target),))
    if isinstance(target, list) and target and isinstance(target[0], str):
        return Output(samples=(Sample(text=target[0]),))
    return None


@pytest.mark.parametrize("name", NAMES)
def test_the_right_answer_is_right(name: str, shared_data: Path) -> None:
    task = all_tasks()[name]
    if task.kind in ("code", "perplexity", "safety") or name == "crows_pairs":
        pytest.skip("has no one right answer")
    checked = 0
    for item in items_of(name, shared_data)[:20]:
        if (output := right_answer(item)) is not None:
            main = task.metrics[0]
            value = float(main.of_sums(np.array(task.scorer(item, output).statistics[main.name])))
            assert value == pytest.approx(100.0 if main.unit == "points" else 1.0), (item.id, item.target)
            checked += 1
    if not checked:
        pytest.skip("answers with a form are tested with their scorers")


@pytest.mark.parametrize("name", NAMES)
def test_a_task_with_letters_asks_for_few(name: str, shared_data: Path) -> None:
    for item in items_of(name, shared_data)[:50]:
        if isinstance(item.ask, Choose) and item.ask.labels[:1] == ("A",):
            assert item.ask.labels == LETTERS[: len(item.ask.continuations)]


def test_humaneval_runs_its_programs(shared_data: Path) -> None:
    from deepseek_eval.sandbox import obstacle

    if reason := obstacle():
        pytest.skip(reason)
    task = all_tasks()["humaneval"]
    item = items_of("humaneval", shared_data)[0]
    row = next(iter(open_all(["humaneval"], shared_data)["humaneval"].read("HumanEval.jsonl.gz")))
    good = task.scorer(item, Output(samples=(Sample(text=row["canonical_solution"]),)))
    assert good.statistics == {"pass@1": (1.0, 1.0)}
    bad = task.scorer(item, Output(samples=(Sample(text="    return 3\n"),)))
    assert bad.statistics == {"pass@1": (0.0, 1.0)} and "AssertionError" in bad.explanation


def test_suites_and_families() -> None:
    for name in (*SUITES, *FAMILIES):
        assert members(name), name
    assert len(members("bbh")) == 27 and len(members("full")) == len(NAMES)
    assert [task.name for task in select(["gsm8k", "mathematics", "gsm8k"])] == [
        "gsm8k",
        "mgsm_en",
        "mgsm_zh",
        "mgsm_ja",
    ]
    assert {"classification", "nli", "reading", "bias", "translation"} <= {task.kind for task in members("core")}
    with pytest.raises(ConfigurationError, match=r"there is no task, family or suite 'gsm8'\. Did you mean gsm8k"):
        select(["gsm8"])


def test_generated_asks_are_greedy() -> None:
    """Tasks that sample say so in their name: all others give the same answer every time."""
    for task in members("full"):
        if not task.datasets:
            for item in list(task.items({}, task.shots))[:1]:
                if isinstance(item.ask, Generate):
                    assert item.ask.temperature == 0.0 and item.ask.samples == 1
