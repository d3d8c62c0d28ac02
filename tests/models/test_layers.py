"""Rotations and routing by themselves."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from deepseek.layers.moe import Routing, route
from deepseek.layers.rotary import RopeConfig, Rotary, inverse_frequencies
from deepseek.models.registry import parse_config
from tests.models.published import PUBLISHED

CPU = torch.device("cpu")


def test_rope_factors_spell_out_any_scaling() -> None:
    """GGUF's rope_freqs hold the quotient of plain and scaled frequencies."""
    config = PUBLISHED["llama-3.2-1b"]
    scaled = inverse_frequencies(parse_config(config).rope)
    plain = inverse_frequencies(RopeConfig(dim=64, theta=500_000.0))
    factors = (plain / scaled).tolist()
    assert min(factors) == pytest.approx(1.0)
    assert max(factors) == pytest.approx(32.0)
    parsed = parse_config({**config, "rope_scaling": None, "rope_factors": factors})
    torch.testing.assert_close(inverse_frequencies(parsed.rope), scaled, rtol=1e-6, atol=0)


def test_angles() -> None:
    cos, sin = Rotary(RopeConfig(dim=4, theta=100.0), CPU)(torch.tensor([0, 3]))
    angles = torch.tensor([[0.0, 0.0], [3.0, 0.3]])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())


def test_yarn_turns_fast_pairs_fully_and_slow_ones_stretched() -> None:
    config = RopeConfig(dim=64, theta=10_000.0, kind="yarn", factor=8.0, original_context=4096)
    ratio = inverse_frequencies(config) / inverse_frequencies(dataclasses.replace(config, kind="default"))
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(1 / 8)
    assert bool((ratio.diff() <= 0).all())
    assert config.amplitude == pytest.approx(0.1 * 2.0794415416798357 + 1)


def test_softmax_routing() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))
    ids, weights = route(logits, Routing(top_k=2, scale=2.0))
    assert ids.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, torch.tensor([[0.8, 0.6]]))
    _, weights = route(logits, Routing(top_k=2, normalize=True))
    torch.testing.assert_close(weights, torch.tensor([[4 / 7, 3 / 7]]))


def test_group_limits() -> None:
    """Groups {0,1} {2,3} {4,5}: the best expert is in a group that loses under ``top2``."""
    scores = torch.tensor([[0.90, 0.01, 0.60, 0.55, 0.50, 0.50]])
    logits = torch.logit(scores)
    best = Routing(top_k=2, scoring="sigmoid", groups=3, top_groups=1, group_score="max")
    assert set(route(logits, best)[0][0].tolist()) == {0, 1}
    pairs = dataclasses.replace(best, group_score="top2")
    assert set(route(logits, pairs)[0][0].tolist()) == {2, 3}
    assert set(route(logits, dataclasses.replace(pairs, top_groups=2))[0][0].tolist()) == {2, 3}


def test_choice_bias_chooses_but_does_not_weigh() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.4]])
    ids, weights = route(torch.logit(scores), Routing(top_k=1, scoring="sigmoid"), torch.tensor([-1.0, 0.0, 0.2]))
    assert ids.tolist() == [[2]]
    torch.testing.assert_close(weights, torch.tensor([[0.4]]))


def test_a_closed_group_is_never_chosen_even_with_negative_scores() -> None:
    """A bias may push every open expert below zero."""
    routing = Routing(top_k=2, scoring="sigmoid", groups=2, top_groups=1, group_score="top2")
    ids, _ = route(torch.zeros(1, 4), routing, torch.tensor([-1.0, -1.0, -2.0, -2.0]))
    assert set(ids[0].tolist()) == {0, 1}
