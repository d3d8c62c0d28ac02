"""Mixture of experts as two grouped matrix products over rows that are sorted by expert.

Nothing here waits for the device: how many rows an expert has is never known to the host. The grid is as large as the
worst distribution could need, and a plan on the device tells each program its rows, or that there are none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.triton.activation import activate, check_kind
from deepseek.kernels.triton.support import chip_of
from deepseek.kernels.triton.tiles import BAND, Tile, experts_tile, place_of

_COMBINE_BLOCK = 1024


class Plan(NamedTuple):
    """Which rows each tile computes. A *pair* is one row's choice of one expert, numbered ``row * K + choice``.

    Attributes:
        order: int64 [pairs], pairs sorted by expert; pairs of one expert stay in order.
        expert: int64 [tiles], the expert of each tile; behind the last tile that is needed, the number of experts.
        start: int64 [tiles], where its pairs begin in ``order``.
        stop: int64 [tiles], where its expert's pairs end.
    """

    order: Tensor
    expert: Tensor
    start: Tensor
    stop: Tensor


def plan(expert_ids: Tensor, experts: int, tile_rows: int) -> Plan:
    """The plan for ``expert_ids`` int64 [T, K] in tiles of ``tile_rows`` pairs, computed where they lie."""
    chosen = expert_ids.flatten()
    pairs, device = chosen.shape[0], chosen.device
    ranked, order = chosen.sort(stable=True)
    bounds = torch.searchsorted(ranked, torch.arange(experts + 1, device=device))
    tiles_until = (torch.diff(bounds) + tile_rows - 1).div(tile_rows, rounding_mode="floor").cumsum(0)
    # Only an expert's last tile is not full, and at most min(experts, pairs) experts have any.
    tile = torch.arange(pairs // tile_rows + min(experts, pairs), device=device)
    expert = torch.searchsorted(tiles_until, tile, right=True)
    known = expert.clamp(max=experts - 1)
    ahead = torch.where(known > 0, tiles_until[(known - 1).clamp(min=0)], 0)
    return Plan(order, expert, bounds[known] + (tile - ahead) * tile_rows, bounds[known + 1])


@triton.jit
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


@triton.jit
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


@triton.jit
def _combine_kernel(
    results: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    dim: tl.tensor,
    weights_stride: tl.tensor,
    CHOICES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """``sum_k weights[t, k] * results[t, k]`` in fp32 and in the order of choice."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < dim
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for choice in tl.static_range(CHOICES):
        value = tl.load(results + (row * CHOICES + choice) * dim + column, mask=mask, other=0.0).to(tl.float32)
        total += value * tl.load(weights + row * weights_stride + choice)
    tl.store(out + row * dim + column, total.to(out.dtype.element_ty), mask=mask)


def moe(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    kind: str,
    *,
    tile: Tile | None = None,
) -> Tensor:
    """As :meth:`deepseek.kernels.ops.Ops.moe`; None for ``tile`` chooses it by shape. Raises ValueError for an unknown
    ``kind``.

    Sums run over a row's experts in the order of choice, so they do not depend on the rows around it.
    """
    check_kind(kind)
    rows, choices = expert_ids.shape
    experts, dim, inner = down.shape
    if not rows or not choices:
        return torch.zeros_like(x)
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
    out = torch.empty(rows, dim, dtype=x.dtype, device=x.device)
    block = min(_COMBINE_BLOCK, triton.next_power_of_2(dim))
    weights = expert_weights if expert_weights.stride(1) == 1 else expert_weights.contiguous()
    _combine_kernel[(rows, triton.cdiv(dim, block))](
        results, weights, out, dim, weights.stride(0), CHOICES=choices, BLOCK=block, num_warps=4
    )
    return out
