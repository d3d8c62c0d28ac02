"""The figures at the head of a report: what each model did, means by kind of task, cost and speed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deepseek_eval.report.charts import Polygon, Spoke
from deepseek_eval.report.sources import Entry, Shown
from deepseek_eval.results import MetricInfo, TaskResult
from deepseek_eval.statistics import Estimate
from deepseek_eval.task import UNIT_SCALES


@dataclass(frozen=True)
class Totals:
    """One model over all its tasks.

    Attributes:
        above, with_chance: tasks whose whole interval is above chance, of those that have a chance level.
        timed: items that were asked in the very run that is reported, in ``seconds`` and ``timed_tokens`` answer
            tokens; others were answered earlier, and their time is not known.
        cost: in US dollars; None if no price is known.
    """

    entry: Entry
    tasks: int
    items: int
    unanswered: int
    refused: int
    above: int
    with_chance: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    timed: int
    timed_tokens: int
    cost: float | None
    stopped: tuple[str, ...]


def totals(entry: Entry) -> Totals:
    """Sums over the tasks of a model."""
    results = entry.model.tasks
    mains = {name: result.metrics.get(entry.results.tasks[name].metrics[0].name) for name, result in results.items()}
    chances = [found.above_chance for found in mains.values() if found is not None and found.above_chance is not None]
    timed = [one for one in results.values() if one.asked_now and one.asked_now == asked(one)]
    costs = [one.cost for one in results.values() if one.cost is not None]
    return Totals(
        entry=entry,
        tasks=len(results),
        items=sum(map(asked, results.values())),
        unanswered=sum(one.unanswered for one in results.values()),
        refused=sum(one.refused for one in results.values()),
        above=sum(chances),
        with_chance=len(chances),
        prompt_tokens=sum(one.prompt_tokens for one in results.values()),
        completion_tokens=sum(one.completion_tokens for one in results.values()),
        seconds=sum(one.seconds for one in timed),
        timed=sum(one.asked_now for one in timed),
        timed_tokens=sum(one.completion_tokens for one in timed),
        cost=sum(costs) if costs else None,
        stopped=tuple(f"{name}: {one.stopped}" for name, one in results.items() if one.stopped),
    )


def asked(result: TaskResult) -> int:
    return result.answered + result.unanswered


@dataclass(frozen=True)
class KindMeans:
    """Means of main metrics by kind of task, 0 to 1.

    Attributes:
        tasks: kind -> names of the tasks that all of ``polygons`` were run on.
        chance: of each kind; a task without a chance level counts 0.
        left_out: models that lack too many of the tasks.
        unusable: tasks whose figure has no place between 0 and 1, or is a judge's opinion.
    """

    tasks: dict[str, list[str]]
    polygons: tuple[Polygon, ...]
    chance: tuple[float, ...]
    left_out: tuple[str, ...]
    unusable: tuple[str, ...]


def kind_means(entries: Sequence[Entry], tasks: Sequence[Shown], *, all_models: bool = False) -> KindMeans:
    """Means over the same tasks for every model. A model with fewer than half of all tasks is left out rather than the
    tasks that it lacks; not so with ``all_models``."""
    usable = [one for one in tasks if _usable(one.metric) and not any(result.judge for _, result in one.entries)]
    known = {entry.place: sum(_value(one, entry) is not None for one in usable) for entry in entries}
    drawn = [entry for entry in entries if all_models or 2 * known[entry.place] >= len(usable) > 0]
    common = [one for one in usable if all(_value(one, entry) is not None for entry in drawn)] if drawn else []
    kinds: dict[str, list[Shown]] = defaultdict(list)
    for one in common:
        kinds[one.info.kind].append(one)
    polygons = tuple(
        Polygon(entry.label, f"m{entry.place}", [_mean(own, entry) for own in kinds.values()]) for entry in drawn
    )
    return KindMeans(
        tasks={kind: [one.info.name for one in own] for kind, own in kinds.items()},
        polygons=polygons if common else (),
        chance=tuple(_chance(own) for own in kinds.values()),
        left_out=tuple(entry.label for entry in entries if entry not in drawn),
        unusable=tuple(one.info.name for one in tasks if one not in usable),
    )


def _usable(metric: MetricInfo) -> bool:
    return metric.higher_is_better is True and metric.unit in UNIT_SCALES


def _value(one: Shown, entry: Entry) -> Estimate | None:
    result = next((result for own, result in one.entries if own is entry), None)
    found = None if result is None else result.metrics.get(one.metric.name)
    return None if found is None or found.value is None else found


def _mean(own: Iterable[Shown], entry: Entry) -> Spoke:
    """The mean over tasks, which are independent; its interval from theirs, taken as normal."""
    values, widths = [], []
    for one in own:
        found, scale = _value(one, entry), UNIT_SCALES[one.metric.unit]
        assert found is not None and found.value is not None
        values.append(found.value / scale)
        widths.append((found.high - found.low) / 2 / scale if found.low is not None and found.high is not None else 0.0)
    mean, half = sum(values) / len(values), math.sqrt(sum(width**2 for width in widths)) / len(values)
    return Spoke(mean, max(0.0, mean - half), min(1.0, mean + half))


def _chance(own: Sequence[Shown]) -> float:
    return sum((one.metric.chance or 0.0) / UNIT_SCALES[one.metric.unit] for one in own) / len(own)
