"""Rotary embedding in place, against the reference."""

from __future__ import annotations

import pytest
import torch

from deepseek.kernels import reference
from deepseek.kernels.triton.rotary import rotary
from tests.kernels.cases import assert_same, randn
from tests.kernels.triton.devices import DEVICE

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("heads,dim,turned", [(1, 2, 2), (3, 8, 8), (4, 12, 8), (33, 64, 62), (2, 96, 96)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(rows: int, heads: int, dim: int, turned: int, interleaved: bool, dtype: torch.dtype) -> None:
    whole = randn(rows, heads + 2, dim, seed=1, dtype=dtype).to(DEVICE)  # heads inside a wider projection
    angles = randn(rows, turned // 2, seed=2).to(DEVICE) * 10
    expected = reference.rotary(whole[:, 1:-1], angles.cos(), angles.sin(), interleaved)
    others = whole[:, [0, -1]].clone()
    actual = rotary(whole[:, 1:-1], angles.cos(), angles.sin(), interleaved)
    assert_same(actual, expected, tolerance=TOLERANCE[dtype])
    assert torch.equal(whole[:, [0, -1]], others)
    assert actual.data_ptr() == whole[:, 1:-1].data_ptr()


def test_tables_that_lie_side_by_side() -> None:
    x, table = randn(3, 2, 8, seed=1).to(DEVICE), randn(3, 8, seed=2).to(DEVICE)
    cos, sin = table.chunk(2, dim=1)
    assert_same(rotary(x.clone(), cos, sin), reference.rotary(x, cos, sin))


def test_no_rows() -> None:
    angles = torch.empty(0, 4, device=DEVICE)
    assert rotary(torch.empty(0, 2, 8, device=DEVICE), angles, angles).shape == (0, 2, 8)
