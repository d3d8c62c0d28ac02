"""Experts as grouped products against the reference, and the plan that cuts rows into tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepseek.kernels import reference
from deepseek.kernels.triton import moe as grouped
from deepseek.kernels.triton.tiles import Tile
from tests.kernels.cases import assert_same, randn
from tests.kernels.triton.devices import DEVICE

SMALL = Tile(16, 16, 32, warps=4, stages=2)
EXPERTS, DIM, INNER = 5, 33, 17

# name -> the experts of each row
CHOICES: dict[str, list[list[int]]] = {
    "one row": [[4, 1]],
    "a tile less one": [[2]] * 15,
    "a tile": [[2]] * 16,
    "a tile and one": [[2]] * 17,
    "experts without rows": [[0, 4], [4, 0], [0, 1]],
    "two busy ones": [[0, 3]] * 33,
    "every expert": [[i % 5, (i + 1 + i % 4) % 5] for i in range(23)],
    "all experts for each row": [[4, 2, 0, 1, 3]] * 7,
    "the same one twice": [[3, 3], [3, 1]],
}


def inputs(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    ids = torch.tensor(CHOICES[name])
    tensors = (
        randn(len(ids), DIM, seed=1, dtype=dtype),
        (randn(EXPERTS, 2 * INNER, DIM, seed=2) * 0.3).to(dtype),
        randn(EXPERTS, DIM, INNER, seed=3, dtype=dtype),
        ids,
        randn(*ids.shape, seed=5),
    )
    x, gate_up, down, ids, weights = (tensor.to(DEVICE) for tensor in tensors)
    return x, gate_up, down, ids, weights


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("name", CHOICES)
def test_moe(name: str, kind: str) -> None:
    arguments = inputs(name)
    before = arguments[0].clone()
    assert_same(grouped.moe(*arguments, kind, tile=SMALL), reference.moe(*arguments, kind), tolerance=1e-4)
    assert torch.equal(arguments[0], before)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_moe_in_16_bits(dtype: torch.dtype, tolerance: float) -> None:
    arguments = inputs("every expert", dtype)
    actual, expected = grouped.moe(*arguments, "silu"), reference.moe(*arguments, "silu")
    assert actual.dtype == dtype
    assert (actual.float() - expected.float()).norm() < tolerance * expected.float().norm()


@pytest.mark.parametrize("rows", [40, 200, 400])
def test_tiles_chosen_by_shape(rows: int) -> None:
    x, weights = randn(rows, 24, seed=1).to(DEVICE), randn(rows, 1, seed=5).to(DEVICE)
    gate_up, down = randn(2, 16, 24, seed=2).to(DEVICE), randn(2, 24, 8, seed=3).to(DEVICE)
    ids = (torch.arange(rows) % 2)[:, None].to(DEVICE)
    arguments = (x, gate_up, down, ids, weights, "silu")
    assert_same(grouped.moe(*arguments), reference.moe(*arguments), tolerance=1e-4)


def test_a_row_depends_on_nothing_around_it() -> None:
    x, gate_up, down, ids, weights = inputs("every expert")
    whole = grouped.moe(x, gate_up, down, ids, weights, "silu", tile=SMALL)
    for row in (0, 7, 22):
        part = slice(row, row + 1)
        alone = grouped.moe(x[part], gate_up, down, ids[part], weights[part], "silu", tile=SMALL)
        assert torch.equal(alone, whole[part])


def test_a_broken_row_harms_no_other() -> None:
    x, gate_up, down, ids, weights = inputs("two busy ones")
    clean = grouped.moe(x, gate_up, down, ids, weights, "silu", tile=SMALL)
    x[3, 4] = float("nan")
    actual = grouped.moe(x, gate_up, down, ids, weights, "silu", tile=SMALL)
    assert actual[3].isnan().all()
    actual[3] = clean[3]
    assert torch.equal(actual, clean)


def test_slices_of_wider_tensors() -> None:
    x, gate_up, down, ids, weights = inputs("every expert")
    expected = reference.moe(x, gate_up, down, ids, weights, "silu")
    x, ids, weights = (torch.cat([t, t], dim=1)[:, : t.shape[1]] for t in (x, ids, weights))
    assert_same(grouped.moe(x, gate_up, down, ids, weights, "silu", tile=SMALL), expected, tolerance=1e-4)


@pytest.mark.parametrize("tile_rows", [1, 2, 16])
@pytest.mark.parametrize("name", CHOICES)
def test_every_pair_is_in_one_tile_of_its_expert(name: str, tile_rows: int) -> None:
    ids = torch.tensor(CHOICES[name])
    own = grouped.plan(ids.to(DEVICE), EXPERTS, tile_rows)
    seen: list[int] = []
    for expert, start, stop in zip(own.expert.tolist(), own.start.tolist(), own.stop.tolist(), strict=True):
        if expert == EXPERTS:
            continue
        pairs = own.order[start : min(stop, start + tile_rows)].tolist()
        assert pairs, "a tile without rows would be computed for nothing"
        assert {int(ids.flatten()[pair]) for pair in pairs} == {expert}
        seen += pairs
    assert sorted(seen) == list(range(ids.numel()))


def test_no_rows() -> None:
    x, gate_up, down, ids, weights = inputs("one row")
    assert grouped.moe(x[:0], gate_up, down, ids[:0], weights[:0], "silu").shape == (0, DIM)


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown activation 'relu'"):
        grouped.moe(*inputs("one row"), "relu")
