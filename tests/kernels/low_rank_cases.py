"""Batches with adapters, for the op ``low_rank`` of every backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek.kernels.low_rank import AdapterRows, LowRankUpdates, Part
from tests.kernels.cases import randn

Place = tuple[int, int]  # first output, outputs


@dataclass(frozen=True)
class LowRankCase:
    """``adapters``: by number the rank and the places of each; rows of ``segments`` have them. ``gains``: numbers of
    those with a gain."""

    rows: int
    inputs: int
    outputs: int
    adapters: dict[int, tuple[int, tuple[Place, ...]]]
    segments: tuple[tuple[int, int, int], ...]
    gains: tuple[int, ...] = ()
    bias: bool = False

    def inputs_on(self, device: torch.device, dtype: torch.dtype = torch.float32) -> _Inputs:
        updates = LowRankUpdates(AdapterRows(self.segments))
        for number, (rank, places) in self.adapters.items():
            for column, outs in places:
                a, b = (
                    randn(*shape, seed=7 * number + column + i) * shape[1] ** -0.5
                    for i, shape in enumerate([(rank, self.inputs), (outs, rank)])
                )
                gain = randn(outs, seed=number) if number in self.gains else None
                parts = (None if part is None else part.to(device, dtype) for part in (a, b, gain))
                updates.add(number, Part(column, *parts))  # type: ignore[arg-type]
        x, y = randn(self.rows, self.inputs, seed=1, dtype=dtype), randn(self.rows, self.outputs, seed=2, dtype=dtype)
        bias = randn(self.outputs, seed=3, dtype=dtype).to(device) if self.bias else None
        return x.to(device), y.to(device), bias, updates

    def inputs_here(self) -> _Inputs:
        return self.inputs_on(torch.device("cpu"))

    def rows_without(self) -> list[int]:
        own = {row for number, start, stop in self.segments if number in self.adapters for row in range(start, stop)}
        return [row for row in range(self.rows) if row not in own]


_Inputs = tuple[Tensor, Tensor, Tensor | None, LowRankUpdates]

_QKV = ((0, 40), (40, 20), (60, 20))

LOW_RANK = {
    "one row": LowRankCase(1, 48, 97, {0: (4, ((0, 97),))}, ((0, 0, 1),)),
    "the smallest": LowRankCase(2, 1, 1, {0: (1, ((0, 1),))}, ((0, 1, 2),)),
    "a tile less one": LowRankCase(15, 33, 20, {1: (16, ((0, 20),))}, ((1, 0, 15),)),
    "a tile": LowRankCase(16, 33, 20, {1: (16, ((0, 20),))}, ((1, 0, 16),)),
    "a tile and one": LowRankCase(17, 33, 20, {1: (16, ((0, 20),))}, ((1, 0, 17),)),
    "a large tile and one": LowRankCase(70, 40, 20, {0: (8, ((0, 20),))}, ((0, 3, 68),)),
    "parts of a matrix": LowRankCase(9, 64, 80, {0: (7, _QKV), 1: (15, _QKV[::2])}, ((0, 0, 4), (1, 5, 9))),
    "many adapters": LowRankCase(
        8, 64, 80, {n: (n + 1, _QKV[n % 3 :]) for n in range(5)}, ((3, 0, 1), (1, 1, 2), (4, 3, 5), (0, 6, 7))
    ),
    "one adapter in several places": LowRankCase(
        20, 64, 40, {0: (8, ((0, 40),)), 2: (17, ((0, 40),))}, ((0, 0, 3), (2, 3, 4), (0, 6, 8), (2, 8, 20))
    ),
    "an adapter of other matrices": LowRankCase(4, 64, 40, {1: (8, ((0, 40),))}, ((0, 0, 1), (1, 1, 2), (5, 2, 3))),
    "high ranks": LowRankCase(3, 64, 200, {0: (64, ((0, 200),)), 1: (65, ((0, 200),))}, ((0, 0, 1), (1, 2, 3))),
    "deep": LowRankCase(2, 1030, 33, {0: (8, ((0, 33),))}, ((0, 0, 2),)),
    "gains": LowRankCase(6, 64, 80, {0: (8, _QKV), 1: (5, _QKV[1:])}, ((0, 0, 2), (1, 3, 5)), gains=(0,)),
    "gains beside a bias": LowRankCase(
        6, 64, 80, {0: (8, _QKV), 1: (5, _QKV[1:])}, ((0, 0, 2), (1, 3, 5)), gains=(1,), bias=True
    ),
}
