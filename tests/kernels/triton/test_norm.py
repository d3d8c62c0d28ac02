"""Norms alone, behind an addition, and quantized, against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepseek.kernels import reference
from deepseek.kernels.triton import norm
from deepseek.kernels.triton.quantize import Int8Rows, quantize
from tests.kernels.cases import assert_same, randn
from tests.kernels.triton.devices import DEVICE

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
NAN, INF = float("nan"), float("inf")


def assert_quantized(actual: Int8Rows, expected: Tensor) -> None:
    """Largest magnitude 127, every value within half a step of fp32 ``expected`` [T, dim], and a little for
    rounding."""
    assert actual.q.dtype == torch.int8
    assert_same(actual.scale, expected.abs().amax(dim=1) / 127)
    steps = expected / torch.where(actual.scale > 0, actual.scale, 1.0)[:, None]
    assert (actual.q.float() - steps).abs().max() <= 0.5 + 1e-3
    assert int(actual.q.min()) >= -127


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (3, 64), (17, 65), (33, 576), (2, 1025), (4, 6, 16), (2, 3, 2, 8)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = randn(*shape, seed=1, dtype=dtype).to(DEVICE), randn(shape[-1], seed=2, dtype=dtype).to(DEVICE)
    before = x.clone()
    assert_same(norm.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), tolerance=TOLERANCE[dtype])
    assert torch.equal(x, before)


@pytest.mark.parametrize("rows", [1, 15, 16, 17])
def test_rms_norm_of_some_heads_of_a_projection(rows: int) -> None:
    heads = randn(rows, 7, 24, seed=1).to(DEVICE)[:, 2:5]
    weight = randn(24, seed=2).to(DEVICE)
    assert_same(norm.rms_norm(heads, weight, 1e-6), reference.rms_norm(heads, weight, 1e-6))


@pytest.mark.parametrize("magnitude", [0.0, 1e-20, 1e-6, 1e4, 1e15, 1e30])
def test_rms_norm_of_extremes(magnitude: float) -> None:
    x, weight = (randn(3, 40) * magnitude).to(DEVICE), randn(40, seed=2).to(DEVICE)
    assert_same(norm.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))


def test_nan_and_infinity_stay_in_their_rows() -> None:
    x, weight = randn(4, 16).to(DEVICE), randn(16, seed=2).to(DEVICE)
    x[1, 3], x[2, 5] = NAN, INF
    assert_same(norm.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    quantized = norm.rms_norm_int8(x, weight, 1e-5).dequantize()
    assert quantized[1:3].isnan().all()
    assert quantized[[0, 3]].isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows,dim", [(1, 24), (3, 63), (2, 1025)])
def test_add_rms_norm(rows: int, dim: int, dtype: torch.dtype) -> None:
    shapes = [(rows, dim), (rows, dim), (dim,)]
    x, residual, weight = (randn(*s, seed=i, dtype=dtype).to(DEVICE) for i, s in enumerate(shapes))
    expected, total = reference.add_rms_norm(x, residual, weight, 1e-6)
    normed, added = norm.add_rms_norm(x, residual, weight, 1e-6)
    # The interpreter cuts off what bf16 has no bits for, where the compiler rounds.
    assert_same(added, total, tolerance=1e-2 if dtype == torch.bfloat16 and DEVICE.type == "cpu" else 1e-12)
    assert added.data_ptr() == residual.data_ptr()
    assert_same(normed, expected, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(1, 24), (17, 64), (3, 1025)])
def test_quantized_norms(shape: tuple[int, int]) -> None:
    x, residual, weight = (randn(*s, seed=i).to(DEVICE) for i, s in enumerate([shape, shape, shape[1:]]))
    assert_quantized(norm.rms_norm_int8(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))
    expected, total = reference.add_rms_norm(x, residual, weight, 1e-6)
    quantized, added = norm.add_rms_norm_int8(x, residual, weight, 1e-6)
    assert torch.equal(added, total)
    assert_quantized(quantized, expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 1), (15, 64), (17, 65), (2, 1024)])
def test_quantize(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = randn(*shape, seed=1, dtype=dtype).to(DEVICE) * 3
    x[0] = 0.0
    actual = quantize(x)
    assert_quantized(actual, x.float())
    assert not actual.q[0].any()


def test_quantize_rounds_ties_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 126.5]]).to(DEVICE)
    assert quantize(x).q.tolist() == [[127, 0, 2, 2, 0, -2, -126, 126]]


def test_no_rows() -> None:
    x, weight = torch.empty(0, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    assert norm.rms_norm(x, weight, 1e-6).shape == (0, 8)
    assert quantize(x).q.shape == (0, 8)
