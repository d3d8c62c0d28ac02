"""How sure a number is, and whether two numbers differ.

All metrics are functions of sums (:class:`deepseek_eval.task.Metric`), so that a resample of the items is a resample of
rows: nothing is scored twice. Items that belong together (:attr:`deepseek_eval.task.Item.cluster`) are summed first and
left out or resampled as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import msgspec
import numpy as np
from scipy import stats as scipy_stats

from deepseek_eval.task import Floats, Metric

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 2000
FEW = 20
"""With fewer clusters a bootstrap interval is too narrow (docs/log.md has the simulation)."""
_ROWS_AT_ONCE = 4_000_000
_ROUNDING = 1e-12
Method = Literal["wilson", "wilson-effective", "jackknife", "bca", "percentile", "none"]


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A metric's value with its interval.

    Attributes:
        value: over all scored items; None where it is undefined (no items, no true positives).
        low, high: ends of the interval, at 95%; None where there is none.
        method: ``wilson`` (a plain share of independent items; Wilson 1927), ``wilson-effective`` (a share of items in
            clusters, or a mean between 0 and 1 of few: Wilson's for the number of independent items that have the same
            standard error, with Student's t; after Korn and Graubard 1998), ``jackknife`` (other metrics of few
            clusters: Student's t with the jackknife's standard error; Tukey 1958), ``bca`` (bias-corrected and
            accelerated bootstrap; Efron 1987), ``percentile`` (the same where the correction is undefined) or ``none``.
        items: that the metric applies to.
        clusters: independent groups of them, of which the interval knows.
        above_chance: the whole interval is better than the metric's chance level; None where there is no such level.
    """

    value: float | None
    low: float | None
    high: float | None
    method: Method
    items: int
    clusters: int
    above_chance: bool | None = None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The second model's value minus the first one's, on the same items.

    Attributes:
        first, second: the two values, on the items that both answered.
        value, low, high: the difference with its 95% interval; None where nothing tells how wide it is, since all
            clusters differ alike or there is but one.
        p_value: two-sided, of no difference.
        test: ``mcnemar`` (exact; McNemar 1947) for plain shares of independent items, with Newcombe's interval for
            paired shares (1998, method 10); else ``jackknife``: Student's t with the standard error of the difference
            from leaving out one cluster at a time (Tukey 1958).
        items, clusters: as in :class:`Estimate`.
        only_first, only_second: items that only one of the two has right; None for other metrics.
        detectable: the smallest true difference that so many items show in 80% of cases at 5% (Miller 2024,
            arXiv:2411.00640).
    """

    first: float
    second: float
    value: float
    low: float | None
    high: float | None
    p_value: float
    test: Literal["mcnemar", "jackknife"]
    items: int
    clusters: int
    only_first: int | None = None
    only_second: int | None = None
    detectable: float | None = None


class MeanDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Over tasks that count alike: the second model's mean minus the first one's.

    Attributes:
        tasks: how many.
        first, second: means of the tasks' figures, 0 to 1.
        value, low, high: the difference with its 95% interval: Student's t on the tasks' differences, as of a sample of
            all tasks that might have been asked; None where all differ alike.
        p_value: two-sided, of no difference.
        kept, kept_low, kept_high: ``second`` as a share of ``first`` with the jackknife's interval; None where
            ``first`` is 0.
    """

    tasks: int
    first: float
    second: float
    value: float
    low: float | None
    high: float | None
    p_value: float
    kept: float | None = None
    kept_low: float | None = None
    kept_high: float | None = None


_Z = float(scipy_stats.norm.ppf((1 + CONFIDENCE) / 2))


