"""Quantizers: error bounds, extremes, and values that survive being stored."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.errors import ConfigurationError
from deepseek.quant.schemes import quantize


def naive_int4(weight: torch.Tensor) -> torch.Tensor:
    """Minimum to maximum of each group of 32, without any search."""
    groups = weight.view(weight.shape[0], -1, 32)
    low, high = groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True).clamp_min(0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    return (((groups / scale).round() + zero).clamp(0, 15) - zero).mul(scale).view_as(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
def test_int8_is_within_half_a_step(dtype, scale_dtype):
    torch.manual_seed(0)
    weight = (torch.randn(7, 50) * torch.logspace(-3, 2, 7)[:, None]).to(dtype)
    matrix = quantize(weight, 8, scale_dtype=scale_dtype)
    assert (matrix.bits, matrix.group, matrix.minimum, matrix.q.dtype) == (8, 50, None, torch.int8)
    assert matrix.q.abs().max() <= 127
    assert torch.equal(matrix.scale, matrix.scale.to(scale_dtype).float())
    room = 0.5 * matrix.scale + weight.float().abs() * torch.finfo(scale_dtype).eps
    assert ((matrix.dequantize(torch.float32) - weight.float()).abs() <= room * 1.001).all()


def test_int4_zero_points_are_whole_and_scales_storable():
    torch.manual_seed(1)
    weight = torch.randn(33, 96) + torch.linspace(-3, 3, 33)[:, None]  # some rows are all positive or all negative
    matrix = quantize(weight, 4)
    assert (matrix.bits, matrix.group, matrix.q.dtype) == (4, 32, torch.uint8)
    assert matrix.q.max() <= 15
    assert torch.equal(matrix.scale, matrix.scale.half().float())
    zero = matrix.minimum / matrix.scale
    assert torch.equal(zero, zero.round())
    assert zero.min() >= 0
    assert zero.max() <= 15


def test_int4_search_beats_the_plain_range_and_importance_helps_where_it_counts():
    torch.manual_seed(2)
    weight = torch.randn(64, 256)
    importance = torch.rand(256).pow(6)
    plain = (naive_int4(weight) - weight).square()
    searched = (quantize(weight, 4).dequantize(torch.float32) - weight).square()
    weighted = (quantize(weight, 4, importance).dequantize(torch.float32) - weight).square()
    assert searched.sum() < 0.95 * plain.sum()
    assert (weighted * importance).sum() < 0.97 * (searched * importance).sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-9, 3e4, -3e4])
def test_constant_matrices(bits, value):
    weight = torch.full((3, 32), value)
    matrix = quantize(weight, bits)
    result = matrix.dequantize(torch.float32)
    assert torch.isfinite(result).all()
    assert torch.isfinite(matrix.scale).all()
    assert (matrix.scale > 0).all()
    assert torch.allclose(result, weight, rtol=2e-3, atol=1e-6)


def test_an_outlier_is_kept():
    weight = torch.full((1, 64), 0.01)
    weight[0, 5] = 100.0
    assert quantize(weight, 4).dequantize(torch.float32)[0, 5] == pytest.approx(100, rel=0.3)
    assert quantize(weight, 8).dequantize(torch.float32)[0, 5] == pytest.approx(100, rel=1e-2)


def test_rows_do_not_depend_on_each_other():
    torch.manual_seed(3)
    weight = torch.randn(300, 2048)  # several chunks of the search
    whole = quantize(weight, 4)
    part = quantize(weight[130:140], 4)
    assert torch.equal(whole.q[130:140], part.q)
    assert torch.equal(whole.scale[130:140], part.scale)


def test_importance_that_is_zero_somewhere_changes_nothing_into_nan():
    matrix = quantize(torch.randn(4, 64), 4, torch.zeros(64))
    assert torch.isfinite(matrix.dequantize(torch.float32)).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_are_where_their_weights_are(bits):
    """On a GPU everything happens there; tensors without data refuse to meet others as those of a GPU do."""
    matrix = quantize(torch.empty(3, 64, device="meta"), bits)
    assert {matrix.q.device.type, matrix.scale.device.type} == {"meta"}


def test_refusals():
    with pytest.raises(ConfigurationError, match="multiple of 32, not 33"):
        quantize(torch.ones(2, 33), 4)
    with pytest.raises(ConfigurationError, match="not 3"):
        quantize(torch.ones(2, 32), 3)


@given(st.lists(st.floats(-100, 100, width=32), min_size=32, max_size=32), st.sampled_from([4, 8]))
@settings(max_examples=200, deadline=None)
def test_error_is_below_one_step_of_the_range(values, bits):
    weight = torch.tensor([values])
    error = (quantize(weight, bits).dequantize(torch.float32) - weight).square().mean()
    span = max(0.0, float(weight.max())) - min(0.0, float(weight.min()))
    step = span / 15 if bits == 4 else 2 * float(weight.abs().max()) / 254
    assert error <= (0.75 * step) ** 2 + 1e-6
