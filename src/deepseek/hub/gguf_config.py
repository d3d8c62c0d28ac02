"""GGUF metadata -> the keys of a Hugging Face ``config.json``.

Metadata keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A key of the model's architecture that is
neither translated nor known to be without effect is an error, so that no model runs as something it is not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from deepseek.errors import CheckpointError, UnsupportedModelError
from deepseek.hub.gguf_file import GGUFFile

NO_EFFECT = frozenset(
    {
        "vocab_size",  # the embedding's shape says it
        "tensor_data_layout",
        "rope.scaling.finetuned",
        "attention.layer_norm_epsilon",
    }
)

SIGMOID_GATING = 2
EXPERT_GROUPS = {("sigmoid", 256): (8, 4), ("softmax", 160): (8, 3)}
"""(scoring, experts) -> (n_group, topk_group) of DeepSeek-V3 and -V2, for files older than the keys that say it."""


def translate_config(file: GGUFFile) -> dict[str, Any]:
    """The Hugging Face config of the model in ``file``.

    ``rope_factors`` (a list of rotary/2 floats, divisors of the inverse frequencies) is added when the file has a
    ``rope_freqs.weight``: that is how GGUF stores Llama 3's RoPE scaling.

    Raises UnsupportedModelError for an unknown architecture or key, CheckpointError for a missing or wrong value.
    """
    if file.metadata.get("split.count", 0) not in (0, 1):
        raise UnsupportedModelError(
            f"{file.path} is one part of a split GGUF. Merge the parts first: "
            "llama-gguf-split --merge FIRST_PART OUTPUT."
        )
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        raise UnsupportedModelError(
            f"{file.path}: the architecture {str(architecture)[:60]!r} is not supported; "
            f"supported are {', '.join(_FAMILIES)}."
        )
    keys = _Keys(file, architecture)
    config = _common(file, keys)
    _FAMILIES[architecture](file, keys, config)
    keys.check_all_read()
    return config


def shortest(value: float) -> float:
    """The shortest decimal that is the same fp32 number: 1e-06 for 9.999999974752427e-07, as config.json had it."""
    packed = struct.pack("<f", value)
    for digits in range(6, 9):
        candidate = float(f"{value:.{digits}g}")
        if struct.pack("<f", candidate) == packed:
            return candidate
    return value


class _Keys:
    """Typed access to ``ARCHITECTURE.*`` that remembers what was asked for."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self.path = file.path
        self.prefix = architecture + "."
        self.values = {
            key.removeprefix(self.prefix): value for key, value in file.metadata.items() if key.startswith(self.prefix)
        }
        self.unread = set(self.values) - NO_EFFECT

    def has(self, key: str) -> bool:
        return key in self.values

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self._get(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # per layer, all alike
        if isinstance(value, list):
            raise UnsupportedModelError(f"{self.path}: {self.prefix}{key} differs from layer to layer.")
        if type(value) is not int or value < least:
            raise self._wrong(key, value, f"a whole number of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if type(value) is int:
            return float(value)
        if type(value) is not float or not abs(value) < 3.4e38:
            raise self._wrong(key, value, "a finite number")
        return shortest(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if type(value) is not str:
            raise self._wrong(key, value, "a string")
        return value

    def check_all_read(self) -> None:
        if self.unread:
            names = ", ".join(self.prefix + key for key in sorted(self.unread))
            raise UnsupportedModelError(f"{self.path} has settings that are not supported: {names}.")

    def _get(self, key: str, default: Any) -> Any:
        self.unread.discard(key)
        value = self.values.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.path} lacks the metadata key {self.prefix}{key}: it is not a complete model.")
        return value

    def _wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.prefix}{key} is {str(value)[:60]!r}, not {wanted}.")


def _common(file: GGUFFile, keys: _Keys) -> dict[str, Any]:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path} has no token_embd.weight matrix: it is not a language model.")
    heads = keys.integer("attention.head_count")
    layers = keys.integer("block_count")
    if layers > len(file.tensors):
        raise CheckpointError(f"{file.path} claims {layers} layers, but has {len(file.tensors)} tensors.")
    config: dict[str, Any] = {
        "hidden_size": keys.integer("embedding_length"),
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(keys),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
    }
    for name, key in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")):
        token = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(token) is int:
            config[name] = token
    if keys.has("pooling_type"):
        config["pooling_type"] = keys.integer("pooling_type", least=0)
    factors = file.tensors.get("rope_freqs.weight")
    if factors is not None:
        if factors.type.name != "F32" or len(factors.shape) != 1:
            raise CheckpointError(f"{file.path}: rope_freqs.weight is not a vector of F32.")
        config["rope_factors"] = list(struct.unpack(f"<{factors.shape[0]}f", file.data(factors)))
    return config


