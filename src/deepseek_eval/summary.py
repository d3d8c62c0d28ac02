"""From scored items to the numbers of a report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from deepseek_eval.results import ScoreLine, TaskResult, rows_of
from deepseek_eval.statistics import RESAMPLES, Estimate, estimate
from deepseek_eval.task import Item, Metric, Output, Task

FEWEST_IN_GROUP = 5
"""A group with fewer items gets no number."""
_GROUP_RESAMPLES = 1000
_MOST_ERRORS = 20


def score_lines(
    task: Task,
    items: Sequence[Item],
    outputs: Mapping[str, Output],
    digests: Mapping[str, str],
    verdicts: Mapping[str, Sequence[Output]] | None = None,
) -> list[ScoreLine]:
    """The worth of each item that was asked; ``verdicts`` are a judge's answers about each, where the task has one."""
    lines = []
    for item in items:
        output = outputs.get(item.id)
        if output is None:
            continue
        if output.error:
            score = None
        elif task.judging is not None and verdicts is not None:
            score = task.judging.score(item, output, verdicts.get(item.id, ()))
        else:
            score = task.scorer(item, output)
        lines.append(ScoreLine(item.id, digests[item.id], item.cluster, score, output.error))
    return lines


def summarize(
    task: Task,
    items: Sequence[Item],
    lines: Sequence[ScoreLine],
    outputs: Mapping[str, Output],
    *,
    stopped: str,
    seed: int,
) -> TaskResult:
    """All numbers of a model in a task."""
    answered = [line for line in lines if line.score is not None]
    given = [outputs[line.id] for line in lines]
    costs = [output.cost for output in given if output.cost is not None]
    metrics = metric_values(task.metrics, answered, seed)
    return TaskResult(
        metrics=metrics,
        groups=_groups(task, items, answered, seed),
        answered=len(answered),
        unanswered=len(lines) - len(answered),
        refused=sum(line.score.refused for line in answered if line.score is not None),
        errors=dict(Counter(line.error[:200] for line in lines if line.error).most_common(_MOST_ERRORS)),
        if_wrong=_if_wrong(task.metrics[0], metrics, len(lines)),
        stopped=stopped,
        asked_now=0,
        seconds=0.0,
        prompt_tokens=sum(output.prompt_tokens for output in given),
        completion_tokens=sum(output.completion_tokens for output in given),
        cost=sum(costs) if costs else None,
        unscored=0 if task.judging is None else sum(not line.score.statistics for line in answered if line.score),
    )


def metric_values(
    metrics: Sequence[Metric], lines: Sequence[ScoreLine], seed: int, *, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Name of each metric that applies to any of the items -> its value."""
    values = {}
    for metric in metrics:
        rows, _, clusters = rows_of(lines, metric.name)
        if len(rows):
            values[metric.name] = estimate(metric, rows, clusters, seed=seed, resamples=resamples)
    return values


def _groups(
    task: Task, items: Sequence[Item], lines: Sequence[ScoreLine], seed: int
) -> dict[str, dict[str, dict[str, Estimate]]]:
    of_item = {item.id: item.groups for item in items}
    members: dict[str, dict[str, list[ScoreLine]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for kind, group in of_item[line.id].items():
            members[kind][group].append(line)
    return {
        kind: {
            group: metric_values(task.metrics, own, seed, resamples=_GROUP_RESAMPLES)
            for group, own in sorted(groups.items())
            if len(own) >= FEWEST_IN_GROUP
        }
        for kind, groups in sorted(members.items())
    }


def _if_wrong(metric: Metric, values: dict[str, Estimate], asked: int) -> float | None:
    value = values.get(metric.name)
    if value is None or value.value is None or value.method != "wilson" or not asked:
        return None
    return value.value * value.items / asked
