"""Contexts beyond the trained one: who is stretched, how far, and that the rotations are transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from deepseek.errors import ConfigurationError
from deepseek.layers.rotary import RopeConfig, Rotary
from deepseek.models.registry import parse_config
from deepseek.models.stretch import stretched
from tests.models.published import PUBLISHED
from tests.parity.tiny import MemoryCheckpoint

CPU = torch.device("cpu")
QWEN = "qwen2.5-coder-1.5b"


def parsed(name: str, max_context: int | None, how: str = "auto", **changes: Any) -> Any:
    checkpoint = MemoryCheckpoint({**PUBLISHED[name], **changes}, {"t": torch.ones(1)})
    found = stretched(checkpoint, name, max_context, how)
    assert found.shapes == checkpoint.shapes and found.load("t", torch.float32) == 1 and found.quantized("t") is None
    return parse_config(found.config)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("how", ["auto", "none", "yarn"])
def test_nothing_changes_within_the_trained_context(name: str, how: str) -> None:
    plain = parse_config(PUBLISHED[name])
    for context in (None, 1, plain.max_context):
        assert parsed(name, context, how) == plain


def test_qwen_is_stretched_as_far_as_documented() -> None:
    for context in (32_769, 65_536, 131_072):
        config = parsed(QWEN, context)
        assert (config.max_context, config.rope.kind) == (context, "yarn")
        assert config.rope.factor == context / 32_768
        assert config.rope.theta == parse_config(PUBLISHED[QWEN]).rope.theta
    with pytest.raises(ConfigurationError, match=r"max_context 131073 .* 32768 .* at most 131072 are documented"):
        parsed(QWEN, 131_073)
    assert parsed(QWEN, 262_144, "yarn").rope.factor == 8.0
    with pytest.raises(ConfigurationError, match="rope_scaling is none"):
        parsed(QWEN, 32_769, "none")


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-30b-a3b"])
def test_qwen3_was_trained_with_less_than_its_config_says(name: str) -> None:
    """Published configs name 40,960 positions, 32,768 of them trained and 8,192 for the answer."""
    assert PUBLISHED[name]["max_position_embeddings"] == 40_960
    assert parsed(name, 40_960).rope.kind == "default"
    config = parsed(name, 65_536)
    assert (config.rope.factor, config.rope.original_context, config.max_context) == (2.0, 32_768, 65_536)
    with pytest.raises(ConfigurationError, match="at most 131072"):
        parsed(name, 131_073)


def test_the_rotation_is_where_the_config_has_it() -> None:
    """Configs of transformers 5 keep theta in ``rope_parameters``."""
    changes = {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    config = parsed(QWEN, 65_536, **changes)
    assert (config.rope.theta, config.rope.kind, config.rope.factor) == (5e5, "yarn", 2.0)


def test_other_families_are_refused_unless_asked_for() -> None:
    with pytest.raises(ConfigurationError, match=r"8192 tokens that smollm2-135m .* rope_scaling yarn"):
        parsed("smollm2-135m", 8193)
    config = parsed("smollm2-135m", 2**20, "yarn")
    assert (config.max_context, config.rope.factor, config.rope.original_context) == (2**20, 128.0, 8192)


def test_gemma_stretches_its_global_layers() -> None:
    plain = parse_config(PUBLISHED["gemma-3-270m"])
    config = parsed("gemma-3-270m", 2 * plain.max_context, "yarn")
    assert config.local_rope.kind == "default"
    assert (config.global_rope.kind, config.global_rope.factor) == ("yarn", 2.0)
    assert config.global_rope.theta == plain.global_rope.theta
    assert config.max_context == 2 * plain.max_context


def test_a_scaling_of_its_own_is_kept_and_yarn_goes_on() -> None:
    own = parse_config(PUBLISHED["deepseek-v2-lite"])
    with pytest.raises(ConfigurationError, match="no way further is documented"):
        parsed("deepseek-v2-lite", own.max_context + 1)
    config = parsed("deepseek-v2-lite", 2 * own.max_context, "yarn")
    assert config.rope.factor == 2 * own.rope.factor
    assert config.rope.original_context == own.rope.original_context
    assert config.rope.mscale == own.rope.mscale
    assert config.attention.scale > own.attention.scale  # its softmax factor grows with the factor
    with pytest.raises(ConfigurationError, match="'llama3' of its own"):
        parsed("llama-3.2-1b", 2**20, "yarn")


@pytest.mark.parametrize("context", [40_000, 65_536, 131_072])
def test_angles_are_those_of_transformers(context: int) -> None:
    scaling = {"rope_type": "yarn", "factor": context / 32_768, "original_max_position_embeddings": 32_768}
    theirs = transformers.Qwen2Config(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=context,
        rope_parameters={**scaling, "rope_theta": 1e6},
    )  # fmt: skip
    rotary = transformers.models.qwen2.modeling_qwen2.Qwen2RotaryEmbedding(theirs)
    config = parsed(QWEN, context)
    positions = torch.tensor([0, 1, 100, 4095, 4096])  # theirs are fp32 angles, exact enough here
    cos, sin = rotary(torch.zeros(1), positions[None])
    found = Rotary(config.rope, CPU)(positions)
    torch.testing.assert_close(found[0], cos[0, :, :64], rtol=0, atol=5e-4)
    torch.testing.assert_close(found[1], sin[0, :, :64], rtol=0, atol=5e-4)
    torch.testing.assert_close(rotary.inv_freq, Rotary(config.rope, CPU)._frequencies.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("length", [1, 16_383, 16_384, 16_385])
def test_tables_are_what_single_positions_give(length: int) -> None:
    rotary = Rotary(RopeConfig(dim=8, theta=1e4, kind="yarn", factor=4.0, original_context=512), CPU)
    for table, whole in zip(rotary.table(length), rotary(torch.arange(length)), strict=True):
        assert table.shape == (length, 4) and torch.equal(table, whole)


def test_a_million_positions_keep_their_angles() -> None:
    """The rotation from m to n depends on n - m only, as far out as near the beginning."""
    rotary = Rotary(RopeConfig(dim=64, theta=1e5), CPU)
    far = torch.tensor([2**20 - 1, 2**20 - 8])
    (cos_n, cos_m), (sin_n, sin_m) = rotary(far)
    between = torch.atan2(sin_n * cos_m - cos_n * sin_m, cos_n * cos_m + sin_n * sin_m)
    cos, sin = rotary(torch.tensor([7]))
    torch.testing.assert_close(between, torch.atan2(sin, cos)[0], rtol=0, atol=1e-6)
