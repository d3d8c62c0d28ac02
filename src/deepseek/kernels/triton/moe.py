"""Mixture of experts as two grouped matrix products over rows that are sorted by expert."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.triton.activation import activate, check_kind
from deepseek.kernels.triton.grouping import combine, plan
from deepseek.kernels.triton.quantized_moe import moe_quantized
from deepseek.kernels.triton.support import chip_of
from deepseek.kernels.triton.tiles import BAND, Tile, experts_tile, place_of
from deepseek.kernels.triton.weights import QuantizedExperts


@triton.jit(do_not_specialize=["tiles"])
def _gate_up_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    order: tl.tensor,
    expert_of: tl.tensor,
    start_of: tl.tensor,
    stop_of: tl.tensor,
    tiles: tl.tensor,
    experts: tl.tensor,
    inner: tl.tensor,
    depth: tl.tensor,
    choices: tl.tensor,
    x_stride: tl.tensor,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
    KIND: tl.constexpr,
) -> tl.tensor:
    """``act(gate) * up`` [pairs, inner] in the plan's order, of rows ``order // choices`` of ``x``."""
    tile, out_tile = place_of(tl.program_id(0), tiles, tl.cdiv(inner, OUTS), BAND)
    expert = tl.load(expert_of + tile)
    if expert < experts:
        place = tl.load(start_of + tile) + tl.arange(0, ROWS)
        mask = place < tl.load(stop_of + tile)
        row = tl.load(order + place, mask=mask, other=0) // choices
        column = out_tile * OUTS + tl.arange(0, OUTS)
        near = tl.where(column < inner, column, 0).to(tl.int64)
        step = tl.arange(0, DEPTH)[None, :]
        x_start = x + row[:, None] * x_stride
        gate_start = weight + (expert * 2 * inner + near)[:, None] * depth
        up_start = weight + (expert * 2 * inner + inner + near)[:, None] * depth
        gate = tl.zeros([ROWS, OUTS], dtype=tl.float32)
        up = tl.zeros([ROWS, OUTS], dtype=tl.float32)
        for k in range(0, depth, DEPTH):
            inside = k + step < depth
            a = tl.load(x_start + k + step, mask=inside, other=0.0)
            gate = tl.dot(
                a, tl.trans(tl.load(gate_start + k + step, mask=inside, other=0.0)), gate, input_precision="ieee"
            )
            up = tl.dot(a, tl.trans(tl.load(up_start + k + step, mask=inside, other=0.0)), up, input_precision="ieee")
        # Both are rounded as the unfused operations would.
        gate = gate.to(x.dtype.element_ty).to(tl.float32)
        up = up.to(x.dtype.element_ty).to(tl.float32)
        result = activate(gate, KIND) * up
        target = out + place[:, None] * inner + column[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=mask[:, None] & (column < inner)[None, :])


@triton.jit(do_not_specialize=["tiles"])
def _down_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    order: tl.tensor,
    expert_of: tl.tensor,
    start_of: tl.tensor,
    stop_of: tl.tensor,
    tiles: tl.tensor,
    experts: tl.tensor,
    outs: tl.tensor,
    depth: tl.tensor,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
) -> tl.tensor:
    """``hidden`` [pairs, depth] in the plan's order times its experts' matrices; row ``order[i]`` of ``out``."""
    tile, out_tile = place_of(tl.program_id(0), tiles, tl.cdiv(outs, OUTS), BAND)
    expert = tl.load(expert_of + tile)
    if expert < experts:
        place = tl.load(start_of + tile) + tl.arange(0, ROWS)
        mask = place < tl.load(stop_of + tile)
        pair = tl.load(order + place, mask=mask, other=0)
        column = out_tile * OUTS + tl.arange(0, OUTS)
        near = tl.where(column < outs, column, 0).to(tl.int64)
        step = tl.arange(0, DEPTH)[None, :]
        a_start = hidden + tl.where(mask, place, 0)[:, None] * depth
        b_start = weight + (expert * outs + near)[:, None] * depth
        total = tl.zeros([ROWS, OUTS], dtype=tl.float32)
        for k in range(0, depth, DEPTH):
            inside = k + step < depth
            a = tl.load(a_start + k + step, mask=inside, other=0.0)
            b = tl.load(b_start + k + step, mask=inside, other=0.0)
            total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
        target = out + pair[:, None] * outs + column[None, :]
        tl.store(target, total.to(out.dtype.element_ty), mask=mask[:, None] & (column < outs)[None, :])


def moe(
    x: Tensor,
    gate_up: Tensor | QuantizedExperts,
    down: Tensor | QuantizedExperts,
    expert_ids: Tensor,
    expert_weights: Tensor,
    kind: str,
    *,
    tile: Tile | None = None,
) -> Tensor:
    """As :meth:`deepseek.kernels.ops.Ops.moe`; experts may also be quantized, both matrices of them. None for ``tile``,
    which is for floating ones, chooses it by shape. Raises ValueError for an unknown ``kind``.

    Sums run over a row's experts in the order of choice, so they do not depend on the rows around it.
    """
    check_kind(kind)
    rows, choices = expert_ids.shape
    if not rows or not choices:
        return torch.zeros_like(x)
    if isinstance(gate_up, QuantizedExperts) or isinstance(down, QuantizedExperts):
        assert isinstance(gate_up, QuantizedExperts) and isinstance(down, QuantizedExperts)
        return moe_quantized(x, gate_up, down, expert_ids, expert_weights, kind)
    experts, dim, inner = down.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    gate_up, down = gate_up.contiguous(), down.contiguous()
    pairs = rows * choices
    tile = tile or experts_tile(pairs, experts, x.element_size(), chip_of(x.device))
    own = plan(expert_ids, experts, tile.rows)
    tiles = own.expert.shape[0]
    sizes = {"ROWS": tile.rows, "OUTS": tile.outs, "DEPTH": tile.depth, "BAND": BAND}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    hidden = torch.empty(pairs, inner, dtype=x.dtype, device=x.device)
    _gate_up_kernel[(tiles * triton.cdiv(inner, tile.outs),)](
        x, gate_up, hidden, *own, tiles, experts, inner, dim, choices, x.stride(0), **sizes, KIND=kind, **options
    )
    results = torch.empty(pairs, dim, dtype=x.dtype, device=x.device)
    _down_kernel[(tiles * triton.cdiv(dim, tile.outs),)](
        hidden, down, results, *own, tiles, experts, dim, inner, **sizes, **options
    )
    return combine(results, expert_weights)
