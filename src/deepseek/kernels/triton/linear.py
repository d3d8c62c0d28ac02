"""Matrix products: 16-bit weights go to cuBLAS, quantized ones to the kernels here.

Three forms of quantized products. *W8A8*: both sides INT8, sums exact in INT32, so that a row's result does not depend
on the rows around it or on how its depth is cut. *W8A16* and *W4A16*: weights become 16-bit floats in registers; for
few rows their scales are applied to the sums of each group, exactly as they are stored, for many rows to the weights.
Where few rows meet a small matrix, the depth is cut into parts that a second kernel adds up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.triton.quantize import Int8Rows, quantize
from deepseek.kernels.triton.support import chip_of
from deepseek.kernels.triton.tiles import BAND, FEW_ROWS, Tile, int8_tile, place_of, splits_for, weight_only_tile
from deepseek.kernels.triton.weights import Int4Weight, Int8Weight, QuantizedWeight

_REDUCE_BLOCK = 1024


@triton.jit
def _int8_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    q: tl.tensor,
    q_scale: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outs: tl.tensor,
    depth: tl.tensor,
    part: tl.tensor,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
    EVEN: tl.constexpr,
    SPLIT: tl.constexpr,
) -> tl.tensor:
    """``part`` columns of the depth in each program along axis 1. SPLIT: ``out`` is int32 [splits, rows, outs], else
    the finished result. EVEN: ``part`` is a multiple of DEPTH and divides the depth."""
    row_tile, out_tile = place_of(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(outs, OUTS), BAND)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = out_tile * OUTS + tl.arange(0, OUTS)
    # Behind the last row or column the first is computed again, and not stored: loads need no mask for it.
    x_start = x + tl.where(row < rows, row, 0).to(tl.int64)[:, None] * depth
    q_start = q + tl.where(column < outs, column, 0).to(tl.int64)[:, None] * depth
    step = tl.arange(0, DEPTH)[None, :]
    first = tl.program_id(1) * part
    stop = tl.minimum(first + part, depth)
    total = tl.zeros([ROWS, OUTS], dtype=tl.int32)
    for k in range(first, stop, DEPTH):
        if EVEN:
            a = tl.load(x_start + k + step)
            b = tl.load(q_start + k + step)
        else:
            a = tl.load(x_start + k + step, mask=k + step < stop, other=0)
            b = tl.load(q_start + k + step, mask=k + step < stop, other=0)
        total = tl.dot(a, tl.trans(b), total, out_dtype=tl.int32)
    mask = (row < rows)[:, None] & (column < outs)[None, :]
    place = row.to(tl.int64)[:, None] * outs + column[None, :]
    if SPLIT:
        tl.store(out + tl.program_id(1).to(tl.int64) * rows * outs + place, total, mask=mask)
    else:
        result = total.to(tl.float32) * tl.load(x_scale + row, mask=row < rows, other=0.0)[:, None]
        result *= tl.load(q_scale + column, mask=column < outs, other=0.0)[None, :]
        if bias is not None:
            result += tl.load(bias + column, mask=column < outs, other=0.0).to(tl.float32)[None, :]
        tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _whole(value: tl.tensor, OFFSET: tl.constexpr, DTYPE: tl.constexpr) -> tl.tensor:
    """uint8 ``value - OFFSET`` as DTYPE, exactly.

    The bytes become the last bits of a mantissa whose exponent makes them count whole numbers: instructions that
    convert integers run at an eighth of the rate of these.
    """
    if tl.float16 == DTYPE:
        result = (value.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + OFFSET)
    else:
        wide = (value.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + OFFSET)
        result = wide.to(DTYPE)
    return result


@triton.jit
def _add_group(
    total: tl.tensor,
    x: tl.tensor,
    value: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    group: tl.tensor,
    outs: tl.tensor,
    column: tl.tensor,
    OFFSET: tl.constexpr,
    PRESCALE: tl.constexpr,
) -> tl.tensor:
    """``total`` [rows, outs] plus ``x`` [rows, depth] times the weights of uint8 ``value`` [outs, depth], all of one
    group. PRESCALE: scales are applied to the weights, not to the sums."""
    scales = tl.load(scale + group * outs + column).to(tl.float32)
    if PRESCALE:
        weight = _whole(value, OFFSET, tl.float32) * scales[:, None]
        if minimum is not None:
            weight -= tl.load(minimum + group * outs + column).to(tl.float32)[:, None]
        total = tl.dot(x, tl.trans(weight.to(x.dtype)), total, input_precision="ieee")
    else:
        # bf16 counts whole numbers from 128 to 255. Four bits stay 128 too large there: to take that from the sums,
        # with the minimum, is cheaper than to take it from each weight.
        RAISED: tl.constexpr = OFFSET == 0 and x.dtype == tl.bfloat16
        if RAISED:
            weight = (value.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True)
        else:
            weight = _whole(value, OFFSET, x.dtype)
        total += tl.dot(x, tl.trans(weight), input_precision="ieee") * scales[None, :]
        if RAISED or minimum is not None:
            lowered = scales * (128.0 if RAISED else 0.0)
            if minimum is not None:
                lowered += tl.load(minimum + group * outs + column).to(tl.float32)
            total -= tl.sum(x.to(tl.float32), axis=1)[:, None] * lowered[None, :]
    return total


@triton.jit
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
    """DEPTH columns at a time (twice as many of 4 bits), ``part`` such steps in each program along axis 1. DEPTH
    divides GROUP, unless that is 0: one group. SPLIT: ``out`` is fp32 [splits, rows, outs], else the finished
    result."""
    row_tile, out_tile = place_of(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(outs, OUTS), BAND)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = out_tile * OUTS + tl.arange(0, OUTS)
    near = tl.where(column < outs, column, 0)
    x_start = x + tl.where(row < rows, row, 0).to(tl.int64)[:, None] * x_stride
    step = tl.arange(0, DEPTH)[None, :]
    PANEL: tl.constexpr = DEPTH * (8 // BITS)
    first = tl.program_id(1) * part
    stop = tl.minimum(first + part, tl.cdiv(depth, PANEL))
    total = tl.zeros([ROWS, OUTS], dtype=tl.float32)
    for panel in range(first, stop):
        k = panel * PANEL
        group = 0
        if GROUP > 0:
            group = k // GROUP
        a = tl.load(x_start + k + step, mask=k + step < depth, other=0.0)
        if BITS == 4:
            value = tl.load(q + (panel * outs + near).to(tl.int64)[:, None] * DEPTH + step)
            total = _add_group(total, a, value & 15, scale, minimum, group, outs, near, 0, PRESCALE)
            k += DEPTH
            a = tl.load(x_start + k + step, mask=k + step < depth, other=0.0)
            total = _add_group(total, a, value >> 4, scale, minimum, k // GROUP, outs, near, 0, PRESCALE)
        else:
            value = tl.load(q + near.to(tl.int64)[:, None] * depth + k + step, mask=k + step < depth, other=0)
            value = value.to(tl.uint8, bitcast=True) ^ 128
            total = _add_group(total, a, value, scale, minimum, group, outs, near, 128, PRESCALE)
    mask = (row < rows)[:, None] & (column < outs)[None, :]
    place = row.to(tl.int64)[:, None] * outs + column[None, :]
    if SPLIT:
        tl.store(out + tl.program_id(1).to(tl.int64) * rows * outs + place, total, mask=mask)
    else:
        if bias is not None:
            total += tl.load(bias + column, mask=column < outs, other=0.0).to(tl.float32)[None, :]
        tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
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

    INT8 weights with one scale per output take more than a few rows of ``x`` [T, in] as INT8 too, quantized per row.
    """
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    if isinstance(weight, Int8Weight) and weight.per_channel and x.shape[0] > FEW_ROWS:
        return linear_int8(quantize(x), weight, bias, x.dtype)
    return linear_weight_only(x, weight, bias)


