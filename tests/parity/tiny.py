"""Tiny random transformers models, one per feature, and checkpoints of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor

from deepseek.errors import CheckpointError
from deepseek.kernels.registry import bind
from deepseek.models.decoder import Decoder
from deepseek.models.registry import load_model

VOCAB = 97

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "kv_lora_rank": 24,
    "q_lora_rank": None,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 20,
    "first_k_dense_replace": 1,
}
# Widths that native attention takes.
_WIDE_MLA: dict[str, Any] = {
    **_MLA,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
_DEEPSEEK_YARN = {**_YARN, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
_GEMMA: dict[str, Any] = {
    "head_dim": 16,
    "num_hidden_layers": 4,
    "sliding_window": 7,
    "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
}

# name -> (architecture, config)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-linear-rope": (
        "Llama",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama-biases-llama3-rope": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 20, "rope_parameters": _LLAMA3},
    ),
    "llama-multi-query-yarn": ("Llama", {"num_key_value_heads": 1, "rope_parameters": _YARN}),
    "llama-multi-head-yarn-untruncated": (
        "Llama",
        {"num_key_value_heads": 4, "rope_parameters": {**_YARN, "truncate": False, "attention_factor": 1.3}},
    ),
    "llama-dynamic-rope": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "llama-wide": ("Llama", {"head_dim": 16, "num_key_value_heads": 2}),
    "llama-large": ("Llama", {"hidden_size": 576, "intermediate_size": 1376, "head_dim": 64, "num_key_value_heads": 2}),
    "llama-groups": ("Llama", {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "attention_bias": True}),
    "llama-wide-biases": ("Llama", {"head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    "qwen2-wide-window": (
        "Qwen2",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "hidden_size": 64},
    ),
    "qwen3-wide": ("Qwen3", {"head_dim": 48, "attention_bias": False, "tie_word_embeddings": True}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6}}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": _YARN}),
    "qwen3": ("Qwen3", {"head_dim": 20, "attention_bias": False}),
    "qwen3-bias-tied": ("Qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-moe": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    "qwen3-moe-mixed": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
        },
    ),
    "gemma3": ("Gemma3", _GEMMA),
    "gemma3-untied-scaled-softcap": (
        "Gemma3",
        {
            **_GEMMA,
            "tie_word_embeddings": False,
            "final_logit_softcapping": 5.0,
            "attention_bias": True,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        },
    ),
    "deepseek-v2-wide": ("DeepseekV2", {**_WIDE_MLA, "topk_method": "greedy", "rope_parameters": _DEEPSEEK_YARN}),
    "deepseek-v3-wide": (
        "DeepseekV3",
        {
            **_WIDE_MLA,
            "q_lora_rank": 28,
            "qk_nope_head_dim": 32,
            "n_group": 4,
            "topk_group": 2,
            "attention_bias": True,
            "rope_parameters": {**_DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek-v2-lite": ("DeepseekV2", {**_MLA, "topk_method": "greedy", "rope_parameters": _DEEPSEEK_YARN}),
    "deepseek-v2-groups": (
        "DeepseekV2",
        {
            **_MLA,
            "q_lora_rank": 28,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.7,
            "attention_bias": True,
        },
    ),
    "deepseek-v3": (
        "DeepseekV3",
        {
            **_MLA,
            "q_lora_rank": 28,
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": {**_DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek-v3-unnormalised-half-rope": (
        "DeepseekV3",
        {
            **_MLA,
            "n_group": 2,
            "topk_group": 1,
            "n_shared_experts": 1,
            "norm_topk_prob": False,
            "rope_interleave": False,
            "tie_word_embeddings": True,
            "rope_parameters": {**_DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
        },
    ),
}


def build(name: str, **changes: Any) -> Any:
    """A transformers model in fp32 whose every weight is random, norms, biases and router biases too. ``changes``: to
    its config."""
    architecture, options = CASES[name]
    config_class = getattr(transformers, f"{architecture}TextConfig", None) or getattr(
        transformers, f"{architecture}Config"
    )
    config = config_class(**{**_BASE, **json.loads(json.dumps(options)), **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(sum(map(ord, name)))
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.dim() >= 2:
                value.normal_(0.0, 1.0 if "embed" in key else value.shape[-1] ** -0.5)
            elif "norm" in key:
                value.normal_(0.0 if architecture == "Gemma3" else 1.0, 0.2)
            else:
                value.normal_(0.0, 0.2)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


class MemoryCheckpoint:
    """A transformers model as a checkpoint, without files."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.config = dict(config)
        self.tensors = dict(tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        if name not in self.tensors:
            raise CheckpointError(f"no tensor {name!r}")
        return self.tensors[name].to(dtype)

    def quantized(self, name: str) -> None:
        return None

    def close(self) -> None:
        pass


def checkpoint(model: Any) -> MemoryCheckpoint:
    """The model's weights under their published names: one matrix per expert."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        match = re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj", name)
        if match is None:
            tensors[name] = value
            continue
        for expert, matrix in enumerate(value):
            if match[2] == "down":
                tensors[f"{match[1]}.{expert}.down_proj.weight"] = matrix
            else:
                gate, up = matrix.chunk(2)
                tensors[f"{match[1]}.{expert}.gate_proj.weight"] = gate
                tensors[f"{match[1]}.{expert}.up_proj.weight"] = up
    return MemoryCheckpoint(json.loads(model.config.to_json_string(use_diff=False)), tensors)


def load(model: Any, backend: str = "auto") -> Decoder:
    return load_model(checkpoint(model), ops=bind("cpu", backend), dtype=torch.float32, device="cpu")
