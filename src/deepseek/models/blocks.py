"""Building the layers that several families have from a checkpoint's tensors."""

from __future__ import annotations

from typing import Any

from deepseek.kernels.ops import Ops
from deepseek.layers.attention import Attention, AttentionShape
from deepseek.layers.linear import GatedMLP, Linear
from deepseek.layers.norm import RMSNorm
from deepseek.models.weights import WeightSource


def build_norm(source: WeightSource, ops: Ops, name: str, dim: int, eps: float, *, offset: float = 0.0) -> RMSNorm:
    """``offset`` is added to the stored weight (Gemma stores it less one)."""
    weight = source.tensor(f"{name}.weight", (dim,))
    return RMSNorm(ops, weight + offset if offset else weight, eps)


def build_linear(source: WeightSource, ops: Ops, name: str, rows: int, columns: int, *, bias: bool = False) -> Linear:
    weight = source.matrix([f"{name}.weight"], [rows], columns)
    return Linear(ops, weight, source.optional(f"{name}.bias", (rows,), bias))


def build_fused(
    source: WeightSource,
    ops: Ops,
    names: list[str],
    rows: list[int],
    columns: int,
    *,
    bias: bool = False,
    gated: bool = False,
) -> Linear:
    """Projections of the same input as one matrix; ``gated`` says that it is [gate | up]."""
    weight = source.matrix([f"{name}.weight" for name in names], rows, columns, gated=gated)
    return Linear(ops, weight, source.fused([f"{name}.bias" for name in names], rows) if bias else None)


def build_mlp(
    source: WeightSource, ops: Ops, prefix: str, hidden: int, inner: int, kind: str, *, bias: bool = False
) -> GatedMLP:
    names = [f"{prefix}.gate_proj", f"{prefix}.up_proj"]
    gate_up = build_fused(source, ops, names, [inner, inner], hidden, bias=bias, gated=True)
    return GatedMLP(ops, gate_up, build_linear(source, ops, f"{prefix}.down_proj", hidden, inner, bias=bias), kind)


def build_attention(
    source: WeightSource,
    ops: Ops,
    prefix: str,
    hidden: int,
    shape: AttentionShape,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    norms: tuple[RMSNorm, RMSNorm] | None = None,
) -> Attention:
    """``norms`` are those of query and key heads."""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    names = [f"{prefix}.{part}_proj" for part in "qkv"]
    qkv = build_fused(source, ops, names, [query, key, key], hidden, bias=qkv_bias)
    output = build_linear(source, ops, f"{prefix}.o_proj", hidden, query, bias=output_bias)
    query_norm, key_norm = norms or (None, None)
    return Attention(ops, shape, qkv, output, query_norm, key_norm)


def load_experts(source: WeightSource, prefix: str, count: int, hidden: int, inner: int) -> tuple[Any, Any]:
    """(gate and up [count, 2 * inner, hidden], down [count, hidden, inner]) of ``prefix``.0 ... ``prefix``.count-1."""
    gate_up = source.stacked(
        [(f"{prefix}.{e}.gate_proj.weight", f"{prefix}.{e}.up_proj.weight") for e in range(count)], inner, hidden
    )
    down = source.stacked([(f"{prefix}.{e}.down_proj.weight",) for e in range(count)], hidden, inner)
    return gate_up, down