def linear_int8(
    x: Int8Rows,
    weight: Int8Weight,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    tile: Tile | None = None,
    splits: int | None = None,
) -> Tensor:
    """W8A8: ``x`` [T, in] times ``weight`` (one scale per output) plus ``bias``, in ``dtype`` [T, out].

    The result depends on neither ``tile`` nor ``splits``, which None chooses by shape.
    """
    assert weight.per_channel
    rows, depth = x.q.shape
    outs = weight.shape[0]
    out = torch.empty(rows, outs, dtype=dtype, device=x.q.device)
    if not rows:
        return out
    chip = chip_of(out.device)
    tile = tile or int8_tile(rows, outs, chip)
    if splits is None:
        splits = splits_for(tile, rows, outs, depth, chip)
    part = triton.cdiv(triton.cdiv(depth, splits), tile.depth) * tile.depth
    splits = triton.cdiv(depth, part)
    target = out if splits == 1 else torch.empty(splits, rows, outs, dtype=torch.int32, device=out.device)
    _int8_kernel[(tile.programs(rows, outs), splits)](
        x.q,
        x.scale,
        weight.q,
        weight.scale,
        bias,
        target,
        rows,
        outs,
        depth,
        part,
        ROWS=tile.rows,
        OUTS=tile.outs,
        DEPTH=tile.depth,
        BAND=BAND,
        EVEN=depth % tile.depth == 0,
        SPLIT=splits > 1,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits > 1:
        _reduce(target, out, bias, x.scale, weight.scale)
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
    if isinstance(weight, Int4Weight):
        bits, group, step, minimum = 4, weight.group, weight.q.shape[2], weight.minimum
    else:
        bits, group, minimum = 8, 0 if weight.per_channel else weight.group, None
        step = 128 if rows <= FEW_ROWS else 64
        step = min(step, group & -group) if group else step
    panel = step * (8 // bits)
    chip = chip_of(out.device)
    tile = tile or weight_only_tile(rows, step, bits, chip)
    if splits is None:
        splits = splits_for(tile, rows, outs, depth, chip)
    panels = triton.cdiv(depth, panel)
    part = triton.cdiv(panels, splits)
    splits = triton.cdiv(panels, part)
    target = out if splits == 1 else torch.empty(splits, rows, outs, dtype=torch.float32, device=out.device)
    _weight_only_kernel[(tile.programs(rows, outs), splits)](
        x,
        weight.q,
        weight.scale,
        minimum,
        bias,
        target,
        rows,
        outs,
        depth,
        x.stride(0),
        part,
        BITS=bits,
        GROUP=group,
        ROWS=tile.rows,
        OUTS=tile.outs,
        DEPTH=step,
        BAND=BAND,
        PRESCALE=tile.rows > 32,
        SPLIT=splits > 1,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits > 1:
        _reduce(target, out, bias, None, None)
    return out


def _reduce(parts: Tensor, out: Tensor, bias: Tensor | None, x_scale: Tensor | None, q_scale: Tensor | None) -> None:
    rows, outs = out.shape
    block = min(_REDUCE_BLOCK, triton.next_power_of_2(outs))
    _reduce_kernel[(rows, triton.cdiv(outs, block))](
        parts, x_scale, q_scale, bias, out, outs, parts.shape[0], rows * outs, BLOCK=block, num_warps=4
    )
