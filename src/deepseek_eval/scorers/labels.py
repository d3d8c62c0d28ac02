"""A label read from free text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepseek_eval.metrics import class_counts, macro_f1, mean, one
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.task import Item, Metric, Output, Score, Scorer


@dataclass(frozen=True)
class Reading:
    """Attributes: label: index of it, None if there is none. others: other labels that are named behind it."""

    label: int | None
    others: tuple[int, ...] = ()

    def explain(self, names: Sequence[str]) -> str:
        """For people: what was read, and what else is there."""
        if self.label is None:
            return "names no label"
        if not self.others:
            return f"names {names[self.label]}"
        return f"names {names[self.label]} first, and also {', '.join(names[one] for one in self.others)}"


def read_label(text: str, names: Sequence[str], aliases: Mapping[str, int] | None = None) -> Reading:
    """The label that is named first, in any case of letters and not inside of a longer word.

    Where names overlap at one place, the longest is read ("not entailment" holds "entailment").

    Args:
        aliases: other texts for a label -> its index.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    wanted = {unicodedata.normalize("NFKC", name).casefold(): index for index, name in enumerate(names)}
    wanted |= {unicodedata.normalize("NFKC", name).casefold(): index for name, index in (aliases or {}).items()}
    spans = [(match.start(), -match.end(), index) for name, index in wanted.items() for match in _places(name, text)]
    found: list[int] = []
    reached = 0
    for start, end, index in sorted(spans):
        if start >= reached:
            reached = -end
            if index not in found:
                found.append(index)
    return Reading(found[0], tuple(found[1:])) if found else Reading(None)


def _places(name: str, text: str) -> Sequence[re.Match[str]]:
    before = r"(?<![a-z0-9_])" if re.match(r"[a-z0-9_]", name) else ""
    behind = r"(?![a-z0-9_])" if re.search(r"[a-z0-9_]$", name) else ""
    return list(re.finditer(before + re.escape(name) + behind, text))


def label_metrics(classes: int, *, chance: float, macro: bool = True) -> tuple[Metric, ...]:
    """Of :func:`label`: accuracy, macro F1 where asked for, and how many answers name several labels."""
    named = mean("ambiguous", higher_is_better=False)
    return (mean("accuracy", chance=chance), *((macro_f1(),) if macro else ()), named)


def label(names: Sequence[str], aliases: Mapping[str, int] | None = None, *, macro: bool = True) -> Scorer:
    """A label generated as text. ``target``: index of the right one."""

    def score(item: Item, output: Output) -> Score:
        text = output.samples[0].text
        reading = read_label(text, names, aliases)
        statistics: dict[str, tuple[float, ...]] = {
            "accuracy": one(reading.label == item.target),
            "ambiguous": one(bool(reading.others)),
        }
        if macro:
            predicted = [] if reading.label is None else [reading.label]
            statistics["macro_f1"] = class_counts(len(names), predicted, [item.target])
        return Score(
            statistics=statistics,
            answer="" if reading.label is None else names[reading.label],
            explanation=f"{reading.explain(names)}; right is {names[item.target]}",
            refused=reading.label is None and is_refusal(text),
            expected=names[item.target],
        )

    return score
