"""Configs as published, as transformers 5 writes them, and as they must be refused."""

from __future__ import annotations

from typing import Any

import pytest

from deepseek.errors import CheckpointError, UnsupportedModelError
from deepseek.layers.rotary import RopeConfig
from deepseek.models.registry import FAMILIES, architecture_of, parse_config
from tests.models.published import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_parse(name: str) -> None:
    config = PUBLISHED[name]
    assert parse_config(config) == parse_config(dict(reversed(config.items())))


def test_every_family_is_covered() -> None:
    assert {architecture_of(config) for config in PUBLISHED.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(
    "key,value",
    [
        ("quantization_config", {"quant_method": "fp8"}),
        ("attn_logit_softcapping", 50.0),
        ("partial_rotary_factor", 0.5),
        ("is_encoder_decoder", True),
        ("use_bidirectional_attention", True),
        ("some_new_feature", 3),
        ("hidden_act", "relu2"),
    ],
)
def test_unsupported_keys_are_named(name: str, key: str, value: Any) -> None:
    config = {**PUBLISHED[name], key: value}
    if key == "hidden_act" and "hidden_activation" in config:
        key = config["hidden_activation"] = "relu2"
    with pytest.raises(UnsupportedModelError, match=key) as error:
        parse_config(config)
    assert isinstance(value, dict) or str(value) in str(error.value)


@pytest.mark.parametrize(
    "name,key,value",
    [
        ("qwen2.5-coder-1.5b", "attention_bias", False),
        ("qwen3-30b-a3b", "use_sliding_window", True),
        ("qwen3-30b-a3b", "shared_expert_intermediate_size", 64),
        ("deepseek-v2-lite", "topk_method", "noaux_tc"),
        ("deepseek-v2-lite", "scoring_func", "sigmoid"),
        ("deepseek-v2-lite", "norm_topk_prob", True),
        ("deepseek-v2-lite", "mlp_bias", True),
        ("deepseek-v2-lite", "num_key_value_heads", 4),
        ("deepseek-v3", "topk_method", "greedy"),
        ("deepseek-v3", "scoring_func", "softmax"),
        ("gemma-3-270m", "layer_types", ["chunked_attention"] * 18),
        ("smollm2-135m", "rope_interleaved", True),
    ],
)
def test_unsupported_values_of_a_family(name: str, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        parse_config({**PUBLISHED[name], key: value})


@pytest.mark.parametrize(
    "scaling,named",
    [
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, "longrope"),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, "mrope"),
        ({"rope_type": "default", "mrope_section": [16, 24, 24]}, "mrope_section"),
        ({"rope_type": "linear", "factor": 2.0, "warp": 1}, "warp"),
        ({"rope_type": "yarn", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_unknown_rope_scaling(scaling: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        parse_config({**PUBLISHED["smollm2-135m"], "rope_scaling": scaling})


@pytest.mark.parametrize(
    "key,value",
    [
        ("hidden_size", None),
        ("hidden_size", "576"),
        ("hidden_size", 0),
        ("hidden_size", True),
        ("num_key_value_heads", 2),
        ("num_hidden_layers", -1),
        ("rms_norm_eps", "small"),
        ("tie_word_embeddings", 1),
        ("rope_scaling", "yarn"),
        ("rope_scaling", {"rope_type": "linear"}),
        ("rope_scaling", {"rope_type": "linear", "factor": "2"}),
        ("rope_factors", [1.0, 2.0]),
    ],
)
def test_senseless_values(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=key if key != "num_key_value_heads" else "key-value heads"):
        parse_config({**PUBLISHED["smollm2-135m"], key: value})


@pytest.mark.parametrize("key,value", [("n_group", 7), ("topk_group", 9), ("num_experts_per_tok", 200)])
def test_senseless_routing(key: str, value: int) -> None:
    with pytest.raises(CheckpointError, match="experts"):
        parse_config({**PUBLISHED["deepseek-v3"], key: value})


def test_unknown_architecture() -> None:
    with pytest.raises(UnsupportedModelError, match=r"MambaForCausalLM is not supported; there are: LlamaForCausalLM,"):
        parse_config({"architectures": ["MambaForCausalLM"], "model_type": "mamba"})
    with pytest.raises(UnsupportedModelError, match="rwkv"):
        parse_config({"model_type": "rwkv"})
    with pytest.raises(CheckpointError, match="neither"):
        parse_config({})


def test_qwen2_windows_start_at_a_layer() -> None:
    config = {**PUBLISHED["qwen2.5-coder-1.5b"], "use_sliding_window": True, "sliding_window": 64}
    assert parse_config(config).windows == (None,) * 28
    assert parse_config({**config, "max_window_layers": 27}).windows == (*(None,) * 27, 64)


def test_gemma_layers_and_rotations() -> None:
    parsed = parse_config(PUBLISHED["gemma-3-270m"])
    assert parsed.windows == ((512,) * 5 + (None,)) * 3
    assert parsed.local_rope == RopeConfig(dim=256, theta=10_000.0, original_context=32768)
    assert parsed.global_rope.theta == 1_000_000.0
    pattern = {k: v for k, v in PUBLISHED["gemma-3-270m"].items() if k != "layer_types"}
    assert parse_config({**pattern, "sliding_window_pattern": 6}) == parsed


def test_deepseek_v3() -> None:
    parsed = parse_config(PUBLISHED["deepseek-v3"])
    assert parsed.sparse == frozenset(range(3, 61))
    assert parsed.max_context == 163840
    mscale = 0.1 * 3.6888794541139363 + 1.0
    assert parsed.attention.scale == pytest.approx(192**-0.5 * mscale * mscale)
    assert parsed.rope.amplitude == 1.0


def test_yarn_stretches_the_context() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert parse_config({**PUBLISHED["qwen2.5-coder-1.5b"], "rope_scaling": yarn}).max_context == 131072
    assert parse_config(PUBLISHED["qwen2.5-coder-1.5b"]).max_context == 32768


def test_moe_layer_frequency() -> None:
    config = {**PUBLISHED["deepseek-v2-lite"], "num_hidden_layers": 6, "moe_layer_freq": 2}
    assert parse_config(config).sparse == {2, 4}
