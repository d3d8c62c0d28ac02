"""Mixture of experts whose matrices are integers.

As with dense layers (:mod:`.linear`), few rows stay 16-bit floats and many become INT8: here it is the rows that an
expert has on average that count. The activation between the two products quantizes its result in the same kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepseek.kernels.triton.activation import gated_activation, gated_activation_int8
from deepseek.kernels.triton.grouping import Plan, combine, plan
from deepseek.kernels.triton.quantize import Int8Rows, quantize
from deepseek.kernels.triton.sums import int8_sum, weight_only_sum
from deepseek.kernels.triton.support import chip_of
from deepseek.kernels.triton.tiles import (
    BAND,
    FEW_ROWS,
    PRESCALE_ROWS,
    Tile,
    float_rows_tile,
    int8_rows_tile,
    place_of,
)
from deepseek.kernels.triton.weights import QuantizedExperts, parts_of, takes_int8_rows


@triton.jit(do_not_specialize=["tiles"])
def _grouped_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    q: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    steps: tl.tensor,
    out: tl.tensor,
    order: tl.tensor,
    expert_of: tl.tensor,
    start_of: tl.tensor,
    stop_of: tl.tensor,
    tiles: tl.tensor,
    experts: tl.tensor,
    outs: tl.tensor,
    depth: tl.tensor,
    choices: tl.tensor,
    x_stride: tl.tensor,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
    EVEN: tl.constexpr,
    PRESCALE: tl.constexpr,
    TO_PLAN: tl.constexpr,
) -> None:
    """Pairs times the matrices of their experts. TO_PLAN: from rows ``order // choices`` of ``x`` to the plan's order,
    else from the plan's order to rows ``order`` of ``out``. INT8 inputs have an ``x_scale``."""
    tile, out_tile = place_of(tl.program_id(0), tiles, tl.cdiv(outs, OUTS), BAND)
    expert = tl.load(expert_of + tile)
    if expert < experts:
        place = tl.load(start_of + tile) + tl.arange(0, ROWS)
        mask = place < tl.load(stop_of + tile)
        pair = tl.load(order + place, mask=mask, other=0)
        if TO_PLAN:
            source = pair // choices
            target = place
        else:
            source = tl.where(mask, place, 0)
            target = pair
        column = out_tile * OUTS + tl.arange(0, OUTS)
        near = expert * outs + tl.where(column < outs, column, 0)
        x_start = x + source[:, None] * x_stride
        every = tl.cdiv(depth, DEPTH * (8 // BITS))
        if x_scale is None:
            total = weight_only_sum(
                x_start, q, scale, minimum, near, experts * outs, depth, 0, every,
                BITS, GROUP, ROWS, OUTS, DEPTH, PRESCALE,
            )  # fmt: skip
        else:
            total = int8_sum(
                x_start, q, scale, minimum, steps, near, experts * outs, depth, 0, every,
                BITS, GROUP, ROWS, OUTS, DEPTH, EVEN,
            ).to(tl.float32)  # fmt: skip
            total *= tl.load(x_scale + source)[:, None] * tl.load(steps + near)[None, :]
        to = out + target[:, None] * outs + column[None, :]
        tl.store(to, total.to(out.dtype.element_ty), mask=mask[:, None] & (column < outs)[None, :])


def moe_quantized(
    x: Tensor,
    gate_up: QuantizedExperts,
    down: QuantizedExperts,
    expert_ids: Tensor,
    expert_weights: Tensor,
    kind: str,
    *,
    int8_rows: bool | None = None,
) -> Tensor:
    """As :meth:`deepseek.kernels.ops.Ops.moe`, with at least one row and choice. ``int8_rows``: inputs of both products
    are quantized too; None for more than a few rows per expert, where there are kernels for it."""
    choices = expert_ids.shape[1]
    pairs = expert_ids.numel()
    average = pairs // gate_up.count
    if int8_rows is None:
        int8_rows = average > FEW_ROWS
    first = quantize(x) if int8_rows and takes_int8_rows(gate_up.matrix) else x
    tile = _tile(first, gate_up, average)
    own = plan(expert_ids, gate_up.count, tile.rows)
    hidden = torch.empty(pairs, gate_up.shape[1], dtype=x.dtype, device=x.device)
    _multiply(first, gate_up, own, tile, choices, hidden)
    to_int8 = int8_rows and takes_int8_rows(down.matrix)
    second = gated_activation_int8(hidden, kind) if to_int8 else gated_activation(hidden, kind)
    results = torch.empty(pairs, down.shape[1], dtype=x.dtype, device=x.device)
    _multiply(second, down, own, _tile(second, down, average), None, results)
    return combine(results, expert_weights)


def _tile(x: Tensor | Int8Rows, weight: QuantizedExperts, average: int) -> Tile:
    """Of an expert with the ``average`` number of rows; its height follows from that alone."""
    _, outs, _ = weight.shape
    if isinstance(x, Int8Rows):
        chip = chip_of(x.q.device)
        return int8_rows_tile(average, outs, weight.matrix, chip)
    return float_rows_tile(average, weight.matrix, chip_of(x.device))


def _multiply(
    x: Tensor | Int8Rows, weight: QuantizedExperts, own: Plan, tile: Tile, choices: int | None, out: Tensor
) -> None:
    """``choices`` of each row of ``x`` into ``out``, which is in the plan's order; None: ``x`` is, and ``out`` is
    not."""
    values, x_scale = x if isinstance(x, Int8Rows) else (x, None)
    values = values if values.stride(1) == 1 else values.contiguous()
    experts, outs, depth = weight.shape
    parts = parts_of(weight.matrix)
    tiles = own.expert.shape[0]
    _grouped_kernel[(tiles * triton.cdiv(outs, tile.outs),)](
        values,
        x_scale,
        parts.q,
        parts.scale,
        parts.minimum,
        parts.steps,
        out,
        *own,
        tiles,
        experts,
        outs,
        depth,
        choices or 1,
        values.stride(0),
        BITS=parts.bits,
        GROUP=parts.group,
        ROWS=tile.rows,
        OUTS=tile.outs,
        DEPTH=tile.depth,
        BAND=BAND,
        EVEN=depth % (tile.depth * (8 // parts.bits)) == 0,
        PRESCALE=tile.rows > PRESCALE_ROWS,
        TO_PLAN=choices is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
