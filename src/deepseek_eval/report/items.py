"""The items of a task with what each model answered, packed into the page.

All texts went through :func:`deepseek_eval.report.text.visible`; the page's script shows them as text, never as HTML.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from deepseek_eval.registry import all_tasks
from deepseek_eval.report.sources import Entry, Shown
from deepseek_eval.report.text import shortened, visible
from deepseek_eval.results import MetricInfo, ModelResult, OutputLine, ScoreLine, read_lines, scores_file
from deepseek_eval.task import Choose, Item, Measure, Metric, Output, Prompt, Task

MOST_BYTES = 24 << 20
"""Of all items together, packed; a page of more opens slowly."""
_PROMPT, _ANSWER, _SHORT = 12_000, 6_000, 600
State = Literal["right", "partly", "wrong", "scored", "unscored", "unanswered"]
STATES: tuple[State, ...] = ("right", "partly", "wrong", "scored", "unscored", "unanswered")


@dataclass(frozen=True)
class Given:
    """What one model gave for an item.

    Attributes:
        state: ``partly`` is between right and wrong; ``scored`` has a number but no right and wrong;
            ``unscored`` has no number at all, as of a judge who gave no verdict.
        value: of the main metric for this item alone; None where that means nothing (a correlation).
        timed: the output's seconds are this item's own. Our engine works at many items at once: there they are not.
    """

    state: State
    value: float | None
    line: ScoreLine
    output: Output | None
    timed: bool = False


@dataclass
class Asked:
    """An item and what each model gave, by its place in the report."""

    item: Item
    expected: str
    given: dict[int, Given] = field(default_factory=dict)


def read_items(shown: Shown, tasks: Mapping[str, Task] | None = None) -> list[Asked]:
    """All items of a task that some model was asked, those of the first run first. The same item asked in other words
    in another run is one more."""
    name = shown.info.name
    metric = metric_of(shown, tasks)
    found: dict[tuple[str, str], Asked] = {}
    cache: dict[Path, dict[str, Item]] = {}
    for entry, _ in shown.entries:
        items = cache.setdefault(entry.folder, {})
        if not items:
            items |= {item.id: item for item in read_lines(entry.folder / "items" / f"{name}.jsonl", Item)}
        outputs = {line.id: line.output for line in read_lines(_outputs_file(entry, name), OutputLine)}
        for line in read_lines(scores_file(entry.folder, entry.model, name), ScoreLine):
            if line.id not in items:
                continue
            asked = found.setdefault((line.id, line.digest), Asked(items[line.id], ""))
            state, value = judged(line, shown.metric, metric)
            asked.given[entry.place] = Given(
                state, value, line, outputs.get(line.id), timed=entry.model.kind == "endpoint"
            )
    every = list(found.values())
    learned = labels_of_targets(every)
    for asked in every:
        asked.expected = expected_text(asked, learned)
    return every


def _outputs_file(entry: Entry, task: str) -> Path:
    model: ModelResult = entry.model
    return entry.folder / "models" / model.folder / "outputs" / f"{task}.jsonl"


def metric_of(shown: Shown, tasks: Mapping[str, Task] | None = None) -> Metric | None:
    """The main metric's function, if this installation has the same task."""
    task = {**all_tasks(), **(tasks or {})}.get(shown.info.name)
    if task is None or task.version != shown.info.version:
        return None
    return next((one for one in task.metrics if one.name == shown.metric.name), None)


def judged(line: ScoreLine, info: MetricInfo, metric: Metric | None) -> tuple[State, float | None]:
    """(state, value) of one item: right is the best that a share can be, wrong the worst."""
    if line.score is None:
        return "unanswered", None
    if not line.score.statistics:
        return "unscored", None
    statistics = line.score.statistics.get(info.name)
    if statistics is None:
        return "scored", None
    if metric is not None:
        value = float(metric.of_sums(np.asarray(statistics, dtype=np.float64)))
    elif len(statistics) == 2 and statistics[1]:
        value = statistics[0] / statistics[1]
    else:
        value = float("nan")
    if not np.isfinite(value):
        return "scored", None
    if info.unit != "share" or info.higher_is_better is None:
        return "scored", value
    best, worst = (1.0, 0.0) if info.higher_is_better else (0.0, 1.0)
    return "right" if value == best else "wrong" if value == worst else "partly", value


def labels_of_targets(every: Sequence[Asked]) -> dict[int, str]:
    """What targets that are indices stand for, where items do not hold the labels: as of an item that was scored, so of
    one that nobody answered."""
    return {
        asked.item.target: text
        for asked in every
        if type(asked.item.target) is int and not isinstance(asked.item.ask, Choose) and (text := _by_scorer(asked))
    }


