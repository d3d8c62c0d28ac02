"""A model's config as the metadata of a GGUF file: the reverse of :mod:`deepseek.hub.gguf_config`.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from deepseek.errors import UnsupportedModelError
from deepseek.layers.rotary import RopeConfig, inverse_frequencies
from deepseek.models.gemma import GemmaConfig
from deepseek.models.llama import DenseConfig
from deepseek.models.qwen import QwenMoeConfig

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "Gemma3ForCausalLM": "gemma3",
}
"""Hugging Face class -> the name that GGUF files have for it."""

_DEFAULT_PATTERN = 6
_LARGEST_GEMMA = 62
"""Layers of the Gemma 3 whose softmax scale differs; GGUF files do not say so, readers know."""


def architecture_name(parsed: Any) -> str:
    """What GGUF files call the family of a parsed config. Raises UnsupportedModelError for one that is not written."""
    if isinstance(parsed, GemmaConfig):
        return "gemma3"
    dense = parsed.dense if isinstance(parsed, QwenMoeConfig) else parsed
    if not isinstance(dense, DenseConfig):
        kind = type(parsed).__name__.removesuffix("Config")
        raise UnsupportedModelError(
            f"GGUF files are written for {', '.join(ARCHITECTURES)}, not for {kind}: write safetensors."
        )
    return ARCHITECTURES[dense.architecture]


def config_metadata(parsed: Any, name: str) -> dict[str, Any]:
    """The keys of a model called ``name`` that describe its architecture.

    Raises UnsupportedModelError for what GGUF has no keys for.
    """
    architecture = architecture_name(parsed)
    base = parsed.dense if isinstance(parsed, QwenMoeConfig) else parsed
    keys: dict[str, Any] = {
        "context_length": base.max_context,
        "embedding_length": base.hidden,
        "feed_forward_length": base.intermediate,
        "block_count": base.layers,
        "attention.head_count": base.heads,
        "attention.head_count_kv": base.kv_heads,
        "attention.key_length": base.head_dim,
        "attention.value_length": base.head_dim,
        "attention.layer_norm_rms_epsilon": base.eps,
        "vocab_size": base.vocab_size,
    }
    if isinstance(base, GemmaConfig):
        keys |= _gemma(base)
    else:
        keys |= _dense(base, architecture)
    if isinstance(parsed, QwenMoeConfig):
        keys |= _experts(parsed)
    return {"general.name": name} | {f"{architecture}.{key}": value for key, value in keys.items()}


def rope_factors(parsed: Any) -> torch.Tensor | None:
    """``rope_freqs.weight``, fp32 [dim / 2]: divisors of the frequencies where no key says them, else None."""
    rope = getattr(parsed, "rope", None)
    if not isinstance(rope, RopeConfig) or rope.kind not in ("llama3", "factors"):
        return None
    return inverse_frequencies(replace(rope, kind="default")) / inverse_frequencies(rope)


def same_model(first: Any, second: Any) -> bool:
    """Whether two parsed configs compute the same, however they spell their rotation."""
    rope = getattr(first, "rope", None)
    if isinstance(rope, RopeConfig) and rope_factors(first) is not None:
        other = second.rope
        if not torch.allclose(inverse_frequencies(rope), inverse_frequencies(other), rtol=1e-6, atol=0.0):
            return False
        second = _with_rope(second, rope)
    return bool(first == second)


def _with_rope(parsed: Any, rope: RopeConfig) -> Any:
    if isinstance(parsed, QwenMoeConfig):
        return replace(parsed, dense=replace(parsed.dense, rope=rope))
    return replace(parsed, rope=rope)


def _refuse(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"a GGUF file cannot say {what}: write safetensors.")


def _dense(config: DenseConfig, architecture: str) -> dict[str, Any]:
    if any(window is not None for window in config.windows):
        raise _refuse(f"that {architecture} has sliding windows")
    if config.qkv_bias and architecture not in ("llama", "qwen2"):
        raise _refuse(f"that {architecture} has biases in its attention")
    if config.activation != "silu":
        raise _refuse(f"that the activation of {architecture} is {config.activation}")
    if config.rope.kind in ("llama3", "factors") and architecture != "llama":
        raise _refuse(f"that {architecture} scales its rotation in the manner of Llama 3")
    return {"rope.dimension_count": config.head_dim, **_rope(config.rope)}


def _gemma(config: GemmaConfig) -> dict[str, Any]:
    if config.bias:
        raise _refuse("that gemma3 has biases in its attention")
    if config.local_rope.kind != "default":
        raise _refuse("that the sliding layers of gemma3 scale their rotation")
    expected = config.hidden // config.heads if config.layers == _LARGEST_GEMMA else config.head_dim
    if abs(config.scale - expected**-0.5) > 1e-9:
        raise _refuse("a softmax scale other than that of the head's size")
    full = [layer for layer, window in enumerate(config.windows) if window is None]
    pattern = full[0] + 1 if full else _DEFAULT_PATTERN
    if any((window is None) != ((layer + 1) % pattern == 0) for layer, window in enumerate(config.windows)):
        raise _refuse("which layers slide, unless every n-th does not")
    keys: dict[str, Any] = {
        "attention.sliding_window": next((window for window in config.windows if window), 4096),
        "rope.freq_base_swa": config.local_rope.theta,
        **_rope(config.global_rope),
    }
    if pattern != _DEFAULT_PATTERN:
        keys["attention.sliding_window_pattern"] = pattern
    if config.softcap is not None:
        keys["final_logit_softcapping"] = float(config.softcap)
    return keys


def _experts(config: QwenMoeConfig) -> dict[str, Any]:
    if len(config.sparse) != config.dense.layers:
        raise _refuse("that some layers of qwen3moe have no experts")
    return {
        "expert_count": config.experts,
        "expert_used_count": config.routing.top_k,
        "expert_feed_forward_length": config.expert_intermediate,
        "expert_weights_norm": config.routing.normalize,
    }


def _rope(rope: RopeConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {"rope.freq_base": rope.theta}
    if rope.kind in ("default", "llama3", "factors"):
        return keys
    if rope.kind not in ("linear", "yarn"):
        raise _refuse(f"that the rotation is of kind {rope.kind}")
    if rope.kind == "yarn":
        if not rope.truncate or rope.attention_factor is not None or rope.mscale or rope.mscale_all_dim:
            raise _refuse("the truncate, attention_factor or mscale of this YaRN")
        keys |= {
            "rope.scaling.original_context_length": rope.original_context,
            "rope.scaling.yarn_beta_fast": rope.beta_fast,
            "rope.scaling.yarn_beta_slow": rope.beta_slow,
        }
    return keys | {"rope.scaling.type": rope.kind, "rope.scaling.factor": rope.factor}
