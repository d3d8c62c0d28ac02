"""Llama, and the dense decoder that Qwen 2 and 3 vary (arXiv:2307.09288, arXiv:2407.21783)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deepseek.errors import CheckpointError
from deepseek.kernels.ops import Ops
from deepseek.layers.attention import Attention, AttentionShape
from deepseek.layers.embedding import Embedding, Head
from deepseek.layers.moe import FeedForward
from deepseek.layers.rotary import RopeConfig, Rotary
from deepseek.models.base import LayerCacheSpec
from deepseek.models.blocks import build_attention, build_mlp, build_norm
from deepseek.models.config import ConfigReader, read_rope, stretched_context
from deepseek.models.decoder import Decoder, DecoderLayer
from deepseek.models.weights import WeightSource


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """A decoder of grouped-query attention and gated MLPs.

    Attributes:
        qkv_bias, output_bias, mlp_bias: which projections have one.
        head_norms: queries and keys are normalised per head (Qwen 3).
        windows: per layer the sliding window, or None.
    """

    architecture: str
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    activation: str
    eps: float
    rope: RopeConfig
    max_context: int
    tied: bool
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False


def read_dense(reader: ConfigReader, architecture: str, **features: Any) -> DenseConfig:
    """The keys that Llama and Qwen share; ``features`` are the fields in which they differ."""
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(f"config has {heads} attention heads for {kv_heads} key-value heads: not a multiple.")
    if not reader.has("head_dim") and hidden % heads:
        raise CheckpointError(f"config has no head_dim, and hidden_size {hidden} is no multiple of {heads} heads.")
    head_dim = reader.integer("head_dim", hidden // heads)
    layers, context = reader.integer("num_hidden_layers"), reader.integer("max_position_embeddings")
    rope = read_rope(reader, head_dim, context)
    features.setdefault("windows", (None,) * layers)
    return DenseConfig(
        architecture=architecture,
        vocab_size=reader.integer("vocab_size"),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=reader.integer("intermediate_size"),
        activation=reader.activation("hidden_act", "silu"),
        eps=reader.number("rms_norm_eps", 1e-6),
        rope=rope,
        max_context=stretched_context(context, rope),
        tied=reader.flag("tie_word_embeddings", False),
        **features,
    )


def parse_llama(config: Mapping[str, Any]) -> DenseConfig:
    reader = ConfigReader(config)
    bias = reader.flag("attention_bias", False)
    parsed = read_dense(
        reader,
        "LlamaForCausalLM",
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=reader.flag("mlp_bias", False),
    )
    reader.finish()
    return parsed


FeedForwardBuilder = Callable[[str, int], FeedForward]
"""(prefix of the layer's ``mlp``, layer index) -> what stands there."""


def build_dense(config: DenseConfig, source: WeightSource, ops: Ops) -> Decoder:
    """A model whose layers are all dense."""
    return build_decoder(config, source, ops, lambda prefix, _: dense_mlp(config, source, ops, prefix))


def dense_mlp(config: DenseConfig, source: WeightSource, ops: Ops, prefix: str) -> FeedForward:
    return build_mlp(source, ops, prefix, config.hidden, config.intermediate, config.activation, bias=config.mlp_bias)


def build_decoder(config: DenseConfig, source: WeightSource, ops: Ops, feed_forward: FeedForwardBuilder) -> Decoder:
    """The stack with ``feed_forward`` in each layer's MLP place."""
    hidden, eps = config.hidden, config.eps
    embedding = source.embedding("model.embed_tokens.weight", config.vocab_size, hidden)
    layers = []
    for index in range(config.layers):
        prefix = f"model.layers.{index}"
        layers.append(
            DecoderLayer(
                attention=_attention(config, source, ops, f"{prefix}.self_attn", config.windows[index]),
                feed_forward=feed_forward(f"{prefix}.mlp", index),
                before_attention=build_norm(source, ops, f"{prefix}.input_layernorm", hidden, eps),
                before_feed_forward=build_norm(source, ops, f"{prefix}.post_attention_layernorm", hidden, eps),
            )
        )
    norm = build_norm(source, ops, "model.norm", hidden, eps)
    head = source.head(embedding if config.tied else None, config.vocab_size, hidden)
    source.finish(ignore=["lm_head.weight"] if config.tied else [])
    return Decoder(
        architecture=config.architecture,
        embedding=Embedding(embedding),
        layers=layers,
        norm=norm,
        head=Head(ops, head),
        rotaries=[Rotary(config.rope, source.device)],
        cache_specs=[LayerCacheSpec(config.kv_heads, config.head_dim, config.head_dim)] * config.layers,
        vocab_size=config.vocab_size,
        max_context=config.max_context,
        dtype=source.dtype,
        device=source.device,
        weights_bytes=source.bytes,
    )


def _attention(config: DenseConfig, source: WeightSource, ops: Ops, prefix: str, window: int | None) -> Attention:
    norms = None
    if config.head_norms:
        query_norm = build_norm(source, ops, f"{prefix}.q_norm", config.head_dim, config.eps)
        norms = (query_norm, build_norm(source, ops, f"{prefix}.k_norm", config.head_dim, config.eps))
    shape = AttentionShape(
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        scale=config.head_dim**-0.5,
        window=window,
    )
    return build_attention(
        source,
        ops,
        prefix,
        config.hidden,
        shape,
        qkv_bias=config.qkv_bias,
        output_bias=config.output_bias,
        norms=norms,
    )
