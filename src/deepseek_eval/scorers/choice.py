"""Multiple choice, by the likelihood of each continuation or, where a model has none, by the label it answers with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepseek_eval.metrics import calibration_error, class_counts, confidence, macro_f1, mean, one
from deepseek_eval.scorers.labels import read_label
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.scorers.text import exact
from deepseek_eval.task import Choose, Floats, Item, Metric, Output, Score, Scorer

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LENGTHS = {"accuracy_norm": "characters", "accuracy_bytes": "bytes", "accuracy_tokens": "tokens"}


@dataclass(frozen=True)
class Chosen:
    """What a model chose.

    Attributes:
        index: of the continuation; None if the text named none.
        probabilities: [choices], the likelihoods normalized over the choices; None without likelihoods.
        explanation: how it was read.
        refused: the text declines to choose.
    """

    index: int | None
    probabilities: Floats | None
    explanation: str
    refused: bool = False

    def probability(self, index: int) -> float:
        """Of a choice; 1 or 0 where the model only named one."""
        return float(self.index == index) if self.probabilities is None else float(self.probabilities[index])


def chosen(item: Item, output: Output) -> Chosen:
    """The likeliest continuation, the first of several; without likelihoods, the one whose label or text is named."""
    ask = item.ask
    assert isinstance(ask, Choose)
    if output.likelihoods:
        sums = np.array([one.logprob for one in output.likelihoods])
        shares = np.exp(sums - sums.max())
        shares /= shares.sum()
        best = int(sums.argmax())
        return Chosen(best, shares, f"likeliest with {shares[best]:.0%} among {len(sums)}")
    text = output.samples[0].text
    texts = [one.strip() for one in ask.continuations]
    whole = [index for index, one in enumerate(texts) if exact(text, one)]
    if whole:
        return Chosen(whole[0], None, "answers with a choice")
    # A lower-case "a" is an article more often than a choice.
    reading = read_label(text if ask.labels != LETTERS[: len(texts)] else _letters(text), ask.labels)
    if reading.label is None:
        reading = read_label(text, texts)
    return Chosen(reading.label, None, reading.explain(texts), reading.label is None and is_refusal(text))


def _letters(text: str) -> str:
    """Only what can be a label: capital letters, with what is around them."""
    return "".join(" " if char.islower() and char.isascii() else char for char in text)


def choice_metrics(*, chance: float | None, classes: int = 0) -> tuple[Metric, ...]:
    """Of :func:`choice`. ``accuracy_norm`` divides log-likelihoods by characters (as lm-evaluation-harness's acc_norm),
    ``accuracy_bytes`` by UTF-8 bytes, ``accuracy_tokens`` by tokens; ``brier`` is the squared error of all
    probabilities (Brier 1950), 0 to 2."""
    return (
        mean("accuracy", chance=chance),
        *(mean(name, chance=chance) for name in _LENGTHS),
        *((macro_f1(),) if classes else ()),
        calibration_error(),
        mean("brier", unit="number", higher_is_better=False),
    )


def choice(*, classes: int = 0) -> Scorer:
    """The right choice. ``target``: its index. With ``classes``, each index is a class, and F1 is counted too."""

    def score(item: Item, output: Output) -> Score:
        ask = item.ask
        assert isinstance(ask, Choose)
        made = chosen(item, output)
        right: int = item.target
        statistics: dict[str, tuple[float, ...]] = {"accuracy": one(made.index == right)}
        if classes:
            statistics["macro_f1"] = class_counts(classes, [] if made.index is None else [made.index], [right])
        if made.probabilities is not None and made.index is not None:
            statistics |= _with_lengths(ask.continuations, output, right)
            aim = np.arange(len(made.probabilities)) == right
            statistics["brier"] = one(float(((made.probabilities - aim) ** 2).sum()))
            statistics["ece"] = confidence(made.probability(made.index), made.index == right)
        texts = [text.strip() for text in ask.continuations]
        return Score(
            statistics=statistics,
            answer="" if made.index is None else texts[made.index],
            explanation=f"{made.explanation}; right is {texts[right]!r}",
            refused=made.refused,
            expected=texts[right],
        )

    return score


def _with_lengths(continuations: Sequence[str], output: Output, right: int) -> dict[str, tuple[float, ...]]:
    sums = np.array([one.logprob for one in output.likelihoods])
    texts = [text.strip() for text in continuations]
    lengths = {
        "characters": [len(text) for text in texts],
        "bytes": [len(text.encode()) for text in texts],
        "tokens": [likelihood.tokens for likelihood in output.likelihoods],
    }
    return {name: one(int((sums / np.maximum(lengths[unit], 1)).argmax()) == right) for name, unit in _LENGTHS.items()}
