"""What the bias page says. Accuracy stands beside every bias figure: who guesses blindly is not fair, but blind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepseek_eval.report import text
from deepseek_eval.report.items import Asked
from deepseek_eval.report.sources import Entry, Shown
from deepseek_eval.results import MetricInfo, TaskResult
from deepseek_eval.statistics import Estimate

_MOST_CASES = 6


@dataclass(frozen=True)
class Finding:
    """One bias figure of one model, and what may be said of it.

    Attributes:
        neutral: the value of a model without this bias; None for gaps, which are never negative.
        verdict: ``blind`` (its accuracy is not shown to be above chance), ``leaning``, ``not shown`` or ``gap``.
        sentence: the same in words.
    """

    metric: MetricInfo
    found: Estimate
    neutral: float | None
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Judged:
    """A bias task for one model: accuracies first, then what they allow to say."""

    entry: Entry
    result: TaskResult
    accuracies: tuple[tuple[MetricInfo, Estimate], ...]
    findings: tuple[Finding, ...]


def judge(shown: Shown) -> list[Judged]:
    """All models of a bias task."""
    return [_judge(shown, entry, result) for entry, result in shown.entries]


def _judge(shown: Shown, entry: Entry, result: TaskResult) -> Judged:
    metrics = [(one, result.metrics[one.name]) for one in shown.info.metrics if one.name in result.metrics]
    accuracies = tuple((one, found) for one, found in metrics if one.name.startswith("accuracy"))
    blind = _blind([(one, found) for one, found in accuracies if one.name != "accuracy_ambiguous"])
    findings = tuple(
        _finding(one, found, blind, bool(accuracies))
        for one, found in metrics
        if not one.name.startswith("accuracy") and found.value is not None
    )
    return Judged(entry, result, accuracies, findings)


def _blind(accuracies: Sequence[tuple[MetricInfo, Estimate]]) -> str:
    """Which accuracy is not above chance; "" if all are.

    Accuracy in ambiguous contexts does not count: a model that always says "unknown" is right there and reads nothing.
    """
    return ", ".join(one.name for one, found in accuracies if found.above_chance is False)


def neutral_value(metric: MetricInfo) -> float | None:
    """What a model without the bias has: the chance level, 0 for a difference of groups; None for what cannot be
    negative or is no bias."""
    if metric.name.startswith("gap_") or metric.higher_is_better is not None:
        return None
    return metric.chance if metric.chance is not None else (None if metric.name.endswith("_share") else 0.0)


def _finding(metric: MetricInfo, found: Estimate, blind: str, has_accuracy: bool) -> Finding:
    neutral = neutral_value(metric)
    if blind:
        sentence = f"Says nothing: {blind} is not shown to be above chance. A model that guesses is blind, not fair."
        return Finding(metric, found, neutral, "blind", sentence)
    if neutral is None or found.low is None or found.high is None:
        sentence = "No test: read it beside its interval."
        if metric.name.startswith("gap_"):
            sentence = "No test: a gap is never negative, and small ones come by chance."
        return Finding(metric, found, neutral, "gap", sentence)
    at = text.shown(neutral, metric.unit)
    if found.low <= neutral <= found.high:
        furthest = text.signed(max(neutral - found.low, found.high - neutral), metric.unit).lstrip("+")
        sentence = f"Not shown. The interval holds {at}, and a lean of up to {furthest} fits it too."
        verdict = "not shown"
    else:
        sentence = f"Leans: the interval is {'above' if found.low > neutral else 'below'} {at}."
        verdict = "leaning"
    if not has_accuracy:
        sentence += " There is no accuracy to read beside it."
    return Finding(metric, found, neutral, verdict, sentence)


@dataclass(frozen=True)
class Variant:
    """A prompt of a counterfactual case and what each model said, by its place."""

    group: str
    prompt: str
    answers: Mapping[int, str]


@dataclass(frozen=True)
class Case:
    """Prompts that differ in one attribute of a person.

    Attributes:
        spread: largest less smallest probability of yes among the variants, of the model where that is largest.
    """

    name: str
    spread: float
    variants: tuple[Variant, ...]


def cases(every: Sequence[Asked], metrics: Sequence[MetricInfo]) -> list[Case]:
    """The counterfactual cases with the widest spread of a model's answers; [] for tasks of another kind."""
    gaps = {one.name for one in metrics if one.name.startswith("gap_")}
    if not gaps:
        return []
    members: dict[str, list[Asked]] = defaultdict(list)
    for asked in every:
        if asked.item.cluster and isinstance(asked.item.target, dict) and "group" in asked.item.target:
            members[asked.item.cluster].append(asked)
    whole = {
        name: own for name, own in members.items() if 1 < len(own) == len({str(o.item.target["group"]) for o in own})
    }
    found = [_case(name, own, gaps) for name, own in whole.items()]
    return sorted((one for one in found if one.spread > 0), key=lambda one: -one.spread)[:_MOST_CASES]


def _case(name: str, own: Sequence[Asked], gaps: set[str]) -> Case:
    values: dict[int, list[float]] = defaultdict(list)
    for asked in own:
        for place, given in asked.given.items():
            for metric, row in given.line.score.statistics.items() if given.line.score else ():
                # A group's row holds (value, weight) for each group, of which this item has one.
                if metric in gaps and any(row[1::2]):
                    values[place].append(sum(row[0::2]) / sum(row[1::2]))
    spread = max((max(of_model) - min(of_model) for of_model in values.values() if len(of_model) > 1), default=0.0)
    return Case(name, spread, tuple(_variant(asked, str(asked.item.target["group"])) for asked in own))


def _variant(asked: Asked, group: str) -> Variant:
    prompt = asked.item.prompt
    whole = prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)
    return Variant(group, whole, {place: _said(given.line.score) for place, given in asked.given.items()})


def _said(score: object) -> str:
    explanation = getattr(score, "explanation", "unanswered")
    return str(explanation).split(";", 1)[0]


@dataclass(frozen=True)
class Topic:
    """A contested topic: how far each model leans to the first statement, and every prompt it was asked."""

    name: str
    leanings: Mapping[int, Estimate]
    prompts: tuple[Variant, ...]


def topics(every: Sequence[Asked], shown: Shown) -> list[Topic]:
    """Tendencies with the prompts they were asked with; [] for tasks of another kind."""
    members: dict[str, list[Asked]] = defaultdict(list)
    for asked in every:
        target = asked.item.target
        if isinstance(target, dict) and {"topic", "side"} <= target.keys():
            members[str(target["topic"])].append(asked)
    found = []
    for name, own in members.items():
        metric = f"leaning_{name.replace(' ', '_')}"
        leanings = {e.place: result.metrics[metric] for e, result in shown.entries if metric in result.metrics}
        sides = ("statement", "opposite")
        prompts = tuple(Variant(sides[one.item.target["side"]], _variant(one, "").prompt, _answers(one)) for one in own)
        found.append(Topic(name, leanings, prompts))
    return found


def _answers(asked: Asked) -> dict[int, str]:
    return {
        place: (given.line.score.answer or "no answer") if given.line.score else "unanswered"
        for place, given in asked.given.items()
    }
