"""Matrix products: 16-bit weights go to cuBLAS, quantized ones to the kernels here.

Four forms of quantized products. *W8A8* and *W4A8*: both sides INT8, sums exact in INT32, so that a row's result does
not depend on the rows around it or on how its depth is cut. Weights of four bits are rounded on their way to INT8 with
one step per output (two scales, as in QServe, Lin et al. 2024, arXiv:2405.04532, but nothing is stored twice): a scale
per group would have to be applied to the sums of each group, which takes longer than their product. *W8A16* and
*W4A16*: weights become 16-bit floats in registers; for few rows their scales are applied to the sums of each group,
exactly as they are stored, for many rows to the weights. Where few rows meet a small matrix, the depth is cut into
parts that a second kernel adds up.

Up to :data:`.tiles.FEW_ROWS` rows stay 16-bit floats: such a product waits for its weights, and INT8 rows would cost
accuracy and win nothing. From :data:`.tiles.UNPACKED_ROWS` rows on, INT4 weights are unpacked to memory first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.triton.quantize import Int8Rows, quantize
from deepseek.kernels.triton.sums import int8_sum, weight_only_sum
from deepseek.kernels.triton.support import chip_of
from deepseek.kernels.triton.tiles import (
    BAND,
    FEW_ROWS,
    PRESCALE_ROWS,
    UNPACKED_ROWS,
    Tile,
    float_rows_tile,
    int8_rows_tile,
    place_of,
    splits_for,
)
from deepseek.kernels.triton.unpack import unpacked
from deepseek.kernels.triton.weights import Int4Weight, QuantizedWeight, parts_of, takes_int8_rows

_REDUCE_BLOCK = 1024


@triton.jit(do_not_specialize=["rows", "part"])
def _int8_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    q: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    steps: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outs: tl.tensor,
    depth: tl.tensor,
    part: tl.tensor,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
    EVEN: tl.constexpr,
    SPLIT: tl.constexpr,
) -> tl.tensor:
    """``part`` steps of the depth in each program along axis 1. SPLIT: ``out`` is int32 [splits, rows, outs], else the
    finished result."""
    row_tile, out_tile = place_of(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(outs, OUTS), BAND)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = out_tile * OUTS + tl.arange(0, OUTS)
    # Behind the last row or column the first is computed again, and not stored: loads need no mask for it.
    x_start = x + tl.where(row < rows, row, 0).to(tl.int64)[:, None] * depth
    near = tl.where(column < outs, column, 0)
    first = tl.program_id(1) * part
    stop = tl.minimum(first + part, tl.cdiv(depth, DEPTH * (8 // BITS)))
    total = int8_sum(
        x_start, q, scale, minimum, steps, near, outs, depth, first, stop, BITS, GROUP, ROWS, OUTS, DEPTH, EVEN
    )
    mask = (row < rows)[:, None] & (column < outs)[None, :]
    place = row.to(tl.int64)[:, None] * outs + column[None, :]
    if SPLIT:
        tl.store(out + tl.program_id(1).to(tl.int64) * rows * outs + place, total, mask=mask)
    else:
        result = total.to(tl.float32) * tl.load(x_scale + row, mask=row < rows, other=0.0)[:, None]
        result *= tl.load(steps + column, mask=column < outs, other=0.0)[None, :]
        if bias is not None:
            result += tl.load(bias + column, mask=column < outs, other=0.0).to(tl.float32)[None, :]
        tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "part"])
def _weight_only_kernel(
    x: tl.tensor,
    q: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outs: tl.tensor,
    depth: tl.tensor,
    x_stride: tl.tensor,
    part: tl.tensor,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
    PRESCALE: tl.constexpr,
    SPLIT: tl.constexpr,
) -> tl.tensor:
    """``part`` steps of the depth in each program along axis 1. SPLIT: ``out`` is fp32 [splits, rows, outs], else the
    finished result."""
    row_tile, out_tile = place_of(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(outs, OUTS), BAND)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = out_tile * OUTS + tl.arange(0, OUTS)
    near = tl.where(column < outs, column, 0)
    x_start = x + tl.where(row < rows, row, 0).to(tl.int64)[:, None] * x_stride
    first = tl.program_id(1) * part
    stop = tl.minimum(first + part, tl.cdiv(depth, DEPTH * (8 // BITS)))
    total = weight_only_sum(
        x_start, q, scale, minimum, near, outs, depth, first, stop, BITS, GROUP, ROWS, OUTS, DEPTH, PRESCALE
    )
    mask = (row < rows)[:, None] & (column < outs)[None, :]
    place = row.to(tl.int64)[:, None] * outs + column[None, :]
    if SPLIT:
        tl.store(out + tl.program_id(1).to(tl.int64) * rows * outs + place, total, mask=mask)
    else:
        if bias is not None:
            total += tl.load(bias + column, mask=column < outs, other=0.0).to(tl.float32)[None, :]
        tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["splits"])
def _reduce_kernel(
    parts: tl.tensor,
    x_scale: tl.tensor,
    q_scale: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    outs: tl.tensor,
    splits: tl.tensor,
    size: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Adds ``parts`` [splits, rows, outs] up in order, ``size`` being rows * outs; int32 parts get their scales
    here."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < outs
    place = parts + row * outs + column
    total = tl.zeros([BLOCK], dtype=parts.dtype.element_ty)
    for _ in range(splits):
        total += tl.load(place, mask=mask, other=0)
        place += size
    result = total.to(tl.float32)
    if x_scale is not None:
        result = result * tl.load(x_scale + row) * tl.load(q_scale + column, mask=mask, other=0.0)
    if bias is not None:
        result += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * outs + column, result.to(out.dtype.element_ty), mask=mask)


def pack_linear(weight: Tensor) -> Tensor:
    """Row-major, as cuBLAS takes it."""
    return weight.contiguous()


def linear(x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """As :meth:`deepseek.kernels.ops.Ops.linear`; ``weight`` may also be a quantized one.

    More than a few rows of ``x`` [T, in] are quantized per row too, where a kernel takes them with such weights.
    """
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    if takes_int8_rows(weight) and x.shape[0] > FEW_ROWS:
        if isinstance(weight, Int4Weight) and x.shape[0] >= UNPACKED_ROWS:
            weight = unpacked(weight)
        return linear_int8(quantize(x), weight, bias, x.dtype)
    return linear_weight_only(x, weight, bias)


def linear_int8(
    x: Int8Rows,
    weight: QuantizedWeight,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    tile: Tile | None = None,
    splits: int | None = None,
) -> Tensor:
    """W8A8 and W4A8: ``x`` [T, in] times ``weight`` (see :func:`.weights.takes_int8_rows`) plus ``bias``, in ``dtype``
    [T, out].

    The result depends on neither ``tile`` nor ``splits``, which None chooses by shape.
    """
    assert takes_int8_rows(weight)
    rows, depth = x.q.shape
    outs = weight.shape[0]
    out = torch.empty(rows, outs, dtype=dtype, device=x.q.device)
    if not rows:
        return out
    chip = chip_of(out.device)
    parts = parts_of(weight)
    tile = tile or int8_rows_tile(rows, outs, weight, chip)
    if splits is None:
        splits = splits_for(tile, rows, outs, depth, chip)
    panel = tile.depth * (8 // parts.bits)
    part, splits = _cut(triton.cdiv(depth, panel), splits)
    target = out if splits == 1 else torch.empty(splits, rows, outs, dtype=torch.int32, device=out.device)
    _int8_kernel[(tile.programs(rows, outs), splits)](
        x.q,
        x.scale,
        parts.q,
        parts.scale,
        parts.minimum,
        parts.steps,
        bias,
        target,
        rows,
        outs,
        depth,
        part,
        BITS=parts.bits,
        GROUP=parts.group,
        ROWS=tile.rows,
        OUTS=tile.outs,
        DEPTH=tile.depth,
        BAND=BAND,
        EVEN=depth % panel == 0,
        SPLIT=splits > 1,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits > 1:
        _reduce(target, out, bias, x.scale, parts.steps)
    return out


def linear_weight_only(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None, *, tile: Tile | None = None, splits: int | None = None
) -> Tensor:
    """W8A16 and W4A16: ``x`` [T, in] times the values of ``weight`` plus ``bias`` [T, out], summed in fp32.

    None for ``tile`` and ``splits`` chooses them by shape.
    """
    rows, depth = x.shape
    outs, columns = weight.shape
    assert depth == columns
    out = torch.empty(rows, outs, dtype=x.dtype, device=x.device)
    if not rows:
        return out
    x = x if x.stride(1) == 1 else x.contiguous()
    chip = chip_of(out.device)
    parts = parts_of(weight)
    tile = tile or float_rows_tile(rows, weight, chip)
    if splits is None:
        splits = splits_for(tile, rows, outs, depth, chip)
    part, splits = _cut(triton.cdiv(depth, tile.depth * (8 // parts.bits)), splits)
    target = out if splits == 1 else torch.empty(splits, rows, outs, dtype=torch.float32, device=out.device)
    _weight_only_kernel[(tile.programs(rows, outs), splits)](
        x,
        parts.q,
        parts.scale,
        parts.minimum,
        bias,
        target,
        rows,
        outs,
        depth,
        x.stride(0),
        part,
        BITS=parts.bits,
        GROUP=parts.group,
        ROWS=tile.rows,
        OUTS=tile.outs,
        DEPTH=tile.depth,
        BAND=BAND,
        PRESCALE=tile.rows > PRESCALE_ROWS,
        SPLIT=splits > 1,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits > 1:
        _reduce(target, out, bias, None, None)
    return out


def _cut(steps: int, splits: int) -> tuple[int, int]:
    """(steps of the depth in each part, parts) for about ``splits`` parts, none of them empty."""
    part: int = triton.cdiv(steps, splits)
    return part, triton.cdiv(steps, part)


def _reduce(parts: Tensor, out: Tensor, bias: Tensor | None, x_scale: Tensor | None, q_scale: Tensor | None) -> None:
    rows, outs = out.shape
    block = min(_REDUCE_BLOCK, triton.next_power_of_2(outs))
    _reduce_kernel[(rows, triton.cdiv(outs, block))](
        parts, x_scale, q_scale, bias, out, outs, parts.shape[0], rows * outs, BLOCK=block, num_warps=4
    )
