"""The engine's own figures, from real worker processes with the real small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepseek.benchmark import measure_engine, measure_profiles
from deepseek.benchmark.engine import EngineProcess, profile_configs
from deepseek.config import EngineConfig
from deepseek.errors import BenchmarkError, ConfigurationError


def test_profiles_run_in_turn_and_are_compared(test_model: Path) -> None:
    profiles = {
        "baseline": EngineConfig(model=str(test_model), dtype="fp32", threads=1),
        "v2.1": EngineConfig(model=str(test_model), dtype="bf16", threads=1),
    }
    said: list[str] = []
    result = measure_profiles(profiles, repeats=1, price_per_hour=0.36, quick=True, say=said.append)
    baseline, ours = result["profiles"]["baseline"], result["profiles"]["v2.1"]
    assert [line.split(":")[0] for line in said] == ["round 1 of 1, baseline", "round 1 of 1, v2.1"]
    assert result["ratios"]["size"] == pytest.approx(0.5, rel=1e-3)  # native layouts are padded
    assert baseline["cost_per_million"] == pytest.approx(100 / baseline["batch32_output_tok_s"])
    rate = ours["batch32_output_tok_s"] / baseline["batch32_output_tok_s"]
    assert result["ratios"]["batch32_output_tok_s"] == pytest.approx(rate)
    assert result["ratios"]["cost_per_million"] == pytest.approx(1 / rate)
    assert baseline["bytes_per_token"] > baseline["settings"]["weights_bytes"]
    for figures in (baseline, ours):
        assert figures["settings"]["config"]["speculation"] == "off"
        for name in ("prefill_tok_s", "decode_tok_s", "context_decode_tok_s", "ttft_ms", "bandwidth_share"):
            assert figures[name] > 0
        assert figures["peak_memory_bytes"] > figures["settings"]["weights_bytes"]


def test_profile_settings() -> None:
    both = profile_configs("m", "both", dtype="int8", kv_dtype="int8", threads=2)
    assert list(both) == ["baseline", "v2.1"]
    assert (both["baseline"].dtype, both["baseline"].kv_dtype, both["v2.1"].dtype) == ("fp16", "fp16", "int8")
    assert not both["baseline"].prefix_cache and both["v2.1"].prefix_cache
    assert both["baseline"].speculation == "off"
    assert list(profile_configs("m", "v2.1", dtype="auto", kv_dtype="auto")) == ["v2.1"]
    with pytest.raises(ConfigurationError, match="unknown profile 'fast'"):
        profile_configs("m", "fast", dtype="auto", kv_dtype="auto")
    with pytest.raises(ConfigurationError, match="price per hour"):
        measure_profiles(both, price_per_hour=0)


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(BenchmarkError, match="unknown model 'nosuch'"):
        measure_engine(EngineConfig(model="nosuch"), repeats=1)


def test_a_context_that_is_too_small_is_said(test_model: Path) -> None:
    from deepseek.benchmark.scenarios import SCENARIOS

    engine = EngineProcess("small", EngineConfig(model=str(test_model), dtype="fp32", max_context=600, threads=1))
    try:
        assert engine.unsupported(SCENARIOS["prefill"]) is None
        assert engine.unsupported(SCENARIOS["context"]) == "the context holds 600 tokens"
        assert engine.edit_prompts()[0]
    finally:
        engine.close()