def _by_scorer(asked: Asked) -> str:
    scores = [given.line.score for given in asked.given.values() if given.line.score is not None]
    return next((score.expected for score in scores if score.expected), "")


def expected_text(asked: Asked, labels: Mapping[int, str]) -> str:
    """What would be right, as people read it; "" where nothing is. A scorer says so; the target does where nothing was
    scored."""
    item, target = asked.item, asked.item.target
    if text := _by_scorer(asked):
        return text
    if isinstance(item.ask, Choose):
        right = target.get("right") if isinstance(target, dict) else target
        if type(right) is int and 0 <= right < len(item.ask.continuations):
            return item.ask.continuations[right].strip()
        return ""
    if target is None or (isinstance(target, dict) and any(given.line.score for given in asked.given.values())):
        return ""
    if isinstance(target, str):
        return target
    if isinstance(target, list) and all(isinstance(one, str) for one in target):
        return " / ".join(dict.fromkeys(target))
    if type(target) is int and target in labels:
        return labels[target]
    return msgspec.json.encode(target).decode()


@dataclass(frozen=True)
class Packed:
    """Items as the page holds them.

    Attributes:
        data: gzip of JSON, base64.
        kept, total: numbers of items; fewer are kept where the page would be too large.
    """

    data: str
    kept: int
    total: int


def pack(every: Sequence[Asked], places: Sequence[int], limit: int) -> Packed:
    """As many items as fit into ``limit`` bytes; which ones are left out depends on their ids alone, so that what is
    there is no choice of good or bad ones."""
    rows = [_row(asked, places) for asked in every]
    data = _packed(rows)
    if len(data) > limit and rows:
        order = sorted(range(len(rows)), key=lambda i: hashlib.sha256(every[i].item.id.encode()).digest())
        while len(data) > limit and order:
            order = order[: int(len(order) * min(0.9, 0.95 * limit / len(data)))]
            data = _packed([rows[i] for i in sorted(order)])
        return Packed(data, len(order), len(rows))
    return Packed(data, len(rows), len(rows))


def _packed(rows: Sequence[Any]) -> str:
    return base64.b64encode(gzip.compress(msgspec.json.encode(rows), 6, mtime=0)).decode()


def _row(asked: Asked, places: Sequence[int]) -> dict[str, Any]:
    item = asked.item
    row: dict[str, Any] = {
        "id": visible(item.id),
        "prompt": _prompt(item.prompt),
        "expected": visible(shortened(asked.expected, _ANSWER)),
        "models": [_given(asked.given.get(place), item) for place in places],
    }
    if item.groups:
        row["groups"] = [f"{visible(kind)}: {visible(group)}" for kind, group in item.groups.items()]
    if isinstance(item.ask, Choose):
        row["choices"] = [visible(shortened(text.strip(), _SHORT)) for text in item.ask.continuations]
    return row


def _prompt(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return visible(shortened(prompt, _PROMPT))
    return [[visible(turn.role), visible(shortened(turn.content, _PROMPT))] for turn in prompt]


def _given(given: Given | None, item: Item) -> dict[str, Any] | None:
    if given is None:
        return None
    row: dict[str, Any] = {"s": given.state}
    if given.value is not None:
        row["v"] = round(given.value, 4)
    if given.line.error:
        row["e"] = visible(shortened(given.line.error, _SHORT))
    score, output = given.line.score, given.output
    if score is not None:
        row |= {"a": visible(shortened(score.answer, _ANSWER)), "w": visible(shortened(score.explanation, _ANSWER))}
        if score.refused:
            row["r"] = 1
    if output is not None and not output.error:
        if given.timed:
            row["t"] = round(output.seconds, 3)
        if output.samples:
            row["o"] = [visible(shortened(_text(sample.text, sample.tool_calls), _ANSWER)) for sample in output.samples]
        elif isinstance(item.ask, Measure):
            row["l"] = round(output.likelihoods[0].logprob, 2) if output.likelihoods else None
        elif output.likelihoods:
            row["p"] = _shares([one.logprob for one in output.likelihoods])
    return row


def _text(text: str, calls: Sequence[Any]) -> str:
    return "\n".join([*([text] if text else []), *(f"{call.name}({call.arguments})" for call in calls)])


def _shares(logprobs: Sequence[float]) -> list[float]:
    """Likelihoods normalized over the choices."""
    sums = np.asarray(logprobs)
    shares = np.exp(sums - sums.max())
    return [round(float(one), 4) for one in shares / shares.sum()]
