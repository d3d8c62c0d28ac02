"""Metrics as functions of sums (:class:`deepseek_eval.task.Metric`), and what an item adds to the sums.

A function that makes a metric says what its statistics are, in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from deepseek_eval.task import Floats, Metric

_CHRF_ORDER, _CHRF_BETA = 6, 2.0
_BLEU_ORDER = 4


def divide(above: Floats, below: Floats) -> Floats:
    """``above / below``, NaN where ``below`` is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(below != 0, above / np.where(below != 0, below, 1.0), np.nan), dtype=np.float64)


def mean(
    name: str, *, unit: str = "share", higher_is_better: bool | None = True, chance: float | None = None
) -> Metric:
    """The mean, weighted or not. Statistics: weighted value, weight."""
    return Metric(name, lambda sums: divide(sums[..., 0], sums[..., 1]), unit, higher_is_better, chance)


def one(value: float) -> tuple[float, float]:
    """What an item with this value adds to a :func:`mean`."""
    return (float(value), 1.0)


def micro_f1(name: str = "f1") -> Metric:
    """F1 over all decisions: 2 TP / (predicted + actual). Statistics: true positives, predicted, actual.

    0 where nothing is predicted rightly, NaN where there is nothing to predict and nothing was.
    """
    return Metric(name, lambda sums: divide(2 * sums[..., 0], sums[..., 1] + sums[..., 2]))


def macro_f1(name: str = "macro_f1", *, chance: float | None = None) -> Metric:
    """Mean of the classes' F1, over classes that occur or are predicted, as scikit-learn has it.

    Statistics: for each class true positives, predicted, actual.
    """

    def of_sums(sums: Floats) -> Floats:
        classes = sums.reshape(*sums.shape[:-1], -1, 3)
        each = divide(2 * classes[..., 0], classes[..., 1] + classes[..., 2])
        present = np.isfinite(each)
        return divide(np.where(present, each, 0.0).sum(axis=-1), present.sum(axis=-1).astype(np.float64))

    return Metric(name, of_sums, chance=chance)


def class_counts(classes: int, predicted: Iterable[int], actual: Iterable[int]) -> tuple[float, ...]:
    """What an item adds to a :func:`macro_f1`: multisets of classes that were predicted and that are right.

    A prediction outside of all classes is left out here: its item counts as actual only.
    """
    counts = np.zeros((classes, 3))
    ours, theirs = Counter(predicted), Counter(actual)
    for which, times in ours.items():
        counts[which, 0] += min(times, theirs[which])
        counts[which, 1] += times
    for which, times in theirs.items():
        counts[which, 2] += times
    return tuple(counts.ravel().tolist())


def pearson(name: str = "pearson") -> Metric:
    """Pearson's correlation. Statistics: 1, x, y, x squared, y squared, x y (:func:`moments`)."""

    def of_sums(sums: Floats) -> Floats:
        n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
        variances = np.maximum(n * xx - x * x, 0.0) * np.maximum(n * yy - y * y, 0.0)
        return divide(n * xy - x * y, np.sqrt(variances))

    return Metric(name, of_sums, "number", chance=0.0)


def moments(x: float, y: float) -> tuple[float, ...]:
    """What a pair adds to a :func:`pearson`."""
    return (1.0, x, y, x * x, y * y, x * y)


def spearman(bins: int, name: str = "spearman") -> Metric:
    """Spearman's rank correlation of values that were sorted into bins, with mean ranks for ties.

    Statistics: a table of (bin of x, bin of y), row by row (:func:`in_bins`). Ranks depend on all items, so it takes
    the table, not the values, to make them a function of sums.
    """

    def of_sums(sums: Floats) -> Floats:
        table = sums.reshape(*sums.shape[:-1], bins, bins)
        of_x, of_y = table.sum(axis=-1), table.sum(axis=-2)
        n = of_x.sum(axis=-1)
        x, y = (np.cumsum(counts, axis=-1) - counts / 2 - n[..., None] / 2 for counts in (of_x, of_y))
        covariance = np.einsum("...i,...j,...ij->...", x, y, table)
        return divide(covariance, np.sqrt((of_x * x * x).sum(axis=-1) * (of_y * y * y).sum(axis=-1)))

    return Metric(name, of_sums, "number", chance=0.0)


