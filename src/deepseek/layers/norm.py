"""Root-mean-square norm, alone or fused with the residual addition before it."""

from __future__ import annotations

from torch import Tensor

from deepseek.kernels.ops import Ops


class RMSNorm:
    """``x / rms(x) * weight`` over the last dimension."""

    __slots__ = ("_ops", "eps", "weight")

    def __init__(self, ops: Ops, weight: Tensor, eps: float) -> None:
        self._ops = ops
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.rms_norm(x, self.weight, self.eps)

    def after_add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of ``residual + x``, ``residual + x``); the memory of ``residual`` may be reused."""
        return self._ops.add_rms_norm(x, residual, self.weight, self.eps)
