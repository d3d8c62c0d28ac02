"""What the native extension is told about a model's layers."""

from __future__ import annotations

from typing import Any

import torch

from deepseek.kernels.cpu.extension import native
from deepseek.layers.attention import Attention
from deepseek.layers.linear import GatedMLP, Linear
from deepseek.layers.mla import LatentAttention
from deepseek.layers.moe import MixtureOfExperts
from deepseek.layers.norm import RMSNorm
from deepseek.models.decoder import DecoderLayer

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}


def describe_layer(layer: DecoderLayer) -> Any:
    """The extension's LayerSpec of a layer with matrices of :class:`deepseek.models.native_weights.NativeWeights`."""
    spec = native().LayerSpec()
    spec.before_attention, spec.before_feed_forward = (
        _weight(layer.before_attention),
        _weight(layer.before_feed_forward),
    )
    spec.after_attention, spec.after_feed_forward = _weight(layer.after_attention), _weight(layer.after_feed_forward)
    spec.eps, spec.rotary = layer.before_attention.eps, layer.rotary
    if isinstance(layer.attention, LatentAttention):
        _describe_latent(spec, layer.attention)
    else:
        assert isinstance(layer.attention, Attention), layer.attention
        _describe_attention(spec, layer.attention)
    mlp: Any = layer.feed_forward
    if isinstance(mlp, MixtureOfExperts):
        assert layer.after_feed_forward is None, "no native kernel norms what experts return"
        spec.experts = _experts(mlp)
        mlp = mlp.shared
    if mlp is not None:
        assert isinstance(mlp, GatedMLP), mlp
        spec.gate_up, spec.down = _linear(mlp.gate_up, alternate=True), _linear(mlp.down)
        spec.inner, spec.activation = mlp.down.weight[0].shape[1], ACTIVATIONS[mlp.kind]
    return spec


def _describe_attention(spec: Any, attention: Attention) -> None:
    spec.query_norm, spec.key_norm = _weight(attention.query_norm), _weight(attention.key_norm)
    spec.head_eps = attention.query_norm.eps if attention.query_norm else 0.0
    spec.qkv, spec.output = _linear(attention.qkv), _linear(attention.output)
    shape = attention.shape
    spec.heads, spec.kv_heads, spec.head_dim = shape.heads, shape.kv_heads, shape.head_dim
    spec.scale, spec.window = shape.scale, shape.window or 0


def _describe_latent(spec: Any, attention: LatentAttention) -> None:
    shape, latent = attention.shape, native().LatentSpec()
    spec.heads, spec.scale, spec.output = shape.heads, shape.scale, _linear(attention.output)
    latent.nope, latent.rope, latent.rank, latent.value_dim = (
        shape.nope_dim,
        shape.rope_dim,
        shape.rank,
        shape.value_dim,
    )
    latent.interleaved = shape.interleaved
    if attention.query_down is not None:
        latent.query_down, latent.query_norm = _linear(attention.query_down), _weight(attention.query_norm)
    latent.query, latent.down = _linear(attention.query), _linear(attention.latent_down)
    latent.norm, latent.eps = _weight(attention.latent_norm), attention.latent_norm.eps
    latent.key_up, latent.value_up = attention.key_up, attention.value_up
    spec.latent = latent


def _experts(mixture: MixtureOfExperts) -> Any:
    spec, routing = native().ExpertsSpec(), mixture.routing
    spec.routing = native().Routing(
        experts=mixture.router.shape[0],
        top_k=routing.top_k,
        groups=routing.groups,
        top_groups=routing.top_groups,
        sigmoid=routing.scoring == "sigmoid",
        best_two=routing.group_score == "top2",
        normalize=routing.normalize,
        scale=routing.scale,
    )
    spec.set_router(mixture.router.contiguous().numpy())
    spec.bias = [] if mixture.bias is None else mixture.bias.tolist()
    spec.gate_up, spec.down = mixture.gate_up, mixture.down
    spec.inner, spec.activation = mixture.inner, ACTIVATIONS[mixture.kind]
    return spec


def _weight(norm: RMSNorm | None) -> list[float]:
    values: list[float] = [] if norm is None else norm.weight.tolist()
    return values


def _linear(linear: Linear, *, alternate: bool = False) -> Any:
    spec = native().LinearSpec()
    spec.parts = linear.weight
    bias = linear.bias
    if bias is not None and alternate:
        inner = bias.shape[0] // 2
        padded = torch.zeros(2, -(-inner // 32) * 32)
        padded[:, :inner] = bias.view(2, inner)
        bias = padded.view(2, -1, 32).transpose(0, 1).reshape(-1)
    spec.bias = [] if bias is None else bias.tolist()
    return spec
