"""Rows sorted by expert: the plan that grouped products follow, and what brings their results back to the rows.

Nothing here waits for the device: how many rows an expert has is never known to the host. The grid is as large as the
worst distribution could need, and a plan on the device tells each program its rows, or that there are none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

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


def combine(results: Tensor, weights: Tensor) -> Tensor:
    """``results`` [T * K, dim] of the pairs times ``weights`` fp32 [T, K], summed for each row: [T, dim]."""
    rows, choices = weights.shape
    dim = results.shape[1]
    out = torch.empty(rows, dim, dtype=results.dtype, device=results.device)
    block = min(_COMBINE_BLOCK, triton.next_power_of_2(dim))
    weights = weights if weights.stride(1) == 1 else weights.contiguous()
    _combine_kernel[(rows, triton.cdiv(dim, block))](
        results, weights, out, dim, weights.stride(0), CHOICES=choices, BLOCK=block, num_warps=4
    )
    return out
