"""Activations as 8-bit integers, one scale per row: by itself, and as the last step of other kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.triton.rows import rows_of, warps_for


class Int8Rows(NamedTuple):
    """Rows ``q * scale``: ``q`` int8 [T, dim] in -127 ... 127, ``scale`` fp32 [T].

    The scale is the row's largest magnitude divided by 127. A row that holds NaN or infinity has the scale NaN, so that
    whatever is computed from it is NaN.
    """

    q: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """fp32 [T, dim]."""
        return self.q.float() * self.scale[:, None]


def empty_int8_rows(rows: int, dim: int, device: torch.device) -> Int8Rows:
    q = torch.empty(rows, dim, dtype=torch.int8, device=device)
    return Int8Rows(q, torch.empty(rows, dtype=torch.float32, device=device))


@triton.jit
def row_scale(largest: tl.tensor, total: tl.tensor) -> tl.tensor:
    """fp32 scale from a row's largest magnitude and its sum times zero, which is NaN where any value is not finite."""
    return largest / 127.0 + total


@triton.jit
def to_int8(value: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """``value / scale`` to the nearest integer, ties to even; 0 where the scale is 0 or NaN."""
    steps = value / tl.where(scale > 0.0, scale, 1.0)
    # Adding 1.5 * 2^23 leaves no bits behind the point of any fp32 up to 2^22.
    steps = (steps + 12582912.0) - 12582912.0
    steps = tl.minimum(tl.maximum(steps, -127.0), 127.0)
    return tl.where(scale > 0.0, steps, 0.0).to(tl.int8)


@triton.jit(do_not_specialize=["rows"])
def _quantize_kernel(
    x: tl.tensor,
    q: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    inner: tl.tensor,
    stride_outer: tl.tensor,
    stride_inner: tl.tensor,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK)
    start = row // inner * stride_outer + row % inner * stride_inner
    mask = (row < rows)[:, None] & (column < DIM)[None, :]
    value = tl.load(x + start[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    scale = row_scale(tl.max(tl.abs(value), axis=1), tl.sum(value * 0.0, axis=1))
    tl.store(q + row[:, None] * DIM + column[None, :], to_int8(value, scale[:, None]), mask=mask)
    tl.store(scales + row, scale, mask=row < rows)


def quantize(x: Tensor) -> Int8Rows:
    """``x`` [..., dim] of any floating dtype as :class:`Int8Rows` [T, dim], T being the product of the leading
    sizes."""
    rows = rows_of(x)
    out = empty_int8_rows(rows.count, rows.dim, x.device)
    if rows.count:
        _quantize_kernel[(triton.cdiv(rows.count, rows.tile),)](
            rows.data,
            out.q,
            out.scale,
            rows.count,
            rows.inner,
            rows.stride_outer,
            rows.stride_inner,
            DIM=rows.dim,
            ROWS=rows.tile,
            BLOCK=rows.block,
            num_warps=warps_for(rows.tile * rows.block),
        )
    return out
