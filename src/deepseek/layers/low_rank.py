"""What adapters add to a linear layer, row by row."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from deepseek.kernels.ops import Ops


@dataclass
class ActiveRows:
    """The rows of the step under way that have an adapter: (its number, first row, end), in order; one for all layers
    of a model."""

    segments: tuple[tuple[int, int, int], ...] = ()


class LowRankUpdates:
    """The updates of one matrix, by the adapters' numbers."""

    def __init__(self, ops: Ops, rows: ActiveRows) -> None:
        self._ops = ops
        self._rows = rows
        self._parts: dict[int, list[tuple[int, Tensor, Tensor]]] = {}

    def add(self, number: int, column: int, a: Tensor, b: Tensor) -> None:
        """An update of the outputs from ``column`` on: ``a`` [rank, in], ``b`` [out, rank], the scale in it."""
        self._parts.setdefault(number, []).append((column, a, b))

    def remove(self, number: int) -> None:
        self._parts.pop(number, None)

    def apply(self, x: Tensor, y: Tensor) -> None:
        """Add to ``y`` [T, out] what the adapters of its rows make of ``x`` [T, in]."""
        for number, begin, end in self._rows.segments:
            for column, a, b in self._parts.get(number, ()):
                self._ops.low_rank(x[begin:end], a, b, y[begin:end, column : column + len(b)])


@dataclass
class AdapterLayers:
    """The matrices of a model that adapters have changed so far, by layer and place."""

    rows: ActiveRows = field(default_factory=ActiveRows)
    updates: dict[tuple[int, str], LowRankUpdates] = field(default_factory=dict)
    bytes: dict[int, int] = field(default_factory=dict)
