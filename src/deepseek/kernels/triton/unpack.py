"""INT4 weights as INT8, written to memory: for prompts, whose many tiles of rows would each unpack them again."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from deepseek.kernels.triton.sums import to_steps
from deepseek.kernels.triton.weights import Int4Weight, Int8Weight

_OUTS = 32


@triton.jit
def _unpack_kernel(
    q: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    steps: tl.tensor,
    out: tl.tensor,
    outs: tl.tensor,
    columns: tl.tensor,
    GROUP: tl.constexpr,
    OUTS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Grid (tiles of outputs, panels)."""
    row = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    near = tl.where(row < outs, row, 0)
    panel = tl.program_id(1)
    step = tl.arange(0, WIDTH)[None, :]
    own = tl.load(steps + near)
    inverse = 1.0 / tl.where(own > 0.0, own, 1.0)
    value = tl.load(q + (panel * outs + near).to(tl.int64)[:, None] * WIDTH + step)
    to = out + near.to(tl.int64)[:, None] * columns
    for half in tl.static_range(2):
        column = (panel * 2 + half) * WIDTH
        place = column // GROUP * outs + near
        weight = to_steps((value >> (4 * half)) & 15, scale, minimum, inverse, place)
        tl.store(to + column + step, weight, mask=(row < outs)[:, None] & (column + step < columns))


def unpacked(weight: Int4Weight) -> Int8Weight:
    """The INT8 weights that ``weight`` becomes beside INT8 rows (:attr:`Int4Weight.steps`)."""
    outs, columns = weight.shape
    q = torch.empty(outs, columns, dtype=torch.int8, device=weight.q.device)
    _unpack_kernel[(triton.cdiv(outs, _OUTS), weight.q.shape[0])](
        weight.q,
        weight.scale,
        weight.minimum,
        weight.steps,
        q,
        outs,
        columns,
        GROUP=weight.group,
        OUTS=_OUTS,
        WIDTH=weight.width,
        num_warps=4,
    )
    return Int8Weight(q, weight.steps[None, :], columns)