def estimate(
    metric: Metric, rows: Floats, clusters: Sequence[str] = (), *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """A metric over items.

    Args:
        rows: shape (items, statistics): what each item adds to the sums.
        clusters: of each item, "" for one of its own; () if all are.
        seed: of the resamples.
    """
    items = len(rows)
    value = float(metric.of_sums(rows.sum(axis=0))) if items else math.nan
    if math.isnan(value):
        return Estimate(value=None, low=None, high=None, method="none", items=items, clusters=0)
    groups = summed_by_cluster(rows, clusters)
    low: float | None
    high: float | None
    method: Method
    share, few = _is_share(metric, rows), len(groups) < FEW
    if share and len(groups) == items:
        low, high = _wilson(value, items, _Z)
        method = "wilson"
    elif len(groups) < 2:
        low, high, method = None, None, "none"
    elif share or (few and _is_mean_of_shares(metric, rows)):
        low, high = _effective_wilson(metric, groups, value, items)
        method = "wilson-effective"
    elif few:
        low, high, method = _jackknife_interval(metric, groups, value)
    else:
        low, high, method = _bootstrap_interval(metric, groups, value, seed, resamples)
    return Estimate(
        value=value,
        low=low,
        high=high,
        method=method,
        items=items,
        clusters=len(groups),
        above_chance=_better_than_chance(metric, low, high),
    )


def difference(
    metric: Metric,
    first: Floats,
    second: Floats,
    clusters: Sequence[str] = (),
) -> Difference | None:
    """The second model against the first: rows of the same items in the same order. None if the metric is undefined for
    one of them."""
    assert first.shape == second.shape
    items = len(first)
    if not items:
        return None
    values = [float(metric.of_sums(rows.sum(axis=0))) for rows in (first, second)]
    if any(map(math.isnan, values)):
        return None
    both = summed_by_cluster(np.hstack([first, second]), clusters)
    make = partial(Difference, first=values[0], second=values[1], value=values[1] - values[0], items=items)
    if _is_share(metric, first) and _is_share(metric, second) and len(both) == items:
        return _paired_shares(make, first[:, 0], second[:, 0])
    return _paired_jackknife(make, metric, both)


def mean_difference(pairs: Sequence[tuple[float, float]]) -> MeanDifference | None:
    """Of (first, second) figures of tasks, each 0 to 1. None below two tasks, which say nothing of others."""
    if len(pairs) < 2:
        return None
    groups = np.array(pairs, dtype=np.float64)
    count, (first, second) = len(groups), groups.mean(axis=0).tolist()
    value = second - first
    error, quantile = _jackknife(lambda sums: (sums[..., 1] - sums[..., 0]) / (count - 1), groups)
    low, high = _around(value, error, quantile)
    made = partial(
        MeanDifference,
        tasks=count,
        first=first,
        second=second,
        value=value,
        low=low,
        high=high,
        p_value=_p_value(value, error, count),
    )
    if first <= 0:
        return made()
    error, quantile = _jackknife(lambda sums: sums[..., 1] / sums[..., 0], groups)
    kept = second / first
    low, high = _around(kept, error, quantile)
    return made(kept=kept, kept_low=low, kept_high=high)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979), in the same order: reject those below the level wanted."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = highest
    return corrected


def summed_by_cluster(rows: Floats, clusters: Sequence[str]) -> Floats:
    """Rows of shape (clusters, statistics), in the order of their first items."""
    if not any(clusters):
        return rows
    index: dict[tuple[str, int], int] = {}
    places = [index.setdefault((name, -1 if name else i), len(index)) for i, name in enumerate(clusters)]
    sums = np.zeros((len(index), rows.shape[1]))
    np.add.at(sums, places, rows)
    return sums


def _is_share(metric: Metric, rows: Floats) -> bool:
    """True if each item is right or wrong, and the metric is the share of the right ones."""
    if metric.unit != "share" or rows.shape[1] != 2 or not (rows[:, 1] == 1).all():
        return False
    right = rows[:, 0]
    return bool(np.isin(right, (0, 1)).all()) and math.isclose(
        float(metric.of_sums(rows.sum(axis=0))), float(right.mean()), abs_tol=1e-12
    )


def _is_mean_of_shares(metric: Metric, rows: Floats) -> bool:
    """True if the metric is a mean, weighted or not, of values from 0 to 1."""
    if metric.unit != "share" or rows.shape[1] != 2:
        return False
    above, below = rows[:, 0], rows[:, 1]
    mean = float(above.sum() / below.sum()) if below.sum() > 0 else math.nan
    return bool(((above >= 0) & (above <= below)).all()) and math.isclose(
        float(metric.of_sums(rows.sum(axis=0))), mean, abs_tol=1e-12
    )


def _wilson(share: float, items: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval; ``quantile`` is that of the normal distribution, or of Student's t."""
    square = quantile**2 / items
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))  # rounding apart


def _jackknife(of_sums: Callable[[Floats], Floats], groups: Floats) -> tuple[float, float]:
    """(standard error, quantile of Student's t) from the values without one cluster at a time. An error of 0 says
    nothing: all clusters are alike, or fewer than two values are defined."""
    values = of_sums(groups.sum(axis=0) - groups)
    values = values[np.isfinite(values)]
    count = len(values)
    if count < 2 or np.ptp(values) < _ROUNDING * max(1.0, float(np.abs(values).max())):
        return 0.0, _Z
    error = math.sqrt((count - 1) / count * float(((values - values.mean()) ** 2).sum()))
    return error, float(scipy_stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))


def _around(value: float, error: float, quantile: float) -> tuple[float | None, float | None]:
    """The interval of a standard error."""
    return (value - error * quantile, value + error * quantile) if error > 0 else (None, None)


def _effective_wilson(metric: Metric, groups: Floats, value: float, items: int) -> tuple[float, float]:
    """Where all clusters are alike nothing tells how much items of one agree: each cluster counts as one item then."""
    error, quantile = _jackknife(metric.of_sums, groups)
    independent = min(items, value * (1 - value) / error**2) if error > 0 else len(groups)
    return _wilson(value, independent, quantile)


