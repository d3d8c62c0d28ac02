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
        self._parts: dict[int, list[tuple[int, Tensor, Tensor, Tensor | None]]] = {}

    def add(self, number: int, column: int, a: Tensor, b: Tensor, gain: Tensor | None) -> None:
        """An update of the outputs from ``column`` on: ``a`` [rank, in], ``b`` [out, rank], the scale in it, and what
        the matrix's own outputs are multiplied with, [out] or None."""
        self._parts.setdefault(number, []).append((column, a, b, gain))

    def remove(self, number: int) -> None:
        self._parts.pop(number, None)

    def apply(self, x: Tensor, y: Tensor, bias: Tensor | None) -> None:
        """Add to ``y`` [T, out], in which is ``bias`` [out], what the adapters of its rows make of ``x`` [T, in]."""
        for number, begin, end in self._rows.segments:
            for column, a, b, gain in self._parts.get(number, ()):
                columns = slice(column, column + len(b))
                part = y[begin:end, columns]
                if gain is not None:
                    part.mul_(gain)
                    if bias is not None:
                        part.add_(bias[columns] * (1 - gain))
                self._ops.low_rank(x[begin:end], a, b, part)


@dataclass
class AdapterLayers:
    """The matrices of a model that adapters have changed so far, by layer and place."""

    rows: ActiveRows = field(default_factory=ActiveRows)
    updates: dict[tuple[int, str], LowRankUpdates] = field(default_factory=dict)
    bytes: dict[int, int] = field(default_factory=dict)
