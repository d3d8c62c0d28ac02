from __future__ import annotations

import numpy as np
import pytest
import torch

from deepseek.engine.events import GenerateRequest
from deepseek.engine.request import Sequence
from deepseek.engine.sampler import sample, uniform
from deepseek.kernels.sampling import choose_tokens
from deepseek.sampling import SamplingParams


def sequence(
    seed: int = 0, prompt: tuple[int, ...] = (1,), answer: tuple[int, ...] = (), **options: object
) -> Sequence:
    params = SamplingParams(seed=seed, **options)  # type: ignore[arg-type]
    state = Sequence.of(
        GenerateRequest("x", list(prompt), params), end_ids=frozenset(), seed=0, max_context=10_000, isolate_seeds=True
    )
    for token in answer:
        state.append(token)
    return state


def reference(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The distribution, slowly: temperature, min-p, top-k, top-p."""
    scaled = logits.astype(np.float64) / params.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = [
        i
        for rank, i in enumerate(order)
        if p[i] >= params.min_p * p.max() and (not params.top_k or rank < params.top_k)
    ]
    total, mass, nucleus = sum(p[i] for i in kept), 0.0, []
    for i in kept:
        if nucleus and mass >= params.top_p * total:
            break
        nucleus.append(i)
        mass += p[i]
    out = np.zeros_like(p)
    out[nucleus] = p[nucleus] / p[nucleus].sum()
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_k": 5},
        {"top_k": 1},
        {"top_k": 10_000},
        {"top_p": 0.7},
        {"top_p": 0.9999},
        {"top_p": 1e-6},
        {"min_p": 0.2},
        {"min_p": 1e-9, "top_p": 0.95},
        {"top_k": 40, "top_p": 0.8, "min_p": 0.05, "temperature": 0.9},
        {"top_k": 2000, "top_p": 0.99},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.02, 3.0])
def test_the_distribution_is_the_one_asked_for(options: dict[str, float], spread: float) -> None:
    """Every draw is compared with the exact cumulative distribution: no statistics needed."""
    vocab = 3000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * spread
    states = [sequence(seed, **options) for seed in range(300)]
    tokens = np.array(sample(choose_tokens, logits.repeat(300, 1), states))
    expected = reference(logits.numpy(), SamplingParams(**options))
    assert (expected[tokens] > 0).all()
    # The inverse of the cumulative distribution, in the sampler's order (sorted if filtered, else by id).
    filtered = bool({"top_k", "top_p", "min_p"} & options.keys())
    order = np.argsort(-expected, kind="stable") if filtered else np.arange(vocab)
    cumulative = np.cumsum(expected[order])
    position = np.empty(vocab, dtype=int)
    position[order] = np.arange(vocab)
    # Nearly equal probabilities may swap places in fp32: then a draw is off by one token.
    tolerance = 1e-5 if spread > 1 else 1.5 * expected.max()
    for seed, token in enumerate(tokens):
        draw, at = uniform(seed, 0), position[token]
        assert (cumulative[at - 1] if at else 0.0) - tolerance <= draw <= cumulative[at] + tolerance


def test_uniform_numbers_are_uniform_and_independent() -> None:
    values = np.array([[uniform(seed, index) for index in range(200)] for seed in range(200)])
    assert values.min() >= 0 and values.max() < 1
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_squared < 50
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.02


def test_a_seed_gives_the_same_token_whatever_else_is_in_the_batch() -> None:
    logits = torch.randn(40, 500, generator=torch.Generator().manual_seed(0))
    states = [sequence(i, top_k=(i % 3) * 20, top_p=1.0 - (i % 4) * 0.1, temperature=(i % 5) / 3) for i in range(40)]
    together = sample(choose_tokens, logits.clone(), states)
    singly = [sample(choose_tokens, logits[i : i + 1].clone(), [states[i]])[0] for i in range(40)]
    assert together == singly


def test_penalties_and_bias() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.5]])

    def shifted(**options: object) -> list[float]:
        row = logits.clone()
        sample(choose_tokens, row, [sequence(temperature=0.0, prompt=(0, 2), answer=(1, 1), **options)])
        return [round(v, 6) for v in row[0].tolist()]

    assert shifted() == [2.0, 1.0, -1.0, 0.5]
    assert shifted(repetition_penalty=2.0) == [1.0, 0.5, -2.0, 0.5]
    assert shifted(presence_penalty=0.5) == [2.0, 0.5, -1.0, 0.5]
    assert shifted(frequency_penalty=0.5) == [2.0, 0.0, -1.0, 0.5]
    assert shifted(logit_bias={3: 4.0, 0: -100.0}) == [-98.0, 1.0, -1.0, 4.5]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.randn(9, 200) * 20
    options = [{}, {"top_p": 0.5}, {"min_p": 0.1}]
    states = [sequence(i, temperature=temperature, **options[i % 3]) for i in range(9)]
    assert sample(choose_tokens, logits.clone(), states) == logits.argmax(-1).tolist()


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.randn(7, 100)
    states = [sequence(temperature=0.0) for _ in range(7)]
    assert sample(choose_tokens, logits.clone(), states) == logits.argmax(-1).tolist()
