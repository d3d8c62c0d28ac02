"""Adapters of many rows at once against the reference, and buffers that serve steps they were not made for."""

from __future__ import annotations

import pytest
import torch

from deepseek.kernels import reference
from deepseek.kernels.low_rank import Part
from deepseek.kernels.triton import low_rank as kernels
from deepseek.kernels.triton.low_rank import AdapterTiles, low_rank
from tests.kernels.cases import assert_same, randn
from tests.kernels.low_rank_cases import LOW_RANK, LowRankCase
from tests.kernels.triton.devices import DEVICE


@pytest.mark.parametrize("name", LOW_RANK)
def test_low_rank(name: str) -> None:
    case = LOW_RANK[name]
    x, y, bias, updates = case.inputs_on(DEVICE)
    expected, before = y.clone(), y.clone()
    reference.low_rank(x, expected, bias, updates)
    low_rank(x, y, bias, updates)
    assert_same(y, expected, tolerance=1e-4)
    base = case.rows_without()
    assert torch.equal(y[base], before[base])


@pytest.mark.parametrize("dtype,tolerance", [(torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("name", ["many adapters", "gains beside a bias"])
def test_16_bits(name: str, dtype: torch.dtype, tolerance: float) -> None:
    x, y, bias, updates = LOW_RANK[name].inputs_on(DEVICE, dtype)
    expected = y.clone()
    reference.low_rank(x, expected, bias, updates)
    low_rank(x, y, bias, updates)
    assert_same(y, expected, tolerance=tolerance)


def test_a_row_depends_on_nothing_around_it() -> None:
    case = LOW_RANK["one adapter in several places"]
    x, y, _, updates = case.inputs_on(DEVICE)
    alone = y[9:10].clone()
    low_rank(x, y, None, updates)
    updates.rows.segments, updates.rows.tiles = ((2, 0, 1),), None
    low_rank(x[9:10], alone, None, updates)
    assert torch.equal(alone, y[9:10])


def test_a_broken_row_harms_no_other() -> None:
    case = LOW_RANK["many adapters"]
    x, y, _, updates = case.inputs_on(DEVICE)
    broken, clean = y.clone(), y.clone()
    low_rank(x, clean, None, updates)
    x[3, 5] = float("nan")
    low_rank(x, broken, None, updates)
    assert broken[3, 20:].isnan().any()
    broken[3] = clean[3]
    assert torch.equal(broken, clean)


def test_slices_of_wider_tensors() -> None:
    case = LOW_RANK["parts of a matrix"]
    x, y, _, updates = case.inputs_on(DEVICE)
    wide_x, wide_y = torch.cat([x, x], dim=1), torch.cat([y, y], dim=1)
    low_rank(x, y, None, updates)
    low_rank(wide_x[:, : x.shape[1]], wide_y[:, : y.shape[1]], None, updates)
    assert torch.equal(wide_y[:, : y.shape[1]], y)


STEPS = [
    ((0, 0, 1),),
    ((0, 0, 16), (1, 16, 17), (2, 17, 20)),
    ((2, 0, 1), (0, 1, 2), (2, 2, 19), (1, 19, 20)),
    (),
]


def test_buffers_serve_every_step() -> None:
    """Tiles in memory that stays, as a recording has them, are those of a step of its own."""
    case = LowRankCase(20, 40, 24, {n: (n + 3, ((0, 24),)) for n in range(3)}, ((0, 0, 20),))
    x, y, _, updates = case.inputs_on(DEVICE)
    buffers = AdapterTiles.for_any(20, 3, DEVICE)
    address = buffers.block.data_ptr()
    for segments in STEPS:
        expected, actual = y.clone(), y.clone()
        updates.rows.segments = segments
        reference.low_rank(x, expected, None, updates)
        buffers.fill(segments)
        updates.rows.segments, updates.rows.tiles = ((0, 0, 20),), buffers  # as it was recorded
        low_rank(x, actual, None, updates)
        assert_same(actual, expected, tolerance=1e-4)
    assert buffers.block.data_ptr() == address


@pytest.mark.parametrize("rows,adapters", [(1, 1), (15, 2), (16, 1), (33, 3), (64, 64)])
def test_buffers_hold_the_worst_distribution(rows: int, adapters: int) -> None:
    """As many tiles that are not full as there can be: one row of each adapter but the last, then that one's."""
    own = min(adapters, rows)
    segments = [(number, number, number + 1) for number in range(own - 1)] + [(own - 1, own - 1, rows)]
    buffers = AdapterTiles.for_any(rows, adapters, DEVICE)
    buffers.fill(segments)
    used = [tile for tile in buffers.tiles.tolist() if tile[0] >= 0]
    seen = [row for _, start, stop in used for row in buffers.order[start:stop].tolist()]
    assert sorted(seen) == list(range(rows))


def test_adapters_come_and_go() -> None:
    case = LowRankCase(4, 40, 24, {0: (8, ((0, 24),))}, ((0, 0, 1), (1, 2, 3)))
    x, y, _, updates = case.inputs_on(DEVICE)
    for change in range(3):
        if change == 1:
            updates.add(1, Part(4, randn(5, 40, seed=8).to(DEVICE), randn(12, 5, seed=9).to(DEVICE), None))
        if change == 2:
            updates.remove(0)
        expected, actual = y.clone(), y.clone()
        reference.low_rank(x, expected, None, updates)
        updates.rows.segments = case.segments if change < 2 else ((1, 2, 3),)
        updates.rows.tiles = None
        low_rank(x, actual, None, updates)
        assert_same(actual, expected, tolerance=1e-4)


def test_nothing_is_launched_without_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _, updates = LOW_RANK["one row"].inputs_on(DEVICE)
    updates.rows.segments = ()
    before = y.clone()
    for kernel in ("_shrink_kernel", "_expand_kernel"):
        monkeypatch.setattr(kernels, kernel, None)
    low_rank(x, y, None, updates)
    assert torch.equal(y, before)