def in_bins(x: float, y: float, low: float, high: float, bins: int) -> tuple[float, ...]:
    """What a pair adds to a :func:`spearman`; each of the values is rounded to the nearest of ``bins`` points."""
    table = np.zeros((bins, bins))
    place = [int(np.clip(round((value - low) / (high - low) * (bins - 1)), 0, bins - 1)) for value in (x, y)]
    table[place[0], place[1]] = 1.0
    return tuple(table.ravel().tolist())


def bleu(name: str = "bleu") -> Metric:
    """Corpus BLEU (Papineni et al. 2002) with exponential smoothing, as sacrebleu 2 has it by default.

    Statistics: length of the answers, of the references, matches of 1 to 4 tokens, totals of 1 to 4.
    """

    def of_sums(sums: Floats) -> Floats:
        ours, theirs = sums[..., 0], sums[..., 1]
        matches, totals = sums[..., 2 : 2 + _BLEU_ORDER], sums[..., 2 + _BLEU_ORDER :]
        zeros = np.cumsum((matches == 0) & (totals > 0), axis=-1)
        smoothed = np.where(matches > 0, matches, 0.5**zeros)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(smoothed / totals).mean(axis=-1)
            brevity = np.where(ours < theirs, 1 - theirs / ours, 0.0)
            values = 100 * np.exp(logs + brevity)
        none = (matches.sum(axis=-1) == 0) | (totals == 0).any(axis=-1)
        return np.where(none, 0.0, values)

    return Metric(name, of_sums, "points")


def chrf(name: str = "chrf") -> Metric:
    """Corpus chrF2 (Popović 2015) as sacrebleu 2 has it by default.

    Statistics: for character n-grams of 1 to 6 those of the answers, of the references, common ones
    (:func:`chrf_counts`).
    """

    def of_sums(sums: Floats) -> Floats:
        counts = sums.reshape(*sums.shape[:-1], _CHRF_ORDER, 3)
        ours, theirs, common = counts[..., 0], counts[..., 1], counts[..., 2]
        usable = (ours > 0) & (theirs > 0)
        orders = usable.sum(axis=-1).astype(np.float64)
        shares = [
            np.nan_to_num(divide(np.where(usable, np.nan_to_num(divide(common, total)), 0.0).sum(axis=-1), orders))
            for total in (ours, theirs)
        ]
        factor = _CHRF_BETA**2
        above = (1 + factor) * shares[0] * shares[1]
        return 100 * np.nan_to_num(divide(above, factor * shares[0] + shares[1]))

    return Metric(name, of_sums, "points")


def chrf_counts(answer: str, reference: str) -> tuple[float, ...]:
    """What an answer adds to a :func:`chrf`."""
    ours, theirs = "".join(answer.split()), "".join(reference.split())
    counts: list[float] = []
    for order in range(1, _CHRF_ORDER + 1):
        mine, other = (
            Counter(text[start : start + order] for start in range(len(text) - order + 1)) for text in (ours, theirs)
        )
        # As sacrebleu has it: what a too short reference cannot have is not held against the answer.
        counts += [float(mine.total() if other else 0), float(other.total()), float((mine & other).total())]
    return tuple(counts)


def perplexity(name: str, *, unit: str = "number") -> Metric:
    """exp of the mean loss per token, byte or word. Statistics: natural log-probability, how many of them."""
    return Metric(name, lambda sums: np.exp(-divide(sums[..., 0], sums[..., 1])), unit, higher_is_better=False)


def bits_per_byte(name: str = "bits_per_byte") -> Metric:
    """Mean loss per byte in bits: does not depend on the tokenizer. Statistics: natural log-probability, bytes."""
    return Metric(name, lambda sums: -divide(sums[..., 0], sums[..., 1]) / np.log(2), "number", higher_is_better=False)


