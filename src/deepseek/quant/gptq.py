"""INT4 with error feedback: what rounding a column costs is made up for by the columns after it.

GPTQ (arXiv:2210.17323): with ``H`` the second moments of the inputs and ``U`` the upper Cholesky factor of its inverse,
rounding column j by ``e`` is best answered by moving the columns k > j by ``-e * U[j, k] / U[j, j]``. Scale and zero
point of a group of 32 columns are chosen when its turn comes, from the columns as they then are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.hub.checkpoint import QuantizedMatrix
from deepseek.quant.schemes import GROUP, INT4_MAX, quantize

DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: columns that calibration saw little of must not be bent at will."""


def quantize_with_feedback(
    weight: Tensor, moments: Tensor, *, scale_dtype: torch.dtype = torch.float16
) -> QuantizedMatrix:
    """``weight`` [rows, columns] in INT4 with groups of 32 columns.

    Args:
        weight: finite values of any floating dtype; ``columns`` is a multiple of 32.
        moments: fp32 [columns, columns], mean of ``x x^T`` over inputs ``x``.
        scale_dtype: 16-bit dtype that the scales are rounded to.
    """
    remaining = weight.float().clone()
    rows, columns = remaining.shape
    diagonal = moments.diagonal()
    factor = _inverse_factor(moments)
    q = torch.empty(rows, columns, dtype=torch.uint8)
    scale, minimum = torch.empty(rows, columns // GROUP), torch.empty(rows, columns // GROUP)
    for start in range(0, columns, GROUP):
        stop, index = start + GROUP, start // GROUP
        block = remaining[:, start:stop].contiguous()
        chosen = quantize(block, 4, diagonal[start:stop], scale_dtype=scale_dtype)
        assert chosen.minimum is not None
        scale[:, index], minimum[:, index] = chosen.scale[:, 0], chosen.minimum[:, 0]
        step, zero = chosen.scale, (chosen.minimum / chosen.scale).round()
        errors = torch.empty_like(block)
        for column in range(GROUP):
            row = factor[start + column]
            exact = block[:, column : column + 1]
            steps = (exact / step).round_().add_(zero).clamp_(0, INT4_MAX)
            q[:, start + column] = steps[:, 0].to(torch.uint8)
            error = (exact - (steps - zero) * step) / row[start + column]
            block[:, column + 1 :] -= error * row[start + column + 1 : stop]
            errors[:, column] = error[:, 0]
        remaining[:, stop:] -= errors @ factor[start:stop, stop:]
    return QuantizedMatrix(4, GROUP, q, scale, minimum)


def _inverse_factor(moments: Tensor) -> Tensor:
    """fp32 U [columns, columns], upper triangular, with ``U^T U`` the inverse of the damped moments."""
    damped = moments.double()
    damped.diagonal().add_(DAMPING * float(damped.diagonal().mean()) + 1e-30)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()
