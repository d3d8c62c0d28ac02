"""Token embedding in, logits out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.kernels.ops import Ops


class Embedding:
    """Rows of ``weight`` [vocab, dim], times ``scale`` (rounded to the weight's dtype, as Gemma does)."""

    def __init__(self, weight: Any, scale: float = 1.0) -> None:
        self.weight = weight
        self.scale = scale

    def __call__(self, token_ids: Tensor) -> Tensor:
        rows = F.embedding(token_ids, self.weight)
        return rows if self.scale == 1.0 else rows * torch.tensor(self.scale, dtype=rows.dtype, device=rows.device)


class Head:
    """Logits fp32 [rows, vocab] of hidden states; ``softcap`` bounds them: ``cap * tanh(logits / cap)``. ``weight`` is
    packed as for :class:`deepseek.layers.linear.Linear`."""

    def __init__(self, ops: Ops, weight: Any, softcap: float | None = None) -> None:
        self._ops = ops
        self.weight = weight
        self.softcap = softcap

    def __call__(self, x: Tensor) -> Tensor:
        logits = self._ops.linear(x, self.weight).float()
        if self.softcap is None:
            return logits
        return logits.div_(self.softcap).tanh_().mul_(self.softcap)
