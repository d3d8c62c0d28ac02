"""Reading a checkpoint's config strictly: every key is used, known to be harmless, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepseek.errors import CheckpointError, UnsupportedModelError
from deepseek.layers.rotary import RopeConfig

# Keys that change nothing about the forward computation: bookkeeping, training, and generation defaults.
# fmt: off
HARMLESS = frozenset({
    "_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "_name_or_path", "architectures",
    "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version", "transformers.js_config", "use_cache",
    "cache_implementation", "output_hidden_states", "output_attentions", "output_router_logits", "output_scores",
    "return_dict", "return_dict_in_generate", "torchscript", "use_bfloat16", "chunk_size_feed_forward", "id2label",
    "label2id", "problem_type", "num_labels", "task_specific_params", "finetuning_task", "tokenizer_class", "prefix",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "unk_token_id",
    "is_llama_config", "unsloth_version", "unsloth_fixed", "initializer_range", "attention_dropout", "hidden_dropout",
    "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "router_jitter_noise", "ep_size", "pretraining_tp",
    "tf_legacy_loss", "pruned_heads", "tie_encoder_decoder", "cross_attention_hidden_size", "do_sample",
    "temperature", "top_k", "top_p", "typical_p", "min_p", "max_length", "min_length", "max_new_tokens", "num_beams",
    "num_beam_groups", "num_return_sequences", "early_stopping", "length_penalty", "repetition_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "diversity_penalty", "bad_words_ids",
    "begin_suppress_tokens", "suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "remove_invalid_values", "pooling_type", "is_matryoshka",
    "matryoshka_dimensions",
})
# fmt: on

# Keys that would change the computation of any family, and the only values under which they do not.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "compression_config": (None,),
    "is_encoder_decoder": (False, None),
    "is_decoder": (True, False, None),
    "add_cross_attention": (False, None),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "rope_interleaved": (False, None),
    "num_kv_shared_layers": (0, None),
}

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_tanh": "gelu_tanh"}

_REQUIRED = object()


class ConfigReader:
    """Typed access to a config that remembers which keys were read; :meth:`finish` refuses the others.

    A key whose value is None counts as absent.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._values = dict(config)
        self._read: set[str] = set()
        self.name = str(self._values.get("model_type") or "model")

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def raw(self, key: str, default: Any = _REQUIRED) -> Any:
        self._read.add(key)
        value = self._values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise CheckpointError(f"the config of this {self.name} checkpoint has no {key!r}.")
        return default

    def integer(self, key: str, default: Any = _REQUIRED, *, minimum: int = 1) -> int:
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise CheckpointError(f"config key {key!r} must be an integer of at least {minimum}, not {value!r}.")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"config key {key!r} must be a number, not {value!r}.")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"config key {key!r} must be true or false, not {value!r}.")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """The key may be absent or have one of these values; anything else is a feature that is not implemented."""
        value = self.raw(key, None)
        if value is not None and value not in allowed:
            accepted = " or ".join(repr(a) for a in allowed)
            raise self.unsupported(key, value, f"only {accepted} is implemented" if allowed else "")

    def activation(self, key: str, default: str) -> str:
        """The kind a gated activation kernel knows."""
        value = self.raw(key, default)
        if value not in ACTIVATIONS:
            raise self.unsupported(key, value, f"implemented: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def unsupported(self, key: str, value: Any, why: str = "") -> UnsupportedModelError:
        shown = repr(value)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        return UnsupportedModelError(f"{self.name}: config {key} = {shown} is not supported{': ' if why else ''}{why}.")

    def finish(self) -> None:
        """Refuse what was neither read nor known to be harmless."""
        for key, value in self._values.items():
            if value is None or key in self._read or key in HARMLESS:
                continue
            if key not in REFUSED:
                raise self.unsupported(key, value, "unknown key, which may change the computation")
            if value not in REFUSED[key]:
                raise self.unsupported(key, value)

    def layer_windows(self, layers: int, window: int | None, default: list[str]) -> tuple[int | None, ...]:
        """Per layer the sliding window, from ``layer_types`` or else ``default``; None for full attention."""
        kinds = self.raw("layer_types", default)
        if len(kinds) != layers:
            raise CheckpointError(f"config key 'layer_types' has {len(kinds)} entries for {layers} layers.")
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                raise self.unsupported("layer_types", kind)
        if "sliding_attention" in kinds and window is None:
            raise CheckpointError("config has sliding-attention layers but no 'sliding_window'.")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)


