"""Linear projections; several that share an input are one matrix."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deepseek.kernels.ops import Ops


class Linear:
    """``x @ weight.T + bias``; ``weight`` as :meth:`deepseek.models.weights.WeightSource.matrix` packed it."""

    __slots__ = ("_ops", "bias", "weight")

    def __init__(self, ops: Ops, weight: Any, bias: Tensor | None = None) -> None:
        self._ops = ops
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.linear(x, self.weight, self.bias)


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
