"""``act(gate) * up``, by itself or quantized for the matrix product behind it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.triton.quantize import Int8Rows, empty_int8_rows, row_scale, to_int8
from deepseek.kernels.triton.rows import Rows, rows_of, warps_for

KINDS = ("silu", "gelu_tanh")
_BLOCK = 1024
_WIDE_BLOCK = 4096


@triton.jit
def activate(gate: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """The activation of fp32 ``gate``; KIND is one of :data:`KINDS`."""
    if KIND == "silu":
        result = gate * (1.0 / (1.0 + tl.exp(-gate)))
    else:
        # 1 + tanh(z) = 2 / (1 + exp(-2 z)), with z = sqrt(2 / pi) (gate + 0.044715 gate^3)
        z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        result = gate * (1.0 / (1.0 + tl.exp(-z)))
    return result


@triton.jit
def _gated(gate_up: tl.tensor, column: tl.tensor, DIM: tl.constexpr, KIND: tl.constexpr) -> tl.tensor:
    """fp32 values of some columns of one row, 0 behind its end."""
    gate = tl.load(gate_up + column, mask=column < DIM, other=0.0).to(tl.float32)
    up = tl.load(gate_up + DIM + column, mask=column < DIM, other=0.0).to(tl.float32)
    return activate(gate, KIND) * up


@triton.jit
def _activation_kernel(
    gate_up: tl.tensor,
    out: tl.tensor,
    inner: tl.tensor,
    stride_outer: tl.tensor,
    stride_inner: tl.tensor,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
) -> tl.tensor:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    start = gate_up + row // inner * stride_outer + row % inner * stride_inner
    value = _gated(start, column, DIM, KIND)
    tl.store(out + row * DIM + column, value.to(out.dtype.element_ty), mask=column < DIM)


@triton.jit
def _activation_int8_kernel(
    gate_up: tl.tensor,
    q: tl.tensor,
    scales: tl.tensor,
    inner: tl.tensor,
    stride_outer: tl.tensor,
    stride_inner: tl.tensor,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
) -> tl.tensor:
    """A row is computed twice, once for its scale: the second time it lies in the cache."""
    row = tl.program_id(0).to(tl.int64)
    start = gate_up + row // inner * stride_outer + row % inner * stride_inner
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, DIM, BLOCK):
        value = _gated(start, first + tl.arange(0, BLOCK), DIM, KIND)
        largest = tl.maximum(largest, tl.abs(value))
        total += value * 0.0
    scale = row_scale(tl.max(largest, axis=0), tl.sum(total, axis=0))
    tl.store(scales + row, scale)
    for first in range(0, DIM, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = _gated(start, column, DIM, KIND)
        tl.store(q + row * DIM + column, to_int8(value, scale), mask=column < DIM)


def gated_activation(gate_up: Tensor, kind: str) -> Tensor:
    """As :meth:`deepseek.kernels.ops.Ops.gated_activation`. Raises ValueError for an unknown ``kind``."""
    rows, dim = _checked(gate_up, kind)
    out = torch.empty(*gate_up.shape[:-1], dim, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        block = min(_BLOCK, triton.next_power_of_2(dim))
        _activation_kernel[(rows.count, triton.cdiv(dim, block))](
            rows.data,
            out,
            rows.inner,
            rows.stride_outer,
            rows.stride_inner,
            DIM=dim,
            BLOCK=block,
            KIND=kind,
            num_warps=warps_for(block),
        )
    return out


def gated_activation_int8(gate_up: Tensor, kind: str) -> Int8Rows:
    """The same quantized, from fp32 without being rounded to the dtype of ``gate_up`` first."""
    rows, dim = _checked(gate_up, kind)
    out = empty_int8_rows(rows.count, dim, gate_up.device)
    if rows.count:
        block = min(_WIDE_BLOCK, triton.next_power_of_2(dim))
        _activation_int8_kernel[(rows.count,)](
            rows.data,
            out.q,
            out.scale,
            rows.inner,
            rows.stride_outer,
            rows.stride_inner,
            DIM=dim,
            BLOCK=block,
            KIND=kind,
            num_warps=warps_for(block),
        )
    return out


def _checked(gate_up: Tensor, kind: str) -> tuple[Rows, int]:
    check_kind(kind)
    rows = rows_of(gate_up)
    return rows, rows.dim // 2


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown activation {kind!r}")