def calibration_error(bins: int = 10, name: str = "ece") -> Metric:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017) over equal bins of confidence.

    Statistics: for each bin count, sum of confidences, right answers (:func:`confidence`). Its estimate from few items
    is too high, and so are its resamples.
    """

    def of_sums(sums: Floats) -> Floats:
        table = sums.reshape(*sums.shape[:-1], bins, 3)
        gaps = np.abs(table[..., 1] - table[..., 2]).sum(axis=-1)
        return divide(gaps, table[..., 0].sum(axis=-1))

    return Metric(name, of_sums, higher_is_better=False)


def confidence(probability: float, right: bool, bins: int = 10) -> tuple[float, ...]:
    """What an answer, with the probability that the model gave it, adds to a :func:`calibration_error`."""
    table = np.zeros((bins, 3))
    table[min(int(probability * bins), bins - 1)] = (1.0, probability, float(right))
    return tuple(table.ravel().tolist())


def difference(name: str, *, higher_is_better: bool | None = None) -> Metric:
    """Mean of one group less that of another. Statistics: value and weight of the one, then of the other."""

    def of_sums(sums: Floats) -> Floats:
        return divide(sums[..., 0], sums[..., 1]) - divide(sums[..., 2], sums[..., 3])

    return Metric(name, of_sums, higher_is_better=higher_is_better)


def spread(name: str, groups: int) -> Metric:
    """Greatest mean of a group less the least. Statistics: for each group value, weight (:func:`of_group`).

    Never below 0, and above it by chance alone: read it beside its interval and the size of the groups.
    """

    def of_sums(sums: Floats) -> Floats:
        table = sums.reshape(*sums.shape[:-1], groups, 2)
        each = divide(table[..., 0], table[..., 1])
        seen = np.isfinite(each)
        gap = np.where(seen, each, -np.inf).max(axis=-1) - np.where(seen, each, np.inf).min(axis=-1)
        return np.where(seen.sum(axis=-1) > 1, gap, np.nan)

    return Metric(name, of_sums, higher_is_better=False)


def of_group(value: float, group: int, groups: int) -> tuple[float, ...]:
    """What an item of a group adds to a :func:`spread`, or, with two groups, to a :func:`difference`."""
    table = np.zeros((groups, 2))
    table[group] = (value, 1.0)
    return tuple(table.ravel().tolist())


def bbq_bias(name: str, *, ambiguous: bool) -> Metric:
    """BBQ's bias score (Parrish et al. 2022, arXiv:2110.08193), -1 to 1, 0 where answers lean to neither side.

    Of answers that are not "unknown", twice the share that follows the stereotype, less 1; in ambiguous contexts, where
    "unknown" is right, times the share of wrong answers. Statistics: items, right, not unknown, following it.
    """

    def of_sums(sums: Floats) -> Floats:
        items, right, named, biased = np.moveaxis(sums, -1, 0)
        score = np.where(named > 0, 2 * np.nan_to_num(divide(biased, named)) - 1, 0.0)
        share = divide(items - right, items)
        return np.asarray(np.where(items > 0, score * share if ambiguous else score, np.nan), dtype=np.float64)

    return Metric(name, of_sums, "number", higher_is_better=None, chance=0.0)


def pass_at(k: int) -> Metric:
    """pass@k (:func:`unbiased_pass`), the mean over problems. Statistics: estimate, 1."""
    return mean(f"pass@{k}")


def unbiased_pass(samples: int, right: int, k: int) -> float:
    """Chance that one of ``k`` of the samples is right: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374).

    Raises ValueError if there are fewer than ``k`` samples.
    """
    if samples < k:
        raise ValueError(f"pass@{k} needs {k} samples, not {samples}")
    wrong = samples - right
    return 1.0 - float(np.prod([(wrong - index) / (samples - index) for index in range(k)]))
