"""Rotary position embedding, in place."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.triton.rows import warps_for

_TILE = 1024


@triton.jit
def _rotary_kernel(
    x: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    heads: tl.tensor,
    stride_row: tl.tensor,
    stride_head: tl.tensor,
    stride_cos: tl.tensor,
    stride_sin: tl.tensor,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
) -> tl.tensor:
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, BLOCK)
    c = tl.load(cos + row * stride_cos + pair, mask=pair < HALF, other=0.0)[None, :]
    s = tl.load(sin + row * stride_sin + pair, mask=pair < HALF, other=0.0)[None, :]
    mask = (head < heads)[:, None] & (pair < HALF)[None, :]
    start = x + row * stride_row + head[:, None] * stride_head
    if INTERLEAVED:
        first = start + 2 * pair[None, :]
        second = first + 1
    else:
        first = start + pair[None, :]
        second = first + HALF
    a = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(second, mask=mask, other=0.0).to(tl.float32)
    tl.store(first, (a * c - b * s).to(x.dtype.element_ty), mask=mask)
    tl.store(second, (b * c + a * s).to(x.dtype.element_ty), mask=mask)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """As :meth:`deepseek.kernels.ops.Ops.rotary`, in place; ``x`` may be some heads of a wider projection."""
    assert x.stride(-1) == 1 and cos.stride(-1) == 1 and sin.stride(-1) == 1
    rows, heads, _ = x.shape
    half = cos.shape[-1]
    if rows and heads and half:
        block = triton.next_power_of_2(half)
        tile = max(1, min(triton.next_power_of_2(heads), _TILE // block))
        _rotary_kernel[(rows, triton.cdiv(heads, tile))](
            x,
            cos,
            sin,
            heads,
            x.stride(0),
            x.stride(1),
            cos.stride(0),
            sin.stride(0),
            HALF=half,
            HEADS=tile,
            BLOCK=block,
            INTERLEAVED=interleaved,
            num_warps=warps_for(tile * block),
        )
    return x
