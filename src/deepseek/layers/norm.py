"""Norms: root-mean-square, alone or fused with the residual addition before it, and of mean and variance."""

from __future__ import annotations

import torch.nn.functional as F
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


class LayerNorm:
    """``(x - mean) / deviation * weight + bias`` over the last dimension (Ba et al. 2016, arXiv:1607.06450)."""

    __slots__ = ("bias", "eps", "weight")

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
