"""Tokens from logits: the native kernel against exact distributions, and against torch's version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.kernels.cpu.extension import native, obstacle
from deepseek.kernels.sampling import GREEDY, Choice, choose_tokens, listed

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"native kernels: {obstacle()}")

Array = np.ndarray[Any, Any]
VOCABS = [1, 17, 256, 257, 49152, 151936, 256000]
DRAWS = [0.0, 1e-9, 0.1, 0.37, 0.5, 0.9, 0.999999, 1 - 2**-53]
FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 3000},
    {"top_k": 2**31 - 1},
    {"top_p": 1e-9},
    {"top_p": 0.9},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 1e-9, "top_p": 0.95},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.05},
    {"top_k": 5000, "top_p": 0.99},
]
ISAS = native().available_isas() if obstacle() is None else []


def run(logits: Array, choices: Sequence[Choice], isa: str = "auto", threads: int = 2) -> list[int]:
    tokens: list[int] = native().choose_tokens(logits, choices, isa, threads)
    return tokens


def choice(temperature: float, draw: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Choice:
    return Choice(temperature, top_k, top_p, min_p, draw)


def logits_of(kind: str, vocab: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(vocab).astype(np.float32)
    if kind == "peaked":
        x *= 2
        x[rng.integers(vocab, size=5)] += 15
    elif kind == "flat":
        x *= 0.01
    elif kind == "tied":
        x = rng.integers(-2, 3, vocab).astype(np.float32)
    return x


def check(logits: Array, chosen: Choice, token: int) -> None:
    """``token`` is where the cumulative distribution passes the draw. Where rounding may move a border of the kept set
    or of the draw, either side will do."""
    scaled = (logits.astype(np.float64) - logits.max()) / max(chosen.temperature, 1e-6)
    weights = np.exp(scaled)
    slack = 2e-5  # fp32 weights
    order = np.argsort(-logits, kind="stable") if chosen.filtered else np.arange(len(logits))
    place = int(np.flatnonzero(order == token)[0])
    w = weights[order]
    assert w[place] > 0
    if not chosen.filtered:
        kept_low = kept_high = len(w)
    else:
        limit = min(chosen.top_k or len(w), len(w))
        assert place < limit
        ends = [min(limit, int((w >= chosen.min_p * f).sum())) for f in (1 + slack, 1 - slack)]
        bounds = []
        for end, f in zip(ends, (1 - slack, 1 + slack), strict=True):
            end = max(end, 1)
            mass = np.cumsum(w[:end])
            before = mass - w[:end]
            bounds.append(max(1, int((before < chosen.top_p * mass[-1] * f).sum())))
        kept_low, kept_high = min(bounds), max(bounds)
    assert place < kept_high
    cumulative = np.cumsum(w)
    low = cumulative[place - 1] if place else 0.0
    assert low <= chosen.draw * cumulative[kept_high - 1] * (1 + slack) + 1e-12
    assert cumulative[place] >= chosen.draw * cumulative[kept_low - 1] * (1 - slack) - 1e-12


@pytest.mark.parametrize("kind", ["random", "peaked", "flat", "tied"])
@pytest.mark.parametrize("vocab", VOCABS)
def test_every_draw_inverts_the_distribution(kind: str, vocab: int) -> None:
    logits = logits_of(kind, vocab)
    draws = DRAWS if vocab < 1000 else DRAWS[1::3]
    for temperature in (1e-9, 0.3, 1.0, 2.0) if vocab < 1000 else (0.7, 2.0):
        choices = [choice(temperature, draw, **options) for options in FILTERS for draw in draws]  # type: ignore[arg-type]
        tokens = [run(logits[None], [chosen])[0] for chosen in choices]
        for chosen, token in zip(choices, tokens, strict=True):
            check(logits, chosen, token)


@pytest.mark.parametrize("kind", ["random", "peaked", "flat", "tied"])
@pytest.mark.parametrize("vocab", [1, 17, 1000, 49152])
def test_torch_chooses_the_same(kind: str, vocab: int) -> None:
    """Different only where a draw falls on a border, to the rounding of fp32."""
    logits = logits_of(kind, vocab, seed=1)
    choices = [choice(0.8, draw, **options) for options in FILTERS for draw in (0.2, 0.77)]  # type: ignore[arg-type]
    rows = np.tile(logits, (len(choices), 1))
    for chosen, ours, theirs in zip(
        choices, run(rows, choices), listed(choose_tokens(torch.tensor(rows), choices)), strict=True
    ):
        assert theirs is not None
        if ours != theirs:
            # Among equal logits torch's order is arbitrary.
            scaled = np.exp((logits - logits.max()).astype(np.float64) / 0.8)
            order = np.argsort(-logits, kind="stable") if chosen.filtered else np.arange(vocab)
            mass = np.cumsum(scaled[order])
            places = sorted(int(np.flatnonzero(order == token)[0]) for token in (ours, theirs))
            between = mass[places[1] - 1] - mass[places[0]]
            assert logits[ours] == logits[theirs] or between <= 2e-5 * mass[-1]


@pytest.mark.parametrize("vocab", VOCABS)
def test_greedy_takes_the_first_of_the_largest(vocab: int) -> None:
    rows = np.stack([logits_of(kind, vocab) for kind in ("random", "peaked", "flat", "tied")])
    rows[3, vocab // 2 :] = 5.0
    assert run(rows, [GREEDY] * 4) == rows.argmax(axis=1).tolist()
    for temperature in (1e-30, 1e-7):
        assert run(rows[:2], [choice(temperature, 0.7)] * 2) == rows[:2].argmax(axis=1).tolist()


@pytest.mark.parametrize("vocab", [1, 17, 300, 49152])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_with_nan_or_infinity_have_no_token(vocab: int, bad: float) -> None:
    rng = np.random.default_rng(0)
    choices = [GREEDY, choice(1.0, 0.5), choice(1.0, 0.5, top_k=5), GREEDY]
    rows = np.stack([logits_of("random", vocab)] * 4)
    clean = run(rows, choices)
    for row in range(3):
        rows[row, rng.integers(vocab)] = bad
    assert run(rows, choices) == [-1, -1, -1, clean[3]]
    assert listed(choose_tokens(torch.tensor(rows), choices))[:3] == [None, None, None]


def test_logits_whose_sum_overflows_are_finite() -> None:
    rows = np.full((3, 500), 3e38, np.float32)
    rows[:, 7] = 3.2e38
    rows[:, 8] = np.finfo(np.float32).min
    assert run(rows, [GREEDY, choice(1.0, 0.9), choice(2.0, 0.9, top_p=0.5)]) == [7, 7, 7]


def test_the_batch_the_threads_and_the_instruction_set_change_nothing() -> None:
    rng = np.random.default_rng(0)
    vocab = 40_007
    rows = np.stack([logits_of(["random", "peaked", "flat", "tied"][i % 4], vocab, i) for i in range(40)])
    choices = [choice(1.3, float(rng.random()), **FILTERS[i % len(FILTERS)]) for i in range(38)]  # type: ignore[arg-type]
    choices += [GREEDY] * 2
    singly = [run(rows[i : i + 1], [choices[i]], ISAS[0], 1)[0] for i in range(40)]
    for isa in ISAS:
        for threads in (1, 2, 3):
            assert run(rows, choices, isa, threads) == singly
    assert run(rows[::-1].copy(), choices[::-1]) == singly[::-1]


@pytest.mark.parametrize("options", [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}], ids=str)
def test_frequencies_are_the_probabilities(options: dict[str, float]) -> None:
    vocab, count = 40, 20_000
    logits = logits_of("random", vocab, seed=5)
    draws = np.random.default_rng(1).random(count)
    tokens = run(np.tile(logits, (count, 1)), [choice(0.9, float(draw), **options) for draw in draws])  # type: ignore[arg-type]
    p = np.exp(logits.astype(np.float64) / 0.9)
    p /= p.sum()
    order = np.argsort(-p)
    kept = order[p[order] >= options.get("min_p", 0) * p.max()][: int(options.get("top_k", vocab))]
    mass = np.cumsum(p[kept]) - p[kept]
    kept = kept[mass < options.get("top_p", 1.0) * p[kept].sum()]
    expected = np.zeros(vocab)
    expected[kept] = p[kept] / p[kept].sum() * count
    observed = np.bincount(tokens, minlength=vocab)
    assert not observed[expected == 0].any()
    kept = np.flatnonzero(expected)
    chi_squared = ((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_squared < len(kept) + 5 * np.sqrt(2 * len(kept)) + 5


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=700),
    temperature=st.floats(0.01, 2.0),
    top_k=st.integers(0, 800),
    top_p=st.floats(1e-6, 1.0),
    min_p=st.floats(0.0, 1.0),
    draw=st.floats(0.0, 1.0, exclude_max=True),
)
def test_any_logits(
    values: list[float], temperature: float, top_k: int, top_p: float, min_p: float, draw: float
) -> None:
    logits = np.array(values, np.float32)
    (token,) = run(logits[None], [Choice(temperature, top_k, top_p, min_p, draw)])
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    assert scaled[token] > -88
    assert np.exp(scaled[token]) >= min_p * 0.9999
    if top_k:
        assert (logits > logits[token]).sum() < top_k


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="one choice per row"):
        run(np.zeros((2, 5), np.float32), [GREEDY])
    with pytest.raises(ValueError, match="empty"):
        run(np.zeros((1, 0), np.float32), [GREEDY])
