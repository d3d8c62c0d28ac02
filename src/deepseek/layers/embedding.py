"""Token embedding in, logits out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.kernels.ops import Ops


class Embedding:
    """Rows of ``weight`` [vocab, dim], times ``scale`` (rounded to the weight's dtype, as Gemma does)."""

    def __init__(self, weight: Tensor, scale: float = 1.0) -> None:
        self.weight = weight
        self._scale = None if scale == 1.0 else torch.tensor(scale, dtype=weight.dtype, device=weight.device)

    def __call__(self, token_ids: Tensor) -> Tensor:
        rows = F.embedding(token_ids, self.weight)
        return rows if self._scale is None else rows * self._scale


class Head:
    """Logits fp32 [rows, vocab] of hidden states; ``softcap`` bounds them: ``cap * tanh(logits / cap)``."""

    def __init__(self, ops: Ops, weight: Tensor, softcap: float | None = None) -> None:
        self._ops = ops
        self.weight = ops.pack_linear(weight)
        self._softcap = softcap

    def __call__(self, x: Tensor) -> Tensor:
        logits = self._ops.linear(x, self.weight).float()
        if self._softcap is None:
            return logits
        return logits.div_(self._softcap).tanh_().mul_(self._softcap)
