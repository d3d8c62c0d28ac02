"""Tokens from logits: the kept set and the distribution against exact ones, and the token itself where torch's version
draws by the same order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deepseek.kernels.sampling import GREEDY, Choice
from deepseek.kernels.sampling import choose_tokens as torch_choose_tokens
from deepseek.kernels.triton import sampling
from tests.kernels.cases import randn
from tests.kernels.triton.devices import DEVICE

FILTERS: list[dict[str, float]] = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 39},
    {"top_k": 40},
    {"top_p": 1e-9},
    {"top_p": 0.5},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.02, "top_p": 0.8},
    {"top_k": 10, "top_p": 0.7},
    {"top_k": 12, "top_p": 0.9, "min_p": 0.04},
    {"top_k": 3, "min_p": 0.9},
]
NAN, INF = float("nan"), float("inf")


def choice(temperature: float = 1.0, draw: float = 0.5, **filters: float) -> Choice:
    return Choice(temperature, int(filters.get("top_k", 0)), filters.get("top_p", 1.0), filters.get("min_p", 0.0), draw)


def run(logits: Tensor, choices: list[Choice]) -> list[int]:
    tokens = sampling.choose_tokens(logits.to(DEVICE), sampling.Choices.of(choices, DEVICE))
    assert tokens.dtype == torch.int64
    return tokens.tolist()


def kept_probabilities(logits: Tensor, chosen: Choice) -> np.ndarray:
    """fp64 probability of each token; those that are not kept have 0. Ties go to the lower id."""
    x = logits.double().numpy() / chosen.temperature
    p = np.exp(x - x.max())
    order = np.argsort(-p, kind="stable")
    order = order[p[order] >= chosen.min_p][: chosen.top_k or len(p)]
    before = np.cumsum(p[order]) - p[order]
    order = order[(before < chosen.top_p * p[order].sum()) | (before == 0)]
    kept = np.zeros_like(p)
    kept[order] = p[order]
    return kept / kept.sum()


def logits_of(kind: str, vocab: int) -> Tensor:
    x = randn(vocab, seed=vocab)
    if kind == "tied":
        x = x.round()
    if kind == "peaked":
        x[vocab // 3] += 5
    return x


@pytest.mark.parametrize("vocab", [1, 2, 31, 32, 33, 4095, 4097])
def test_greedy_takes_the_lowest_of_the_likeliest(vocab: int) -> None:
    x = torch.stack(
        [logits_of("tied", vocab), logits_of("random", vocab), torch.zeros(vocab), torch.full((vocab,), -3.0)]
    )
    assert run(x, [GREEDY] * 4) == [int((row == row.max()).nonzero()[0]) for row in x]


def test_zero_is_zero_whatever_its_sign() -> None:
    x = torch.tensor([[-1.0, -0.0, 0.0, -2.0]])
    assert run(x, [GREEDY]) == [1]
    assert run(x, [choice(top_k=1, draw=0.99)]) == [1]


@pytest.mark.parametrize("kind", ["random", "peaked", "tied"])
@pytest.mark.parametrize("vocab", [1, 17, 1023, 1025])
def test_without_filters_the_token_is_that_of_torch(kind: str, vocab: int) -> None:
    x = logits_of(kind, vocab)
    choices = [choice(t, draw) for t in (0.3, 1.0) for draw in (0.0, 1e-9, 0.37, 0.9, 1 - 2**-53)]
    rows = x.expand(len(choices), vocab)
    expectations = torch_choose_tokens(rows, choices).tolist()
    for own, token, expected in zip(choices, run(rows, choices), expectations, strict=True):
        if token != expected:  # only where the draw falls on a border, to the rounding of fp32
            cumulative = kept_probabilities(x, own).cumsum()
            assert abs(cumulative[min(token, expected)] - own.draw) < 1e-5


@pytest.mark.parametrize(
    "kind,filters", [("tied", f) for f in FILTERS] + [("random", f) for f in FILTERS[-4:]], ids=str
)
def test_evenly_spaced_draws_hit_what_is_kept_as_often_as_it_is_likely(kind: str, filters: dict[str, float]) -> None:
    """Inverting a distribution at points of equal distance: counts differ from their expectations by less than one,
    which no test of random draws could show."""
    x, count = logits_of(kind, 40), 12
    choices = [choice(0.9, (i + 0.5) / count, **filters) for i in range(count)]
    expected = kept_probabilities(x, choices[0])
    observed = np.bincount(run(x.expand(count, 40), choices), minlength=40)
    assert not observed[expected == 0].any()
    assert np.abs(observed - expected * count).max() <= 1 + 1e-3


@pytest.mark.parametrize("filters", [{"top_k": 700}, {"top_p": 0.95}, {"top_k": 4500, "top_p": 0.99}], ids=str)
def test_more_tokens_than_a_block(filters: dict[str, float]) -> None:
    x = logits_of("tied", 5000)
    draws = (0.0, 0.3, 0.999999)
    expected = kept_probabilities(x, choice(1.0, **filters))
    cumulative = expected.cumsum()
    for draw, token in zip(draws, run(x.expand(3, -1), [choice(1.0, d, **filters) for d in draws]), strict=True):
        assert expected[token] > 0
        assert cumulative[token] - expected[token] - 1e-4 <= draw <= cumulative[token] + 1e-4


def test_each_row_has_its_own_options() -> None:
    x = logits_of("random", 50)
    choices = [GREEDY, choice(top_k=3, draw=0.99), choice(1e-9, 0.7), choice(2.0, 0.2, top_p=0.3), GREEDY]
    together = run(x.expand(5, -1), choices)
    assert together == [run(x[None], [own])[0] for own in choices]
    assert together[0] == together[2] == together[4] == int(x.argmax())


def test_extreme_logits() -> None:
    largest = torch.finfo(torch.float32).max
    x = torch.tensor(
        [[-largest, 1.0, largest, 0.0], [-1e30, 2.0, -1e30, -1e30], [-largest] * 4, [1e-45, 0.0, 0.0, 0.0]]
    )
    assert run(x, [choice(0.7, 0.4)] * 4)[:2] == [2, 1]
    assert run(x, [choice(0.7, 0.4, top_k=2)] * 4)[:3] == [2, 1, 0]
    assert run(x, [choice(0.7, 0.6, top_p=0.5)] * 4)[:3] == [2, 1, 1]
    assert run(x, [GREEDY] * 4) == [2, 1, 0, 0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("own", [GREEDY, choice(), choice(top_k=4), choice(top_p=0.9)], ids=str)
def test_a_broken_row_has_no_token(own: Choice, bad: float) -> None:
    x = logits_of("random", 33).repeat(3, 1)
    clean = run(x, [own] * 3)
    x[1, 7] = bad
    assert run(x, [own] * 3) == [clean[0], -1, clean[2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_in_16_bits_and_in_wider_rows(dtype: torch.dtype) -> None:
    wide = randn(3, 80, seed=1, dtype=dtype)
    choices = [GREEDY, choice(0.8, 0.3, top_k=9), choice(0.8, 0.6)]
    assert run(wide[:, 10:60], choices) == run(wide[:, 10:60].float(), choices)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="one choice per row"):
        run(torch.zeros(2, 5), [GREEDY])
    with pytest.raises(ValueError, match="empty"):
        run(torch.zeros(1, 0), [GREEDY])
    assert run(torch.zeros(0, 5), []) == []
