"""Gemma 3, text (arXiv:2503.19786): local and global layers, each with its own rotation, and norms on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepseek.errors import CheckpointError
from deepseek.kernels.ops import Ops
from deepseek.layers.attention import AttentionShape
from deepseek.layers.embedding import Embedding, Head
from deepseek.layers.rotary import RopeConfig, Rotary
from deepseek.models.base import LayerCacheSpec
from deepseek.models.blocks import build_attention, build_mlp, build_norm
from deepseek.models.config import ConfigReader, rope_config
from deepseek.models.decoder import Decoder, DecoderLayer
from deepseek.models.weights import WeightSource


@dataclass(frozen=True, kw_only=True)
class GemmaConfig:
    """Gemma 3's text model.

    Attributes:
        scale: of the softmax.
        windows: per layer the sliding window, or None for a global layer.
        local_rope, global_rope: rotations of sliding and of global layers.
        softcap: of the logits, or None.
    """

    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    activation: str
    eps: float
    scale: float
    windows: tuple[int | None, ...]
    local_rope: RopeConfig
    global_rope: RopeConfig
    max_context: int
    tied: bool
    bias: bool
    softcap: float | None


def parse_gemma3(config: Mapping[str, Any]) -> GemmaConfig:
    reader = ConfigReader(config)
    head_dim, context = reader.integer("head_dim", 256), reader.integer("max_position_embeddings", 131_072)
    heads, layers = reader.integer("num_attention_heads", 8), reader.integer("num_hidden_layers", 26)
    kv_heads = reader.integer("num_key_value_heads", 4)
    if heads % kv_heads:
        raise CheckpointError(f"config has {heads} attention heads for {kv_heads} key-value heads: not a multiple.")
    local_rope, global_rope = _ropes(reader, head_dim, context)
    pattern = reader.integer("sliding_window_pattern", reader.raw("_sliding_window_pattern", 6))
    default = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)]
    activation = reader.activation("hidden_activation", reader.raw("hidden_act", "gelu_pytorch_tanh"))
    parsed = GemmaConfig(
        vocab_size=reader.integer("vocab_size", 262_208),
        hidden=reader.integer("hidden_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=reader.integer("intermediate_size"),
        activation=activation,
        eps=reader.number("rms_norm_eps", 1e-6),
        scale=reader.number("query_pre_attn_scalar", 256) ** -0.5,
        windows=reader.layer_windows(layers, reader.integer("sliding_window", 4096), default),
        local_rope=local_rope,
        global_rope=global_rope,
        max_context=context,
        tied=reader.flag("tie_word_embeddings", True),
        bias=reader.flag("attention_bias", False),
        softcap=reader.raw("final_logit_softcapping", None),
    )
    reader.raw("_sliding_window_pattern", None)
    reader.raw("hidden_act", None)
    reader.finish()
    return parsed


def _ropes(reader: ConfigReader, dim: int, context: int) -> tuple[RopeConfig, RopeConfig]:
    """(local, global) from ``rope_parameters`` per layer type, or ``rope_theta``, ``rope_local_base_freq`` and
    ``rope_scaling``, which stretches the global layers only."""
    parameters = reader.raw("rope_parameters", {})
    local_theta = reader.number("rope_local_base_freq", 10_000.0)
    global_theta = reader.number("rope_theta", 1_000_000.0)
    global_values = {**(parameters.get("full_attention") or {}), **reader.raw("rope_scaling", {})}
    for kind in parameters:
        if kind not in ("full_attention", "sliding_attention"):
            raise reader.unsupported(f"rope_parameters.{kind}", parameters[kind])
    local_values = parameters.get("sliding_attention") or {}
    return (
        rope_config(reader, "rope_parameters.sliding_attention", local_values, dim, context, local_theta),
        rope_config(reader, "rope_parameters.full_attention", global_values, dim, context, global_theta),
    )


def build_gemma3(config: GemmaConfig, source: WeightSource, ops: Ops) -> Decoder:
    hidden = config.hidden
    embedding = source.embedding("model.embed_tokens.weight", config.vocab_size, hidden)
    layers = [_layer(config, source, ops, index) for index in range(config.layers)]
    norm = build_norm(source, ops, "model.norm", hidden, config.eps, offset=1.0)
    head = source.head(embedding if config.tied else None, config.vocab_size, hidden)
    source.finish(ignore=["lm_head.weight"] if config.tied else [])
    return Decoder(
        architecture="Gemma3ForCausalLM",
        embedding=Embedding(embedding, scale=hidden**0.5),
        layers=layers,
        norm=norm,
        head=Head(ops, head, config.softcap),
        rotaries=[Rotary(config.global_rope, source.device), Rotary(config.local_rope, source.device)],
        cache_specs=[LayerCacheSpec(config.kv_heads, config.head_dim, config.head_dim)] * config.layers,
        vocab_size=config.vocab_size,
        max_context=config.max_context,
        dtype=source.dtype,
        device=source.device,
        weights_bytes=source.bytes,
    )


def _layer(config: GemmaConfig, source: WeightSource, ops: Ops, index: int) -> DecoderLayer:
    prefix, window = f"model.layers.{index}", config.windows[index]
    shape = AttentionShape(
        heads=config.heads, kv_heads=config.kv_heads, head_dim=config.head_dim, scale=config.scale, window=window
    )
    head_norms = [
        build_norm(source, ops, f"{prefix}.self_attn.{part}_norm", config.head_dim, config.eps, offset=1.0)
        for part in "qk"
    ]
    before_attention, after_attention, before_feed_forward, after_feed_forward = (
        build_norm(source, ops, f"{prefix}.{name}_layernorm", config.hidden, config.eps, offset=1.0)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward")
    )
    return DecoderLayer(
        attention=build_attention(
            source,
            ops,
            f"{prefix}.self_attn",
            config.hidden,
            shape,
            qkv_bias=config.bias,
            output_bias=config.bias,
            norms=(head_norms[0], head_norms[1]),
        ),
        feed_forward=build_mlp(source, ops, f"{prefix}.mlp", config.hidden, config.intermediate, config.activation),
        before_attention=before_attention,
        before_feed_forward=before_feed_forward,
        after_attention=after_attention,
        after_feed_forward=after_feed_forward,
        rotary=0 if window is None else 1,
    )
