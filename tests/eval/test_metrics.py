"""Metrics as functions of sums agree with the libraries that define them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from deepseek_eval import metrics as m
from deepseek_eval.scorers.generation import bleu_counts
from deepseek_eval.scorers.spans import spans_of_tags, tag_counts

TEXTS = {
    "en": (
        "The cat sat on the mat.",
        "It is 25% off today!",
        "",
        "hello",
        "A very long sentence, with many words in it.",
    ),
    "zh": ("猫坐在垫子上。", "今天打七五折！", "", "你好", "这是一个有很多字的长句子，真的很长。"),
    "ja": (
        "猫はマットの上に座った。",
        "今日は25%引きです！",
        "",
        "こんにちは",
        "これはとても長い文で、言葉がたくさんあります。",
    ),
    "ko": ("고양이가 매트 위에 앉았다.", "오늘은 25% 할인!", "", "안녕", "이것은 단어가 많은 아주 긴 문장입니다."),
}


def summed(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.asarray(rows, dtype=np.float64).sum(axis=0)


def test_f1_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    for classes in (2, 3, 7):
        actual, predicted = rng.integers(0, classes, (2, 60))
        actual[actual == 1] = 0  # a class that is only predicted
        rows = [m.class_counts(classes, [p], [a]) for p, a in zip(predicted, actual, strict=True)]
        ours = float(m.macro_f1().of_sums(summed(rows)))
        assert ours == pytest.approx(sk.f1_score(actual, predicted, average="macro"), abs=1e-12)


def test_a_class_that_nobody_names_does_not_count() -> None:
    rows = [m.class_counts(5, [0], [0]), m.class_counts(5, [], [1])]
    assert float(m.macro_f1().of_sums(summed(rows))) == pytest.approx(0.5)


def test_correlations_are_scipys() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 21, (2, 200)) / 4
    y = np.round((x + y) * 2) / 4
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    assert float(m.pearson().of_sums(summed([m.moments(*pair) for pair in pairs]))) == pytest.approx(
        stats.pearsonr(x, y).statistic, abs=1e-9
    )
    table = summed([m.in_bins(*pair, 0.0, 5.0, 21) for pair in pairs])
    assert float(m.spearman(21).of_sums(table)) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


def test_a_constant_has_no_correlation() -> None:
    rows = [m.moments(1.0, value) for value in (0.0, 1.0, 2.0)]
    assert np.isnan(m.pearson().of_sums(summed(rows)))
    assert np.isnan(m.spearman(3).of_sums(summed([m.in_bins(1.0, value, 0, 2, 3) for value in (0.0, 1.0, 2.0)])))


@pytest.mark.parametrize("language", TEXTS)
def test_bleu_and_chrf_are_sacrebleus(language: str) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    from deepseek_eval.scorers.generation import TOKENIZERS

    references = list(TEXTS[language])
    garbled = [text[:-2] + text[:3] for text in references]
    for answers in (references, garbled, references[::-1], [""] * 5, garbled[:1] + references[1:]):
        pairs = list(zip(answers, references, strict=True))
        ours = float(m.bleu().of_sums(summed([bleu_counts(*pair, language) for pair in pairs])))
        theirs = BLEU(tokenize=TOKENIZERS[language]).corpus_score(answers, [references]).score
        assert ours == pytest.approx(theirs, abs=1e-9)
        ours = float(m.chrf().of_sums(summed([m.chrf_counts(*pair) for pair in pairs])))
        assert ours == pytest.approx(CHRF().corpus_score(answers, [references]).score, abs=1e-9)


def test_spans_are_seqevals() -> None:
    from seqeval.metrics import f1_score
    from seqeval.metrics.sequence_labeling import get_entities

    rng = np.random.default_rng(3)
    tags = ["O", "O", "B-A", "I-A", "B-B", "I-B"]
    actual = [[tags[i] for i in rng.integers(0, 6, 12)] for _ in range(40)]
    predicted = [[one if rng.random() < 0.8 else tags[rng.integers(0, 6)] for one in line] for line in actual]
    for line in actual:
        assert spans_of_tags(line) == [(kind, start, end + 1) for kind, start, end in get_entities(line)]
    rows = [tag_counts(*pair, ("A", "B")) for pair in zip(predicted, actual, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, average in (("f1", "micro"), ("macro_f1", "macro")):
            metric = m.micro_f1() if name == "f1" else m.macro_f1()
            ours = float(metric.of_sums(summed([row[name] for row in rows])))
            assert ours == pytest.approx(f1_score(actual, predicted, average=average), abs=1e-12)


def test_metrics_of_many_resamples_are_those_of_each() -> None:
    """The bootstrap asks for all resamples at once."""
    rng = np.random.default_rng(4)
    shapes = {
        m.mean("a"): 2,
        m.micro_f1(): 3,
        m.macro_f1(): 9,
        m.pearson(): 6,
        m.spearman(3): 9,
        m.bleu(): 10,
        m.chrf(): 18,
        m.perplexity("p"): 2,
        m.bits_per_byte(): 2,
        m.calibration_error(4): 12,
        m.difference("d"): 4,
        m.spread("s", 3): 6,
        m.bbq_bias("b", ambiguous=True): 4,
    }
    for metric, count in shapes.items():
        sums = rng.integers(0, 9, (2, 5, count)).astype(np.float64)
        values = metric.of_sums(sums)
        assert values.shape == (2, 5), metric.name
        each = [[float(metric.of_sums(row)) for row in rows] for rows in sums]
        np.testing.assert_allclose(values, each, equal_nan=True, err_msg=metric.name)
        nothing = metric.of_sums(np.zeros(count))
        assert nothing.shape == () and not np.isinf(nothing), metric.name


def test_bias_scores_by_hand() -> None:
    """BBQ: of 10 items 4 right, 6 named someone, 5 of them the stereotype: 2 * 5/6 - 1, times 0.6 if ambiguous."""
    sums = np.array([10.0, 4.0, 6.0, 5.0])
    assert float(m.bbq_bias("b", ambiguous=False).of_sums(sums)) == pytest.approx(2 / 3)
    assert float(m.bbq_bias("b", ambiguous=True).of_sums(sums)) == pytest.approx(0.4)
    always_unknown = np.array([10.0, 10.0, 0.0, 0.0])
    assert float(m.bbq_bias("b", ambiguous=True).of_sums(always_unknown)) == 0.0


def test_calibration_by_hand() -> None:
    rows = [m.confidence(0.95, True), m.confidence(0.95, False), m.confidence(1.0, True), m.confidence(0.05, False)]
    # 0.9 to 1: three answers, confidence 2.9, two right; 0 to 0.1: one, 0.05, none right.
    assert float(m.calibration_error().of_sums(summed(rows))) == pytest.approx((0.9 + 0.05) / 4)


def test_the_unbiased_estimate_of_pass_at_k() -> None:
    from itertools import combinations

    for samples, right in ((5, 0), (5, 1), (5, 4), (5, 5), (1, 1)):
        passed = [index < right for index in range(samples)]
        for k in range(1, samples + 1):
            every = list(combinations(passed, k))
            assert m.unbiased_pass(samples, right, k) == pytest.approx(sum(map(any, every)) / len(every))
    with pytest.raises(ValueError, match="pass@3 needs 3 samples"):
        m.unbiased_pass(2, 1, 3)


def test_spread_needs_two_groups() -> None:
    metric = m.spread("s", 3)
    assert np.isnan(metric.of_sums(np.array(m.of_group(0.5, 1, 3))))
    both = summed([m.of_group(0.25, 0, 3), m.of_group(1.0, 2, 3)])
    assert float(metric.of_sums(both)) == pytest.approx(0.75)
