"""Shapes of work and the figures made from clock readings."""

from __future__ import annotations

import pytest

from deepseek.benchmark.scenarios import SCENARIOS, Timing, choose, figures, random_prompts
from deepseek.errors import BenchmarkError, ConfigurationError


def test_prompts_have_the_shape_and_change_with_the_round() -> None:
    scenario = SCENARIOS["batch"]
    prompts = random_prompts(scenario, vocab=100, seed=1)
    assert [len(prompt) for prompt in prompts] == [128] * 32
    assert all(0 <= token < 100 for prompt in prompts for token in prompt)
    assert prompts == random_prompts(scenario, vocab=100, seed=1)
    assert prompts != random_prompts(scenario, vocab=100, seed=2)


@pytest.mark.parametrize(
    ("name", "timing", "expected"),
    [
        ("prefill", Timing(2.0, 2.0, 1, 0), {"prefill_tok_s": 256.0}),
        ("decode", Timing(1.0, 2.27, 128, 127), {"decode_tok_s": 100.0}),
        ("batch", Timing(4.0, 8.0, 2048, 2000), {"batch32_output_tok_s": 256.0, "batch32_decode_tok_s": 500.0}),
        ("context", Timing(9.0, 9.5, 65, 64), {"context_decode_tok_s": 128.0}),
        ("speculation", Timing(1.0, 2.0, 21, 20), {"edit_decode_tok_s": 20.0}),
    ],
)
def test_figures(name: str, timing: Timing, expected: dict[str, float]) -> None:
    assert figures(SCENARIOS[name], timing) == pytest.approx(expected)


def test_a_wrong_number_of_tokens_is_no_measurement() -> None:
    with pytest.raises(BenchmarkError, match="127 tokens came instead of 128"):
        figures(SCENARIOS["decode"], Timing(1.0, 2.0, 127, 126))
    with pytest.raises(BenchmarkError, match="ended after one token"):
        figures(SCENARIOS["speculation"], Timing(1.0, 1.0, 1, 0))
    with pytest.raises(BenchmarkError, match="where times were expected"):
        Timing.parse({"first": 1.0})


def test_choice() -> None:
    assert [scenario.name for scenario in choose([])] == list(SCENARIOS)
    assert [scenario.name for scenario in choose(["context", "decode"])] == ["decode", "context"]
    assert choose(["batch"], quick=True)[0].requests == 4
    with pytest.raises(ConfigurationError, match="unknown scenario 'speed'"):
        choose(["speed"])
