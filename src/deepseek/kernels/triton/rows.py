"""How kernels walk over the rows of a tensor that may be a slice of a wider one."""

from __future__ import annotations

from dataclasses import dataclass

import triton
from torch import Tensor

_TILE = 1024
_MOST_ROWS = 16


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a tensor [..., dim], addressed as two nested dimensions.

    Attributes:
        data: the tensor, or a contiguous copy if its strides cannot be expressed.
        count: how many rows.
        dim: elements of a row, next to each other in memory.
        inner: row r begins at element ``r // inner * stride_outer + r % inner * stride_inner``.
        block: ``dim`` rounded up to a power of two.
        tile: rows for one program, so that narrow rows do not leave it idle.
    """

    data: Tensor
    count: int
    dim: int
    inner: int
    stride_outer: int
    stride_inner: int
    block: int
    tile: int


def rows_of(x: Tensor) -> Rows:
    """The rows of ``x`` [..., dim]; copies it only where it has more than three dimensions that do not lie together, or
    the elements of a row are apart."""
    if not x.is_contiguous() and (x.dim() > 3 or x.stride(-1) != 1):
        x = x.contiguous()
    dim = x.shape[-1]
    count = x.numel() // dim if dim else 0
    if x.dim() == 3:
        inner, stride_outer, stride_inner = x.shape[1], x.stride(0), x.stride(1)
    else:
        inner, stride_outer, stride_inner = 1, x.stride(0) if x.dim() == 2 else dim, 0
    block = triton.next_power_of_2(dim)
    tile = max(1, min(_MOST_ROWS, _TILE // block))
    return Rows(x, count, dim, inner, stride_outer, stride_inner, block, tile)


def warps_for(elements: int) -> int:
    """Warps for a tile of so many elements: eight for each thread, between 1 and 16 warps."""
    warps: int = triton.next_power_of_2(elements) // 256
    return max(1, min(16, warps))
