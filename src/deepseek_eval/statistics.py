"""How sure a number is, and whether two numbers differ.

All metrics are functions of sums (:class:`deepseek_eval.task.Metric`), so that a resample of the items is a resample of
rows: nothing is scored twice. Items that belong together (:attr:`deepseek_eval.task.Item.cluster`) are summed first and
resampled as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import msgspec
import numpy as np
from scipy import stats as scipy_stats

from deepseek_eval.task import Floats, Metric

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 2000
_ROWS_AT_ONCE = 4_000_000


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A metric's value with its interval.

    Attributes:
        value: over all scored items; None where it is undefined (no items, no true positives).
        low, high: ends of the interval, at 95%; None where there is none.
        method: ``wilson`` (a plain share of independent items; Wilson 1927), ``bca`` (bias-corrected and accelerated
            bootstrap; Efron 1987), ``percentile`` (the same where the correction is undefined) or ``none``.
        items: that the metric applies to.
        clusters: independent groups of them, of which the interval knows.
        above_chance: the whole interval is better than the metric's chance level; None where there is no such level.
    """

    value: float | None
    low: float | None
    high: float | None
    method: Literal["wilson", "bca", "percentile", "none"]
    items: int
    clusters: int
    above_chance: bool | None = None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The second model's value minus the first one's, on the same items.

    Attributes:
        first, second: the two values, on the items that both answered.
        value, low, high: the difference with its 95% interval.
        p_value: two-sided, of no difference.
        test: ``mcnemar`` (exact; McNemar 1947) for plain shares of independent items, with Newcombe's interval for
            paired shares (1998, method 10); else ``bootstrap`` (paired; Koehn 2004) with a BCa interval.
        items, clusters: as in :class:`Estimate`.
        only_first, only_second: items that only one of the two has right; None for other metrics.
        detectable: the smallest true difference that so many items show in 80% of cases at 5% (Miller 2024,
            arXiv:2411.00640).
    """

    first: float
    second: float
    value: float
    low: float
    high: float
    p_value: float
    test: Literal["mcnemar", "bootstrap"]
    items: int
    clusters: int
    only_first: int | None = None
    only_second: int | None = None
    detectable: float | None = None


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
    method: Literal["wilson", "bca", "percentile", "none"]
    if _is_share(metric, rows) and len(groups) == items:
        low, high = _wilson(round(rows[:, 0].sum()), items)
        method = "wilson"
    elif len(groups) < 2:
        return Estimate(value=value, low=None, high=None, method="none", items=items, clusters=len(groups))
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
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
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
    return _paired_bootstrap(make, metric, both, seed, resamples)


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


def _wilson(right: int, items: int) -> tuple[float, float]:
    interval = scipy_stats.binomtest(right, items).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def _better_than_chance(metric: Metric, low: float, high: float) -> bool | None:
    if metric.chance is None or metric.higher_is_better is None:
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


def _bca(
    value: float, resampled: Floats, left_out: Floats
) -> tuple[float, float, Literal["bca", "percentile", "none"]]:
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
) -> tuple[float, float, Literal["bca", "percentile", "none"]]:
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
    (low1, high1), (low2, high2) = _wilson(both + only_first, items), _wilson(both + only_second, items)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - items / 2, 0.0)
    phi = product / math.sqrt(margins) if margins else 0.0

    def apart(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    change = share2 - share1
    return change - apart(share2 - low2, high1 - share1), change + apart(high2 - share2, share1 - low1)


def _paired_bootstrap(make: partial[Difference], metric: Metric, both: Floats, seed: int, resamples: int) -> Difference:
    width = both.shape[1] // 2

    def of_sums(sums: Floats) -> Floats:
        return metric.of_sums(sums[..., width:]) - metric.of_sums(sums[..., :width])

    value = float(of_sums(both.sum(axis=0)))
    resampled = of_sums(_resampled_sums(both, seed, resamples))
    low, high, _ = _bca(value, resampled, of_sums(both.sum(axis=0) - both))
    resampled = resampled[np.isfinite(resampled)]
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    p_value = min(1.0, 2 * (1 + float(tail)) / (1 + len(resampled)))
    deviation = float(np.std(resampled, ddof=1)) if len(resampled) > 1 and len(both) > 1 else 0.0
    return make(
        low=low,
        high=high,
        p_value=p_value if len(both) > 1 else 1.0,
        test="bootstrap",
        clusters=len(both),
        detectable=_detectable(deviation),
    )


def _detectable(deviation: float) -> float | None:
    """From the standard error of the difference; None where none was seen."""
    if deviation == 0:
        return None
    return deviation * float(scipy_stats.norm.ppf((1 + CONFIDENCE) / 2) + scipy_stats.norm.ppf(POWER))
