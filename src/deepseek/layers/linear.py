"""Linear projections; several that share an input are one matrix."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deepseek.kernels.low_rank import LowRankUpdates
from deepseek.kernels.ops import Ops


class Linear:
    """``x @ weight.T + bias``; ``weight`` as :meth:`deepseek.models.weights.WeightSource.matrix` packed it.

    Attributes:
        updates: what adapters add to it; None while none does.
    """

    __slots__ = ("bias", "ops", "updates", "weight")

    def __init__(self, ops: Ops, weight: Any, bias: Tensor | None = None) -> None:
        self.ops = ops
        self.weight = weight
        self.bias = bias
        self.updates: LowRankUpdates | None = None

    def __call__(self, x: Tensor) -> Tensor:
        y = self.ops.linear(x, self.weight, self.bias)
        if self.updates is not None and self.updates.rows.segments:
            self.ops.low_rank(x, y, self.bias, self.updates)
        return y


class GatedMLP:
    """``down(act(gate x) * up x)``; gate and up are one matrix [gate | up]."""

    __slots__ = ("_ops", "down", "gate_up", "kind")

    def __init__(self, ops: Ops, gate_up: Linear, down: Linear, kind: str) -> None:
        self._ops = ops
        self.gate_up = gate_up
        self.down = down
        self.kind = kind

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self._ops.gated_activation(self.gate_up(x), self.kind))
