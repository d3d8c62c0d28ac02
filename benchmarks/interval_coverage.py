"""How often the intervals of `deepseek eval` hold the true value, and how often equal models are told apart.

    python -m benchmarks.interval_coverage --runs 2000

Made-up results of models whose true values are known; 95% and 5% are what is promised. scipy's BCa bootstrap stands
beside ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy import stats

from deepseek_eval.metrics import mean, micro_f1
from deepseek_eval.statistics import difference, estimate, summed_by_cluster
from deepseek_eval.task import Floats, Metric

CLUSTERS = (5, 10, 20, 50)
Drawn = tuple[Floats, list[str]]
Draw = Callable[[np.random.Generator, int], Drawn]


def of_values(values: Floats) -> Floats:
    return np.stack([values, np.ones_like(values)], axis=1)


def shares(generator: np.random.Generator, clusters: int, share: float, correlation: float) -> Drawn:
    """Right and wrong items, three to eight in a cluster."""
    a = (1 - correlation) / correlation
    own = generator.beta(a * share, a * (1 - share), clusters)
    sizes = generator.integers(3, 9, clusters)
    names = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    return of_values((generator.random(sizes.sum()) < np.repeat(own, sizes)).astype(float)), names


def graded(generator: np.random.Generator, clusters: int) -> Drawn:
    """Independent items: 0 for two in five, 1 for one in five, else anything between; the mean is 0.4."""
    kind = generator.random(clusters)
    return of_values(np.where(kind < 0.4, 0.0, np.where(kind < 0.6, 1.0, generator.random(clusters)))), []


def entities(generator: np.random.Generator, clusters: int) -> Drawn:
    """Texts with two to seven entities, of which 60% are found, beside others that are none: F1 0.571."""
    actual = generator.integers(2, 8, clusters)
    found = generator.binomial(actual, 0.6)
    predicted = found + generator.poisson(0.5 * actual)
    return np.stack([found, predicted, actual], axis=1).astype(float), []


CASES: dict[str, tuple[Metric, Draw, float]] = {
    "share 0.5, correlation 0.2": (mean("accuracy"), lambda g, k: shares(g, k, 0.5, 0.2), 0.5),
    "share 0.8, correlation 0.2": (mean("accuracy"), lambda g, k: shares(g, k, 0.8, 0.2), 0.8),
    "share 0.9, correlation 0.1": (mean("accuracy"), lambda g, k: shares(g, k, 0.9, 0.1), 0.9),
    "graded values, mean 0.4": (mean("f1"), graded, 0.4),
    "micro F1": (micro_f1(), entities, 2 * 0.6 / 2.1),
}


def bca_holds(metric: Metric, drawn: Drawn, true: float, seed: int) -> bool:
    rows, names = drawn
    groups = summed_by_cluster(rows, names)
    found = stats.bootstrap(
        (np.arange(len(groups)),),
        lambda index, axis: metric.of_sums(np.take(groups, index, axis=0).sum(axis=-2)),
        n_resamples=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return bool(found.low <= true <= found.high)


def coverage(metric: Metric, draw: Draw, true: float, clusters: int, runs: int) -> tuple[float, float]:
    """(share of runs in which our interval holds the true value, the same of BCa)."""
    generator = np.random.default_rng(1)
    ours = theirs = 0
    for seed in range(runs):
        drawn = draw(generator, clusters)
        found = estimate(metric, *drawn, seed=seed)
        ours += found.low is not None and found.high is not None and found.low <= true <= found.high
        theirs += bca_holds(metric, drawn, true, seed)
    return ours / runs, theirs / runs


def rejections(metric: Metric, draw: Draw, clusters: int, runs: int) -> float:
    """Share of runs in which two models of the same true value differ."""
    generator = np.random.default_rng(2)
    rejected = 0
    for _ in range(runs):
        first, names = draw(generator, clusters)
        second = draw(generator, clusters)[0] if not names else _answered_anew(first, names, generator)
        found = difference(metric, first, second, names)
        rejected += found is not None and found.p_value < 0.05
    return rejected / runs


def _answered_anew(rows: Floats, names: list[str], generator: np.random.Generator) -> Floats:
    """A second model with the shares of the first in each cluster."""
    groups = summed_by_cluster(rows, names)
    own = dict(zip(dict.fromkeys(names), groups[:, 0] / groups[:, 1], strict=True))
    return of_values((generator.random(len(rows)) < np.array([own[name] for name in names])).astype(float))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    print("case | clusters | ours | BCa | equal models differ")
    for name, (metric, draw, true) in CASES.items():
        for clusters in CLUSTERS:
            ours, theirs = coverage(metric, draw, true, clusters, runs)
            print(f"{name} | {clusters} | {ours:.3f} | {theirs:.3f} | {rejections(metric, draw, clusters, runs):.3f}")


if __name__ == "__main__":
    main()