def _rope_scaling(keys: _Keys) -> dict[str, Any] | None:
    kind = keys.text("rope.scaling.type", "none")
    factor = keys.number("rope.scaling.factor", 1.0)
    if keys.number("rope.scaling.attn_factor", 1.0) != 1.0:
        raise UnsupportedModelError(f"{keys.path}: {keys.prefix}rope.scaling.attn_factor other than 1 is unsupported.")
    original = keys.integer("rope.scaling.original_context_length", 0, least=0)
    if kind == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        if original:
            scaling["original_max_position_embeddings"] = original
        for name in ("beta_fast", "beta_slow"):
            if keys.has(f"rope.scaling.yarn_{name}"):
                scaling[name] = keys.number(f"rope.scaling.yarn_{name}")
    elif kind != "linear":
        raise UnsupportedModelError(f"{keys.path}: the RoPE scaling type {kind!r} is not supported.")
    return scaling


def _attention_dims(keys: _Keys, config: dict[str, Any]) -> None:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if not keys.has("attention.key_length") and hidden % heads:
        raise CheckpointError(f"{keys.path}: an embedding of {hidden} cannot be cut into {heads} heads.")
    if heads % config["num_key_value_heads"]:
        raise CheckpointError(f"{keys.path}: {heads} heads do not share {config['num_key_value_heads']} KV heads.")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(f"{keys.path}: {keys.prefix}attention.value_length differs from key_length.")
    if keys.integer("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedModelError(f"{keys.path}: {keys.prefix}rope.dimension_count below the head is unsupported.")
    config["head_dim"] = head_dim


def _name(config: dict[str, Any], architecture: str, model_type: str) -> None:
    config["architectures"] = [architecture]
    config["model_type"] = model_type


def _llama(file: GGUFFile, keys: _Keys, config: dict[str, Any]) -> None:
    if keys.integer("expert_count", 0, least=0) or keys.integer("expert_used_count", 0, least=0):
        raise UnsupportedModelError(f"{file.path}: Llama with experts (Mixtral) is not supported.")
    _attention_dims(keys, config)
    _name(config, "LlamaForCausalLM", "llama")
    config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors


def _qwen2(file: GGUFFile, keys: _Keys, config: dict[str, Any]) -> None:
    _attention_dims(keys, config)
    _name(config, "Qwen2ForCausalLM", "qwen2")
    del config["attention_bias"]  # Qwen 2 always has them
    config["use_sliding_window"] = False


def _qwen3(file: GGUFFile, keys: _Keys, config: dict[str, Any]) -> None:
    _attention_dims(keys, config)
    _name(config, "Qwen3ForCausalLM", "qwen3")
    config["use_sliding_window"] = False


def _qwen3_moe(file: GGUFFile, keys: _Keys, config: dict[str, Any]) -> None:
    _attention_dims(keys, config)
    _name(config, "Qwen3MoeForCausalLM", "qwen3_moe")
    config["use_sliding_window"] = False
    config["num_experts"] = keys.integer("expert_count")
    config["num_experts_per_tok"] = keys.integer("expert_used_count")
    config["moe_intermediate_size"] = keys.integer("expert_feed_forward_length")
    config["norm_topk_prob"] = keys.flag("expert_weights_norm", True)
    config["decoder_sparse_step"] = 1
    config["mlp_only_layers"] = []


def _gemma3(file: GGUFFile, keys: _Keys, config: dict[str, Any]) -> None:
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    keys.values.setdefault("attention.key_length", 256)  # Gemma 3's default; the width is no multiple of the heads
    _attention_dims(keys, config)
    _name(config, "Gemma3ForCausalLM", "gemma3_text")
    config["hidden_activation"] = "gelu_pytorch_tanh"
    del config["hidden_act"]
    config["sliding_window"] = keys.integer("attention.sliding_window")
    config["rope_local_base_freq"] = keys.number("rope.freq_base_swa", 10000.0)
    # Not in the metadata; the 27B (62 layers) alone scales by width / heads instead of the head's size.
    config["query_pre_attn_scalar"] = config["hidden_size"] // heads if layers == 62 else config["head_dim"]
    pattern = keys.integer("attention.sliding_window_pattern", 6)
    config["layer_types"] = [
        "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(layers)
    ]
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        config[name] = keys.number(name) if keys.has(name) else None


def _deepseek2(file: GGUFFile, keys: _Keys, config: dict[str, Any]) -> None:
    """DeepSeek-V2 and V3: one architecture in GGUF, told apart by the gating function."""
    sigmoid = keys.integer("expert_gating_func", 1) == SIGMOID_GATING
    _name(config, *(("DeepseekV3ForCausalLM", "deepseek_v3") if sigmoid else ("DeepseekV2ForCausalLM", "deepseek_v2")))
    if keys.integer("nextn_predict_layers", 0, least=0):
        raise UnsupportedModelError(f"{file.path}: layers that predict further tokens (MTP) are not supported in GGUF.")
    rope_dim = keys.integer("rope.dimension_count")
    key_dim, value_dim = keys.integer("attention.key_length"), keys.integer("attention.value_length")
    key_dim = keys.integer("attention.key_length_mla", key_dim)  # with these, the plain ones are the latent's
    if rope_dim >= key_dim:
        raise CheckpointError(f"{file.path}: a key of {key_dim} has no room beside its {rope_dim} rotary dimensions.")
    config["num_key_value_heads"] = config["num_attention_heads"]
    config["qk_rope_head_dim"] = rope_dim
    config["qk_nope_head_dim"] = key_dim - rope_dim
    config["v_head_dim"] = keys.integer("attention.value_length_mla", value_dim)
    config["kv_lora_rank"] = keys.integer("attention.kv_lora_rank")
    config["q_lora_rank"] = keys.integer("attention.q_lora_rank", 0, least=0) or None
    config["first_k_dense_replace"] = keys.integer("leading_dense_block_count", 0, least=0)
    config["moe_intermediate_size"] = keys.integer("expert_feed_forward_length")
    config["moe_layer_freq"] = 1
    config["num_experts_per_tok"] = keys.integer("expert_used_count")
    config["n_shared_experts"] = keys.integer("expert_shared_count", 0, least=0)
    config["routed_scaling_factor"] = keys.number("expert_weights_scale", 1.0) or 1.0
    config["norm_topk_prob"] = keys.flag("expert_weights_norm", False)
    experts = config["n_routed_experts"] = keys.integer("expert_count")
    scoring = config["scoring_func"] = "sigmoid" if sigmoid else "softmax"
    groups, top_groups = EXPERT_GROUPS.get((scoring, experts), (1, 1))
    config["n_group"] = groups = keys.integer("expert_group_count", groups)
    config["topk_group"] = keys.integer("expert_group_used_count", top_groups)
    softmax_method = "group_limited_greedy" if groups > 1 else "greedy"
    config["topk_method"] = "noaux_tc" if sigmoid else softmax_method
    if sigmoid:
        config["rope_interleave"] = True
    log_multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    scaling = config["rope_scaling"]
    if scaling and log_multiplier:
        # GGUF keeps 0.1 * mscale_all_dim; published models have mscale equal to it.
        scaling["mscale"] = scaling["mscale_all_dim"] = round(log_multiplier * 10, 6)


_FAMILIES: dict[str, Callable[[GGUFFile, _Keys, dict[str, Any]], None]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3_moe,
    "gemma3": _gemma3,
    "deepseek2": _deepseek2,
}
