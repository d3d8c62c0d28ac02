"""DeepSeek-V2 (arXiv:2405.04434) and DeepSeek-V3 (arXiv:2412.19437): latent attention and many small experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deepseek.errors import CheckpointError
from deepseek.kernels.ops import Ops
from deepseek.layers.embedding import Embedding, Head
from deepseek.layers.mla import LatentAttention, LatentShape
from deepseek.layers.moe import FeedForward, MixtureOfExperts, Routing
from deepseek.layers.rotary import RopeConfig, Rotary
from deepseek.models.base import LayerCacheSpec
from deepseek.models.blocks import build_linear, build_mlp, build_norm, load_experts
from deepseek.models.config import ConfigReader, read_rope, stretched_context
from deepseek.models.decoder import Decoder, DecoderLayer
from deepseek.models.weights import WeightSource

# The norms inside latent attention do not follow rms_norm_eps.
LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class DeepseekConfig:
    """Either generation.

    Attributes:
        query_rank: of the low-rank query path; None projects queries directly.
        bias: the down projections and the output projection have one.
        sparse: layers with experts.
        shared_experts: experts that see every token, stored as one wide MLP; 0 for none.
        choice_bias: the router has a bias that counts in the choice only (V3).
    """

    architecture: str
    vocab_size: int
    hidden: int
    layers: int
    intermediate: int
    activation: str
    eps: float
    rope: RopeConfig
    max_context: int
    tied: bool
    attention: LatentShape
    query_rank: int | None
    bias: bool
    sparse: frozenset[int]
    experts: int
    expert_intermediate: int
    shared_experts: int
    routing: Routing
    choice_bias: bool


def parse_deepseek_v2(config: Mapping[str, Any]) -> DeepseekConfig:
    reader = ConfigReader(config)
    method = reader.raw("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise reader.unsupported("topk_method", method, "implemented: greedy, group_limited_greedy")
    reader.only("scoring_func", "softmax")
    reader.only("norm_topk_prob", False)
    reader.only("mlp_bias", False)
    grouped = method == "group_limited_greedy"
    groups, top_groups = reader.raw("n_group", None), reader.raw("topk_group", None)
    routing = Routing(
        top_k=reader.integer("num_experts_per_tok"),
        groups=groups if grouped else 1,
        top_groups=top_groups if grouped else 1,
        scale=reader.number("routed_scaling_factor", 1.0),
    )
    return _parse(reader, "DeepseekV2ForCausalLM", routing, interleaved=True, first_dense=0, shared=2)


def parse_deepseek_v3(config: Mapping[str, Any]) -> DeepseekConfig:
    reader = ConfigReader(config)
    reader.only("topk_method", "noaux_tc")
    reader.only("scoring_func", "sigmoid")
    # Layers behind the last are for multi-token prediction: they draft tokens and change no logits.
    reader.raw("num_nextn_predict_layers", 0)
    routing = Routing(
        top_k=reader.integer("num_experts_per_tok", 8),
        scoring="sigmoid",
        groups=reader.integer("n_group", 8),
        top_groups=reader.integer("topk_group", 4),
        group_score="top2",
        normalize=reader.flag("norm_topk_prob", True),
        scale=reader.number("routed_scaling_factor", 2.5),
    )
    interleaved = reader.flag("rope_interleave", True)
    return _parse(reader, "DeepseekV3ForCausalLM", routing, interleaved=interleaved, first_dense=3, shared=1)


def _parse(
    reader: ConfigReader, architecture: str, routing: Routing, *, interleaved: bool, first_dense: int, shared: int
) -> DeepseekConfig:
    heads, nope, rope_dim = (
        reader.integer(key) for key in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim")
    )
    reader.only("num_key_value_heads", heads)
    reader.only("qk_head_dim", nope + rope_dim)
    reader.only("head_dim", rope_dim, nope + rope_dim)
    layers, context = reader.integer("num_hidden_layers"), reader.integer("max_position_embeddings")
    experts, step = reader.integer("n_routed_experts"), reader.integer("moe_layer_freq", 1)
    _check_routing(routing, experts)
    first = reader.integer("first_k_dense_replace", first_dense, minimum=0)
    rope = read_rope(reader, rope_dim, context)
    parsed = DeepseekConfig(
        architecture=architecture,
        vocab_size=reader.integer("vocab_size"),
        hidden=reader.integer("hidden_size"),
        layers=layers,
        intermediate=reader.integer("intermediate_size"),
        activation=reader.activation("hidden_act", "silu"),
        eps=reader.number("rms_norm_eps", 1e-6),
        rope=rope,
        max_context=stretched_context(context, rope),
        tied=reader.flag("tie_word_embeddings", False),
        attention=LatentShape(
            heads=heads,
            nope_dim=nope,
            rope_dim=rope_dim,
            value_dim=reader.integer("v_head_dim"),
            rank=reader.integer("kv_lora_rank"),
            scale=(nope + rope_dim) ** -0.5 * rope.softmax_factor,
            interleaved=interleaved,
        ),
        query_rank=reader.raw("q_lora_rank", None),
        bias=reader.flag("attention_bias", False),
        sparse=frozenset(i for i in range(layers) if i >= first and i % step == 0),
        experts=experts,
        expert_intermediate=reader.integer("moe_intermediate_size"),
        shared_experts=reader.integer("n_shared_experts", shared, minimum=0),
        routing=routing,
        choice_bias=routing.scoring == "sigmoid",
    )
    reader.finish()
    return parsed


def _check_routing(routing: Routing, experts: int) -> None:
    groups, chosen = routing.groups, routing.top_groups
    if not (isinstance(groups, int) and isinstance(chosen, int) and 0 < chosen <= groups and experts % groups == 0):
        raise CheckpointError(f"config has n_group {groups} and topk_group {chosen} for {experts} experts.")
    if routing.top_k > experts // groups * chosen:
        raise CheckpointError(
            f"config asks for {routing.top_k} experts per token out of {chosen} groups of {experts // groups}."
        )
    if routing.group_score == "top2" and groups > 1 and experts // groups < 2:
        raise CheckpointError(f"config has groups of {experts // groups} experts; a group's score needs two.")


def build_deepseek(config: DeepseekConfig, source: WeightSource, ops: Ops) -> Decoder:
    embedding = source.embedding("model.embed_tokens.weight", config.vocab_size, config.hidden)
    layers = []
    for index in range(config.layers):
        prefix = f"model.layers.{index}"
        layers.append(
            DecoderLayer(
                attention=_attention(config, source, ops, f"{prefix}.self_attn"),
                feed_forward=_feed_forward(config, source, ops, f"{prefix}.mlp", index),
                before_attention=build_norm(source, ops, f"{prefix}.input_layernorm", config.hidden, config.eps),
                before_feed_forward=build_norm(
                    source, ops, f"{prefix}.post_attention_layernorm", config.hidden, config.eps
                ),
            )
        )
    norm = build_norm(source, ops, "model.norm", config.hidden, config.eps)
    head = source.head(embedding if config.tied else None, config.vocab_size, config.hidden)
    beyond = [rf"model\.layers\.{i}\..*" for i in range(config.layers, config.layers + 8)]
    source.finish(ignore=[*beyond, "lm_head.weight"] if config.tied else beyond)
    shape = config.attention
    return Decoder(
        architecture=config.architecture,
        embedding=Embedding(embedding),
        layers=layers,
        norm=norm,
        head=Head(ops, head),
        rotaries=[Rotary(config.rope, source.device)],
        cache_specs=[LayerCacheSpec(1, shape.rank + shape.rope_dim, 0)] * config.layers,
        vocab_size=config.vocab_size,
        max_context=config.max_context,
        dtype=source.dtype,
        device=source.device,
        weights_bytes=source.bytes,
    )


def _attention(config: DeepseekConfig, source: WeightSource, ops: Ops, prefix: str) -> LatentAttention:
    shape, hidden, rank = config.attention, config.hidden, config.query_rank
    query_rows = shape.heads * (shape.nope_dim + shape.rope_dim)
    query_down = query_norm = None
    if rank is None:
        query = build_linear(source, ops, f"{prefix}.q_proj", query_rows, hidden)
    else:
        query_down = build_linear(source, ops, f"{prefix}.q_a_proj", rank, hidden, bias=config.bias)
        query_norm = build_norm(source, ops, f"{prefix}.q_a_layernorm", rank, LATENT_NORM_EPS)
        query = build_linear(source, ops, f"{prefix}.q_b_proj", query_rows, rank)
    key_up, value_up = source.latent_up(
        f"{prefix}.kv_b_proj.weight", shape.heads, shape.nope_dim, shape.value_dim, shape.rank
    )
    return LatentAttention(
        ops,
        shape,
        query_down=query_down,
        query_norm=query_norm,
        query=query,
        latent_down=build_linear(
            source, ops, f"{prefix}.kv_a_proj_with_mqa", shape.rank + shape.rope_dim, hidden, bias=config.bias
        ),
        latent_norm=build_norm(source, ops, f"{prefix}.kv_a_layernorm", shape.rank, LATENT_NORM_EPS),
        key_up=key_up,
        value_up=value_up,
        output=build_linear(source, ops, f"{prefix}.o_proj", hidden, shape.heads * shape.value_dim, bias=config.bias),
    )


def _feed_forward(config: DeepseekConfig, source: WeightSource, ops: Ops, prefix: str, index: int) -> FeedForward:
    hidden, kind, inner = config.hidden, config.activation, config.expert_intermediate
    if index not in config.sparse:
        return build_mlp(source, ops, prefix, hidden, config.intermediate, kind)
    router = source.tensor(f"{prefix}.gate.weight", (config.experts, hidden), torch.float32)
    bias = None
    if config.choice_bias:
        bias = source.tensor(f"{prefix}.gate.e_score_correction_bias", (config.experts,), torch.float32)
    gate_up, down = load_experts(source, f"{prefix}.experts", config.experts, hidden, inner)
    shared = None
    if config.shared_experts:
        shared = build_mlp(source, ops, f"{prefix}.shared_experts", hidden, inner * config.shared_experts, kind)
    return MixtureOfExperts(
        ops,
        config.routing,
        router=router,
        bias=bias,
        gate_up=gate_up,
        down=down,
        inner=inner,
        shared=shared,
        kind=kind,
    )
