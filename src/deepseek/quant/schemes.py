"""From floating weights to small integers.

``int8``: one scale per row, or per group of columns in a row, symmetric, clipped to +-127. ``int4``: groups of 32
columns, each with a scale and an integer zero point (``minimum = zero point * scale``, so that the compressed-tensors
layout holds it exactly).

Scales are rounded to the dtype they are stored in before the integers are chosen: reading a file back gives the same
values to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.errors import ConfigurationError
from deepseek.hub.checkpoint import QuantizedMatrix

GROUP = 32
WIDEST_INT8_GROUP = 192
"""Columns of a folder's INT8 matrix that share a scale, at most: 8.08 bits a weight. Smaller groups round better (64
columns: half the squared error), but take so many bits that more matrices must go to INT4, which costs more."""
INT8_MAX = 127
INT4_MAX = 15

_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.72)
"""Parts of a group's range that are tried: clipping its extremes makes the steps between the others finer."""

_CHUNK = 1 << 18
"""Weights that are searched at once, so that the passes over them stay in a CPU's cache."""

_GPU_CHUNK = 1 << 22
"""The same on a GPU, where a pass should take longer than its launch."""


def quantize(
    weight: Tensor,
    bits: int,
    importance: Tensor | None = None,
    *,
    group: int | None = None,
    scale_dtype: torch.dtype = torch.float16,
) -> QuantizedMatrix:
    """The nearest :class:`QuantizedMatrix` to ``weight`` [rows, columns].

    Args:
        weight: finite values of any floating dtype.
        bits: 8, or 4 (always groups of 32 columns).
        importance: fp32 [columns], how much an error in a column counts: the mean square of the inputs it multiplies.
            Used for 4 bits, where there is something to choose; None weighs all columns alike.
        group: columns of a row that share a scale in 8 bits, a divisor of the width; None for all.
        scale_dtype: 16-bit dtype that the scales are rounded to.

    Raises ConfigurationError for other bits, and for 4 bits of a width that is no multiple of 32.
    """
    if bits == 8:
        return _quantize_int8(weight, group or weight.shape[1], scale_dtype)
    if bits != 4:
        raise ConfigurationError(f"weights can be quantized to 8 or 4 bits, not {bits}.")
    rows, columns = weight.shape
    if columns % GROUP:
        raise ConfigurationError(f"4 bits need a width that is a multiple of {GROUP}, not {columns}; use 8 bits.")
    groups = columns // GROUP
    weights = None if importance is None else _normalised(importance).view(groups, GROUP)
    q = torch.empty(rows, groups, GROUP, dtype=torch.uint8, device=weight.device)
    scale, minimum = torch.empty(2, rows, groups, device=weight.device)
    step = _rows_at_once(weight)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        values = weight[part].float().view(-1, groups, GROUP)
        q[part], scale[part], zero = _search_int4(values, weights, scale_dtype)
        minimum[part] = zero * scale[part]
    return QuantizedMatrix(4, GROUP, q.view(rows, columns), scale, minimum)


def int8_group(columns: int) -> int:
    """Columns that share a scale in a folder's INT8 matrix of that width: the largest multiple of 32, up to
    :data:`WIDEST_INT8_GROUP`, that divides it; the whole row where none does."""
    return max((group for group in range(GROUP, WIDEST_INT8_GROUP + 1, GROUP) if columns % group == 0), default=columns)


def _quantize_int8(weight: Tensor, group: int, scale_dtype: torch.dtype) -> QuantizedMatrix:
    rows, columns = weight.shape
    q = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    scale = torch.empty(rows, columns // group, device=weight.device)
    step = _rows_at_once(weight)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        values = weight[part].float().reshape(-1, columns // group, group)
        low, high = torch.aminmax(values, dim=-1)
        scale[part] = _storable(torch.maximum(high, -low) / INT8_MAX, scale_dtype)
        steps = (values / scale[part][:, :, None]).round_().clamp_(-INT8_MAX, INT8_MAX)
        q[part] = steps.to(torch.int8).view(-1, columns)
    return QuantizedMatrix(8, group, q, scale)


def _rows_at_once(weight: Tensor) -> int:
    return max(1, (_CHUNK if weight.device.type == "cpu" else _GPU_CHUNK) // weight.shape[1])


def _storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``scale`` rounded to ``dtype``, in fp32; 1 where it is zero, as there all values are."""
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    rounded = scale.clamp(smallest, torch.finfo(dtype).max).to(dtype).float()
    return torch.where(scale > 0, rounded, torch.ones_like(rounded))


def _normalised(importance: Tensor) -> Tensor:
    """Mean 1, and nowhere quite zero: a column that calibration never saw alive still keeps its values."""
    mean = importance.float().mean().clamp_min(1e-30)
    return (importance.float() / mean).clamp_min_(1e-4)


def _search_int4(values: Tensor, importance: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(uint8 [rows, groups, 32], scale [rows, groups], zero point [rows, groups]) with the least weighted square error
    of some clippings and, from the best, of one least-squares step for the scale."""
    low, high = torch.aminmax(values, dim=-1, keepdim=True)
    low, high = low.clamp_max_(0.0), high.clamp_min_(0.0)
    zero_part = torch.where(high > low, -low / (high - low).clamp_min(1e-38), torch.zeros_like(low))
    zero = (zero_part * INT4_MAX).round_()
    best_error = torch.full_like(low, torch.inf)
    best_scale = torch.ones_like(low)
    for shrink in _SHRINKS:
        scale = _storable((high - low) * (shrink / INT4_MAX), dtype)
        error = _error(values, scale, zero, importance)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    steps = _steps(values, best_scale, zero)
    weighted = steps if importance is None else steps * importance
    square = (weighted * steps).sum(-1, keepdim=True)
    fitted = _storable((weighted * values).sum(-1, keepdim=True) / square.clamp_min(1e-30), dtype)
    better = (square > 0) & (_error(values, fitted, zero, importance) < best_error)
    scale = torch.where(better, fitted, best_scale)
    q = _steps(values, scale, zero).add_(zero).to(torch.uint8)
    return q, scale.squeeze(-1), zero.squeeze(-1)


def _steps(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The whole number of steps from zero nearest to each value: -zero ... 15 - zero."""
    return torch.clamp((values * scale.reciprocal()).round_(), -zero, INT4_MAX - zero)


def _error(values: Tensor, scale: Tensor, zero: Tensor, importance: Tensor | None) -> Tensor:
    scaled = values * scale.reciprocal()
    difference = torch.clamp(scaled.round(), -zero, INT4_MAX - zero).sub_(scaled).square_()
    if importance is not None:
        difference.mul_(importance)
    return difference.sum(-1, keepdim=True).mul_(scale.square())
