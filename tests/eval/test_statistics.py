"""Intervals cover what they say, tests reject as often as they may, and known examples come out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from deepseek_eval.statistics import FEW, difference, estimate, holm, mean_difference, summed_by_cluster
from deepseek_eval.task import Floats, Metric


def ratio(sums: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


ACCURACY = Metric("accuracy", ratio, chance=0.25)
MEAN = Metric("mean", ratio, unit="number")


def f1(sums: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 1] + sums[..., 2]))


F1 = Metric("f1", f1)


def answers(right: int, items: int) -> Floats:
    return np.array([[1.0, 1.0]] * right + [[0.0, 1.0]] * (items - right))


def of_values(values: Floats) -> Floats:
    return np.stack([values, np.ones_like(values)], axis=1)


def test_shares_get_wilson() -> None:
    found = estimate(ACCURACY, answers(40, 100))
    assert found.method == "wilson" and found.items == found.clusters == 100
    # z = 1.959964: (0.4 + z²/200 ± z sqrt(0.24/100 + z²/40000)) / (1 + z²/100)
    assert (found.value, found.low, found.high) == pytest.approx((0.4, 0.309401, 0.497998), abs=1e-6)
    assert found.above_chance is True
    assert estimate(ACCURACY, answers(30, 100)).above_chance is False


@pytest.mark.parametrize("right", [0, 1, 9, 10])
def test_shares_at_the_ends(right: int) -> None:
    found = estimate(ACCURACY, answers(right, 10))
    assert found.low is not None and found.high is not None
    assert 0 <= found.low <= right / 10 <= found.high <= 1
    assert found.low < found.high


def test_nothing_and_one_item() -> None:
    nothing = estimate(ACCURACY, np.zeros((0, 2)))
    assert nothing.value is None and nothing.low is None and nothing.method == "none"
    one = estimate(MEAN, of_values(np.array([3.5])))
    assert one.value == 3.5 and one.low is None
    undefined = estimate(F1, np.zeros((5, 3)))
    assert undefined.value is None


def test_a_mean_agrees_with_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = estimate(MEAN, of_values(values))
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert found.method == "bca"
    assert found.low == pytest.approx(low, abs=0.04) and found.high == pytest.approx(high, abs=0.04)


def test_bca_agrees_with_scipy() -> None:
    values = np.random.default_rng(2).exponential(1, 60)
    found = estimate(MEAN, of_values(values), resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(3)).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_bca_covers_a_skewed_ratio() -> None:
    """95% nominal; 200 runs of 80 items are within 4 standard errors of 92% at least."""
    generator = np.random.default_rng(4)
    covered = 0
    for run in range(200):
        found = estimate(MEAN, of_values(generator.exponential(1, 80)), seed=run, resamples=500)
        assert found.low is not None and found.high is not None
        covered += found.low <= 1 <= found.high
    assert 172 <= covered <= 200


def test_an_interval_is_the_same_every_time() -> None:
    rows = of_values(np.random.default_rng(5).normal(size=50))
    assert estimate(MEAN, rows, seed=7) == estimate(MEAN, rows, seed=7)
    assert estimate(MEAN, rows, seed=7) != estimate(MEAN, rows, seed=8)


def test_resamples_in_pieces_are_those_of_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = of_values(np.random.default_rng(6).normal(size=50))
    whole = estimate(MEAN, rows)
    monkeypatch.setattr("deepseek_eval.statistics._ROWS_AT_ONCE", 49)
    pieces = estimate(MEAN, rows)
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high), abs=1e-12)


def test_items_of_a_cluster_are_one_draw() -> None:
    right = np.random.default_rng(7).integers(0, 2, 50)
    rows = np.repeat(of_values(right.astype(float)), 8, axis=0)
    names = [str(i) for i in range(50) for _ in range(8)]
    alone, together = estimate(ACCURACY, rows), estimate(ACCURACY, rows, names)
    assert together.clusters == 50 and together.items == 400 and together.method == "wilson-effective"
    assert alone.value == together.value
    assert together.high is not None and together.low is not None
    assert alone.high is not None and alone.low is not None
    assert together.high - together.low > 2 * (alone.high - alone.low)  # sqrt(8) in theory


def clustered(generator: np.random.Generator, clusters: int, share: float) -> tuple[Floats, list[str]]:
    """Rows of right and wrong items, three to eight in a cluster, whose correlation in a cluster is 0.2."""
    shares = generator.beta(4 * share, 4 * (1 - share), clusters)
    sizes = generator.integers(3, 9, clusters)
    names = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    return of_values((generator.random(sizes.sum()) < np.repeat(shares, sizes)).astype(float)), names


@pytest.mark.parametrize("clusters", [2, 5, 10, 50])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_shares_of_few_clusters_are_covered(clusters: int, share: float) -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(300):
        found = estimate(ACCURACY, *clustered(generator, clusters, share))
        assert found.low is not None and found.high is not None and found.method == "wilson-effective"
        covered += found.low <= share <= found.high
    assert covered >= 270  # 285 expected; four standard errors below it


@pytest.mark.parametrize("clusters", [5, 10, 50])
def test_two_models_that_are_alike_on_few_clusters_seldom_differ(clusters: int) -> None:
    generator = np.random.default_rng(12)
    rejected = 0
    for _ in range(300):
        first, names = clustered(generator, clusters, 0.6)
        second = of_values((generator.random(len(first)) < 0.6).astype(float))
        found = difference(ACCURACY, first, second, names)
        assert found is not None
        rejected += found.p_value < 0.05
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
    assert rejected <= 30  # 15 expected; four standard errors above it


@pytest.mark.parametrize("items", [FEW - 1, FEW, FEW + 1])
def test_few_items_get_no_bootstrap(items: int) -> None:
    generator = np.random.default_rng(13)
    number = estimate(MEAN, of_values(generator.normal(3, 1, items)))
    graded = estimate(ACCURACY, of_values(generator.random(items)))
    if items < FEW:
        assert (number.method, graded.method) == ("jackknife", "wilson-effective")
    else:
        assert (number.method, graded.method) == ("bca", "bca")


def test_the_jackknife_of_a_mean_is_its_t_interval() -> None:
    values = np.random.default_rng(14).normal(3, 2, 12)
    found = estimate(MEAN, of_values(values))
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 11, values.mean(), stats.sem(values)))
    other = values + np.random.default_rng(15).normal(1, 1, 12)
    made = difference(MEAN, of_values(values), of_values(other))
    assert made is not None and made.p_value == pytest.approx(stats.ttest_rel(other, values).pvalue)


def test_clusters_that_are_all_alike() -> None:
    """Five passages with all answers right are five items at most, and a number without spread has no interval."""
    names = [str(i) for i in range(5) for _ in range(8)]
    found = estimate(ACCURACY, answers(40, 40), names)
    assert found.high == 1 and found.low == pytest.approx(0.5655, abs=1e-4)  # Wilson's for five of five
    assert estimate(MEAN, of_values(np.full(5, 3.0))).method == "none"
    all_lost = difference(ACCURACY, answers(40, 40), answers(0, 40), names)
    assert all_lost is not None and all_lost.p_value == 2 / 2**5


def test_items_without_a_cluster_are_their_own() -> None:
    rows = of_values(np.arange(5.0))
    assert summed_by_cluster(rows, ["a", "", "a", "", "b"]).tolist() == [[2, 2], [1, 1], [3, 1], [4, 1]]


def test_mcnemar_by_hand() -> None:
    first, second = answers(0, 100), answers(0, 100)
    first[:12, 0] = 1
    second[10:15, 0] = 1  # both right: 2, only the first: 10, only the second: 3
    found = difference(ACCURACY, first, second)
    assert found is not None and found.test == "mcnemar"
    assert (found.only_first, found.only_second) == (10, 3)
    assert found.p_value == pytest.approx(2 * sum(math.comb(13, k) for k in range(4)) / 2**13)
    assert found.value == pytest.approx(-0.07) and found.low < -0.07 < found.high


def test_newcombe_of_his_own_table() -> None:
    """Newcombe 1998, table II, column of method 10: a=36, b=12, c=2, d=0 gives 0.0569 to 0.3404."""
    first, second = answers(0, 50), answers(0, 50)
    second[:36, 0] = first[:36, 0] = 1
    second[36:48, 0] = 1
    first[48:, 0] = 1
    found = difference(ACCURACY, first, second)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.20, 0.0569, 0.3404), abs=1e-4)


def test_no_difference_at_all() -> None:
    rows = answers(3, 10)
    found = difference(ACCURACY, rows, rows)
    assert found is not None
    assert found.p_value == 1 and found.value == 0 and found.low < 0 < found.high and found.detectable is None
    values = of_values(np.arange(20.0))
    equal = difference(MEAN, values, values)
    assert equal is not None and equal.p_value == 1 and equal.value == 0


def test_the_paired_jackknife_finds_a_difference_and_none() -> None:
    generator = np.random.default_rng(8)
    hard = generator.normal(size=200)
    first = of_values(hard + generator.normal(0, 0.1, 200))
    better = difference(MEAN, first, of_values(hard + 0.05 + generator.normal(0, 0.1, 200)))
    assert better is not None and better.test == "jackknife"
    assert better.p_value < 0.01 and better.low > 0
    assert better.detectable == pytest.approx(2.8 * math.sqrt(0.02 / 200), rel=0.2)


def test_a_true_null_is_seldom_rejected() -> None:
    generator = np.random.default_rng(9)
    rejected = 0
    for _ in range(200):
        hard = generator.normal(size=60)
        pair = [of_values(hard + generator.normal(0, 0.5, 60)) for _ in range(2)]
        found = difference(MEAN, *pair)
        rejected += found is not None and found.p_value < 0.05
    assert rejected <= 24  # 10 expected; beyond four standard errors


def test_the_order_of_two_models_is_the_sign() -> None:
    generator = np.random.default_rng(10)
    first, second = (generator.integers(0, 3, (80, 3)).astype(float) for _ in range(2))
    one, other = difference(F1, first, second), difference(F1, second, first)
    assert one is not None and other is not None
    assert one.value == -other.value and one.p_value == pytest.approx(other.p_value)


def test_undefined_for_one_of_them() -> None:
    assert difference(F1, np.zeros((4, 3)), np.ones((4, 3))) is None
    assert difference(F1, np.zeros((0, 3)), np.zeros((0, 3))) is None


def test_holm() -> None:
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_mean_over_tasks_is_a_paired_t_test() -> None:
    generator = np.random.default_rng(5)
    first = generator.uniform(0.2, 0.9, 30)
    second = first - 0.02 + generator.normal(0, 0.05, 30)
    found = mean_difference(list(zip(first, second, strict=True)))
    assert found is not None and found.tasks == 30
    theirs = stats.ttest_rel(second, first)
    interval = theirs.confidence_interval(0.95)
    assert (found.value, found.p_value) == pytest.approx((second.mean() - first.mean(), theirs.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.kept == pytest.approx(second.mean() / first.mean())


def test_what_is_kept_lies_in_its_interval() -> None:
    generator = np.random.default_rng(6)
    inside = 0
    for _ in range(300):
        first = generator.uniform(0.2, 0.9, 40)
        second = 0.97 * first + generator.normal(0, 0.05, 40)
        found = mean_difference(list(zip(first, second, strict=True)))
        assert found is not None and found.kept_low is not None and found.kept_high is not None
        inside += found.kept_low <= 0.97 <= found.kept_high
    assert 0.91 <= inside / 300 <= 0.985


def test_one_task_and_a_first_model_that_knows_nothing() -> None:
    assert mean_difference([(0.5, 0.6)]) is None
    found = mean_difference([(0.0, 0.25), (0.0, 0.75)])
    assert found is not None and found.kept is None and found.value == 0.5
    same = mean_difference([(0.5, 0.5), (0.25, 0.25)])
    assert same is not None and (same.low, same.high, same.p_value, same.kept) == (None, None, 1, 1)


def test_one_cluster_tells_nothing_of_a_difference() -> None:
    """As a score of a whole text has it, and items that all differ alike."""
    one, other = of_values(np.array([0.5, 0.25])), of_values(np.array([0.5, 0.75]))
    found = difference(MEAN, one, other, ["a", "a"])
    assert found is not None and (found.low, found.high, found.p_value, found.value) == (None, None, 1.0, 0.25)
    alike = difference(MEAN, one, one + of_values(np.array([0.1, 0.1])) * [1, 0])
    assert alike is not None and (alike.low, alike.p_value) == (None, 0.5)
