"""Qwen 2 (arXiv:2407.10671), Qwen 3 and Qwen 3 MoE (arXiv:2505.09388)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deepseek.errors import CheckpointError
from deepseek.kernels.ops import Ops
from deepseek.layers.moe import FeedForward, MixtureOfExperts, Routing
from deepseek.layers.rotary import RopeConfig
from deepseek.models.blocks import load_experts
from deepseek.models.config import ConfigReader
from deepseek.models.decoder import Decoder
from deepseek.models.llama import DenseConfig, build_decoder, dense_mlp, read_dense
from deepseek.models.weights import WeightSource


@dataclass(frozen=True, kw_only=True)
class QwenMoeConfig:
    """``dense`` describes everything but the experts; ``sparse`` are the layers that have them."""

    dense: DenseConfig
    experts: int
    expert_intermediate: int
    routing: Routing
    sparse: frozenset[int]

    @property
    def max_context(self) -> int:
        return self.dense.max_context

    @property
    def rope(self) -> RopeConfig:
        return self.dense.rope


def parse_qwen2(config: Mapping[str, Any]) -> DenseConfig:
    reader = ConfigReader(config)
    parsed = read_dense(reader, "Qwen2ForCausalLM", qkv_bias=True, windows=_windows(reader))
    reader.only("attention_bias", True)
    reader.finish()
    return parsed


def parse_qwen3(config: Mapping[str, Any]) -> DenseConfig:
    reader = ConfigReader(config)
    bias = reader.flag("attention_bias", False)
    parsed = read_dense(
        reader, "Qwen3ForCausalLM", head_norms=True, qkv_bias=bias, output_bias=bias, windows=_windows(reader)
    )
    reader.finish()
    return parsed


def parse_qwen3_moe(config: Mapping[str, Any]) -> QwenMoeConfig:
    reader = ConfigReader(config)
    bias = reader.flag("attention_bias", False)
    reader.only("use_sliding_window", False)
    reader.raw("sliding_window", None)
    reader.raw("max_window_layers", None)
    reader.only("shared_expert_intermediate_size", 0)
    dense = read_dense(reader, "Qwen3MoeForCausalLM", head_norms=True, qkv_bias=bias, output_bias=bias)
    experts = reader.integer("num_experts", reader.raw("num_local_experts", None))
    top_k, step = reader.integer("num_experts_per_tok"), reader.integer("decoder_sparse_step", 1)
    if top_k > experts:
        raise CheckpointError(f"config asks for {top_k} experts per token and has {experts}.")
    dense_only = set(reader.raw("mlp_only_layers", []))
    parsed = QwenMoeConfig(
        dense=dense,
        experts=experts,
        expert_intermediate=reader.integer("moe_intermediate_size"),
        routing=Routing(top_k=top_k, normalize=reader.flag("norm_topk_prob", False)),
        sparse=frozenset(i for i in range(dense.layers) if (i + 1) % step == 0 and i not in dense_only),
    )
    reader.raw("num_local_experts", None)
    reader.finish()
    return parsed


def _windows(reader: ConfigReader) -> tuple[int | None, ...]:
    """Layers from ``max_window_layers`` on slide, if ``use_sliding_window`` says so."""
    layers, slides = reader.integer("num_hidden_layers"), reader.flag("use_sliding_window", False)
    window = reader.raw("sliding_window", None)
    window = reader.integer("sliding_window") if slides and window is not None else None
    first = reader.integer("max_window_layers", 28, minimum=0)
    default = ["sliding_attention" if window is not None and i >= first else "full_attention" for i in range(layers)]
    return reader.layer_windows(layers, window, default)


def build_qwen3_moe(config: QwenMoeConfig, source: WeightSource, ops: Ops) -> Decoder:
    dense = config.dense

    def feed_forward(prefix: str, layer: int) -> FeedForward:
        if layer not in config.sparse:
            return dense_mlp(dense, source, ops, prefix)
        router = source.tensor(f"{prefix}.gate.weight", (config.experts, dense.hidden), torch.float32)
        gate_up, down = load_experts(
            source, f"{prefix}.experts", config.experts, dense.hidden, config.expert_intermediate
        )
        return MixtureOfExperts(
            ops,
            config.routing,
            router=router,
            bias=None,
            gate_up=gate_up,
            down=down,
            inner=config.expert_intermediate,
            shared=None,
            kind=dense.activation,
        )

    return build_decoder(dense, source, ops, feed_forward)
