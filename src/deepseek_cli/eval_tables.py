"""What `deepseek eval` shows in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from deepseek_eval.compare import Comparison
    from deepseek_eval.report.matrix import Pair
    from deepseek_eval.results import Results, TaskResult
    from deepseek_eval.statistics import Estimate, MeanDifference


class Bars:
    """A bar for each task on standard error. Implements :class:`deepseek_eval.progress.Watcher`."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, model: str, task: str, total: int, done: int) -> None:
        self._task = self._progress.add_task(f"{model} {task}", total=total, completed=done)

    def advance(self) -> None:
        assert self._task is not None
        self._progress.advance(self._task)

    def note(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe gets whole lines
    return console


def tasks_table(rows: Sequence[Mapping[str, Any]], suites: Mapping[str, str], folder: Path) -> None:
    """Tasks, suites, and which data is missing."""
    table = Table(
        "task", "kind", "languages", "suites", "main metric", "chance", "what it is", box=None, pad_edge=False
    )
    for row in rows:
        chance = "" if row["chance"] is None else f"{row['chance']:.1%}"
        title = row["title"] + (" (data missing)" if row["missing_datasets"] else "")
        languages, own = " ".join(row["languages"]), " ".join(row["suites"])
        table.add_row(row["name"], row["kind"], languages, own, row["metrics"][0], chance, title)
    console = _console()
    console.print(table)
    console.print()
    for name, meaning in suites.items():
        console.print(f"suite {name}: {meaning}", markup=False)
    missing = sorted({name for row in rows for name in row["missing_datasets"]})
    if missing:
        console.print(f"\nNot in {folder}: {', '.join(missing)}. Name a folder with --data, or fetch with --download.")


def shown(value: float | None, unit: str) -> str:
    """A number as people read it."""
    if value is None:
        return "undefined"
    return f"{value:.1%}" if unit == "share" else f"{value:.2f}"


def _with_interval(found: Estimate | None, unit: str) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return shown(found.value, unit)
    return f"{shown(found.value, unit)} [{shown(found.low, unit)}, {shown(found.high, unit)}]"


def results_tables(results: Results, folder: Path) -> None:
    """A table for each model, and what is missing."""
    console = _console()
    for model in results.models:
        table = Table("task", "items", "metric", "value, 95%", "chance", "above", "unanswered", "refused", "seconds")
        for name, result in model.tasks.items():
            metric = results.tasks[name].metrics[0]
            found = result.metrics.get(metric.name)
            above = {True: "yes", False: "no", None: ""}[found.above_chance if found else None]
            asked = result.answered + result.unanswered
            judged = " (judged)" if result.judge else ""
            table.add_row(
                name,
                str(asked),
                metric.name + judged,
                _with_interval(found, metric.unit),
                "" if metric.chance is None else shown(metric.chance, metric.unit),
                above,
                str(result.unanswered or ""),
                str(result.refused or ""),
                f"{result.seconds:.1f}",
            )
        console.print(f"\n{model.name} ({model.evidence})", markup=False)
        console.print(table)
        for name, result in model.tasks.items():
            for reason, count in result.errors.items():
                console.print(f"{name}: {count} unanswered: {reason}", markup=False)
            if result.judge:
                console.print(_judged(name, result), markup=False)
            if result.stopped:
                console.print(f"{name}: stopped: {result.stopped}", markup=False)
        costs = [result.cost for result in model.tasks.values() if result.cost is not None]
        if costs:
            console.print(f"cost: ${sum(costs):.4f}")
    for one in results.missing:
        console.print(f"not run: {one.task}{f' on {one.model}' if one.model else ''}: {one.reason}", markup=False)
    console.print(f"\n{folder}: results.json", markup=False)


def _judged(task: str, result: TaskResult) -> str:
    words = [f"{task}: judged by {result.judge}"]
    if result.unscored:
        words.append(f"{result.unscored} of {result.answered} answers unscored, without a verdict")
    if result.judge_cost is not None:
        words.append(f"the judge cost ${result.judge_cost:.4f}")
    return "; ".join(words)


def pairs_tables(pairs: Sequence[Pair]) -> None:
    """Each pair of models, with one correction over all."""
    console = _console()
    for pair in pairs:
        console.print(f"\n{pair.second.label} against {pair.first.label}", markup=False)
        if pair.comparison is None:
            console.print(f"not compared: {pair.reason}", markup=False)
        else:
            comparison_table(pair.comparison)


def comparison_table(comparison: Comparison) -> None:
    """The second model against the first."""
    table = Table(
        "task", "metric", "items", comparison.first, comparison.second, "difference, 95%", "p (Holm)", "verdict"
    )
    for one in comparison.tasks:
        made = one.difference
        verdict: str = one.verdict
        if one.verdict == "not shown" and made.detectable is not None:
            verdict += f" (would show {shown(made.detectable, one.unit)})"
        table.add_row(
            one.task,
            one.metric,
            str(made.items),
            shown(made.first, one.unit),
            shown(made.second, one.unit),
            _signed(made.value, one.unit) + _signed_interval(made.low, made.high, one.unit),
            f"{one.p_holm:.3g}",
            verdict,
        )
    console = _console()
    console.print(table)
    if comparison.overall is not None:
        console.print(overall_line(comparison.overall), markup=False)
    for name, reason in comparison.skipped.items():
        console.print(f"not compared: {name}: {reason}", markup=False)
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", markup=False)


def overall_line(made: MeanDifference) -> str:
    change = _signed(made.value, "share") + _signed_interval(made.low, made.high, "share")
    line = f"mean of {made.tasks} tasks: {made.first:.1%} and {made.second:.1%}, {change}, p {made.p_value:.3g}"
    if made.kept is not None:
        line += f"; kept {made.kept:.1%}"
        if made.kept_low is not None and made.kept_high is not None:
            line += f" [{made.kept_low:.1%}, {made.kept_high:.1%}]"
    return line


def _signed(value: float, unit: str) -> str:
    return f"{value:+.1%}" if unit == "share" else f"{value:+.2f}"


def _signed_interval(low: float | None, high: float | None, unit: str) -> str:
    return "" if low is None or high is None else f" [{_signed(low, unit)}, {_signed(high, unit)}]"
