"""Adapters' low-rank updates of a matrix, and the rows of a step that want them: what the op ``low_rank`` is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """What one adapter adds to some outputs of a matrix: ``b @ (a @ x)`` (LoRA: Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        column: the first of these outputs.
        a: [rank, in], contiguous.
        b: [out, rank], contiguous, the scale in it.
        gain: [out], what the matrix's own outputs are multiplied with before their bias (DoRA: Liu et al. 2024,
            arXiv:2402.09353); None for 1.
    """

    column: int
    a: Tensor
    b: Tensor
    gain: Tensor | None


@dataclass
class AdapterRows:
    """The rows of the step under way that have an adapter; one for all layers of a model.

    Attributes:
        segments: (number of the adapter, first row, end), in order.
        tiles: the same as a backend wants it, made by the first layer of a step that asks or given with the step.
    """

    segments: tuple[tuple[int, int, int], ...] = ()
    tiles: Any = None


@dataclass
class LowRankUpdates:
    """The updates of one matrix.

    Attributes:
        rows: which rows have an adapter.
        parts: by the adapters' numbers.
        memo: what a backend made of the parts; forgotten when some are added.
    """

    rows: AdapterRows
    parts: dict[int, list[Part]] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)

    def add(self, number: int, part: Part) -> None:
        self.parts.setdefault(number, []).append(part)
        self.memo.clear()

    def remove(self, number: int) -> None:
        """No step may ask for it any more: what was made of it may stay."""
        self.parts.pop(number, None)