# rope type -> keys it reads besides the type itself and theta
_ROPE_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "truncate",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
    ),
}
_ROPE_IGNORED = ("type", "rope_type", "rope_theta", "finetuned", "max_position_embeddings", "partial_rotary_factor")


def read_rope(reader: ConfigReader, dim: int, context: int, default_theta: float = 10_000.0) -> RopeConfig:
    """The rotation of a model with one kind: ``rope_parameters`` (transformers 5), or ``rope_theta`` and
    ``rope_scaling`` (published configs). ``context`` is ``max_position_embeddings``."""
    theta = reader.number("rope_theta", default_theta)
    scaling = reader.raw("rope_scaling", {})
    factors = reader.raw("rope_factors", None)
    if factors is not None:
        if scaling or len(factors) != dim // 2 or not all(factor > 0 for factor in factors):
            raise CheckpointError(f"config 'rope_factors' must be {dim // 2} positive numbers, without rope_scaling.")
        return RopeConfig(dim=dim, theta=theta, kind="factors", factors=tuple(factors))
    key = "rope_scaling" if scaling else "rope_parameters"
    values = scaling or reader.raw("rope_parameters", {})
    reader.raw("rope_parameters", {})
    original = reader.raw("original_max_position_embeddings", None)
    if original is not None and isinstance(values, Mapping):
        values = {**values, "original_max_position_embeddings": original}
    return rope_config(reader, key, values, dim, context, theta)


def rope_config(
    reader: ConfigReader, key: str, values: Any, dim: int, context: int, default_theta: float
) -> RopeConfig:
    """One dictionary of rope parameters; unknown types and keys raise UnsupportedModelError."""
    if not isinstance(values, Mapping):
        raise CheckpointError(f"config key {key!r} must be an object, not {values!r}.")
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind not in _ROPE_KEYS:
        raise reader.unsupported(f"{key}.rope_type", kind, f"implemented: {', '.join(_ROPE_KEYS)}")
    for name, value in values.items():
        if value is None or name in _ROPE_KEYS[kind] or name in _ROPE_IGNORED:
            continue
        harmless = (kind == "default" and name in _ROPE_KEYS["yarn"] + _ROPE_KEYS["llama3"]) or (
            name == "original_max_position_embeddings"
        )
        if not harmless:
            raise reader.unsupported(f"{key}.{name}", value, f"unknown for rope type {kind!r}")
    if values.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise reader.unsupported(f"{key}.partial_rotary_factor", values["partial_rotary_factor"])
    known = {name: values[name] for name in _ROPE_KEYS[kind] if values.get(name) is not None}
    original = known.pop("original_max_position_embeddings", context)
    if kind == "yarn":
        known.setdefault("factor", context / original)
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        if name in _ROPE_KEYS[kind] and name not in known:
            raise CheckpointError(f"config key {key!r} has rope type {kind!r} but no {name!r}.")
    for name, value in known.items():
        if name != "truncate" and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise CheckpointError(f"config key '{key}.{name}' must be a number of at least 0, not {value!r}.")
    theta = values.get("rope_theta") or default_theta
    return RopeConfig(dim=dim, theta=float(theta), kind=kind, original_context=original, **known)


def stretched_context(context: int, rope: RopeConfig) -> int:
    """Positions a model is made for: YaRN configs may still name the context from before stretching."""
    return max(context, int(rope.factor * rope.original_context)) if rope.kind == "yarn" else context
