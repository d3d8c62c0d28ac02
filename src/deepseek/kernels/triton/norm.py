"""Root-mean-square norms, fused with the residual addition before and the quantization behind them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.triton.quantize import Int8Rows, empty_int8_rows, row_scale, to_int8
from deepseek.kernels.triton.rows import Rows, rows_of, warps_for


@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    scales: tl.tensor,
    rows: tl.tensor,
    inner: tl.tensor,
    stride_outer: tl.tensor,
    stride_inner: tl.tensor,
    residual_stride: tl.tensor,
    eps: tl.tensor,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    QUANTIZE: tl.constexpr,
) -> tl.tensor:
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < DIM)[None, :]
    start = row // inner * stride_outer + row % inner * stride_inner
    value = tl.load(x + start[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if ADD:
        place = residual + row[:, None] * residual_stride + column[None, :]
        value += tl.load(place, mask=mask, other=0.0).to(tl.float32)
        total = value.to(residual.dtype.element_ty)
        tl.store(place, total, mask=mask)
        value = total.to(tl.float32)  # the norm is that of the sum as it is stored
    mean_square = tl.sum(value * value, axis=1) / DIM
    factor = tl.load(weight + column, mask=column < DIM, other=0.0).to(tl.float32)
    normed = value / tl.sqrt(mean_square + eps)[:, None] * factor[None, :]
    place = row[:, None] * DIM + column[None, :]
    if QUANTIZE:
        scale = row_scale(tl.max(tl.abs(normed), axis=1), tl.sum(normed * 0.0, axis=1))
        tl.store(out + place, to_int8(normed, scale[:, None]), mask=mask)
        tl.store(scales + row, scale, mask=row < rows)
    else:
        tl.store(out + place, normed.to(out.dtype.element_ty), mask=mask)


def _launch(rows: Rows, residual: Tensor | None, weight: Tensor, eps: float, out: Tensor, scale: Tensor | None) -> None:
    if not rows.count:
        return
    _norm_kernel[(triton.cdiv(rows.count, rows.tile),)](
        rows.data,
        residual,
        weight,
        out,
        scale,
        rows.count,
        rows.inner,
        rows.stride_outer,
        rows.stride_inner,
        0 if residual is None else residual.stride(0),
        eps,
        DIM=rows.dim,
        ROWS=rows.tile,
        BLOCK=rows.block,
        ADD=residual is not None,
        QUANTIZE=scale is not None,
        num_warps=warps_for(rows.tile * rows.block),
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As :meth:`deepseek.kernels.ops.Ops.rms_norm`; the result is contiguous."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(rows_of(x), None, weight, eps, out, None)
    return out


def rms_norm_int8(x: Tensor, weight: Tensor, eps: float) -> Int8Rows:
    """The norm of ``x`` [..., dim], quantized from fp32 without being rounded to its dtype first."""
    rows = rows_of(x)
    out = empty_int8_rows(rows.count, rows.dim, x.device)
    _launch(rows, None, weight, eps, out.q, out.scale)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As :meth:`deepseek.kernels.ops.Ops.add_rms_norm`; the sum takes the place of ``residual``."""
    residual = _dense(residual)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(rows_of(x), residual, weight, eps, out, None)
    return out, residual


def add_rms_norm_int8(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Int8Rows, Tensor]:
    """:func:`add_rms_norm` with the norm quantized as by :func:`rms_norm_int8`: returns (norm, sum)."""
    residual = _dense(residual)
    rows = rows_of(x)
    out = empty_int8_rows(rows.count, rows.dim, x.device)
    _launch(rows, residual, weight, eps, out.q, out.scale)
    return out, residual


def _dense(residual: Tensor) -> Tensor:
    return residual if residual.stride(-1) == 1 else residual.contiguous()
