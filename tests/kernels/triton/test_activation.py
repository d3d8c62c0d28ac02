"""Gated activations, plain and quantized, against the reference."""

from __future__ import annotations

import pytest
import torch

from deepseek.kernels import reference
from deepseek.kernels.triton.activation import gated_activation, gated_activation_int8
from tests.kernels.cases import assert_same, randn
from tests.kernels.triton.devices import DEVICE
from tests.kernels.triton.test_norm import TOLERANCE, assert_quantized


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows,dim", [(1, 1), (3, 17), (2, 1023), (2, 1024), (1, 1025)])
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_gated_activation(rows: int, dim: int, kind: str, dtype: torch.dtype) -> None:
    x = randn(rows, 2 * dim, seed=1, dtype=dtype).to(DEVICE) * 3
    assert_same(gated_activation(x, kind), reference.gated_activation(x, kind), tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_extremes(kind: str) -> None:
    gate = torch.tensor([[0.0, -0.0, 1e-30, -80.0, 80.0, 1e4, -1e4, float("nan"), float("inf"), -float("inf")]])
    x = torch.cat([gate, torch.ones_like(gate)], dim=1).to(DEVICE)
    assert_same(gated_activation(x, kind), reference.gated_activation(x, kind))


@pytest.mark.parametrize("dim", [1, 33, 4095, 4097])
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_quantized(dim: int, kind: str) -> None:
    x = randn(3, 2 * dim, seed=1).to(DEVICE) * 3
    assert_quantized(gated_activation_int8(x, kind), reference.gated_activation(x, kind))


def test_a_slice_of_wider_rows() -> None:
    x = randn(3, 40, seed=1).to(DEVICE)[:, 4:34]
    assert_same(gated_activation(x, "silu"), reference.gated_activation(x, "silu"))
    assert_quantized(gated_activation_int8(x, "silu"), reference.gated_activation(x, "silu"))


def test_a_broken_row_harms_no_other() -> None:
    x = randn(3, 66, seed=1).to(DEVICE)
    x[1, 40] = float("inf")
    values = gated_activation_int8(x, "silu").dequantize()
    assert values[1].isnan().all()
    assert values[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kind", ["relu", ""])
def test_unknown_kind(kind: str) -> None:
    for function in (gated_activation, gated_activation_int8):
        with pytest.raises(ValueError, match="unknown activation"):
            function(randn(1, 4).to(DEVICE), kind)


def test_no_rows() -> None:
    assert gated_activation(torch.empty(0, 8, device=DEVICE), "silu").shape == (0, 4)
