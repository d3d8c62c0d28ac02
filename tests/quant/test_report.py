"""Figures of the quality report, against what can be computed by hand."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deepseek.errors import ConfigurationError, DiskSpaceError
from deepseek.quant import report


class Fixed:
    """A model whose logits depend on the token they follow only."""

    dtype, device, cache_specs, max_context, weights_bytes = torch.float32, torch.device("cpu"), (), 64, 0

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self.vocab_size = table.shape[1]

    def new_cache(self, num_pages, page_size):
        return SimpleNamespace()

    def forward(self, batch, cache):
        rows = self.table[batch.token_ids]
        return rows if batch.logits_rows is None else rows[batch.logits_rows]


class Digits:
    def encode(self, text, *, add_special_tokens=True, parse_special=False):
        return [int(char) for char in text]


def test_divergence_agreement_and_perplexity():
    torch.manual_seed(0)
    reference, other = torch.randn(5, 5), torch.randn(5, 5)
    windows = [[0, 1, 2, 3, 4, 0, 2], [4, 4, 1]]
    with report.ReferenceLogits(windows, 5) as stored:
        stored.record(Fixed(reference))
        compared = stored.compare(Fixed(other))
    figures = report.text_figures([compared])
    before = [token for window in windows for token in window[:-1]]
    after = [token for window in windows for token in window[1:]]
    p, q = reference.log_softmax(-1)[before], other.log_softmax(-1)[before]
    kl = (p.exp() * (p - q)).sum(-1)
    assert figures.tokens == len(before) == 8
    assert figures.kl_mean == pytest.approx(float(kl.mean()), rel=1e-5)
    assert figures.kl_p99 == pytest.approx(float(kl.quantile(0.99)), rel=1e-5)
    assert figures.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
    picked = torch.arange(8), torch.tensor(after)
    assert figures.perplexity == pytest.approx(math.exp(-float(q[picked].mean())), rel=1e-5)
    assert figures.reference_perplexity == pytest.approx(math.exp(-float(p[picked].mean())), rel=1e-5)
    assert figures.perplexity_ratio == pytest.approx(figures.perplexity / figures.reference_perplexity)
    twice = report.text_figures([compared, compared])
    assert (twice.tokens, twice.kl_mean) == (16, pytest.approx(figures.kl_mean))


def test_intervals_of_text_are_over_runs_of_tokens():
    # 100 runs of 64, each all right or all wrong: as uncertain as 100 draws, not as 6,400.
    agreed = torch.tensor([True] * 90 + [False] * 10).repeat_interleave(64)
    loss = torch.where(agreed, 1.0, 2.0)
    figures = report.text_figures([report.Compared(torch.zeros(6400), agreed, loss, torch.ones(6400))])
    spread = 1.96 * math.sqrt(0.9 * 0.1 / 100)
    low, high = figures.top1_interval
    assert (low, high) == (pytest.approx(0.9 - spread, abs=0.02), pytest.approx(0.9 + spread, abs=0.02))
    low, high = figures.perplexity_ratio_interval
    assert figures.perplexity_ratio == pytest.approx(math.exp(0.1))
    assert (low, high) == (
        pytest.approx(math.exp(0.1 - spread), abs=0.02),
        pytest.approx(math.exp(0.1 + spread), abs=0.02),
    )


def test_another_vocabulary_and_a_full_disk(monkeypatch):
    with report.ReferenceLogits([[0, 1]], 5) as stored, pytest.raises(ConfigurationError, match="6 and 5"):
        stored.compare(Fixed(torch.randn(6, 6)))
    monkeypatch.setattr(report.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(DiskSpaceError, match="TMPDIR"):
        report.ReferenceLogits([[0, 1]], 5)


def test_the_choice_is_by_likelihood_per_byte():
    table = torch.full((10, 10), -9.0)
    table[1, 2], table[1, 3], table[3, 3] = math.log(0.3), math.log(0.2), math.log(0.9)
    model = Fixed(table)
    # "2": log 0.3 = -1.2 for one byte; "33": log 0.2 + log 0.9 = -1.7 for two, -0.86 each
    question = report.Question("1", ("2", "33"), 1)
    assert report.answer_questions(model, Digits(), [question]) == [True]
    assert report.answer_questions(model, Digits(), [report.Question("1", ("2", "44"), 1)]) == [False]


def test_intervals():
    right, reference = [True] * 70 + [False] * 30, [True] * 75 + [False] * 25
    figures = report.accuracy_figures(right, reference)
    assert (figures["accuracy"], figures["reference_accuracy"]) == (0.7, 0.75)
    assert figures["difference"] == pytest.approx(-0.05)
    assert figures["retained"] == pytest.approx(0.7 / 0.75)
    low, high = figures["accuracy_interval"]
    spread = 1.96 * math.sqrt(0.7 * 0.3 / 100)
    assert (low, high) == (pytest.approx(0.7 - spread, abs=0.02), pytest.approx(0.7 + spread, abs=0.02))
    # Paired: only 5 of 100 questions differ, so the difference is known far better than either accuracy.
    low, high = figures["difference_interval"]
    assert -0.11 < low < -0.05 < high <= 0
    assert report.accuracy_figures([False], [False])["retained"] is None
    assert np.isfinite(low)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "a", "choices": ["b"], "answer": 0},
        {"question": "a", "choices": ["b", "c"], "answer": 2},
        {"question": "a", "choices": ["b", "c"], "answer": True},
        {"question": "a", "choices": ["b", " "], "answer": 0},
        {"question": 1, "choices": ["b", "c"], "answer": 0},
        {"choices": ["b", "c"], "answer": 0},
    ],
)
def test_bad_questions_are_named(tmp_path, row):
    good = {"question": "a", "choices": ["b", "c"], "answer": 0}
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ConfigurationError, match=r"set\.jsonl, object 2"):
        report.read_questions(path)
    path.write_text("\n")
    with pytest.raises(ConfigurationError, match="no questions"):
        report.read_questions(path)
