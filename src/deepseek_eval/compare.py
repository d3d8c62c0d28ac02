"""Two models on the same items: which differences are real."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from deepseek.errors import ConfigurationError
from deepseek_eval.registry import all_tasks
from deepseek_eval.results import (
    ModelResult,
    Results,
    ScoreLine,
    load_model,
    load_models,
    read_lines,
    rows_of,
    scores_file,
)
from deepseek_eval.statistics import Difference, MeanDifference, difference, holm, mean_difference
from deepseek_eval.task import UNIT_SCALES, Metric, Task

LEVEL = 0.05
Verdict = Literal["better", "worse", "not shown", "different"]


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One task's main metric for two models.

    Attributes:
        p_holm: the p-value, corrected for the number of tasks compared (Holm 1979).
        verdict: ``better`` or ``worse`` is the second model; ``different`` where neither is better by itself;
            ``not shown`` where chance may have done it, which is no proof of equality: see ``difference.detectable``.
        left_out: items that only one of the two was asked or has answered.
    """

    task: str
    metric: str
    unit: str
    difference: Difference
    p_holm: float
    verdict: Verdict
    left_out: int


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The second model against the first.

    Attributes:
        first, second: names.
        evidence: of both; a warning where they are not the same.
        tasks: that were compared.
        overall: the mean over those in which more is better and full marks exist, a judge's opinions apart; None where
            there are not two.
        skipped: task -> why not.
        warnings: what a reader must know.
    """

    first: str
    second: str
    evidence: tuple[str, str]
    tasks: tuple[Compared, ...]
    overall: MeanDifference | None
    skipped: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def worse(self) -> list[str]:
        """Tasks in which the second model is worse."""
        return [one.task for one in self.tasks if one.verdict == "worse"]


def compare(first: str | Path, second: str | Path, *, tasks: Mapping[str, Task] | None = None) -> Comparison:
    """The second run against the first, on the items that both answered.

    Args:
        first, second: folders of runs or their ``results.json``; ``FOLDER#MODEL`` where a run has several models.
        tasks: by name, for those that are not built in.

    Raises:
        DataError: results that cannot be read.
        ConfigurationError: which model is meant is not clear, or there is nothing that both have.
    """
    (one, one_folder, one_model), (other, other_folder, other_model) = load_model(first), load_model(second)
    return compare_models((one, one_folder, one_model), (other, other_folder, other_model), tasks=tasks)


def two_models(run: str | Path) -> tuple[str, str]:
    """The two models of a run, as :func:`compare` takes them. Raises ConfigurationError if it has not two."""
    _, folder, models = load_models(run)
    if len(models) != 2:
        names = ", ".join(f"{folder}#{one.folder}" for one in models)
        raise ConfigurationError(f"{run} has not two models to compare but {len(models)}: name two, of {names}.")
    return f"{folder}#{models[0].folder}", f"{folder}#{models[1].folder}"


def compare_models(
    first: tuple[Results, Path, ModelResult],
    second: tuple[Results, Path, ModelResult],
    *,
    tasks: Mapping[str, Task] | None = None,
    names: tuple[str, str] | None = None,
) -> Comparison:
    """As :func:`compare`, of (results, their folder, one of their models); ``names`` where their own are the same."""
    names = names or (first[2].name, second[2].name)
    known = {**all_tasks(), **(tasks or {})}
    skipped: dict[str, str] = {}
    found: list[tuple[str, Metric, Difference, int]] = []
    for name in dict.fromkeys([*first[2].tasks, *second[2].tasks]):
        reason = _obstacle(name, first, second, names, known)
        made = reason if isinstance(reason, str) else _difference(known[name], first, second)
        if isinstance(made, str):
            skipped[name] = made
        else:
            found.append((name, known[name].metrics[0], *made))
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise ConfigurationError(f"the two runs have nothing to compare. {reasons}")
    corrected = holm([made.p_value for _, _, made, _ in found])
    return Comparison(
        first=names[0],
        second=names[1],
        evidence=(first[2].evidence, second[2].evidence),
        tasks=tuple(
            Compared(
                task=name,
                metric=metric.name,
                unit=metric.unit,
                difference=made,
                p_holm=p_holm,
                verdict=verdict(metric, made, p_holm),
                left_out=left_out,
            )
            for (name, metric, made, left_out), p_holm in zip(found, corrected, strict=True)
        ),
        overall=mean_difference(
            [
                (made.first / UNIT_SCALES[metric.unit], made.second / UNIT_SCALES[metric.unit])
                for name, metric, made, _ in found
                if metric.higher_is_better and metric.unit in UNIT_SCALES and not first[2].tasks[name].judge
            ]
        ),
        skipped=skipped,
        warnings=tuple(_warnings(first[2], second[2])),
    )


def _obstacle(
    name: str,
    first: tuple[Results, Path, ModelResult],
    second: tuple[Results, Path, ModelResult],
    names: tuple[str, str],
    known: Mapping[str, Task],
) -> str | None:
    """Why a task cannot be compared, or None."""
    for label, (_, _, model) in zip(names, (first, second), strict=True):
        if name not in model.tasks:
            return f"{label} was not run on it"
    if name not in known:
        return "it is not a task of this installation"
    one, other = first[0].tasks[name], second[0].tasks[name]
    for what in ("version", "shots"):
        if getattr(one, what) != getattr(other, what):
            return f"its {what} differs: {getattr(one, what)} and {getattr(other, what)}"
    judges = [model.tasks[name].judge for _, _, model in (first, second)]
    if judges[0] != judges[1]:
        return f"its answers were judged by different models: {judges[0] or 'none'} and {judges[1] or 'none'}"
    if one.version != known[name].version:
        return f"this installation has version {known[name].version} of it, the runs have {one.version}"
    return None


def _difference(
    task: Task, first: tuple[Results, Path, ModelResult], second: tuple[Results, Path, ModelResult]
) -> tuple[Difference, int] | str:
    """(difference, items left out), or why there is none."""
    lines = [
        {line.id: line for line in read_lines(scores_file(folder, model, task.name), ScoreLine)}
        for _, folder, model in (first, second)
    ]
    shared = [name for name in lines[0] if name in lines[1]]
    if any(lines[0][name].digest != lines[1][name].digest for name in shared):
        return "the same items were asked in other words"
    metric = task.metrics[0]
    rows = [rows_of([own[name] for name in shared], metric.name) for own in lines]
    both = [name for name in rows[0][1] if name in set(rows[1][1])]
    if not both:
        return "there is no item that both answered"
    wanted = set(both)
    kept = [rows_of([own[name] for name in shared if name in wanted], metric.name) for own in lines]
    made = difference(metric, kept[0][0], kept[1][0], kept[0][2])
    if made is None:
        return f"{metric.name} is undefined for one of them"
    return made, len(lines[0].keys() | lines[1].keys()) - len(both)


def verdict(metric: Metric, made: Difference, p_holm: float) -> Verdict:
    """What a comparison says (:class:`Compared`)."""
    if p_holm >= LEVEL or made.value == 0:
        return "not shown"
    if metric.higher_is_better is None:
        return "different"
    return "better" if (made.value > 0) == metric.higher_is_better else "worse"


def _warnings(first: ModelResult, second: ModelResult) -> list[str]:
    found = []
    if first.evidence != second.evidence:
        found.append(
            f"The evidence differs: {first.name} was {first.evidence}, {second.name} was {second.evidence}. Prompts "
            "and settings need not be the same."
        )
    if first.likelihoods != second.likelihoods:
        found.append(
            "One model chose by likelihood, the other by naming a label: differences in multiple choice are partly "
            "ones of method."
        )
    return found