def _jackknife_interval(metric: Metric, groups: Floats, value: float) -> tuple[float | None, float | None, Method]:
    error, quantile = _jackknife(metric.of_sums, groups)
    if error == 0:
        return None, None, "none"
    low, high = value - error * quantile, value + error * quantile
    if metric.unit == "share" and metric.higher_is_better is not None:
        low = max(0.0, low)
        high = min(1.0, high) if metric.higher_is_better else high  # an error rate may be above 1
    return low, high, "jackknife"


def _better_than_chance(metric: Metric, low: float | None, high: float | None) -> bool | None:
    if low is None or high is None or metric.chance is None or metric.higher_is_better is None:
        return None
    return low > metric.chance if metric.higher_is_better else high < metric.chance


def _resampled_sums(rows: Floats, seed: int, resamples: int) -> Floats:
    """Shape (resamples, statistics): sums over as many rows as there are, drawn with replacement."""
    count = len(rows)
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, rows.shape[1]))
    step = max(1, _ROWS_AT_ONCE // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        sums[start : start + size] = times @ rows
    return sums


def _bca(value: float, resampled: Floats, left_out: Floats) -> tuple[float, float, Method]:
    """The interval from resampled values and from those with one row left out (Efron 1987, sections 2 and 7)."""
    resampled, left_out = resampled[np.isfinite(resampled)], left_out[np.isfinite(left_out)]
    if not len(resampled):
        return value, value, "none"
    tails = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    below = ((resampled < value).sum() + 0.5 * (resampled == value).sum()) / len(resampled)
    deviations = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = float((deviations**2).sum())
    if not 0 < below < 1 or spread == 0:
        low, high = np.quantile(resampled, tails)
        return float(low), float(high), "percentile"
    bias = scipy_stats.norm.ppf(below)
    acceleration = float((deviations**3).sum()) / (6 * spread**1.5)
    points = bias + scipy_stats.norm.ppf(tails)
    low, high = np.quantile(resampled, scipy_stats.norm.cdf(bias + points / (1 - acceleration * points)))
    return float(low), float(high), "bca"


def _bootstrap_interval(
    metric: Metric, rows: Floats, value: float, seed: int, resamples: int
) -> tuple[float, float, Method]:
    return _bca(value, metric.of_sums(_resampled_sums(rows, seed, resamples)), metric.of_sums(rows.sum(axis=0) - rows))


def _paired_shares(make: partial[Difference], first: Floats, second: Floats) -> Difference:
    items = len(first)
    only_first, only_second = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    discordant = only_first + only_second
    p_value = scipy_stats.binomtest(only_second, discordant).pvalue if discordant else 1.0
    low, high = _newcombe(int(((first == 1) & (second == 1)).sum()), only_first, only_second, items)
    deviation = math.sqrt(float(np.var(second - first, ddof=1)) / items) if items > 1 else 0.0
    return make(
        low=low,
        high=high,
        p_value=float(p_value),
        test="mcnemar",
        clusters=items,
        only_first=only_first,
        only_second=only_second,
        detectable=_detectable(deviation),
    )


def _newcombe(both: int, only_first: int, only_second: int, items: int) -> tuple[float, float]:
    """Interval of second share minus first share (Newcombe 1998, Statistics in Medicine 17, method 10)."""
    neither = items - both - only_first - only_second
    share1, share2 = (both + only_first) / items, (both + only_second) / items
    (low1, high1), (low2, high2) = _wilson(share1, items, _Z), _wilson(share2, items, _Z)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - items / 2, 0.0)
    phi = product / math.sqrt(margins) if margins else 0.0

    def apart(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    change = share2 - share1
    return change - apart(share2 - low2, high1 - share1), change + apart(high2 - share2, share1 - low1)


def _paired_jackknife(make: partial[Difference], metric: Metric, both: Floats) -> Difference:
    width = both.shape[1] // 2

    def of_sums(sums: Floats) -> Floats:
        return metric.of_sums(sums[..., width:]) - metric.of_sums(sums[..., :width])

    value, clusters = float(of_sums(both.sum(axis=0))), len(both)
    error, quantile = _jackknife(of_sums, both)
    low, high = _around(value, error, quantile)
    return make(
        low=low,
        high=high,
        p_value=_p_value(value, error, clusters),
        test="jackknife",
        clusters=clusters,
        detectable=_detectable(error),
    )


def _p_value(value: float, error: float, clusters: int) -> float:
    """Of no difference. Where every cluster differs alike, as of so many signs that are all the same."""
    if value == 0:
        return 1.0
    if error == 0:
        return min(1.0, 2.0 ** (1 - clusters))
    return float(2 * scipy_stats.t.sf(abs(value) / error, clusters - 1))


def _detectable(deviation: float) -> float | None:
    """From the standard error of the difference; None where none was seen."""
    if deviation == 0:
        return None
    return deviation * (_Z + float(scipy_stats.norm.ppf(POWER)))
